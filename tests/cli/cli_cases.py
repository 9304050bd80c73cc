"""A recipe that trains in seconds, and what a command gives back."""

import json
import logging
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RECIPE = """\
name: tiny
ctx_len: 16
prepare:
  - read: {path: text.jsonl}
  - encode: {vocab: bytes.txt}
  - repeat-shuffle: {epochs: 2}
  - write-binidx: out/tiny/data
  - plan
model: {arch: x070, n_layer: 2, n_embd: 64, vocab_size: 257}
train:
  {micro_bsz: 2, lr_init: 1e-3, lr_final: 1e-4, total_steps: 12, save_every: 3, trackers: []}
sample: {prompt: "\\n", max_tokens: 5}
"""

BYTES = "".join(f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256))
"""A vocabulary of single bytes, under the ids they have in the World vocabulary."""


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def facts(self) -> dict:
        """The one object of ``--json``."""
        [line] = self.out.splitlines()
        return json.loads(line)


Run = Callable[..., Outcome]


def any_step(first: int, last: int) -> int:
    """Draw a step to cut a run short at, and say which: any must do, and a failure names it."""
    step = random.randint(first, last)
    logging.getLogger(__name__).warning("cut short at step %d", step)
    return step


def files_in(folder: Path) -> list[str]:
    """Every file below a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def wait_for_rows(log: Path, rows: int, process: subprocess.Popen[str]) -> None:
    """Wait until a run has logged so many steps."""
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_text().count("\n") < rows:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
