"""Whatever the input holds: the documents of a strict reader, or the error at its first line."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chunk_cases import chunks
from hypothesis import example, given, settings
from hypothesis import strategies as st
from line_cases import contents, strict

from rwkvkit import BinidxWriter, WorldTokenizer, open_binidx
from rwkvkit.data.finding import find_files
from rwkvkit.data.readers import read_file_chunk
from rwkvkit.data.sources import Source
from rwkvkit.errors import DataError

DECODE = WorldTokenizer().decode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("strict")


@settings(max_examples=150, deadline=None)
@example(b'{"text": "a\xe4\xb8\xad"}\n{"text": "\xe4\xb8"}\n', 15)
@example(b'{"text": ""}\r\n\r\n\xef\xbb\xbf{"text": ""}', 1)
@example(b'{"text": "' + b"x" * 300 + b'\x00"}\n', 7)
@given(contents, st.integers(1, 60))
def test_a_build_gives_the_documents_or_names_the_first_bad_line(
    folder, build_at, content, chunk_bytes
):
    path = folder / "lines.jsonl"
    path.write_bytes(content)
    texts, bad = strict(content)
    made = build_at(folder, str(path))
    made._chunk_bytes = chunk_bytes
    if bad:
        with pytest.raises(DataError) as caught:
            made.run()
        assert caught.value.where == f"{path}:{bad[0]}"
    elif not texts:
        with pytest.raises(DataError, match="the input holds no document"):
            made.run()
    else:
        made.run()
        assert [DECODE(tokens) for tokens in open_binidx(folder / "data")] == texts


columns = st.dictionaries(
    st.sampled_from(["q", "a", "text"]),
    st.text(max_size=6) | st.none() | st.integers(),
    max_size=3,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(columns | st.none(), max_size=6), st.integers(1, 60))
def test_templates_keep_to_the_same_rules(folder, build_at, records, chunk_bytes):
    path = folder / "template.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" if r is not None else "\n" for r in records))
    good = [
        r is None or all(isinstance(r.get(name), str) and _utf8(r[name]) for name in ("q", "a"))
        for r in records
    ]
    made = build_at(folder, {"path": str(path), "template": "{q}|{a}"})
    made._chunk_bytes = chunk_bytes
    texts = [f"{r['q']}|{r['a']}" for r, fine in zip(records, good, strict=True) if fine and r]
    if all(good) and texts:
        made.run()
        assert [DECODE(tokens) for tokens in open_binidx(folder / "data")] == texts
    else:
        with pytest.raises(DataError) as caught:
            made.run()
        assert all(good) or caught.value.where == f"{path}:{good.index(False) + 1}"


def _utf8(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_table_is_an_error_or_reads_as_it_was(folder, data):
    path = folder / "table.parquet"
    texts = [f"row {i}" for i in range(50)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=20, use_dictionary=False)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        del content[at:]
    check_damaged(path, content)


@pytest.mark.parametrize("bits", [4, 53])
def test_no_byte_of_a_table_ends_the_process(folder, bits):
    path = folder / "table.parquet"
    pq.write_table(pa.table({"text": ["a row"] * 50}), path, row_group_size=20)
    content = bytearray(path.read_bytes())
    for at in range(len(content)):
        content[at] ^= bits
        check_damaged(path, content)
        content[at] ^= bits


def check_damaged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    failure, found = None, []
    try:
        parts = chunks(find_files([Source(path=str(path))]))
        found = [read_file_chunk(part, skip_bad=True) for part in parts]
    except DataError as error:
        failure = error
    assert failure is None or failure.where == str(path)
    for part in found:
        assert all(text.decode() is not None for text in part.texts)
        assert len(part.texts) + len(part.rejects) == part.n_lines


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 65535), max_size=5), max_size=5),
    st.sampled_from([".idx", ".bin", ".mask"]),
    st.data(),
)
def test_a_damaged_binidx_is_an_error_or_stays_inside(tmp_path_factory, lists, suffix, data):
    prefix = tmp_path_factory.mktemp("fuzz") / "d"
    with BinidxWriter(prefix, masked=True) as writer:
        for tokens in lists:
            writer.add(np.array(tokens, np.uint16), np.ones(len(tokens), bool))
    path = prefix.with_suffix(suffix)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content)))
    kind = data.draw(st.sampled_from(["cut", "more", "flip", "huge"]))
    if kind == "cut":
        del content[at:]
    elif kind == "more":
        content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    elif kind == "flip" and at < len(content):
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        content[at : at + 8] = data.draw(st.sampled_from([b"\xff" * 8, b"\xff" * 7 + b"\x7f"]))
    path.write_bytes(content)
    failure = None
    try:
        found = open_binidx(prefix)
        for i in range(len(found)):
            assert found[i].size == found.sizes[i]
        assert found.mask(0, found.n_tokens).size == found.tokens(0, found.n_tokens).size
        found.verify()
    except DataError as error:
        failure = error
    if failure:
        assert str(prefix) in failure.where
    else:
        assert found.sizes.sum() == found.n_tokens
