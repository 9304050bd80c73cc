"""Tables, separated text, datasets and remote paths give what the same lines of jsonl give."""

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chunk_cases import chunks
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rwkvkit import WorldTokenizer, open_binidx
from rwkvkit.data.chunk_work import ChunkWork
from rwkvkit.data.chunks import hash_file, task_chunks
from rwkvkit.data.inputs import find_files
from rwkvkit.data.manifest import read_manifest
from rwkvkit.data.readers import file_chunks, read_file_chunk, tables
from rwkvkit.data.sources import Source
from rwkvkit.data.stages import Encode, Read
from rwkvkit.data.tasks import make_tasks
from rwkvkit.errors import DataError, RecipeError, SetupError

DECODE = WorldTokenizer().decode
ROWS = [
    {"text": f"row {i} " + "x" * (i * 37 % 400), "n": i, "q": "why", "m": []} for i in range(300)
]


def read(chunk_bytes=1 << 20, **keys):
    """Return texts, positions and the numbers of the bad rows."""
    source = Source.model_validate(Source.expand(keys))
    inputs = find_files([source])
    hashed = {}
    texts, positions, bad, lines, n_bytes = [], [], [], 0, 0
    for chunk in (c for task in make_tasks(inputs) for c in task_chunks(task, chunk_bytes, hashed)):
        found = read_file_chunk(chunk, skip_bad=True)
        texts += [text.decode() for text in found.texts]
        positions += np.asarray(found.offsets).tolist()
        bad += [(lines + reject.line, reject.reason) for reject in found.rejects]
        lines += found.n_lines
        n_bytes += chunk.input_bytes
    assert n_bytes == sum(file.size for file in inputs)
    assert [hashed[i] for i in range(len(inputs))] == [hash_file(file) for file in inputs]
    return texts, positions, bad


def written(prefix):
    return [DECODE(tokens) for tokens in open_binidx(prefix)]


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


def test_groups_in_an_odd_place_are_in_one_range_and_in_order(tmp_path, monkeypatch):
    path = one_table([f"{i}" for i in range(40)], tmp_path / "t.parquet", row_group_size=5)
    places = iter([])
    monkeypatch.setattr(tables, "_place", lambda _: next(places))
    for odd in ([9, 4, 700, 600, 5, 10**12, 0, 800], [-5] * 8, [10**15] * 8):
        seen = []
        for start in range(0, Path(path).stat().st_size, 200):
            places = iter(odd)
            [file] = find_files([Source(path=path)])
            span = (start, min(start + 200, file.size))
            for chunk in file_chunks(0, file, 1 << 20, {}, span):
                seen += range(chunk.start, chunk.stop)
        assert seen == list(range(40))


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


# Datasets


def test_a_dataset_on_disk(tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    rows.select(range(299, -1, -1)).save_to_disk(tmp_path / "saved", num_shards=12)
    texts, positions, _ = read(path=str(tmp_path / "saved"))
    assert texts == [row["text"] for row in reversed(ROWS)]
    assert positions == list(range(25)) * 12
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "splits")
    assert len(read(path=str(tmp_path / "splits" / "test"))[0]) == 300
    with pytest.raises(DataError, match="the dataset has splits: train, test") as caught:
        read(path=str(tmp_path / "splits"))
    assert str(tmp_path / "splits" / "train") in caught.value.hint


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A dataset whose name is a local folder: read as one of the hub, without a network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    folder = tmp_path / "hub" / "rows"
    folder.mkdir(parents=True)
    for split, rows in (("train", ROWS), ("test", ROWS[:5])):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


@pytest.mark.parametrize("chunk_bytes", [1000, 1 << 20])
def test_a_dataset_by_name(hub, chunk_bytes):
    texts = [row["text"] for row in ROWS]
    assert read(chunk_bytes, dataset=hub) == (texts, list(range(300)), [])
    few = read(chunk_bytes, dataset={"name": hub, "split": "test"}, template="{q} {text}")
    assert few[0] == [f"why {text}" for text in texts[:5]]


def test_a_build_from_a_dataset(build, hub, tmp_path):
    made = [
        build({"dataset": hub}, repeat={}, prefix=tmp_path / str(size) / "d", chunk_bytes=size)
        for size in (1000, 1 << 20)
    ]
    manifests = [one.run() for one in made]
    assert manifests[0] == manifests[1]
    assert made[0].status().up_to_date
    [record] = read_manifest(tmp_path / "1000" / "d").inputs
    assert (record.path, record.bytes) == (f"dataset {hub}:train", 0)
    assert len(record.sha256) == 64
    other = {"dataset": {"name": hub, "split": "test"}}
    again = build(other, repeat={}, prefix=tmp_path / "1000" / "d")
    assert "sources[0].dataset.split train -> test" in again.status().reason


