"""Texts that the model writes while it trains."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rwkvkit.files import read_json_lines, write_text
from rwkvkit.model.generate import generate_tokens
from rwkvkit.model.rwkv import RWKV
from rwkvkit.tokenizer.text import Tokenizer
from rwkvkit.train.engine import Engine
from rwkvkit.train.evaluation import EvaluateConfig
from rwkvkit.train.group import Group


class Previews:
    """A probe: continues prompts every few steps, and appends the texts to a file.

    A line of the file is ``{"step": …, "prompt": …, "text": …}``. It finds nothing for the metrics.

    Args:
        prompts: the texts and their token ids.
        tokenizer: of the model.
        config: how to draw.
        every: optimizer steps between samples; some come after the last step too.
        steps: of the run.
        path: the file; lines of steps that are done again after a resume are cut off.
        group: the processes of the run; all of them run the model, rank 0 writes.
        report: takes the texts for people.
    """

    def __init__(
        self,
        prompts: Mapping[str, Sequence[int]],
        tokenizer: Tokenizer,
        config: EvaluateConfig,
        *,
        every: int,
        steps: int,
        path: Path,
        group: Group,
        report: Callable[[str], None],
    ) -> None:
        self._prompts, self._tokenizer, self._config = prompts, tokenizer, config
        self._every, self._steps, self._path = every, steps, path
        self._group, self._report = group, report
        self._cleaned = False

    def __call__(self, step: int, engine: Engine) -> Mapping[str, Any]:
        """Continue the prompts if it is time; see ``Probe``."""
        if step % self._every and step != self._steps:
            return {}
        if not self._cleaned and self._group.rank == 0:
            _cut_off(self._path, step)
        self._cleaned = True
        for prompt, ids in self._prompts.items():
            tokens = generate_tokens(
                cast(RWKV, engine.model),
                ids,
                max_tokens=self._config.max_tokens,
                temperature=self._config.temperature,
                top_p=self._config.top_p,
                seed=self._config.seed,
                stop=(self._tokenizer.end_id,),
            )
            text = self._tokenizer.decode(list(tokens))
            self._report(f"step {step:,}: {prompt!r} continues: {text!r}")
            if self._group.rank == 0:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(_line({"step": step, "prompt": prompt, "text": text}))
        return {}


def _cut_off(path: Path, step: int) -> None:
    """Leave the lines before ``step``; a line that a kill cut short goes too."""
    if not path.exists():
        return
    rows = (row for row in read_json_lines(path) if isinstance(row.get("step"), int))
    write_text(path, "".join(_line(row) for row in rows if row["step"] < step))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
