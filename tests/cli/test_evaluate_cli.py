"""Evaluation while training, early ends, sampled texts, and ``rwkvkit evaluate``."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkvkit import BinidxWriter

SPLIT = """\
name: tiny
ctx_len: 16
prepare:
  - read: {path: text.jsonl}
  - encode: {vocab: bytes.txt}
  - split: 0.2
  - repeat-shuffle: {epochs: 2}
  - write-binidx: out/tiny/data
  - plan
model: {arch: x070, n_layer: 1, n_embd: 64, vocab_size: 257}
train:
  micro_bsz: 2
  lr_init: 3e-3
  lr_final: 3e-3
  total_steps: 12
  save_every: 3
  evaluate: {every: 2, max_samples: 20, prompts: ["The n", "7"], max_tokens: 6}
"""


@pytest.fixture
def split(folder: Path) -> Path:
    (folder / "r.yaml").write_text(SPLIT)
    return folder


def rows(folder: Path) -> list[dict]:
    lines = (folder / "out/tiny/metrics.jsonl").read_text().splitlines()
    wanted = ("step", "loss", "val_loss", "val_ppl", "end_early")
    return [{key: row[key] for key in wanted if key in row} for row in map(json.loads, lines)]


def texts(folder: Path) -> list[dict]:
    lines = (folder / "out/tiny/samples.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def test_held_out_loss_texts_and_best_weights_survive_a_resume(split, run) -> None:
    out = split / "out/tiny"
    done = run("train", "r.yaml")
    assert done.code == 0, done.err
    assert "val_loss every 2 steps on 20 of" in done.err
    assert "samples of out/tiny/data-val" in done.err
    whole, said = rows(split), texts(split)
    evaluated = [row for row in whole if "val_loss" in row]
    assert [row["step"] for row in evaluated] == [2, 4, 6, 8, 10, 12]
    assert min(row["val_loss"] for row in evaluated) < evaluated[0]["val_loss"]
    first = [(line["step"], line["prompt"]) for line in said[:4]]
    assert first == [(2, "The n"), (2, "7"), (4, "The n"), (4, "7")]
    assert f"step 12: 'The n' continues: {said[-2]['text']!r}" in done.err

    kept = weights(out / "best.pth")
    for name in ("checkpoints/step-00000012", "checkpoints/step-00000009"):
        shutil.rmtree(out / name)  # as if killed after step 7
    (out / "rwkv-final.pth").unlink()
    (out / "samples.jsonl").write_text((out / "samples.jsonl").read_text()[:-9])
    resumed = run("train", "r.yaml")
    assert "6 of 12 steps are done" in resumed.err
    assert rows(split) == whole
    assert texts(split) == said
    assert all(torch.equal(t, kept[name]) for name, t in weights(out / "best.pth").items())

    words = ["evaluate", str(out / "best.pth"), str(out / "data-val")]
    alone = run(*words, "--json")
    assert alone.facts["order"] == "cubic"
    assert alone.facts["ctx_len"] == 16  # the run's
    for source in (out, newest := out / "checkpoints/step-00000012", newest / "model.pth"):
        few = run("evaluate", str(source), str(out / "data-val"), "--max-samples", "1", "--json")
        assert few.facts["ctx_len"] == 16
    assert run(*words, "--ctx-len", "8", "--json").facts["ctx_len"] == 8
    assert alone.facts["targets"] > 100
    some = run(*words, "--max-samples", "20", "--micro-bsz", "7")
    assert "on 320 targets of 20 samples" in some.out


def test_evaluating_changes_no_step(split, run) -> None:
    assert run("train", "r.yaml").code == 0
    final = weights(split / "out/tiny/rwkv-final.pth")
    seldom = ["--set", "train.evaluate.every=1000", "--set", "train.evaluate.prompts=[]"]
    assert run("train", "r.yaml", "--set", "run_dir=plain", *seldom).code == 0
    plain = weights(split / "plain/rwkv-final.pth")
    assert all(torch.equal(t, plain[name]) for name, t in final.items())


def test_a_run_ends_when_nothing_improves(split, run) -> None:
    stuck = ["--set", "train.lr_init=0", "--set", "train.lr_final=0"]
    stuck += ["--set", "train.evaluate.patience=2", "--set", "train.evaluate.prompts=[]"]
    done = run("train", "r.yaml", *stuck)
    assert done.code == 0, done.err
    reason = "2 evaluations without a smaller val_loss than"
    assert f"ended early: {reason}" in done.out
    assert "trained 6 steps" in done.out
    assert rows(split)[-1]["step"] == 6
    assert rows(split)[-1]["end_early"].startswith(reason)
    out = split / "out/tiny"
    assert (out / "checkpoints/step-00000006").exists()
    final = weights(out / "rwkv-final.pth")
    again = run("train", "r.yaml", *stuck)
    assert f"train: up to date: the run ended early: {reason}" in again.err
    (out / "rwkv-final.pth").unlink()  # as if killed between the checkpoint and the end
    assert run("train", "r.yaml", *stuck).code == 0
    assert rows(split)[-1]["step"] == 6
    assert all(torch.equal(t, final[name]) for name, t in weights(out / "rwkv-final.pth").items())


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (["train.evaluate.patience=2"], 3, "no held-out data whose loss could stop improving"),
        (["train.evaluate.data=absent"], 4, "absent.idx: no such file"),
        (["train.evaluate.prompts=[é, x]", "model.vocab_size=150"], 3, "has token 196, and the"),
        (["train.evaluate.prompts=[x]", "model.head_qk=8"], 3, "generate text token by token"),
    ],
)
def test_what_cannot_be_evaluated(folder, run, settings, code, message) -> None:
    recipe = (folder / "r.yaml").read_text()
    (folder / "r.yaml").write_text(recipe.partition("sample:")[0])
    words = [word for value in settings for word in ("--set", value)]
    done = run("train", "r.yaml", *words)
    assert done.code == code
    assert message in done.err
    assert "hint:" in done.err
    assert not (folder / "out").exists()


def test_held_out_data_of_another_vocabulary_is_refused_before_any_work(folder, run) -> None:
    with BinidxWriter(folder / "val") as writer:
        writer.add(np.array([1, 60000, 0]))
    done = run("train", "r.yaml", "--set", "train.evaluate.data=val", "--dry-run")
    assert done.code == 4
    assert "val.bin: token id 60000 is outside the model's vocabulary of 257" in done.err
    assert not (folder / "out").exists()


def test_evaluate_says_what_is_wrong(split, run) -> None:
    assert run("prepare", "r.yaml").code == 0
    absent = run("evaluate", "absent.pth", "out/tiny/data")
    assert absent.code == 4
    assert "no such file" in absent.err
    long = run("evaluate", "absent.pth", "out/tiny/data", "--ctx-len", "9" * 20)
    assert long.code == 2
    assert "--ctx-len" in long.err
    small = ["run_dir=small", "model.vocab_size=99"]
    assert run("init-weights", "r.yaml", *(f"--set={each}" for each in small)).code == 0
    foreign = run("evaluate", "small/rwkv-init.pth", "out/tiny/data")
    assert foreign.code == 4
    assert "out/tiny/data.bin: token id 120 is outside the model's vocabulary of 99" in foreign.err


def test_two_processes_find_what_one_finds(split, run, start) -> None:
    settings = ["--set", "train.sampling.order=packed", "--set", "train.evaluate.every=6"]
    alone = run("train", "r.yaml", *settings)
    assert alone.code == 0, alone.err
    one = rows(split)
    two = ["--processes", "2", "--set", "run_dir=two", "--set", "train.micro_bsz=1"]
    process = start("train", "r.yaml", *settings, *two)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert said.count("step 12: val_loss") == 1
    shutil.move(split / "two/metrics.jsonl", split / "out/tiny/metrics.jsonl")
    for ours, theirs in zip(rows(split), one, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert (split / "two/samples.jsonl").read_text() == (
        split / "out/tiny/samples.jsonl"
    ).read_text()
    best = weights(split / "out/tiny/best.pth")
    for name, tensor in weights(split / "two/best.pth").items():
        torch.testing.assert_close(tensor, best[name], rtol=1e-3, atol=1e-5)
