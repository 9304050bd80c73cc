"""From text to a trained model on the command line, and every way such a run can be cut short."""

import json
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from cli_cases import RECIPE, any_step, files_in, wait_for_rows

from rwkvkit import load_model
from rwkvkit.model import checkpoint
from rwkvkit.train.engine import TorchEngine
from rwkvkit.train.observe import MACHINE

CHECKPOINT_FILES = ("checkpoint.json", "model.pth", "optimizer.pt")


def metrics(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in MACHINE} for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "rwkv-final.pth", weights_only=True)


def assert_same_run(left: Path, right: Path) -> None:
    assert metrics(left) == metrics(right)
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_one_command_does_everything_and_a_second_one_nothing(folder, run) -> None:
    first = run("train", "r.yaml", "--json")
    assert first.code == 0, first.err
    facts = first.facts
    assert facts["step"] == 12
    assert facts["tokens"] == 12 * 2 * 16
    assert facts["skipped"] is False
    assert facts["prepare"]["documents"] == 80
    assert isinstance(facts["sample"], str)
    out = folder / "out/tiny"
    rows = metrics(out)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert facts["loss"] == rows[-1]["loss"]
    assert files_in(out) == sorted(
        [
            *(
                f"checkpoints/step-{step:08d}/{name}"
                for step in (6, 9, 12)
                for name in CHECKPOINT_FILES
            ),
            ".data.inputs.json",
            "about.json",
            "data.bin",
            "data.idx",
            "data.manifest.json",
            "data.md",
            "data.png",
            "loss.png",
            "metrics.jsonl",
            "report.html",
            "run.json",
            "rwkv-final.pth",
            "rwkv-init.json",
            "rwkv-init.pth",
            "train_log.txt",
        ]
    )
    last = torch.load(out / "checkpoints/step-00000012/model.pth", weights_only=True)
    assert all(torch.equal(tensor, last[name]) for name, tensor in weights(out).items())
    assert load_model(out / "rwkv-final.pth").config.n_layer == 2

    before = {name: (folder / name).stat().st_mtime_ns for name in files_in(folder)}
    second = run("train", "r.yaml")
    assert second.code == 0
    assert "prepare: up to date: recipe and inputs unchanged" in second.err
    assert "init-weights: out/tiny/rwkv-init.pth is what the recipe asks for" in second.err
    assert "train: up to date: all 12 steps are done" in second.err
    assert {name: (folder / name).stat().st_mtime_ns for name in files_in(folder)} == before


def test_the_same_recipe_gives_the_same_run(folder, run) -> None:
    for run_dir in ("a", "b"):
        assert run("train", "r.yaml", "--set", f"run_dir={run_dir}").code == 0
    assert_same_run(folder / "a", folder / "b")


def test_accumulation_of_micro_batches_is_one_batch(folder, run) -> None:
    settings = ["--set", "train.micro_bsz=4", "--set", "run_dir=whole"]
    assert run("train", "r.yaml", *settings).code == 0
    settings = [
        *("--set", "train.micro_bsz=1", "--set", "train.accumulate_grad_batches=4"),
        *("--set", "run_dir=parts"),
    ]
    assert run("train", "r.yaml", *settings).code == 0
    whole, parts = metrics(folder / "whole"), metrics(folder / "parts")
    assert [row["loss"] for row in parts] == pytest.approx([row["loss"] for row in whole], abs=1e-4)


