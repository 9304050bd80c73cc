"""Tables and separated text give what the same lines of jsonl give."""

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chunk_cases import chunks
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reader_cases import ROWS, read, written

from rwkvkit.data.chunk_work import ChunkWork
from rwkvkit.data.finding import find_files
from rwkvkit.data.readers import file_chunks, tables
from rwkvkit.data.sources import Source
from rwkvkit.data.stages import Encode, Read
from rwkvkit.errors import DataError


@pytest.fixture
def parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=70)
    return path


def as_arrow_file(table, path):
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=40)


def as_arrow_stream(table, path):
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=40)


@pytest.mark.parametrize("write", [pq.write_table, as_arrow_file, as_arrow_stream])
@pytest.mark.parametrize("chunk_bytes", [1, 2000, 1 << 20])
def test_tables(tmp_path, write, chunk_bytes):
    path = tmp_path / ("t.parquet" if write is pq.write_table else "t.arrow")
    write(pa.Table.from_pylist(ROWS), path)
    texts = [row["text"] for row in ROWS]
    assert read(chunk_bytes, path=str(path)) == (texts, list(range(300)), [])
    filled = [f"why {row['text']}" for row in ROWS]
    assert read(chunk_bytes, path=str(path), template="{q} {text}")[0] == filled


def test_only_the_columns_that_are_needed_are_carried(parquet):
    chunk = chunks(find_files([Source(path=str(parquet), field="q")]))[0]
    assert pa.ipc.open_stream(chunk.data).read_all().column_names == ["q"]


def test_a_chunk_of_views_or_of_a_dictionary_carries_nothing_of_other_rows(tmp_path):
    texts = pa.array([row["text"] for row in ROWS])
    asked = pa.array([[{"role": "user", "content": text.as_py()}] for text in texts])
    views = pa.list_(pa.struct([("role", pa.string_view()), ("content", pa.string_view())]))
    as_dictionary = texts.dictionary_encode()
    for column in (texts.cast(pa.string_view()), asked.cast(views), as_dictionary):
        table = pa.table({"text": column})
        with pa.ipc.new_file(tmp_path / "t.arrow", table.schema) as writer:
            writer.write_table(table)
        if column is as_dictionary:
            pq.write_table(table, tmp_path / "t.parquet")
        for path in tmp_path.iterdir():
            found = chunks(find_files([Source(path=str(path))]), chunk_bytes=2000)
            assert 20 < len(found) < 150
            assert max(len(chunk.data) for chunk in found) < 6000
            tables = [pa.ipc.open_stream(chunk.data).read_all() for chunk in found]
            assert pa.concat_tables(tables).column("text").to_pylist() == column.to_pylist()


def test_a_table_of_conversations(build, tmp_path):
    chats = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]
        for i in range(5)
    ]
    pq.write_table(pa.table({"messages": chats}), tmp_path / "c.parquet")
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"messages": c}) for c in chats))
    for suffix in ("parquet", "jsonl"):
        read = {"path": f"{tmp_path}/c.{suffix}", "chat": "messages"}
        build(read, prefix=tmp_path / suffix / "d").run()
    for suffix in (".bin", ".idx", ".mask"):
        one, other = (tmp_path / name / f"d{suffix}" for name in ("parquet", "jsonl"))
        assert one.read_bytes() == other.read_bytes()


def test_rows_that_are_no_documents(tmp_path):
    invalid = pa.array([b"good", b"b\xffd", b"good", None], pa.binary())
    text = pa.StringArray.from_buffers(4, *invalid.buffers()[1:], invalid.buffers()[0])
    path = tmp_path / "t.arrow"
    as_arrow_file(pa.table({"text": text, "n": [1, 2, 3, 4], "b": [b"x"] * 4}), path)
    texts, positions, bad = read(path=str(path))
    assert (texts, positions) == (["good", "good"], [0, 2])
    assert bad == [
        (2, "invalid UTF-8: invalid start byte, byte 0xff"),
        (4, "field 'text' is null, not a string"),
    ]
    assert {reason for _, reason in read(path=str(path), field="n")[2]} == {
        "field 'n' is a number, not a string"
    }
    assert "field 'b' is of the type bytes, not a string" in str(read(path=str(path), field="b")[2])


