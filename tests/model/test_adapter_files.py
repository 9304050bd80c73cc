"""Adapters and tuned states as files: whole, damaged, and of another base."""

import json
import sys
from pathlib import Path

import pytest
import torch
from rwkv_cases import ARCHS, noisy_weights, small_config, tokens

from rwkvkit import load_model
from rwkvkit.errors import DataError, SetupError
from rwkvkit.files import sha256
from rwkvkit.model import adapter
from rwkvkit.model.checkpoint import build_model, write_checkpoint
from rwkvkit.model.describe import describe_tuned
from rwkvkit.train.adapt import apply_tuning
from rwkvkit.train.portion import StatePortion
from rwkvkit.train.tuning import TuningConfig


def write_lora(folder: Path) -> dict[str, torch.Tensor]:
    """Write an adapter for the small x070 and return the base's tensors."""
    base = noisy_weights(small_config("x070"))
    model = build_model(small_config("x070"), base)
    tuning = TuningConfig(method="lora", rank=4, targets=["att.key"])
    portion = apply_tuning(model, tuning, {"path": "base.pth", "sha256": "0"})
    portion.write(model.state_dict(), folder)
    return base


@pytest.mark.parametrize("arch", ARCHS)
def test_states_go_into_their_base(tmp_path: Path, arch: str) -> None:
    whole = noisy_weights(small_config(arch, time_state=True))
    states = {name: tensor for name, tensor in whole.items() if name.endswith("time_state")}
    base = {name: tensor for name, tensor in whole.items() if name not in states}
    write_checkpoint(states, tmp_path / "state.pth")
    both = adapter.merged(base, tmp_path / "state.pth")
    assert both.keys() == whole.keys()
    assert all(torch.equal(both[name], tensor) for name, tensor in whole.items())
    idx = tokens(2, 9)
    assert torch.equal(
        load_model(base, adapter=tmp_path / "state.pth")(idx), load_model(whole)(idx)
    )


def test_merging_keeps_the_bases_dtype_and_every_other_byte(tmp_path: Path) -> None:
    base = write_lora(tmp_path / "lora")
    half = {name: tensor.bfloat16() for name, tensor in base.items()}
    both = adapter.merged(half, tmp_path / "lora")
    assert {tensor.dtype for tensor in both.values()} == {torch.bfloat16}
    assert all(both[name] is half[name] for name in half if not name.endswith("att.key.weight"))


def test_states_of_another_model(tmp_path: Path) -> None:
    states = {f"blocks.{i}.att.time_state": torch.zeros(2, 16, 16) for i in range(3)}
    write_checkpoint(states, tmp_path / "state.pth")
    base = noisy_weights(small_config("x060"))
    with pytest.raises(DataError, match=r"3 states .* takes 2 of \[2, 16, 16\]"):
        adapter.merged(base, tmp_path / "state.pth")
    write_checkpoint({"wte": torch.zeros(2)}, tmp_path / "gpt.pth")
    with pytest.raises(DataError, match=r"gpt\.pth: no RWKV checkpoint"):
        load_model(tmp_path / "gpt.pth", adapter=tmp_path / "state.pth")
    write_checkpoint(base, tmp_path / "whole.pth")
    with pytest.raises(DataError, match="other tensors than tuned states"):
        adapter.merged(base, tmp_path / "whole.pth")
    with pytest.raises(DataError, match="holds tuned states only, no model"):  # a known slip
        load_model(tmp_path / "state.pth")


def test_an_adapter_of_another_model(tmp_path: Path) -> None:
    base = write_lora(tmp_path / "lora")
    wide = noisy_weights(small_config("x070", n_embd=48, head_size=16))
    with pytest.raises(DataError, match="does not fit the base"):
        adapter.merged(wide, tmp_path / "lora")
    del base["blocks.1.att.key.weight"]
    with pytest.raises(DataError, match=r"blocks\.1\.att\.key\.weight.* is not in it"):
        adapter.merged(base, tmp_path / "lora")


def test_folders_that_are_no_adapter(tmp_path: Path) -> None:
    base = write_lora(tmp_path / "lora")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"it has no adapter_config\.json"):
        adapter.merged(base, tmp_path / "empty")
    weights = tmp_path / "lora" / adapter.WEIGHTS
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="not a readable adapter"):
        adapter.merged(base, tmp_path / "lora")
    weights.write_bytes(content.replace(b"att.key.lora_A", b"att.key.vera_A"))
    with pytest.raises(DataError, match="which no RWKV adapter has"):
        adapter.merged(base, tmp_path / "lora")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "an adapter of PREFIX_TUNING"),
        ({}, "an adapter of no known kind"),
        ({"peft_type": "LORA", "lora_alpha": None}, "lora_alpha is None, not a number"),
        ({"peft_type": "LORA", "r": "x"}, "r is 'x', not a number"),
    ],
)
def test_configurations_that_are_no_rwkv_adapters(tmp_path: Path, settings, message: str) -> None:
    base = write_lora(tmp_path / "lora")
    path = tmp_path / "lora" / adapter.CONFIG
    path.write_text(json.dumps(settings))
    for work in (describe_tuned, lambda folder: adapter.merged(base, folder)):
        with pytest.raises(DataError, match=message) as caught:
            work(tmp_path / "lora")
        assert caught.value.where == str(path)


def test_the_states_of_a_checkpoint(tmp_path: Path) -> None:
    whole = noisy_weights(small_config("x070", time_state=True))
    states = {name: tensor for name, tensor in whole.items() if name.endswith("time_state")}
    base = {name: tensor for name, tensor in whole.items() if name not in states}
    StatePortion({"path": "base.pth", "sha256": "0"}).save(whole, tmp_path)
    both = adapter.merged(base, tmp_path)
    assert all(torch.equal(both[name], tensor) for name, tensor in states.items())
    write_checkpoint(base, tmp_path / "base.pth")
    with pytest.raises(DataError, match=r"another base, base\.pth"):
        adapter.check_base(tmp_path / "base.pth", tmp_path)


def test_the_record_of_the_base(tmp_path: Path) -> None:
    base = write_lora(tmp_path / "lora")
    path = tmp_path / "base.pth"
    write_checkpoint(base, path)
    with pytest.raises(DataError, match=r"another base, base\.pth"):
        adapter.check_base(path, tmp_path / "lora")
    record = tmp_path / "lora/base.json"
    record.write_text(json.dumps({"base": {"path": "base.pth", "sha256": sha256(path)}}))
    adapter.check_base(path, tmp_path / "lora")
    record.write_text('{"base": "another program\'s"}')
    adapter.check_base(path, tmp_path / "lora")
    record.unlink()  # made elsewhere
    adapter.check_base(path, tmp_path / "lora")


def test_the_same_adapter_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.manual_seed(0)
        write_lora(tmp_path / name)
        write_lora(tmp_path / name)  # over what is there
        torch.manual_seed(0)
        write_lora(tmp_path / name)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_peft_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SetupError, match="need the package peft") as caught:
        adapter.merged({}, tmp_path)
    assert "rwkvkit[peft]" in caught.value.hint


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(SetupError, match="No space left"):
        write_lora(tmp_path / "lora")
    assert list(tmp_path.iterdir()) == []