@pytest.mark.parametrize(
    ("arch", "more"),
    [
        ("x070", []),
        ("x060", ["--set", "train.dropout=0.1"]),
        ("x052", ["--set", "train.grad_cp=true"]),
    ],
    ids=["x070", "x060-dropout", "x052-grad_cp"],
)
def test_killed_at_a_random_step_it_resumes_bit_for_bit(folder, run, start, arch, more) -> None:
    settings = ["--set", f"model.arch={arch}", *more, "--set", "train.total_steps=60"]
    assert run("train", "r.yaml", *settings, "--set", "run_dir=whole").code == 0
    kill_after = any_step(1, 55)
    process = start("train", "r.yaml", *settings, "--set", "run_dir=cut")
    wait_for_rows(folder / "cut/metrics.jsonl", kill_after, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "cut/rwkv-final.pth").exists()
    resumed = run("train", "r.yaml", *settings, "--set", "run_dir=cut")
    assert resumed.code == 0
    if kill_after > 4:
        assert "resuming from cut/checkpoints/step-" in resumed.err
    assert_same_run(folder / "whole", folder / "cut")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_saves_and_exits_130(folder, run, start, number) -> None:
    settings = ["--set", "train.total_steps=9000", "--set", "train.save_every=9000"]
    process = start("train", "r.yaml", *settings, "--json")
    wait_for_rows(folder / "out/tiny/metrics.jsonl", 5, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "a checkpoint was saved" in err
    assert "the same command resumes from it" in err
    assert json.loads(out)["error"]["exit_code"] == 130
    [saved] = (folder / "out/tiny/checkpoints").iterdir()
    steps = int(saved.name.removeprefix("step-"))
    assert steps == len(metrics(folder / "out/tiny"))


def test_a_damaged_checkpoint_is_passed_over(folder, run) -> None:
    assert run("train", "r.yaml", "--set", "run_dir=whole").code == 0
    assert run("train", "r.yaml", "--set", "run_dir=cut").code == 0
    cut = folder / "cut"
    (cut / "rwkv-final.pth").unlink()
    for harm, step in (("truncate", 12), ("flip", 9)):
        model = cut / f"checkpoints/step-{step:08d}/model.pth"
        content = bytearray(model.read_bytes())
        if harm == "truncate":
            content = content[: len(content) // 2]
        else:
            content[len(content) // 2] ^= 1
        model.write_bytes(content)
    resumed = run("train", "r.yaml", "--set", "run_dir=cut")
    assert resumed.code == 0
    assert "step-00000012 is damaged (model.pth has" in resumed.err
    assert "step-00000009 is damaged (the content of model.pth has changed)" in resumed.err
    assert "resuming from cut/checkpoints/step-00000006" in resumed.err
    assert_same_run(folder / "whole", cut)


def test_divergence_stops_with_6_and_keeps_the_last_checkpoint(folder, run) -> None:
    settings = ["--set", "train.lr_init=1e25", "--set", "train.save_every=1"]
    settings += ["--set", "train.warmup_steps=4", "--set", "train.adam_eps=1e-18"]
    outcome = run("train", "r.yaml", *settings, "--json")
    assert outcome.code == 6
    error = outcome.facts["error"]
    assert "lower train.lr_init" in error["hint"]
    kept = max((folder / "out/tiny/checkpoints").iterdir())
    assert str(kept.relative_to(folder)) in error["what"]
    counted = [row["loss"] is not None for row in metrics(folder / "out/tiny")]
    assert counted == [True] * int(kept.name.removeprefix("step-")) + [False] * 10
    assert "10 steps in a row were skipped" in error["what"]
    saved = torch.load(kept / "model.pth", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in saved.values())
    assert not (folder / "out/tiny/rwkv-final.pth").exists()


@pytest.mark.parametrize(
    ("prompts", "found"),
    [("[]", "values in "), ("[x]", "the model's logits")],
    ids=["by-the-save", "by-a-preview"],
)
def test_weights_that_are_not_finite_are_never_an_end(folder, run, prompts, found) -> None:
    settings = ["train.lr_init=1e38", "train.lr_final=1e38", "train.warmup_steps=0"]
    settings += ["train.total_steps=1", f"train.evaluate.prompts={prompts}"]
    outcome = run("train", "r.yaml", *(f"--set={setting}" for setting in settings))
    assert outcome.code == 6
    assert f"after 1 steps: {found}" in outcome.err
    assert "are not finite; no checkpoint was saved yet" in outcome.err
    assert "lower train.lr_init" in outcome.err
    assert not (folder / "out/tiny/rwkv-final.pth").exists()


@pytest.mark.parametrize("run_dir", ["text.jsonl", "text.jsonl/run"])
def test_a_folder_that_cannot_be_is_found_before_any_work(folder, run, run_dir: str) -> None:
    before = files_in(folder)
    outcome = run("train", "r.yaml", "--set", f"run_dir={run_dir}")
    assert outcome.code == 5
    assert f"{folder / 'text.jsonl'} is a file, not a folder" in outcome.err
    assert "hint: give another folder" in outcome.err
    assert files_in(folder) == before


def test_steps_that_changed_nothing_are_told_at_the_end(folder, run) -> None:
    far = ["train.lr_init=1e30", "train.warmup_steps=0", "train.total_steps=2"]
    settings = [f"--set={each}" for each in far] + ["--set=sample={prompt: a, max_tokens: 1}"]
    outcome = run("train", "r.yaml", *settings, "--set", "train.save_every=9")
    assert "1 skipped" in outcome.err
    assert "steps skipped, their gradient was not finite: 1\n" in outcome.out


def test_out_of_memory_says_what_would_fit(folder, run, monkeypatch) -> None:
    def step(*arguments: object, **rates: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 99 bytes")

    monkeypatch.setattr(TorchEngine, "step", step)
    outcome = run("train", "r.yaml")
    assert outcome.code == 5
    assert "out of memory" in outcome.err
    assert "hint: set train.grad_cp true" in outcome.err


def test_a_dry_run_estimates_memory(folder, run) -> None:
    outcome = run("train", "r.yaml", "--dry-run", "--set", "train.micro_bsz=1000000")
    assert "train: memory, estimated: " in outcome.out
    assert "does not fit: set train.micro_bsz" in outcome.out
    facts = json.loads(run("train", "r.yaml", "--dry-run", "--json").out)
    assert facts["estimate"]["memory"]["total"] > 4 * 3 * facts["parameters"]
    assert facts["estimate"]["tokens_per_s"] is None


def test_bf16_trains_and_resumes_in_bf16(folder, run) -> None:
    settings = ["--set", "train.precision=bf16"]
    assert run("train", "r.yaml", *settings, "--set", "run_dir=whole").code == 0
    assert run("train", "r.yaml", *settings, "--set", "run_dir=cut").code == 0
    (folder / "cut/rwkv-final.pth").unlink()
    shutil.rmtree(folder / "cut/checkpoints/step-00000012")
    again = run("train", "r.yaml", "--set", "run_dir=cut")  # auto keeps what the run began in
    assert "precision bf16 with fp32 masters: as the run began" in again.err
    assert_same_run(folder / "whole", folder / "cut")


def test_a_full_disk_while_saving(folder, run, start) -> None:
    assert run("prepare", "r.yaml").code == 0
    assert run("init-weights", "r.yaml").code == 0
    largest = (folder / "out/tiny/rwkv-init.pth").stat().st_size

    def limit() -> None:  # the optimizer's file is twice the weights' size: it cannot be written
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest * 3 // 2, largest * 3 // 2))

    process = start("train", "r.yaml", preexec_fn=limit)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 5, err
    assert "the checkpoint of step 3 could not be saved" in err
    assert "make room" in err
    assert list((folder / "out/tiny/checkpoints").iterdir()) == []
    assert run("train", "r.yaml").code == 0


def test_weights_of_another_shape(folder, run) -> None:
    assert run("init-weights", "r.yaml").code == 0
    (folder / "out/tiny/rwkv-init.pth").rename(folder / "base.pth")
    (folder / "out/tiny/rwkv-init.json").unlink()
    use = ["--set", "model.weights=base.pth"]
    outcome = run("train", "r.yaml", *use, "--set", "model.n_layer=3")
    assert outcome.code == 3
    assert "n_layer is 2 in the checkpoint, 3 in the recipe" in outcome.err
    assert "--set model.size=null" in outcome.err
    outcome = run("train", "r.yaml", *use, "--set", "train.total_steps=2")
    assert outcome.code == 0
    assert "init-weights: the recipe starts from base.pth" in outcome.err
    planned = run("init-weights", "r.yaml", *use, "--dry-run")
    assert "nothing to do: the recipe starts from base.pth" in planned.out
    missing = run("train", "r.yaml", "--set", "model.weights=absent.pth", "--set", "run_dir=b")
    assert missing.code == 3
    assert "model.weights: absent.pth does not exist" in missing.err
    assert "https://huggingface.co/BlinkDL" in missing.err
    (folder / "text.pth").write_text("no checkpoint")
    wrong = run("train", "r.yaml", "--set", "model.weights=text.pth", "--set", "run_dir=b")
    assert wrong.code == 4
    assert "text.pth: not a readable checkpoint" in wrong.err


def test_an_existing_dataset(folder, run) -> None:
    assert run("prepare", "r.yaml").code == 0
    head, tail = RECIPE.split("prepare:")[0], RECIPE[RECIPE.index("model:") :]
    (folder / "r.yaml").write_text(f"{head}data: out/tiny/data\n{tail}")
    assert run("train", "r.yaml", "--dry-run").code == 0
    assert run("train", "r.yaml", "--set", "run_dir=other").code == 0
    missing = run("train", "r.yaml", "--set", "data=absent")
    assert missing.code == 4
    assert "absent.idx: no such file" in missing.err


@pytest.mark.parametrize(
    ("setting", "code", "message"),
    [
        ("train.device=cuda", 3, "torch sees no GPU"),
        ("train.dropout=0.1", 3, "x070 has no dropout"),
        ("model.vocab_size=100", 3, "gives ids up to 256, and the model knows 100 tokens"),
        ("ctx_len=4000", 4, "too small"),
        ("train=", 3, "train: should be a mapping of keys to values"),
        ("model=", 3, "model: should be a mapping of keys to values"),
        ("train.lr_init=.inf", 3, "train.lr_init: should be a finite number"),
        ("seed=99999999999999999999999", 3, "seed: should be less than"),
        ("model.n_embd=64000000000000", 3, "model.n_embd: should be less than"),
        ("sample.prompt=", 3, "sample.prompt: "),
        ("model.head_qk=16", 3, "HeadQK cannot generate"),
        ("model.grow_from=absent.pth", 3, "absent.pth does not exist"),
    ],
)
def test_settings_that_cannot_be(folder, run, setting: str, code: int, message: str) -> None:
    outcome = run("train", "r.yaml", "--set", setting)
    assert outcome.code == code
    assert message in outcome.err
    assert "hint:" in outcome.err
    assert not (folder / "out/tiny/rwkv-final.pth").exists()


def test_recorded_passes_are_refused_before_any_work(folder, run) -> None:
    outcome = run("train", "r.yaml", "--set", "train.cuda_graphs=true", "--set", "train.device=cpu")
    assert outcome.code == 3
    assert "cuda_graphs is true, but the device is cpu" in outcome.err
    assert not (folder / "out").exists()


def test_a_sample_for_which_the_gpu_has_no_room_left(
    folder, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run("train", "r.yaml", "--json")
    load, places = checkpoint.load_model, []

    def full(*arguments: object, **options: object) -> object:
        places.append(options.get("device"))
        if len(places) == 1:
            raise torch.OutOfMemoryError
        return load(*arguments, **options)

    monkeypatch.setattr(checkpoint, "load_model", full)
    again = run("train", "r.yaml", "--json")
    assert again.code == 0
    assert again.facts["sample"] == done.facts["sample"]
    assert places[1] is None  # the CPU