def test_a_bad_row_is_named(build, tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a"] * 10 + [None]}), path)
    with pytest.raises(DataError, match="field 'text' is null") as caught:
        build(str(path), chunk_bytes=20).run()
    assert caught.value.where == f"{path}:11"


def test_what_is_wrong_with_a_table_is_said(build, parquet, tmp_path):
    with pytest.raises(DataError, match="no column 'body'") as caught:
        build({"path": str(parquet), "field": "body"}).run()
    assert caught.value.where == str(parquet)
    assert "the table has 'text', 'n', 'q', 'm'" in caught.value.hint
    for name, content in (("t.parquet", b"no table"), ("t.arrow", b"ARROW1 no"), ("u.arrow", b"x")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="cannot be read: ArrowInvalid"):
            build(str(tmp_path / name)).run()
    damaged = bytearray(parquet.read_bytes())
    damaged[50:200] = bytes(150)
    parquet.write_bytes(damaged)
    with pytest.raises(DataError, match="cannot be read"):
        build(str(parquet)).run()
    assert not (tmp_path / "out").exists()


def test_empty_tables(build, tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "e.parquet")
    with pytest.raises(DataError, match="the input holds no document"):
        build(str(tmp_path / "e.parquet")).run()


def test_the_same_bytes_for_any_workers_and_chunks(build, parquet, tmp_path):
    made = {
        workers: build(
            str(parquet), prefix=tmp_path / str(workers) / "d", repeat={}, chunk_bytes=size
        ).run(workers=workers)
        for workers, size in ((1, None), (2, 1000))
    }
    assert made[1] == made[2]
    assert sorted(written(tmp_path / "2" / "d")) == sorted(row["text"] for row in ROWS)


def one_table(texts, path, **settings):
    pq.write_table(pa.table({"n": range(len(texts)), "text": texts}), path, **settings)
    return str(path)


@pytest.mark.parametrize("rows", [1, 7, 100, 1000])
@pytest.mark.parametrize("task_bytes", [1, 100, 1500, 8000])
def test_a_parquet_file_is_read_in_ranges(build, tmp_path, rows, task_bytes):
    texts = [f"row {i} " + "x" * (i * 7 % 31) for i in range(100)]
    path = one_table(texts, tmp_path / "t.parquet", row_group_size=rows)
    if task_bytes == 1:
        task_bytes = max(1, Path(path).stat().st_size // 300)
    whole = build(path, repeat={}, prefix=tmp_path / "whole" / "d").run()
    steps = []
    ranged = build(path, repeat={}, prefix=tmp_path / "ranged" / "d", task_bytes=task_bytes)
    assert ranged.run(progress=steps.append) == whole
    [record] = whole.inputs
    assert record.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    for suffix in (".bin", ".idx"):
        one, other = (tmp_path / name / f"d{suffix}" for name in ("whole", "ranged"))
        assert one.read_bytes() == other.read_bytes()
    last = [step for step in steps if step.phase == "encode"][-1]
    assert last.bytes_done == last.bytes_total == record.bytes


@pytest.mark.parametrize("rows", [3, 100])
def test_rows_of_all_ranges_count(build, tmp_path, rows):
    texts = [None if i in (61, 90) else f"row {i}" for i in range(100)]
    path = one_table(texts, tmp_path / "t.parquet", row_group_size=rows)
    with pytest.raises(DataError, match="field 'text' is null") as caught:
        build(path, task_bytes=700, chunk_bytes=50).run()
    assert caught.value.where == f"{path}:62"
    skipping = {"sources": [path], "on_error": "skip"}
    assert build(skipping, task_bytes=700, chunk_bytes=50).run().rejected == 2
    lines = (tmp_path / "out" / "data.rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [62, 91]


@pytest.mark.parametrize(
    "sizes", [[5, 0, -9, 2**62, 2**62, 2**63 - 1, 1], [0] * 8, [-5] * 8, [2**63 - 1] * 8, [7], []]
)
def test_groups_of_odd_sizes_lie_in_the_file_and_in_order(sizes):
    groups = [SimpleNamespace(total_byte_size=size) for size in sizes]
    for size in (1, 700, 10**12):
        places = tables._places(groups, size)
        assert len(places) == len(groups)
        assert (np.diff(places, prepend=0) >= 0).all()
        assert (places < size).all()
        assert not len(places) or places[0] == 0


@pytest.mark.parametrize("odd", [[5, 0, -9, 2**62, 2**62, 9, 1, 1], [-5] * 8, [1] * 7 + [10**15]])
def test_groups_of_odd_sizes_are_in_one_range_each(tmp_path, odd, monkeypatch):
    path = one_table([f"{i}" for i in range(40)], tmp_path / "t.parquet", row_group_size=5)
    groups = [SimpleNamespace(total_byte_size=size) for size in odd]
    places = tables._places
    monkeypatch.setattr(tables, "_places", lambda _, size: places(groups, size))
    [file] = find_files([Source(path=path)])
    seen = []
    for start in range(0, file.size, 200):
        span = (start, min(start + 200, file.size))
        for chunk in file_chunks(0, file, 1 << 20, {}, span):
            seen += range(chunk.start, chunk.stop)
    assert seen == list(range(40))


def test_groups_are_about_where_they_lie():
    groups = [SimpleNamespace(total_byte_size=size) for size in (100, 300, 500, 100)]
    assert tables._places(groups, 2000).tolist() == [0, 200, 800, 1800]


# Text with a separator


separators = st.sampled_from(["\n\n\n", "\n", "ab", "<|endoftext|>", "aa", "é"])
pieces = st.lists(
    st.text(st.sampled_from("ab\n é<|endoftx>"), max_size=9) | st.sampled_from(["<|endo", "a"])
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("separated")


@settings(max_examples=300, deadline=None)
@example(["a", "", "\n\n", "b"], "\n\n\n", 1, False)
@given(pieces, separators, st.integers(1, 60), st.booleans())
def test_separated_text(folder, parts, separator, chunk_bytes, packed):
    text = separator.join(parts)
    path = folder / f"t.txt{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    found = text.split(separator)
    expected = [part for part in found if part.strip()]
    texts, positions, bad = read(chunk_bytes, path=str(path), separator=separator)
    assert (texts, bad) == (expected, [])
    for part, position in zip(texts, positions, strict=True):
        assert text.encode()[position:].startswith(part.encode())
    assert positions == sorted(set(positions))


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_a_bad_piece_is_named_with_its_line(folder, chunk_bytes):
    path = folder / "bad.txt"
    path.write_bytes("\ufeffx\n--\ngood\n--\nlines\nb".encode() + b"\xffd\n--\ngood\n")
    texts, _, bad = read(chunk_bytes, path=str(path), separator="--\n")
    assert texts == ["good\n", "good\n"]
    assert bad == [
        (1, "the file starts with a byte order mark"),
        (6, "invalid UTF-8: invalid start byte, byte 0xff at column 2"),
    ]


def test_one_bad_piece_ends_the_build(build, folder):
    path = folder / "stop.txt"
    path.write_bytes(b"a\n\nb\xff\n\nc")
    with pytest.raises(DataError, match="invalid UTF-8") as caught:
        build({"path": str(path), "separator": "\n\n"}).run()
    assert caught.value.where == f"{path}:3"


@pytest.mark.parametrize(
    "keys",
    [
        {"path": "a", "dataset": "b"},
        {"dataset": {"split": "train"}},
        {"dataset": ""},
        {"dataset": "a", "format": "parquet"},
        {"dataset": "a", "separator": "x"},
        {"path": "a", "separator": ""},
        {"path": "a", "separator": "x", "format": "jsonl"},
        {"path": "a", "separator": "x", "field": "b"},
        {"builtin": "python-stdlib", "separator": "x"},
        {"builtin": "python-stdlib", "template": "{a}"},
    ],
)
def test_wrong_settings(keys):
    with pytest.raises(ValueError, match="validation error"):
        Source.model_validate(Source.expand(keys))


def test_positions_of_rows_name_the_documents(parquet):
    chain = [Read.model_validate(Read.expand(str(parquet))), Encode()]
    work = ChunkWork(chain, 0)
    encoded = [work(chunk) for chunk in chunks(find_files(chain[0].sources), 1000)]
    assert len(encoded) > 10
    assert np.concatenate([chunk.offsets for chunk in encoded]).tolist() == list(range(300))


def test_data_packages_load_only_when_needed():
    code = (
        "import sys, rwkvkit.data.build, rwkvkit.recipe.load\n"
        "print({'pyarrow', 'datasets', 'fsspec', 'tokenizers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_folder_of_all_formats(tmp_path, parquet):
    as_arrow_file(pa.Table.from_pylist(ROWS[:1]), tmp_path / "a.arrow")
    (tmp_path / "b.jsonl").write_text("{}")
    (tmp_path / "c.parquet.gz").write_text("no")
    found = [(Path(f.path).name, f.format) for f in find_files([Source(path=str(tmp_path))])]
    assert found == [("a.arrow", "arrow"), ("b.jsonl", "jsonl"), ("rows.parquet", "parquet")]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_two_columns_of_one_name_are_refused(build, tmp_path, suffix):
    table = pa.table([["a"], ["b"]], names=["text", "text"])
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(DataError, match="2 columns 'text'") as caught:
        build(str(path)).run()
    assert caught.value.where == str(path)
    assert "one column of that name" in caught.value.hint
