"""Datasets and remote paths give what the same lines of jsonl give."""

import gzip
import subprocess
import sys

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reader_cases import ROWS, read, written

from rwkvkit.data import remote
from rwkvkit.data.manifest import read_manifest
from rwkvkit.errors import DataError, RecipeError, SetupError

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


def test_a_hub_out_of_reach(hub):
    with pytest.raises(DataError, match="Couldn't reach 'org/absent' on the Hub") as caught:
        read(dataset="org/absent")
    assert "HF_HUB_OFFLINE=1" in caught.value.hint


@pytest.mark.parametrize("name", ["datasets", "pyarrow"])
def test_a_package_that_is_not_there(hub, monkeypatch, name):
    source = {"dataset": hub} if name == "datasets" else {"path": f"{hub}/*.parquet"}
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
    prefix = tmp_path / "out" / "data"
    for path, count in (
        ("memory://d/a-2.jsonl", 1),
        ("memory://d/*.jsonl*", 2),
        ("memory://d/a-?.jsonl", 1),
        ("memory://d", 2),
    ):
        made = build(path, chunk_bytes=chunk_bytes)
        made.run()
        assert written(prefix) == TEXTS * count
        assert made.status().up_to_date
    names = [record.path for record in read_manifest(prefix).inputs]
    assert names == ["memory:///d/a-2.jsonl", "memory:///d/a-10.jsonl.gz"]
    memory.pipe("/d/c.txt", b"one--two")
    build({"path": "memory://d/c.txt", "separator": "--"}).run()
    assert written(prefix) == ["one", "two"]
    for source in ({"path": "memory://d/c.txt", "format": "text"}, "memory://d/c.txt"):
        build(source).run()
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


@pytest.fixture
def web(memory, monkeypatch):
    """The same system, as ``fsspec`` shows a web server: no times, and the tags that are set."""
    tags = {}
    info = type(memory).info

    def told(self, path, **more):
        facts = info(self, path, **more)
        del facts["created"]
        return facts | tags

    def modified(self, path):
        raise NotImplementedError

    monkeypatch.setattr(type(memory), "info", told)
    monkeypatch.setattr(type(memory), "modified", modified)
    return tags


def test_a_file_without_times_is_hashed(build, memory, web):
    memory.pipe("/a.jsonl", LINES)
    build("memory://a.jsonl").run()
    assert build("memory://a.jsonl").status().up_to_date
    memory.pipe("/a.jsonl", LINES.replace(b"line", b"LINE"))
    assert build("memory://a.jsonl").status().reason == "input memory://a.jsonl changed"


def test_a_tag_says_whether_a_file_changed(build, memory, web, monkeypatch):
    memory.pipe("/a.jsonl", LINES)
    untagged = build("memory://a.jsonl").fingerprint()
    web["ETag"] = '"1"'
    made = build("memory://a.jsonl")
    manifest = made.run()
    assert manifest.inputs[0].tag == '"1"'
    assert manifest.fingerprint == made.fingerprint() == untagged
    web["ETag"] = '"2"'
    assert made.status().up_to_date  # by its hash

    def change(_):
        web["ETag"] = '"3"'

    with pytest.raises(DataError, match="changed while it was read"):
        made.run(progress=change)
    web["ETag"] = '"1"'
    monkeypatch.setattr(type(memory), "_open", None)
    assert made.status().up_to_date  # not read again


def test_listings_that_are_remembered_hide_no_change(build, memory, monkeypatch):
    known = {}
    info = type(memory).info

    def remembered(self, path, **more):
        path = self._strip_protocol(path)
        if path not in known:
            known[path] = info(self, path, **more)
        return known[path]

    monkeypatch.setattr(type(memory), "info", remembered)
    monkeypatch.setattr(type(memory), "invalidate_cache", lambda *_: known.clear())
    memory.pipe("/a.jsonl", LINES)

    def change(_):
        memory.pipe("/a.jsonl", LINES.replace(b"line", b"LINE"))

    made = build("memory://a.jsonl")
    with pytest.raises(DataError, match="changed while it was read"):
        made.run(progress=change)
    memory.pipe("/a.jsonl", LINES + LINES)
    assert made.run().documents == 100


def test_what_was_made_outlives_a_network_that_fails(build, memory, monkeypatch, tmp_path):
    for number in range(3):
        memory.pipe(f"/d/{number}.jsonl", LINES)
    open_file = type(memory)._open

    def fail(self, path, *others, **more):
        if path.endswith("2.jsonl"):
            raise TimeoutError("connection timed out")
        return open_file(self, path, *others, **more)

    made = build("memory://d/*.jsonl")
    monkeypatch.setattr(type(memory), "_open", fail)
    with pytest.raises(DataError, match="cannot be read: connection timed out"):
        made.run()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("part-*.json")}
    assert len(kept) == 2
    monkeypatch.undo()

    def compare(progress):
        if progress.phase == "write":
            assert {path: path.stat().st_mtime_ns for path in kept} == kept

    made.run(progress=compare)
    assert written(tmp_path / "out" / "data") == TEXTS * 3


def test_what_is_wrong_with_a_remote_path_is_said(build, memory, monkeypatch):
    with pytest.raises(DataError, match="no file matches") as caught:
        build("memory://none.jsonl").describe()
    assert caught.value.where == "memory://none.jsonl"
    assert caught.value.hint == "check the address, and what lies there"
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


def test_what_a_web_server_refuses_is_said(memory, monkeypatch):
    def refuse(error):
        def info(_, path, **__):
            raise FileNotFoundError(path) from error  # as fsspec's file system of the web does

        monkeypatch.setattr(type(memory), "info", info)
        monkeypatch.setattr(remote, "_system", lambda path: (memory, path))
        with pytest.raises(DataError) as caught:
            remote.find("https://host/a.jsonl")
        return str(caught.value)

    assert "cannot be read: 403, message='Forbidden'" in refuse(OSError("403, message='Forbidden'"))
    assert "cannot be read: TimeoutError" in refuse(TimeoutError())


def test_a_web_server_without_ranges_is_told(memory, monkeypatch):
    def fetch(*_, **__):
        raise ValueError("The HTTP server doesn't appear to support range requests. Only reading")

    memory.pipe("/a.jsonl", LINES)
    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "_open", fetch)
        with pytest.raises(DataError, match="no range requests") as caught:
            read(path="memory://a.jsonl")
    assert caught.value.hint == "fetch it and name the local file"


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
from rwkvkit.data.finding import find_files
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