@pytest.mark.parametrize(
    ("dataset", "keys", "message"),
    [
        ({"split": "absent"}, {}, "cannot be read: ValueError: Bad split: absent"),
        ({"subset": "absent"}, {}, "cannot be read: ValueError: BuilderConfig 'absent' not found"),
        ({}, {"field": "body"}, "no column 'body'"),
    ],
)
def test_what_is_wrong_with_a_dataset_is_said(hub, dataset, keys, message):
    with pytest.raises(DataError, match=message) as caught:
        read(dataset={"name": hub, **dataset}, **keys)
    assert caught.value.where.startswith(f"dataset {hub}")
    assert caught.value.hint


def test_an_unknown_dataset(hub):
    with pytest.raises(DataError, match="cannot be read"):
        read(dataset=f"{hub}-absent")


@pytest.mark.parametrize("name", ["datasets", "pyarrow"])
def test_a_package_that_is_not_there(hub, parquet, monkeypatch, name):
    source = {"dataset": hub} if name == "datasets" else {"path": str(parquet)}
    for module in [name, "pyarrow.parquet"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SetupError, match=f"the package '{name}") as caught:
        read(**source)
    assert caught.value.hint.startswith(f"pip install {name}")


# Remote paths


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


LINES = b"".join(b'{"text": "line %d"}\n' % i for i in range(50))
TEXTS = [f"line {i}" for i in range(50)]


@pytest.mark.parametrize("chunk_bytes", [100, 1 << 20])
def test_remote_paths(build, memory, tmp_path, chunk_bytes):
    memory.pipe("/d/a-2.jsonl", LINES)
    memory.pipe("/d/a-10.jsonl.gz", gzip.compress(LINES))
    memory.pipe("/d/notes.md", b"no")
    memory.pipe("/d/c.txt", b"one--two")
    prefix = tmp_path / "out" / "data"
    for path, count in (
        ("memory://d/a-2.jsonl", 1),
        ("memory://d/*.jsonl*", 2),
        ("memory://d", 2),
    ):
        made = build(path, chunk_bytes=chunk_bytes)
        made.run()
        assert written(prefix) == TEXTS * count
        assert made.status().up_to_date
    names = [record.path for record in read_manifest(prefix).inputs]
    assert names == ["memory:///d/a-2.jsonl", "memory:///d/a-10.jsonl.gz"]
    build({"path": "memory://d/c.txt", "separator": "--"}).run()
    assert written(prefix) == ["one", "two"]
    build({"path": "memory://d/c.txt", "format": "text"}).run()
    assert written(prefix) == ["one--two"]


def test_a_remote_table(memory):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=10)
    memory.pipe("/t.parquet", sink.getvalue().to_pybytes())
    assert read(500, path="memory://t.parquet")[0] == [row["text"] for row in ROWS]


def test_a_remote_file_that_changes(build, memory):
    memory.pipe("/a.jsonl", LINES)

    def change(_):
        memory.pipe("/a.jsonl", LINES.replace(b"line", b"LINE"))

    with pytest.raises(DataError, match="changed while it was read"):
        build("memory://a.jsonl").run(progress=change)
    build("memory://a.jsonl").run()
    memory.pipe("/a.jsonl", LINES)
    assert build("memory://a.jsonl").status().reason == "input memory://a.jsonl changed"


def test_what_is_wrong_with_a_remote_path_is_said(build, memory, monkeypatch):
    with pytest.raises(DataError, match="no file matches") as caught:
        build("memory://none.jsonl").describe()
    assert caught.value.where == "memory://none.jsonl"
    with pytest.raises(RecipeError, match="no such protocol: nope://"):
        build("nope://x/a.jsonl").describe()
    memory.pipe("/a.jsonl.gz", gzip.compress(LINES)[:-5])
    with pytest.raises(DataError, match="damaged or cut off"):
        build("memory://a.jsonl.gz").run()
    memory.pipe("/bad.jsonl", b"bad\n")
    with pytest.raises(DataError, match="broken JSON") as caught:
        build("memory://bad.jsonl").run()
    assert caught.value.where == "memory://bad.jsonl:1"

    def fail(*_, **__):
        raise PermissionError("forbidden")

    monkeypatch.setattr(type(memory), "info", fail)
    with pytest.raises(DataError, match="cannot be read: forbidden"):
        build("memory://bad.jsonl").describe()


@pytest.mark.parametrize(
    ("path", "module", "package"),
    [
        ("s3://bucket/a.jsonl", "s3fs", "s3fs"),
        ("gs://bucket/*.parquet", "gcsfs", "gcsfs"),
        ("https://host/a.jsonl", "aiohttp", "aiohttp"),
    ],
)
def test_a_protocol_whose_package_is_missing(tmp_path, path, module, package):
    code = f"""
import sys
sys.modules[{module!r}] = None
from rwkvkit.data.inputs import find_files
from rwkvkit.data.sources import Source
from rwkvkit.errors import SetupError
try:
    find_files([Source(path={path!r})])
except SetupError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"{path}: the package {package} is needed" in done.stdout, done.stderr
    assert f"pip install {package}" in done.stdout


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
