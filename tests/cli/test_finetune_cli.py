"""Fine-tuning from the command line: train, resume, generate, merge."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from rwkvkit import load_model
from rwkvkit.model.adapter import read_adapter
from rwkvkit.model.checkpoint import read_checkpoint, write_checkpoint
from rwkvkit.model.config import ModelConfig
from rwkvkit.model.init import init_weights

LORA = ["--set", "train.tuning.method=lora", "--set", "train.tuning.rank=4"]
STATE = [
    *("--set", "train.tuning.method=state"),
    *("--set", "train.lr_init=1", "--set", "train.lr_final=0.01"),
]
NAMES = {"lora": "rwkv-adapter", "state": "rwkv-state.pth"}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """A small model of the World vocabulary."""
    drawn = init_weights(ModelConfig(arch="x070", n_layer=1, n_embd=64), seed=1)
    generator = torch.Generator().manual_seed(2)
    return {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in drawn.items()}


@pytest.fixture
def base(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    """The base's file."""
    write_checkpoint(weights, folder / "base.pth")
    return folder / "base.pth"


def arguments(method: str, *more: str) -> list[str]:
    recipe = Path("r.yaml").read_text()
    Path("t.yaml").write_text(
        recipe.replace(
            "{arch: x070, n_layer: 2, n_embd: 64, vocab_size: 257}", "{weights: base.pth}"
        )
    )
    return ["train", "t.yaml", *(LORA if method == "lora" else STATE), *more]


@pytest.mark.parametrize("method", ["lora", "state"])
def test_train_generate_merge(folder: Path, base: Path, run, method: str) -> None:
    before = base.read_bytes()
    dry = run(*arguments(method), "--dry-run")
    assert dry.code == 0, dry.err
    made = run(*arguments(method))
    assert made.code == 0, made.err
    assert f"{method}: " in made.err  # what trains, among the choices
    result = f"out/tiny/{NAMES[method]}"
    assert f"next: rwkvkit generate base.pth --adapter {result}" in made.out
    assert "sample, continuing" in made.out
    assert base.read_bytes() == before
    assert run(*arguments(method), "--json").facts["skipped"] is True

    text = ["--prompt", "The number", "--max-tokens", "8", "--seed", "3"]
    applied = run("generate", "base.pth", "--adapter", result, *text)
    merged = run("merge", "base.pth", result, "-o", "merged.pth", "--json")
    assert merged.code == 0, merged.err
    assert merged.facts["changed"] == {"lora": 6, "state": 1}[method]
    assert run("generate", "merged.pth", "--vocab", "bytes.txt", *text).out == applied.out
    assert "verified" in run("inspect", "merged.pth").out

    seen = run("inspect", result)
    assert seen.code == 0, seen.err
    named = {"lora": f"adapter {result}: LoRA, rank 4: ", "state": f"tuned states {result}: "}
    assert seen.out.startswith(named[method])
    assert "belongs to base.pth" in seen.out

    refused = run("merge", "base.pth", result, "-o", "merged.pth")
    assert refused.code == 2
    assert "merged.pth: the file exists" in refused.err
    foreign = run("merge", "merged.pth", result, "-o", "twice.pth")
    assert foreign.code == 4
    assert "was trained on another base, base.pth" in foreign.err
    assert "instead of merged.pth, or say --any-base" in foreign.err
    assert run("merge", "merged.pth", result, "-o", "twice.pth", "--any-base").code == 0

    unbroken = read(Path(result))
    for path in ("checkpoints/step-00000012", NAMES[method]):  # as if it had been killed before
        target = Path("out/tiny") / path
        target.unlink() if target.is_file() else shutil.rmtree(target)
    again = run(*arguments(method))
    assert "resuming from out/tiny/checkpoints/step-00000009" in again.err
    assert read(Path(result)) == unbroken
    largest = max(unbroken, key=lambda name: len(unbroken[name]))
    path = Path(result) / largest if Path(result).is_dir() else Path(result)
    path.write_bytes(b"x" + unbroken[largest][1:])
    assert "is damaged, and comes from the newest checkpoint again" in run(*arguments(method)).err
    assert read(Path(result)) == unbroken


