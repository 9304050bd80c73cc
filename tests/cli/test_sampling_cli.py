"""Orders of sampling on the command line: what is said, what is trained, and exact resumes."""

import json
import shutil
from pathlib import Path

import pytest
import torch


def rows(folder: Path) -> list[dict]:
    lines = (folder / "out/tiny/metrics.jsonl").read_text().splitlines()
    return [{key: json.loads(line)[key] for key in ("step", "tokens", "loss")} for line in lines]


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (["order=packed"], "120 documents longer than 16 tokens are cut into pieces"),
        (["order=padded"], "of the positions are padding"),
        (["order=infctx", "segments=4", "truncate=2"], "gradients reach back over 2 of them"),
    ],
    ids=["packed", "padded", "infctx"],
)
def test_an_order_trains_and_resumes_exactly(folder, run, order, said) -> None:
    words = ["A long story that goes on. " * 6, "Short", "Some more words here"]
    lines = (json.dumps({"text": f"{i} {words[i % 3]}"}) for i in range(90))
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    settings = [word for value in order for word in ("--set", f"train.sampling.{value}")]
    done = run("train", "r.yaml", *settings)
    assert done.code == 0, done.err
    assert f"order {order[0].removeprefix('order=')}: as asked" in done.err
    assert said in done.err
    whole = rows(folder)
    final = torch.load(folder / "out/tiny/rwkv-final.pth", weights_only=True)
    steps = [row["tokens"] for row in whole]
    widths = {after - before for before, after in zip([0, *steps], steps, strict=False)}
    assert (len(widths) > 1) == ("order=padded" in order)

    shutil.rmtree(folder / "out/tiny/checkpoints/step-00000012")  # as if killed after step 9
    shutil.rmtree(folder / "out/tiny/checkpoints/step-00000009")
    (folder / "out/tiny/rwkv-final.pth").unlink()
    again = run("train", "r.yaml", *settings)
    assert again.code == 0, again.err
    assert "6 of 12 steps are done" in again.err
    assert rows(folder) == whole
    resumed = torch.load(folder / "out/tiny/rwkv-final.pth", weights_only=True)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in final.items())


def test_a_whole_pass_is_the_default_length(folder, run) -> None:
    fresh = ["--set", "train.total_steps=null", "--set", "train.sampling.order=packed"]
    done = run("train", "r.yaml", *fresh, "--dry-run")
    assert done.code == 0
    assert run("prepare", "r.yaml").code == 0
    done = run("train", "r.yaml", *fresh, "--dry-run", "--json")
    [samples] = [line for line in done.facts["plan"] if "samples," in line]
    [steps] = [line for line in done.facts["plan"] if "tokens once" in line]
    n_samples = int(samples.split(" samples")[0].split()[-1].replace(",", ""))
    assert steps.startswith(
        f"{-(-n_samples // 2):,} steps: the dataset's {16 * n_samples:,} tokens"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.sampling.truncate=2"], "truncate belong to order infctx"),
        (["train.sampling.order=cubik"], "train.sampling.order: should be 'auto', 'cubic'"),
        (["train.sampling.order=infctx", "model.head_qk=8"], "HeadQK cannot carry its state"),
    ],
)
def test_what_cannot_be(folder, run, settings, message) -> None:
    recipe = (folder / "r.yaml").read_text()
    if "model.head_qk=8" in settings:
        (folder / "r.yaml").write_text(recipe.partition("sample:")[0])
        assert run("prepare", "r.yaml").code == 0
    words = [word for value in settings for word in ("--set", value)]
    done = run("train", "r.yaml", *words)
    assert done.code == 3
    assert message in done.err
    assert "hint:" in done.err


def test_a_loss_mask_that_is_gone_is_not_trained_without(folder, run) -> None:
    with (folder / "text.jsonl").open("w") as file:
        for i in range(40):
            turns = [("user", f"Say {i}"), ("assistant", f"Here it is: {i}.")]
            said = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": said}) + "\n")
    recipe = (folder / "r.yaml").read_text().replace("text.jsonl}", "text.jsonl, chat: messages}")
    recipe = recipe.replace("  - repeat-", "  - split: {validation: 0.2}\n  - repeat-")
    (folder / "r.yaml").write_text(recipe)
    assert run("prepare", "r.yaml").code == 0
    prepared = recipe[: recipe.index("prepare:")] + "data: out/tiny/data\n"
    (folder / "d.yaml").write_text(prepared + recipe[recipe.index("model:") :])
    dry = ["train", "d.yaml", "--dry-run", "--set", "train.evaluate.data=out/tiny/data-val"]
    assert run(*dry).code == 0
    for name in ("data-val.mask", "data.mask"):
        (folder / "out/tiny" / name).rename(folder / name)
        done = run(*dry)
        assert done.code == 4
        assert f"{name}: the loss mask that the manifest names is gone" in done.err
        (folder / name).rename(folder / "out/tiny" / name)
