import pytest
import torch
from rwkv_cases import ARCHS, noisy_weights, small_config

from rwkvkit.errors import DataError, RecipeError
from rwkvkit.model.checkpoint import build_model
from rwkvkit.model.grow import grow
from rwkvkit.model.init import init_table, init_weights

each_arch = pytest.mark.parametrize("arch", ARCHS)


@each_arch
def test_the_seed_decides(arch):
    config = small_config(arch)
    one, again, other = init_weights(config, 1), init_weights(config, 1), init_weights(config, 2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["emb.weight"], other["emb.weight"])
    assert {tensor.dtype for tensor in one.values()} == {torch.float32}


@each_arch
def test_a_tensor_does_not_depend_on_the_others(arch):
    short = init_weights(small_config(arch), 1)
    long = init_weights(small_config(arch, n_layer=5, head_qk=8), 1)
    assert torch.equal(short["head.weight"], long["head.weight"])
    assert torch.equal(short["blocks.1.att.key.weight"], long["blocks.1.att.key.weight"])


@each_arch
def test_no_two_tensors_that_are_drawn_are_alike(arch):
    config = small_config(arch)
    weights = init_weights(config, 1)
    rules = ("orthogonal", "uniform")
    drawn = [row.name for row in init_table(config) if row.rule.startswith(rules)]
    assert len(drawn) > 10
    assert len({weights[name].numpy().tobytes() for name in drawn}) == len(drawn)


@each_arch
def test_a_single_layer_has_no_division_by_zero(arch):
    weights = init_weights(small_config(arch, n_layer=1), 1)
    assert all(tensor.isfinite().all() for tensor in weights.values())


def values(arch, layer, layers, n, width, size):
    """What channel n starts with, by the reference's formulas."""
    r01, r10 = layer / (layers - 1), 1 - layer / layers
    d, ramp = n / width, n / (width - 1)
    lin, t = ramp - 0.5, (n % size - (size - 1) / 2) / ((size - 1) / 2)
    z = t * abs(t)
    decay = {
        "att.time_decay": -6 + 5 * ramp ** (0.7 + 1.3 * r01),
        "att.time_faaaa": r01 * (1 - ramp) + 0.1 * ((n + 1) % 3 - 1),
    }
    own = {
        "x052": {
            **decay,
            **dict.fromkeys(["att.time_mix_k", "ffn.time_mix_k", "ffn.time_mix_r"], d**r10),
            **dict.fromkeys(["att.time_mix_r", "att.time_mix_g"], d ** (0.5 * r10)),
            "att.time_mix_v": d**r10 + 0.3 * r01,
        },
        "x060": {
            **decay,
            **dict.fromkeys([f"att.time_maa_{x}" for x in "xwk"], 1 - d**r10),
            **dict.fromkeys([f"att.time_maa_{x}" for x in "rg"], 1 - d ** (0.5 * r10)),
            **dict.fromkeys([f"ffn.time_maa_{x}" for x in "kr"], 1 - d ** (r10**3)),
            "att.time_maa_v": 1 - (d**r10 + 0.3 * r01),
        },
        "x070": {
            **dict.fromkeys(["att.x_r", "att.x_g"], 1 - d ** (0.2 * r10)),
            **dict.fromkeys(["att.x_w", "att.x_a"], 1 - d ** (0.9 * r10)),
            **dict.fromkeys(["att.x_k", "att.x_v"], 1 - d ** (0.7 * r10)),
            "ffn.x_k": 1 - d ** (r10**4),
            "att.w0": -6 + 6 * ramp ** (1 + r01**0.3) + 0.5 + 2.5 * z,
            "att.a0": -0.19 + 0.3 * z + 0.4 * lin,
            "att.v0": 0.73 - 0.4 * lin,
            "att.k_k": 0.71 - 0.1 * lin,
            "att.k_a": 1.02,
            "att.r_k": -0.04,
        },
    }
    return {**own[arch], "att.ln_x.weight": ((1 + layer) / layers) ** 0.7}


@each_arch
@pytest.mark.parametrize(("size", "width"), [(7, 35), (128, 256)])
def test_vectors_of_every_layer(arch, size, width):
    """The golden files have two layers and heads of 64: many exponents are 0 or 1 there."""
    weights = init_weights(small_config(arch, n_layer=5, n_embd=width, head_size=size), 1)
    for layer in range(5):
        channels = [values(arch, layer, 5, n, width, size) for n in range(width)]
        for name in channels[0]:
            if (layer, name) != (0, "att.v0"):
                got = weights[f"blocks.{layer}.{name}"].flatten()
                want = torch.tensor([channel[name] for channel in channels])
                torch.testing.assert_close(got, want, rtol=0, atol=1e-6, msg=f"{layer} {name}")


