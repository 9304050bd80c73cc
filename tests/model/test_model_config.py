import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError
from rwkv_cases import ARCHS, noisy_weights, small_config

from rwkvkit.errors import DataError, RecipeError
from rwkvkit.model.config import ModelConfig, config_from_state_dict, config_of_size, sizes

PUBLISHED = {
    "0.1b": (12, 768),
    "0.4b": (24, 1024),
    "1.5b": (24, 2048),
    "3b": (32, 2560),
    "7b": (32, 4096),
}


@pytest.mark.parametrize("arch", ARCHS)
def test_published_sizes(arch):
    for size, (n_layer, n_embd) in PUBLISHED.items():
        config = config_of_size(f"{arch}-{size}")
        assert (config.arch, config.n_layer, config.n_embd) == (arch, n_layer, n_embd)
        assert (config.vocab_size, config.head_size) == (65536, 64)
    assert len(sizes()) == len(PUBLISHED) * len(ARCHS)


def test_derived_widths():
    assert config_of_size("x052-0.1b").dim_ffn == 2688
    assert config_of_size("x060-1.5b").dim_ffn == 7168
    assert config_of_size("x070-0.1b").dim_ffn == 3072
    x060 = config_of_size("x060-7b")
    assert (x060.d_mix_lora, x060.d_decay_lora) == (32, 64)


@pytest.mark.parametrize(
    ("size", "ranks"), [("x070-0.1b", (64, 64, 32, 128)), ("x070-1.5b", (128, 128, 64, 224))]
)
def test_lora_ranks_of_a_new_x070(size, ranks):
    config = config_of_size(size)
    got = (config.d_decay_lora, config.d_aaa_lora, config.d_mv_lora, config.d_gate_lora)
    assert got == ranks


def test_settings_win_over_the_size():
    config = config_of_size("x070-0.1b", n_layer=3, d_gate_lora=96)
    assert (config.n_layer, config.n_embd, config.d_gate_lora) == (3, 768, 96)


def test_an_unknown_size_suggests_a_near_one():
    with pytest.raises(RecipeError, match=r"did you mean 'x070-0.1b'\? known: x052-0.1b"):
        config_of_size("x070-01b")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_embd": 100}, "n_embd 100 is not a multiple of head_size 16"),
        ({"dropout": 0.1}, "x070 has no dropout"),
        ({"d_mix_lora": 8}, "x070 has no d_mix_lora"),
        ({"n_layer": 0}, "greater than 0"),
        ({"n_layers": 2}, "not permitted"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValidationError, match=message):
        small_config("x070", **settings)


def test_a_wrong_setting_beside_a_size_is_a_recipe_error():
    with pytest.raises(RecipeError, match="x070 has no dropout") as caught:
        config_of_size("x070-0.1b", dropout=0.5)
    assert "leave it out" in caught.value.hint


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_layer": 3, "dim_ffn": 40, "head_size": 8},
        {"head_qk": 16},
        {"time_state": True, "vocab_size": 77},
    ],
)
def test_read_off_a_checkpoint(arch, settings):
    config = small_config(arch, **settings)
    assert config_from_state_dict(noisy_weights(config)) == config


def test_ranks_are_read_off_a_checkpoint():
    x060 = small_config("x060", d_mix_lora=8, d_decay_lora=12)
    assert config_from_state_dict(noisy_weights(x060)) == x060
    x070 = small_config("x070", d_decay_lora=4, d_aaa_lora=5, d_mv_lora=6, d_gate_lora=7)
    assert config_from_state_dict(noisy_weights(x070)) == x070


def test_what_is_no_model():
    with pytest.raises(DataError, match="no RWKV checkpoint") as caught:
        config_from_state_dict({"transformer.wte.weight": torch.zeros(2, 2)}, "gpt.pth")
    assert caught.value.where == "gpt.pth"
    states = {"blocks.0.att.time_state": torch.zeros(2, 4, 4)}
    with pytest.raises(DataError, match="merge it into the base checkpoint"):
        config_from_state_dict(states)
    rwkv4 = {"blocks.0.att.time_decay": torch.zeros(64)}
    with pytest.raises(DataError, match="supported are x052"):
        config_from_state_dict(rwkv4)
    odd = {**noisy_weights(small_config("x060")), "emb.weight": torch.zeros(50, 33)}
    with pytest.raises(DataError, match="no usable x060 model: n_embd 33 is not") as caught:
        config_from_state_dict(odd)
    assert "may be damaged" in caught.value.hint
    cut = noisy_weights(small_config("x060"))
    del cut["emb.weight"]
    with pytest.raises(DataError, match=r"without a usable tensor emb\.weight"):
        config_from_state_dict(cut)


@pytest.mark.parametrize("arch", ARCHS)
def test_another_dim_att_is_named(arch):
    weights = noisy_weights(small_config(arch))
    weights["blocks.0.att.output.weight"] = torch.zeros(32, 48)
    with pytest.raises(DataError, match=f"an {arch} model with dim_att 48 and n_embd 32") as caught:
        config_from_state_dict(weights)
    assert "dim_att = n_embd" in caught.value.hint


def test_the_config_needs_no_torch():
    code = (
        "import sys; from rwkvkit.model.config import config_of_size; "
        "config_of_size('x070-7b'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        ModelConfig(arch="x070", n_layer=1, n_embd=64).n_layer = 2
