"""The file of texts that a run wrote on the way."""

import json
from pathlib import Path

from rwkvkit.train.previews import _cut_off


def test_a_resume_keeps_every_line_before_it(tmp_path: Path) -> None:
    """Python's own idea of a line ends at characters that a text may hold."""
    path = tmp_path / "samples.jsonl"
    texts = ["one", "two\x85\u2028\u2029\x1c\x0c", "three\r\n", "four"]
    lines = [
        json.dumps({"step": step, "prompt": "é", "text": text}, ensure_ascii=False) + "\n"
        for step, text in enumerate(texts)
    ]
    path.write_bytes("".join(lines).encode() + b'{"step": 1, "text": "\xe4\xb8')
    _cut_off(path, 3)
    assert path.read_bytes() == "".join(lines[:3]).encode()