@pytest.mark.parametrize("method", ["lora", "state"])
def test_a_run_folder_stands_for_the_base_and_what_was_tuned(
    folder: Path, base: Path, run, method: str
) -> None:
    few = ["--set", "train.total_steps=3", "--set", "train.save_every=3"]
    assert run(*arguments(method, *few)).code == 0
    result = f"out/tiny/{NAMES[method]}"
    text = ["--prompt", "The number", "--max-tokens", "8"]
    both = run("generate", "base.pth", "--adapter", result, *text)
    assert both.code == 0, both.err
    for source in ("out/tiny", result, "out/tiny/checkpoints/step-00000003"):
        found = run("generate", source, *text)
        assert found.out == both.out, found.err
        assert "and its base base.pth" in found.err
    assert run("generate", "base.pth", "--adapter", "out/tiny", *text).out == both.out
    measured = ["out/tiny/data", "--max-samples", "4", "--json"]
    alone = run("evaluate", "base.pth", "--adapter", result, *measured)
    assert run("evaluate", "out/tiny", *measured).facts == alone.facts
    assert alone.facts["ctx_len"] == 16
    assert alone.facts["loss"] != run("evaluate", "base.pth", *measured).facts["loss"]

    assert run("merge", "base.pth", "out/tiny", "-o", "merged.pth").code == 0
    assert run("export", "out/tiny", "-o", "exported.pth").code == 0
    merged = read_checkpoint(folder / "merged.pth")
    for name, tensor in read_checkpoint(folder / "exported.pth").items():
        assert torch.equal(tensor, merged[name].bfloat16())
    assert run("inspect", "out/tiny").out.splitlines()[1].startswith("belongs to base.pth")

    twice = run("generate", "out/tiny", "--adapter", result, *text)
    assert twice.code == 4
    assert f"{result}: is no whole model" in twice.err
    write_checkpoint(read_checkpoint(folder / "merged.pth"), base)
    for words in (["generate", "out/tiny", *text], ["export", result, "-o", "other.pth"]):
        changed = run(*words)
        assert changed.code == 4
        assert "was trained on another base, base.pth" in changed.err
    base.unlink()
    for words in (
        ["generate", result, *text],
        ["evaluate", "out/tiny", *measured],
        ["export", "out/tiny", "-o", "other.pth"],
    ):
        gone = run(*words)
        assert gone.code == 4
        assert f"{result}: its base base.pth is not there" in gone.err
        assert f"BASE.pth --adapter {result}" in gone.err


def read(path: Path) -> dict[str, bytes]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files}


def test_state_starts_at_zero_and_moves(folder: Path, base: Path, run) -> None:
    few = ["--set", "train.total_steps=2", "--set", "train.warmup_steps=0"]
    assert run(*arguments("state", *few)).code == 0
    [(name, state)] = read_checkpoint(Path("out/tiny/rwkv-state.pth")).items()
    assert name == "blocks.0.att.time_state"
    assert state.shape == (1, 64, 64)
    assert 0 < state.abs().max() <= 2.1  # Adam moves by the learning rate, 1, a step
    facts = json.loads(Path("out/tiny/rwkv-state.json").read_text())
    assert facts["base"]["path"] == "base.pth"
    model = load_model("base.pth", adapter="out/tiny/rwkv-state.pth")
    assert torch.equal(model.blocks[0].att.time_state, state)


def test_two_processes_train_the_adapter_of_one(folder: Path, base: Path, run, start) -> None:
    few = ["--set", "train.total_steps=4", "--set", "train.tuning.dropout=0"]
    assert run(*arguments("lora", *few, "--set", "run_dir=one")).code == 0
    two = ["--set", "run_dir=two", "--set", "train.micro_bsz=1", "--processes", "2"]
    process = start(*arguments("lora", *few, *two))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    losses = [
        [json.loads(line)["loss"] for line in Path(name, "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    one, two = (read_adapter(Path(name, "rwkv-adapter"))[1] for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "more", "message"),
    [
        ("r.yaml", LORA, "lora tunes a checkpoint, and the recipe names none"),
        ("t.yaml", ["train.tuning.train=[att.kye]"], "'att.kye' matches nothing"),
        ("t.yaml", ["train.tuning.rank=4"], "only an adapter has that (method: lora)"),
        ("t.yaml", ["train.tuning.method=lorra"], "train.tuning.method"),
        ("t.yaml", ["train.tuning.ranks=4"], "did you mean 'rank'?"),
    ],
)
def test_mistakes(folder: Path, base: Path, run, recipe: str, more: list[str], message: str):
    arguments("lora")
    options = more if "--set" in more else ["--set", *more]
    outcome = run("train", recipe, *options, "--dry-run")
    assert outcome.code == 3
    assert message in outcome.err
    assert "hint:" in outcome.err
