"""A run's folder: what is in it is never replaced unasked, and made again where it is lost."""

import json
import shutil
import signal

import pytest
import torch
from cli_cases import files_in, wait_for_rows

from rwkvkit import files


def test_a_finished_run_is_never_done_again(folder, run) -> None:
    assert run("train", "r.yaml").code == 0
    final = folder / "out/tiny/rwkv-final.pth"
    before = final.read_bytes()
    shutil.rmtree(folder / "out/tiny/checkpoints")
    again = run("train", "r.yaml")
    assert again.code == 0
    assert "up to date: all 12 steps are done" in again.err
    record = folder / "out/tiny/run.json"
    known = json.loads(record.read_text())
    del known["finished"]
    record.write_text(json.dumps(known))
    refused = run("train", "r.yaml")
    assert refused.code == 3
    assert "a finished run without its checkpoints" in refused.err
    record.unlink()
    refused = run("train", "r.yaml", "--set", "train.lr_init=1")
    assert refused.code == 4
    assert "out/tiny/run.json: is gone" in refused.err
    assert final.read_bytes() == before


def test_initial_weights_are_hashed_once_and_again_when_they_are_drawn_anew(
    folder, run, monkeypatch
) -> None:
    assert run("init-weights", "r.yaml", "--set", "seed=7").code == 0
    assert run("train", "r.yaml").code == 0  # draws others
    out = folder / "out/tiny"
    drawn = files.sha256(out / "rwkv-init.pth")
    assert json.loads((out / "run.json").read_text())["weights"] == drawn
    (out / "rwkv-final.pth").unlink()
    hashed: list[str] = []
    real = files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: hashed.append(path.name) or real(path))
    assert run("train", "r.yaml").code == 0
    assert hashed.count("rwkv-init.pth") == 1


def test_damaged_final_weights_come_from_the_checkpoint_again(folder, run) -> None:
    assert run("train", "r.yaml").code == 0
    final = folder / "out/tiny/rwkv-final.pth"
    whole = final.read_bytes()
    final.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    again = run("train", "r.yaml")
    assert again.code == 0
    assert "rwkv-final.pth is damaged, and comes from the newest checkpoint again" in again.err
    assert final.read_bytes() == whole
    assert "up to date: all 12 steps are done" in run("train", "r.yaml").err


def test_final_weights_and_metrics_lost_together(folder, run) -> None:
    assert run("train", "r.yaml").code == 0
    out = folder / "out/tiny"
    whole = (out / "rwkv-final.pth").read_bytes()
    (out / "rwkv-final.pth").unlink()
    (out / "metrics.jsonl").unlink()
    again = run("train", "r.yaml")
    assert again.code == 0, again.err
    assert "trained 12 steps, 384 tokens\n" in again.out
    assert (out / "rwkv-final.pth").read_bytes() == whole
    assert "up to date: all 12 steps are done" in run("train", "r.yaml").err


def test_pictures_that_fail_end_no_run(folder, run) -> None:
    (folder / "out/tiny/report.html").mkdir(parents=True)
    outcome = run("train", "r.yaml", "--set", "train.total_steps=3")
    assert outcome.code == 0, outcome.err
    assert "could not be drawn: IsADirectoryError" in outcome.err
    assert (folder / "out/tiny/rwkv-final.pth").exists()


def test_pictures_that_fail_hide_no_error(folder, run) -> None:
    (folder / "odd").mkdir()
    odd = '{"step": 0, "tokens": 0, "loss": 1, "loss_smooth": "x"}'
    (folder / "odd/metrics.jsonl").write_text(odd + "\n")
    settings = ["train.lr_init=1e38", "train.lr_final=1e38", "train.warmup_steps=0"]
    settings += ["train.total_steps=1", "run_dir=odd"]
    outcome = run("train", "r.yaml", *(f"--set={setting}" for setting in settings))
    assert outcome.code == 6
    assert "after 1 steps: " in outcome.err
    assert outcome.err.count("could not be drawn: ") == 1


