"""generate, inspect, recipes, init-weights, and what all commands share."""

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zstandard
from cli_cases import files_in

from rwkvkit import load_model, open_binidx
from rwkvkit.cli.boundary import caught
from rwkvkit.errors import SetupError
from rwkvkit.model.checkpoint import write_checkpoint
from rwkvkit.model.config import ModelConfig, config_of_size
from rwkvkit.model.init import init_weights, weight_shapes
from rwkvkit.recipe.load import bundled_recipes, load_recipe


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of the World vocabulary that has something to say."""
    weights = init_weights(ModelConfig(arch="x070", n_layer=1, n_embd=64), seed=1)
    generator = torch.Generator().manual_seed(2)
    weights["emb.weight"] = torch.randn(weights["emb.weight"].shape, generator=generator)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    write_checkpoint(weights, path)
    return path


def test_generate_repeats_itself_for_a_seed(checkpoint: Path, run) -> None:
    def text(*more: str) -> str:
        outcome = run("generate", str(checkpoint), "--prompt", "Hello", "--max-tokens", "12", *more)
        assert outcome.code == 0
        return outcome.out

    first = text("--seed", "7")
    assert first.startswith("Hello")
    assert len(first) > len("Hello\n")
    assert text("--seed", "7") == first
    assert text("--seed", "8") != first
    greedy = text("--temperature", "0", "--seed", "1")
    assert text("--temperature", "0", "--seed", "2") == greedy
    as_json = run(
        "generate",
        str(checkpoint),
        "--prompt",
        "Hello",
        "--max-tokens",
        "12",
        "--seed",
        "7",
        "--json",
    )
    assert "Hello" + as_json.facts["text"] + "\n" == first


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["generate", "absent.pth", "--prompt", "x"], 4, "absent.pth: no such file"),
        (["generate", "{checkpoint}", "--prompt", "x", "--top-p", "0"], 2, "--top-p"),
        (
            ["generate", "{checkpoint}", "--prompt", "x", "--temperature", "nan"],
            2,
            "not in [0, inf)",
        ),
        (["inspect", "absent"], 4, "absent: neither a checkpoint nor a dataset (absent.bin, .idx)"),
        (["inspect", "absent.pth"], 4, "absent.pth: no such file"),
        (["inspect", "r.yaml"], 4, "r.yaml: not a readable checkpoint"),
        (["recipes", "show", "quickstrat"], 3, "did you mean 'quickstart'?"),
        (["recipes", "show", "{checkpoint}"], 3, "is not UTF-8"),
        (["recipes", "copy", "{checkpoint}", "x.yaml"], 3, "is not UTF-8"),
        (["train", "absent.yaml"], 3, "no such recipe"),
        (["trane"], 2, "No such command 'trane'"),
        (["train", "r.yaml", "--set", "x"], 2, "not key=value"),
        (["train", "r.yaml", "--fast"], 2, "hint: rwkvkit train --help"),
        (["train", "r.yaml", "--lr_init", "1"], 2, "recipe: --set train.lr_init=VALUE"),
        (["train", "r.yaml", "--micro-bsz=8"], 2, "recipe: --set train.micro_bsz=VALUE"),
        (["prepare", "r.yaml", "--set", "prepare.read=empty"], 4, "no file to read"),
        (["generate", "empty", "--prompt", "x"], 4, "empty: holds no weights"),
    ],
)
def test_wrong_use(
    folder: Path, run, checkpoint: Path, arguments: list[str], code: int, message: str
) -> None:
    (folder / "empty").mkdir()
    before = files_in(folder)
    outcome = run(*(word.format(checkpoint=checkpoint) for word in arguments))
    assert outcome.code == code
    assert message in outcome.err
    assert "hint:" in outcome.err
    assert not outcome.out
    assert files_in(folder) == before


@pytest.mark.parametrize(
    ("command", "code", "shown"),
    [
        ("recipes show r.yaml", 0, b"# \xfc\\u65e5\\U0001f600\n"),
        ("recipes show r.yaml <&- >&- 2>&-", 0, b""),
        ("recipes show absent --bad <&- >&- 2>&-", 2, b""),
        ("inspect absent --json >/dev/full", 4, b""),
    ],
)
def test_streams_that_do_not_take_everything(
    folder: Path, command: str, code: int, shown: bytes
) -> None:
    """A terminal of Latin-1, streams that the caller has closed, a full disk."""
    (folder / "r.yaml").write_text("# ü日😀\n", encoding="utf-8")
    line = f"exec {shlex.quote(sys.executable)} -m rwkvkit {command}"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(["sh", "-c", line], capture_output=True, env=environment)
    assert (done.returncode, done.stdout) == (code, shown)
    assert b"Traceback" not in done.stderr


def test_a_package_that_is_not_installed(capsys: pytest.CaptureFixture[str]) -> None:
    error = caught(lambda: importlib.import_module("absent_package.part"))
    assert isinstance(error, SetupError)
    assert error.what == "the package absent_package is not installed"
    assert error.hint.startswith("pip install absent_package")
    assert "Traceback" not in capsys.readouterr().err
    own = caught(lambda: importlib.import_module("rwkvkit.absent"))
    assert own.exit_code == 1


@pytest.mark.parametrize(
    "command",
    ["", "prepare", "init-weights", "train", "generate", "inspect", "recipes", "report", "compare"],
)
def test_help(run, command: str) -> None:
    outcome = run(*command.split(), "--help")
    assert outcome.code == 0
    assert "Usage: rwkvkit" in outcome.out


def test_init_weights_prints_its_table_and_grows(folder: Path, run) -> None:
    outcome = run("init-weights", "r.yaml")
    assert outcome.code == 0
    assert "blocks.1.att.w0" in outcome.out
    assert "orthogonal, gain 0.1" in outcome.out
    small = folder / "out/tiny/rwkv-init.pth"
    assert run("init-weights", "r.yaml", "--json").facts["skipped"] is True
    grown = run(
        "init-weights",
        "r.yaml",
        *("--set", "run_dir=big", "--set", "model.n_embd=128", "--set", "model.n_layer=3"),
        *("--set", f"model.grow_from={small}"),
    )
    assert grown.code == 0
    config = load_model(folder / "big/rwkv-init.pth").config
    assert (config.n_layer, config.n_embd) == (3, 128)
    changed = run("init-weights", "r.yaml", "--set", "seed=1")
    assert "seed 42 -> 1 since out/tiny/rwkv-init.pth was made" in changed.err
    half_done = json.loads((folder / "out/tiny/rwkv-init.json").read_text()) | {"sha256": None}
    (folder / "out/tiny/rwkv-init.json").write_text(json.dumps(half_done))  # as a kill leaves it
    again = run("init-weights", "r.yaml", "--set", "seed=1", "--json")
    assert again.facts["skipped"] is False
    missing = run("init-weights", "r.yaml", "--set", "model.grow_from=absent.pth")
    assert missing.code == 3
    assert "model.grow_from: absent.pth does not exist" in missing.err


def test_inspect_a_checkpoint(checkpoint: Path, run) -> None:
    outcome = run("inspect", str(checkpoint))
    assert outcome.code == 0
    assert "x070 n_layer 1 n_embd 64 vocab_size 65536" in outcome.out
    assert "blocks.0.att.receptance.weight" in outcome.out
    facts = run("inspect", str(checkpoint), "--json").facts
    assert facts["model"]["arch"] == "x070"
    assert facts["dtypes"] == {"float32": len(facts["tensors"])}
    assert facts["problems"] == []


def test_inspect_a_dataset(folder: Path, run) -> None:
    assert run("prepare", "r.yaml", "--set", "prepare.encode=world").code == 0
    outcome = run("inspect", "out/tiny/data.bin")
    assert outcome.code == 0
    assert "80 documents" in outcome.out
    assert "The number" in outcome.out
    assert "verified" in outcome.out
    facts = run("inspect", "out/tiny/data", "--json").facts
    assert facts["documents"] == 80
    content = bytearray((folder / "out/tiny/data.bin").read_bytes())
    content[0] ^= 1
    (folder / "out/tiny/data.bin").write_bytes(content)
    damaged = run("inspect", "out/tiny/data")
    assert damaged.code == 4
    assert "data.bin" in damaged.err


def test_recipes_list_show_copy(folder: Path, run) -> None:
    listed = run("recipes")
    assert listed.code == 0
    assert all(name in listed.out for name in bundled_recipes())
    assert set(run("recipes", "list", "--json").facts) == set(bundled_recipes())
    before = run("recipes", "--json", "list")
    assert before.code == 2
    assert before.facts["error"]["hint"] == "rwkvkit recipes list --json"
    shown = run("recipes", "show", "sft")
    assert shown.out == bundled_recipes()["sft"].read_text()
    assert "| `micro_bsz` |" in run("recipes", "keys").out
    assert run("recipes", "copy", "sft").code == 0
    assert (folder / "sft.yaml").read_text() == shown.out
    refused = run("recipes", "copy", "sft")
    assert refused.code == 2
    assert "sft.yaml: the file exists" in refused.err
    assert run("recipes", "copy", "sft", "mine.yaml").code == 0


TEXT = {"text": "User: hi\n\nAssistant: hello\n\n"}
CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
DATA = {
    "quickstart": {},
    "pretrain": {"minipile/a.jsonl": TEXT},
    "hub": {},
    "infctx": {"long/a.jsonl": TEXT},
    "music": {"abc/a.jsonl": {"text": "X:1\nT:A tune\nK:D\n|:DFA dfa|afd AFD:|\n"}},
    "sft-simple": {"my-data/a.jsonl": TEXT},
    "sft": {"chat/a.jsonl": TEXT, "slimpajama/a.jsonl.zst": TEXT},
    "chat": {
        "chat/a.jsonl": CHAT,
        "instruct/a.jsonl": {"instruction": "add", "input": "1 1", "output": "2"},
        "slimpajama/a.jsonl.zst": TEXT,
    },
    "finetune-7b": {"my-data/a.jsonl": TEXT},
    "lora": {"chat/a.jsonl": CHAT},
    "state-tuning": {"chat/a.jsonl": CHAT},
}
"""The files that the recipes expect."""


def write_data(folder: Path, name: str) -> None:
    """Write the files that a recipe expects, 40 lines in each."""
    for path, line in DATA[name].items():
        content = f"{json.dumps(line)}\n".encode() * 40
        (folder / path).parent.mkdir(exist_ok=True)
        packed = zstandard.ZstdCompressor().compress(content)
        (folder / path).write_bytes(packed if path.endswith(".zst") else content)


@pytest.mark.parametrize("name", sorted(bundled_recipes()))
def test_every_recipe_that_ships(folder: Path, run, name: str) -> None:
    """A dry run with files of the names it expects."""
    write_data(folder, name)
    model = load_recipe(name).model
    if model and model.weights:
        # Shapes alone decide: every tensor is one zero, repeated.
        shapes = weight_shapes(config_of_size(model.size))
        tensors = {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}
        torch.save(tensors, folder / model.weights)
    outcome = run("train", name, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "prepare: would build: there is no output yet" in outcome.out
    assert "train: memory, estimated: " in outcome.out
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("name", "documents", "masked"),
    [
        ("pretrain", 40, False),
        ("sft-simple", 120, False),
        ("sft", 200, False),
        ("chat", 200, True),
    ],
)
def test_the_data_of_local_recipes(
    folder: Path, run, name: str, documents: int, masked: bool
) -> None:
    write_data(folder, name)
    made = run("prepare", name, "--set", "ctx_len=16", "--json")
    assert made.code == 0, made.err
    assert made.facts["documents"] == documents
    seen = run("inspect", made.facts["prefix"])
    assert seen.code == 0
    assert ("count in the loss" in seen.out) == masked
    assert (r"in the loss: ' hello\n\n'" in seen.out) == masked
    assert open_binidx(made.facts["prefix"]).has_mask == masked


def test_quickstart_for_a_few_steps(folder: Path, run) -> None:
    """The README's first command, on real text with the whole vocabulary, cut short."""
    few = ["--set", "train.my_exit_tokens=384", "--set", "train.micro_bsz=2", "--set", "ctx_len=64"]
    outcome = run("train", "quickstart", *few, "--set", "sample.max_tokens=5", "--json")
    assert outcome.code == 0, outcome.err
    facts = outcome.facts
    assert facts["prepare"]["documents"] > 300
    rows = (folder / "out/quickstart/metrics.jsonl").read_text().splitlines()
    assert 10.5 < json.loads(rows[0])["loss"] < 11.5
    [events] = (folder / "out/quickstart/tensorboard").iterdir()  # it is installed: the default
    assert b"loss_smooth" in events.read_bytes()
    assert (folder / "out/quickstart/train_log.txt").read_text().startswith("NEW RUN ")
    shutil.rmtree(folder / "out")
