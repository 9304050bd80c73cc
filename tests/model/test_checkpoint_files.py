import errno

import pytest
import torch
from rwkv_cases import ARCHS, noisy_weights, small_config, tokens

from rwkvkit import load_model
from rwkvkit.errors import DataError, RecipeError, SetupError, UsageError
from rwkvkit.model.checkpoint import build_model, check_config, read_checkpoint, write_checkpoint


@pytest.mark.parametrize("arch", ARCHS)
def test_from_a_path_and_from_a_dict(tmp_path, arch):
    weights = noisy_weights(small_config(arch))
    path = tmp_path / "model.pth"
    write_checkpoint(weights, path)
    idx = tokens(2, 9)
    want = build_model(small_config(arch), weights)(idx)
    for source in (weights, path, str(path)):
        assert torch.equal(load_model(source)(idx), want)


def test_written_and_read_again(tmp_path):
    weights = noisy_weights(small_config("x060"))
    path = tmp_path / "new" / "model.pth"
    write_checkpoint(weights, path)
    again = read_checkpoint(path)
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    assert [p.name for p in path.parent.iterdir()] == ["model.pth"]


def test_the_prefix_of_deepspeed_is_left_out(tmp_path):
    weights = noisy_weights(small_config("x070"))
    wrapped = {f"_forward_module.{name}": tensor for name, tensor in weights.items()}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    assert read_checkpoint(tmp_path / "wrapped.pth").keys() == weights.keys()


def test_a_view_is_written_without_the_rest_of_its_storage(tmp_path):
    path = tmp_path / "model.pth"
    write_checkpoint({"a": torch.zeros(1_000_000)[:10]}, path)
    assert path.stat().st_size < 10_000


def test_loading_neither_keeps_nor_changes_what_is_given():
    weights = noisy_weights(small_config("x070"))
    before = weights["head.weight"].clone()
    model = load_model(weights)
    with torch.no_grad():
        model.head.weight.zero_()
    assert torch.equal(weights["head.weight"], before)
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


def test_dtype_and_dropout():
    model = load_model(noisy_weights(small_config("x060")), dtype=torch.bfloat16, dropout=0.25)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.drop.p == 0.25
    assert not model.training  # ready to predict: nothing is dropped
    with pytest.raises(UsageError, match=r"x070 has no dropout.*\n.*leave dropout out"):
        load_model(noisy_weights(small_config("x070")), dropout=0.25)


def test_unused_tensors_of_the_reference_trainer_are_dropped():
    weights = noisy_weights(small_config("x070"))
    extra = {f"blocks.0.att.v{i}": weights[f"blocks.1.att.v{i}"] for i in range(3)}
    assert load_model({**weights, **extra}).state_dict().keys() == weights.keys()


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such file") as caught:
        load_model(tmp_path / "none.pth")
    assert caught.value.where == str(tmp_path / "none.pth")


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def refused(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "model.pth").write_bytes(b"whole")
    monkeypatch.setattr(torch, "load", refused)
    with pytest.raises(DataError, match="cannot be read: Permission denied") as caught:
        read_checkpoint(tmp_path / "model.pth")
    assert caught.value.hint == "check its permissions"


def test_damaged_files(tmp_path):
    whole = tmp_path / "whole.pth"
    write_checkpoint(noisy_weights(small_config("x070")), whole)
    content = whole.read_bytes()
    for name, data in {"cut": content[:5000], "empty": b"", "text": b"hello\n" * 100}.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(data)
        with pytest.raises(DataError, match="not a readable checkpoint") as caught:
            load_model(path)
        assert "fetch or write it again" in str(caught.value)


def test_files_that_hold_something_else(tmp_path):
    path = tmp_path / "x.pth"
    torch.save([torch.zeros(1)], path)
    with pytest.raises(DataError, match=r"holds a list.*\n.*a flat dict"):
        load_model(path)
    torch.save({"model": {"a": torch.zeros(1)}}, path)
    with pytest.raises(DataError, match="without optimizer states"):
        load_model(path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="check the folder's permissions"):
        write_checkpoint({"a": torch.zeros(1)}, tmp_path / "file" / "model.pth")


def test_tensors_that_do_not_fit_are_named():
    config = small_config("x070")
    weights = noisy_weights(config)
    weights["head.weight"] = weights["head.weight"][:9]
    weights["blocks.0.extra"] = weights.pop("blocks.1.att.v0")
    with pytest.raises(DataError) as caught:
        build_model(config, weights, where="m.pth")
    message = str(caught.value)
    for part in (
        "m.pth",
        "blocks.1.att.v0 is missing",
        "blocks.0.extra is unknown",
        "head.weight is [9, 32], expected [50, 32]",
    ):
        assert part in message


def test_tuned_states_come_and_go_with_the_config():
    with_state = noisy_weights(small_config("x060", time_state=True))
    assert load_model(with_state).config.time_state
    plain = build_model(small_config("x060"), with_state)
    assert not any("time_state" in name for name, _ in plain.named_parameters())
    fresh = build_model(small_config("x060", time_state=True), plain.state_dict())
    assert fresh.blocks[1].att.time_state.count_nonzero() == 0
    idx = tokens(1, 5)
    assert torch.equal(fresh(idx), plain(idx))


def test_check_config_takes_from_the_checkpoint_what_the_recipe_leaves_out():
    found = small_config("x070", d_gate_lora=8, dim_ffn=48)
    weights = noisy_weights(found)
    asked = {"arch": "x070", "n_layer": 2, "head_size": 16}
    assert check_config(asked, weights) == found
    assert check_config({}, weights) == found


def test_check_config_lists_every_difference():
    weights = noisy_weights(small_config("x060"))
    with pytest.raises(RecipeError) as caught:
        check_config({"arch": "x052", "n_layer": 4, "n_embd": 32}, weights, "base.pth")
    message = str(caught.value)
    assert message.startswith("base.pth: ")
    assert "arch is x060 in the checkpoint, x052 in the recipe" in message
    assert "n_layer is 2 in the checkpoint, 4 in the recipe" in message
    assert "n_embd" not in message
