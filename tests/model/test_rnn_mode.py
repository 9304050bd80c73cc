"""GPT mode, RNN mode, states and document starts tell the same story."""

import itertools

import pytest
import torch
from rwkv_cases import ARCHS, small_model, tokens

from rwkvkit.errors import UsageError
from rwkvkit.model.state import State

each_arch = pytest.mark.parametrize("arch", ARCHS)
each_start = pytest.mark.parametrize("time_state", [False, True])


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@each_arch
@each_start
@pytest.mark.parametrize(
    "pieces", [[1] * 40, [40], [33, *[1] * 7], [7, 1, 1, 20, 11]], ids=["rnn", "gpt", "both", "any"]
)
def test_any_split_gives_the_same_logits(arch, time_state, pieces):
    model = small_model(arch, time_state=time_state)
    idx = tokens(2, 40)
    with torch.no_grad():
        whole = model(idx)
        state, parts = model.zero_state(2), []
        for piece in idx.split(pieces, 1):
            logits, state = model(piece, state=state)
            parts.append(logits)
    close(torch.cat(parts, 1), whole)


@each_arch
def test_rnn_mode_in_float32(arch):
    model = small_model(arch, dtype=torch.float32)
    idx = tokens(2, 40)
    with torch.no_grad():
        whole = model(idx)
        state, parts = model.zero_state(2), []
        for token in idx.split(1, 1):
            logits, state = model(token, state=state)
            parts.append(logits)
    assert (torch.cat(parts, 1) - whole).abs().max() < 2e-5 * whole.abs().max()


@each_arch
@each_start
@pytest.mark.parametrize("impl", ["naive", "chunked"])
def test_resets_equal_separate_documents(arch, time_state, impl):
    model = small_model(arch, time_state=time_state, impl=impl)
    idx = tokens(1, 50)
    cuts = [0, 3, 4, 32, 50]
    resets = torch.zeros(1, 50, dtype=torch.bool)
    resets[0, cuts[:-1]] = True
    weights = torch.randn(1, 50, 50, generator=torch.Generator().manual_seed(0)).double()

    def gradients(logits):
        model.zero_grad()
        (logits * weights).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    packed = model(idx, resets=resets)
    separate = torch.cat([model(idx[:, a:b]) for a, b in itertools.pairwise(cuts)], 1)
    close(packed, separate)
    got, want = gradients(packed), gradients(separate)
    assert got.keys() == want.keys()
    for name in want:
        close(got[name], want[name])


@each_arch
def test_a_tuned_state_is_stored_as_head_value_key(arch):
    """x070 computes with [value, key], the others with [key, value]; files hold the one form."""
    tuned, plain = small_model(arch, time_state=True), small_model(arch)
    plain.load_state_dict(tuned.state_dict(), strict=False)
    stored = torch.stack([block.att.time_state for block in tuned.blocks])
    shift, _, _ = state = plain.zero_state(1)
    assert shift.count_nonzero() == 0
    wkv = stored if arch == "x070" else stored.mT
    idx = tokens(1, 9)
    with torch.no_grad():
        continued, _ = plain(idx, state=state._replace(wkv=wkv[:, None]))
        close(tuned(idx), continued)


@each_arch
def test_a_reset_discards_what_the_state_remembers(arch):
    model = small_model(arch)
    first, second = tokens(2, 10, seed=1), tokens(2, 10, seed=2)
    resets = torch.zeros(2, 10, dtype=torch.bool)
    resets[:, 0] = True
    with torch.no_grad():
        _, state = model(first, state=model.zero_state(2))
        continued, _ = model(second, state=state, resets=resets)
        close(continued, model(second))
        without, _ = model(second, state=state)
    assert not torch.allclose(without, continued)


@each_arch
def test_the_state_carries_gradients(arch):
    model = small_model(arch)
    state = State(*(x.requires_grad_() for x in model.zero_state(2)))
    logits, after = model(tokens(2, 5), state=state)
    grads = torch.autograd.grad(logits.sum() + sum(x.sum() for x in after), list(state))
    assert all(g.count_nonzero() > 0 for g in grads)


@each_arch
def test_shapes_of_the_state(arch):
    model = small_model(arch, dtype=torch.bfloat16, n_layer=3)
    _, state = model(tokens(2, 5), state=model.zero_state(2))
    assert [tuple(x.shape) for x in state] == [(3, 2, 32), (3, 2, 2, 16, 16), (3, 2, 32)]
    assert [x.dtype for x in state] == [torch.bfloat16, torch.float32, torch.bfloat16]


@each_arch
def test_bfloat16_is_near_float32(arch):
    precise = small_model(arch, dtype=torch.float32)
    rounded = small_model(arch, dtype=torch.bfloat16)
    idx = tokens(2, 40)
    with torch.no_grad():
        want, got = precise(idx), rounded(idx)
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).norm() < 0.03 * want.norm()


@each_arch
def test_grad_cp_changes_no_gradient(arch):
    idx = tokens(2, 20)
    grads = []
    for grad_cp in (False, True):
        model = small_model(arch, grad_cp=grad_cp)
        model(idx).square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]), name


@pytest.mark.parametrize("arch", ["x052", "x060"])
def test_dropout_acts_in_training_only(arch):
    model = small_model(arch, dropout=0.5)
    plain = small_model(arch)
    idx = tokens(2, 20)
    with torch.no_grad():
        torch.manual_seed(0)
        dropped = model(idx)
        model.eval()
        assert torch.equal(model(idx), plain(idx))
    assert not torch.allclose(dropped, plain(idx))


@pytest.mark.parametrize("arch", ["x052", "x060"])
def test_where_dropout_stands(arch, monkeypatch):
    """After the embedding and after each sum, as in the reference."""
    model, idx, seen = small_model(arch, dropout=0.5), tokens(1, 5), []

    def drop(x, p, training, inplace):
        seen.append(x)
        return 2 * x + p

    monkeypatch.setattr(torch.nn.functional, "dropout", drop)
    with torch.no_grad():
        model(idx)
        x = drop(model.emb(idx), 0.5, True, False)
        for block in model.blocks:
            x = x if block.ln0 is None else block.ln0(x)
            x = drop(x + block.att(block.ln1(x), None, None, None, None)[0], 0.5, True, False)
            x = drop(x + block.ffn(block.ln2(x), None, None), 0.5, True, False)
    assert len(seen) == 10
    for got, want in zip(seen[:5], seen[5:], strict=True):
        close(got, want)


@each_arch
def test_head_qk(arch):
    model = small_model(arch, head_qk=8)
    idx = tokens(2, 12)
    logits = model(idx).detach()
    seen = {}
    handle = model.ln_out.register_forward_hook(lambda *args: seen.update(x=args[2].detach()))
    model(idx)
    handle.remove()
    x = seen["x"]
    fit = torch.tril((x @ model.head_q.weight.T) @ (x @ model.head_k.weight.T).mT / 8)
    one_hot = torch.nn.functional.one_hot(idx, 50).double()
    close(logits, (model.head(x) + fit @ one_hot).detach())


@each_arch
def test_head_qk_stays_inside_a_document(arch):
    model = small_model(arch, head_qk=8)
    idx = tokens(1, 12)
    resets = torch.zeros(1, 12, dtype=torch.bool)
    resets[0, 5] = True
    close(model(idx, resets=resets), torch.cat([model(idx[:, :5]), model(idx[:, 5:])], 1))


def test_head_qk_refuses_a_state():
    model = small_model("x060", head_qk=8)
    with pytest.raises(UsageError, match="give the whole text without a state"):
        model(tokens(1, 3), state=model.zero_state(1))