def test_gain_of_factors_and_of_head_qk():
    weights = init_weights(small_config("x070", d_gate_lora=128, head_qk=8), 1)
    tall, wide = weights["blocks.0.att.g2"], weights["blocks.0.att.w2"]
    torch.testing.assert_close(tall.T @ tall, 0.04 * torch.eye(32), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(wide @ wide.T, 0.01 * torch.eye(32), rtol=1e-4, atol=1e-5)
    key = weights["head_k.weight"]
    torch.testing.assert_close(key @ key.T, 0.01 * torch.eye(8), rtol=1e-4, atol=1e-5)
    assert weights["head_q.weight"].count_nonzero() == 0


def test_gain_of_the_head():
    tall = init_weights(small_config("x070", vocab_size=512), 1)["head.weight"]
    torch.testing.assert_close(tall.T @ tall, 4 * torch.eye(32), rtol=1e-4, atol=1e-4)
    wide = init_weights(small_config("x070", vocab_size=8), 1)["head.weight"]
    torch.testing.assert_close(wide @ wide.T, 0.25 * torch.eye(8), rtol=1e-4, atol=1e-4)


@each_arch
def test_table(arch):
    config = small_config(arch, time_state=True, head_qk=8)
    weights = init_weights(config, 0)
    rows = init_table(config)
    assert [row.name for row in rows] == list(weights)
    assert rows == init_table(weights)
    by_name = {row.name: row for row in rows}
    assert by_name["emb.weight"].rule == "uniform ±1e-4"
    assert by_name["emb.weight"].shape == (50, 32)
    assert by_name["blocks.0.att.output.weight"][2:] == ("0", 0.0, 0.0)
    assert by_name["ln_out.weight"].mean == 1.0


def test_the_table_knows_every_name():
    with pytest.raises(DataError, match=r"blocks\.0\.att\.wrong is no tensor"):
        init_table({"blocks.0.att.wrong": torch.zeros(1)})


@each_arch
def test_growing_gives_a_model_that_runs(arch):
    small = noisy_weights(small_config(arch))
    config = small_config(arch, n_layer=3, n_embd=64)
    grown = grow(small, config, seed=5)
    fresh = init_weights(config, 5)
    model = build_model(config, grown)
    assert model(torch.zeros(1, 3, dtype=torch.long)).isfinite().all()
    name = "blocks.2.att.key.weight"
    assert torch.equal(grown[name], fresh[name]), "a further layer is fresh"
    name = "blocks.1.att.key.weight"
    assert not torch.equal(grown[name], fresh[name])


def test_growing_to_the_same_shape_keeps_everything():
    config = small_config("x070")
    small = noisy_weights(config)
    grown = grow(small, config, seed=5)
    assert all(torch.equal(grown[name], small[name]) for name in small)


def test_growing_interpolates_linearly():
    small = noisy_weights(small_config("x052", n_embd=32))
    grown = grow(small, small_config("x052", n_embd=48), seed=5)
    old, new = small["ln_out.weight"], grown["ln_out.weight"]
    for i in range(48):
        place = i * 32 / 48
        low = int(place)
        high = min(low + 1, 31)
        want = old[low] + (old[high] - old[low]) * (place - low)
        torch.testing.assert_close(new[i], want)
    assert grown["blocks.0.att.key.weight"].shape == (48, 48)
    assert grown["emb.weight"].shape == (50, 48)
    column = grown["emb.weight"][7]
    torch.testing.assert_close(column[3], small["emb.weight"][7, 2])


def test_as_many_elements_are_reshaped():
    small = noisy_weights(small_config("x052", head_size=16))
    grown = grow(small, small_config("x052", head_size=8), seed=5)
    name = "blocks.0.att.time_decay"
    assert torch.equal(grown[name], small[name].reshape(4, 8))


def test_another_architecture_cannot_be_grown():
    with pytest.raises(RecipeError, match="cannot grow an x052 checkpoint into an x070 model"):
        grow(noisy_weights(small_config("x052")), small_config("x070"), seed=0)


def test_what_cannot_be_grown_is_named():
    with pytest.raises(DataError, match=r"small\.pth: no RWKV checkpoint"):
        grow({"wte": torch.zeros(2)}, small_config("x070"), seed=0, where="small.pth")
