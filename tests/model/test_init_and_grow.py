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