def test_the_data_of_a_started_run_is_never_replaced(folder, run) -> None:
    assert run("train", "r.yaml").code == 0
    before = (folder / "out/tiny/data.bin").read_bytes()
    with (folder / "text.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')
    outcome = run("train", "r.yaml")
    assert outcome.code == 3
    assert "would be replaced (input text.jsonl changed)" in outcome.err
    assert (folder / "out/tiny/data.bin").read_bytes() == before


def test_the_data_of_a_started_run_is_made_again_where_it_was_lost(folder, run) -> None:
    assert run("train", "r.yaml").code == 0
    data = folder / "out/tiny/data.bin"
    before = data.read_bytes()
    data.unlink()
    outcome = run("train", "r.yaml")
    assert outcome.code == 0
    assert "output out/tiny/data.bin is gone: building" in outcome.err
    assert "up to date: all 12 steps are done" in outcome.err
    assert data.read_bytes() == before


def test_the_weights_of_a_started_run_are_never_replaced(folder, run) -> None:
    assert run("train", "r.yaml").code == 0
    path = folder / "out/tiny/rwkv-init.pth"
    before = path.read_bytes()
    redrawn = run("init-weights", "r.yaml", "--set", "seed=9")
    assert redrawn.code == 3
    assert "a run has started from the weights here" in redrawn.err
    assert path.read_bytes() == before
    path.unlink()
    assert run("train", "r.yaml").code == 0
    assert path.read_bytes() == before
    path.write_bytes(b"mine")
    strange = run("train", "r.yaml")
    assert strange.code == 3
    assert "not the weights that rwkvkit wrote here" in strange.err
    assert path.read_bytes() == b"mine"


def test_weights_that_rwkvkit_did_not_make_are_never_replaced(folder, run) -> None:
    (folder / "out/tiny").mkdir(parents=True)
    (folder / "out/tiny/rwkv-init.pth").write_bytes(b"mine")
    outcome = run("train", "r.yaml")
    assert outcome.code == 3
    assert "model: {weights: out/tiny/rwkv-init.pth}" in outcome.err
    assert (folder / "out/tiny/rwkv-init.pth").read_bytes() == b"mine"


def test_a_base_checkpoint_that_changed(folder, run) -> None:
    assert run("init-weights", "r.yaml").code == 0
    base = folder / "base.pth"
    (folder / "out/tiny/rwkv-init.pth").rename(base)
    use = ["--set", "model.weights=base.pth", "--set", "run_dir=b"]
    assert run("train", "r.yaml", *use).code == 0
    weights = torch.load(base, weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in weights.items()}, base)
    outcome = run("train", "r.yaml", *use)
    assert outcome.code == 3
    assert "weights " in outcome.err


def test_a_run_that_never_took_a_step_can_be_corrected(folder, run) -> None:
    assert run("prepare", "r.yaml").code == 0
    outcome = run("train", "r.yaml", "--set", "model.vocab_size=100")
    assert outcome.code == 4
    assert "outside the model's vocabulary of 100" in outcome.err
    assert run("train", "r.yaml").code == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", b"{"),
        ("run.json", b"[]"),
        ("run.json", b"\xff"),
        ("rwkv-init.json", b"[]"),
        ("rwkv-init.json", b""),
    ],
)
def test_damaged_records(folder, run, name: str, content: bytes) -> None:
    assert run("train", "r.yaml").code == 0
    (folder / "out/tiny" / name).write_bytes(content)
    outcome = run("train", "r.yaml")
    assert outcome.code == 4
    assert f"out/tiny/{name}" in outcome.err
    assert "hint:" in outcome.err


def test_what_a_kill_leaves_is_removed(folder, run) -> None:
    assert run("train", "r.yaml", "--set", "train.total_steps=3").code == 0
    out = folder / "out/tiny"
    (out / "rwkv-final.pth").unlink()
    for name in ("rwkv-final.pth", "best.pth", "samples.jsonl", "train_log.txt", "report.html",
                 "about.json", "run.json", "loss.png", "metrics.jsonl", "trace.json"):  # fmt: skip
        (out / f".{name}.abc.tmp").write_bytes(b"part")
    (out / ".best.pth.tmp").mkdir()  # as an adapter is written
    (out / "checkpoints/.step-00000009.tmp").mkdir()
    assert run("train", "r.yaml", "--set", "train.total_steps=3").code == 0
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]
    assert (out / "rwkv-final.pth").exists()


def test_another_run_in_the_folder_is_refused(folder, run) -> None:
    assert run("train", "r.yaml").code == 0
    before = {name: (folder / name).stat().st_mtime_ns for name in files_in(folder)}
    changed = ["--set", "train.lr_init=2e-3", "--set", "prepare.repeat-shuffle.epochs=3"]
    outcome = run("train", "r.yaml", *changed)
    assert outcome.code == 3
    assert "lr_init 0.001 -> 0.002" in outcome.err
    assert "another name or run_dir" in outcome.err
    assert {name: (folder / name).stat().st_mtime_ns for name in files_in(folder)} == before
    free = ["--set", "train.keep=1", "--set", "train.wkv=naive", "--set", "train.grad_cp=true"]
    assert run("train", "r.yaml", *free).code == 0
    fresh = ["--set", "train.resume=never"]
    refused = run("train", "r.yaml", *fresh)
    assert refused.code == 3
    assert "train.resume is never, and out/tiny holds checkpoints" in refused.err
    shutil.rmtree(folder / "out/tiny/checkpoints")
    refused = run("train", "r.yaml", *fresh)
    assert "train.resume is never, and out/tiny holds rwkv-final.pth" in refused.err
    assert run("train", "r.yaml", *fresh, "--set", "run_dir=other").code == 0


def test_two_runs_never_share_a_folder(folder, run, start) -> None:
    process = start("train", "r.yaml", "--set", "train.total_steps=9000")
    wait_for_rows(folder / "out/tiny/metrics.jsonl", 1, process)
    outcome = run("train", "r.yaml", "--set", "train.total_steps=9000")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert outcome.code == 5
    assert "another process is training in this folder" in outcome.err
