"""Whether fine-tuning succeeds: reversing digits, by each method, from one base.

    python benchmarks/finetune.py --threads 1 --out benchmarks/results/finetune.json

A base learns to copy, reverse, sort and count up digits, as the first turns of a conversation show.
Fine-tuning then has conversations of one turn that reverse: only a model that has learned what is
meant gets them right. Keys are digit strings; those of the test occur in no training data. The
recipes are in ``benchmarks/finetune/``, run by the commands a person would type.
"""

import argparse
import contextlib
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import report
import torch

from rwkvkit import WorldTokenizer, load_model
from rwkvkit.cli.app import app
from rwkvkit.model.rwkv import RWKV

RECIPES = Path(__file__).parent / "finetune"
SKILLS: dict[str, Callable[[str], str]] = {
    "copy": lambda key: key,
    "reverse": lambda key: key[::-1],
    "sort": lambda key: "".join(sorted(key)),
    "count up": lambda key: "".join(str((int(digit) + 1) % 10) for digit in key),
}
TURNS = 8
METHODS = {
    "full": ("full", []),
    "lora": ("lora", []),
    "dora": ("lora", ["name=dora", "train.tuning.method=dora"]),
    "pissa": ("lora", ["name=pissa", "train.tuning.method=pissa"]),
    "miss": ("lora", ["name=miss", "train.tuning.method=miss"]),
    "state": ("state", []),
}
RESULTS = {"full": "rwkv-final.pth", "state": "rwkv-state.pth"}


def main() -> None:
    """Train the base, fine-tune it by each method, test, print, and write the results."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    results = report.header("torch", "peft") | {
        "unit": "share of held-out keys answered exactly",
        "threads": arguments.threads,
        "keys": arguments.keys,
        "results": {},
    }
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(_working_in(Path(folder)))
        held_out = _write_data(arguments.digits, arguments.base_documents, arguments.documents)
        keys = held_out[: arguments.keys]
        tuned = [_ctx_len(arguments.digits, 1)]
        seconds = _train("base", [_ctx_len(arguments.digits, TURNS), *arguments.base_set])
        base = Path("out/base/rwkv-final.pth")
        model = load_model(base)
        results["base"] = {
            "seconds": seconds,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "after_examples": {name: _share(model, keys, name, examples=3) for name in SKILLS},
            "share": _share(model, keys, "reverse"),
        }
        print(f"base: {json.dumps(results['base'])}")
        for method in arguments.methods:
            recipe, overrides = METHODS[method]
            seconds = _train(recipe, [*tuned, *overrides, *arguments.tune_set])
            result = Path("out", method, RESULTS.get(method, "rwkv-adapter"))
            model = load_model(result) if method == "full" else load_model(base, adapter=result)
            found = {
                "seconds": seconds,
                "bytes": _size(result),
                "share": _share(model, keys, "reverse"),
            }
            results["results"][method] = found
            print(f"{method}: {json.dumps(found)}", flush=True)
    report.save(results, arguments.out)


def _train(recipe: str, overrides: Sequence[str]) -> float:
    """Run ``rwkvkit train`` and return the seconds it took."""
    since = time.perf_counter()
    options = [word for override in overrides for word in ("--set", override)]
    path = str(RECIPES / f"{recipe}.yaml")
    app.main(["train", path, "--workers", "1", *options], standalone_mode=False)
    return round(time.perf_counter() - since, 1)


def _ctx_len(digits: int, turns: int) -> str:
    """The override that makes a sample a document: its turns, and the 0 at the end."""
    return f"ctx_len={turns * (2 * digits + 4) + 1}"


def _share(model: RWKV, keys: Sequence[str], skill: str, examples: int = 0) -> float:
    """Return the share of keys answered exactly, taking the likeliest token each time.

    Args:
        model: of the base, or fine-tuned.
        keys: all of the same length.
        skill: what is to be done with them.
        examples: turns that show it before the question.
    """
    encode = WorldTokenizer("vocab.txt").encode
    prompts, wanted = [], []
    for number, key in enumerate(keys):
        shown = [keys[number - before - 1] for before in range(examples)]
        texts = [part for key in shown for part in (_question(key), _answer(skill, key))]
        prompts.append(
            [token for text in [*texts, _question(key)] for token in encode(text).tolist()]
        )
        wanted.append(encode(_answer(skill, key)).tolist())
    answers = _continue(model.eval(), torch.tensor(prompts), len(wanted[0]))
    return round((answers == torch.tensor(wanted)).all(1).float().mean().item(), 4)


def _question(key: str) -> str:
    return f"User: {key}\n\nAssistant:"


def _answer(skill: str, key: str) -> str:
    return f" {SKILLS[skill](key)}\n\n"


@torch.inference_mode()
def _continue(model: RWKV, prompts: torch.Tensor, length: int) -> torch.Tensor:
    logits, state = model(prompts, state=model.zero_state(len(prompts)))
    tokens = []
    for _ in range(length):
        tokens.append(logits[:, -1].argmax(-1, keepdim=True))
        logits, state = model(tokens[-1], state=state)
    return torch.cat(tokens, 1)


def _write_data(digits: int, base_documents: int, documents: int) -> list[str]:
    """Write the vocabulary and both sets of conversations; return keys that are in neither."""
    rng = random.Random(1)
    keys = [f"{number:0{digits}d}" for number in range(10**digits)]
    rng.shuffle(keys)
    held_out, known = keys[: len(keys) // 10], keys[len(keys) // 10 :]
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [b"User: ", b"\n\nAssistant:", b"\n\n"]
    lines = (f"{number} {token!r} {len(token)}\n" for number, token in enumerate(tokens, 1))
    Path("vocab.txt").write_text("".join(lines), encoding="utf-8")
    skills = (rng.choice(list(SKILLS)) for _ in range(base_documents))
    _write_chats("skills.jsonl", ((skill, rng.sample(known, TURNS)) for skill in skills))
    _write_chats("reverse.jsonl", (("reverse", [key]) for key in known[:documents]))
    return held_out


def _write_chats(path: str, documents: Iterator[tuple[str, list[str]]]) -> None:
    with Path(path).open("w", encoding="utf-8") as file:
        for skill, keys in documents:
            messages = []
            for key in keys:
                messages.append({"role": "user", "content": key})
                messages.append({"role": "assistant", "content": SKILLS[skill](key)})
            file.write(json.dumps({"messages": messages}) + "\n")


def _size(path: Path) -> int:
    parts = path.iterdir() if path.is_dir() else [path]
    return sum(part.stat().st_size for part in parts)


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Run in a folder, as recipes name files from where they are run."""
    before = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="keep the files here; it resumes what is there")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--digits", type=int, default=5, help="of a key")
    parser.add_argument("--keys", type=int, default=1000, help="held-out keys to ask for")
    parser.add_argument("--base-documents", type=int, default=19_200)
    parser.add_argument("--documents", type=int, default=4_000, help="to fine-tune on")
    parser.add_argument("--base-set", nargs="*", default=[], help="overrides of the base's recipe")
    parser.add_argument("--tune-set", nargs="*", default=[], help="overrides of the others")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=lambda text: Path(text).absolute())
    return parser.parse_args()


if __name__ == "__main__":
    main()
