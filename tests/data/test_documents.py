"""The chunked reader against a strict reader, line by line, in plain Python."""

import gzip
import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import zstandard
from chunk_cases import chunks
from hypothesis import example, given, settings
from hypothesis import strategies as st
from line_cases import contents, strict

from rwkvkit.data.chunks import hash_file, task_chunks
from rwkvkit.data.documents import read_chunk
from rwkvkit.data.finding import find_files
from rwkvkit.data.sources import Source
from rwkvkit.data.tasks import make_tasks
from rwkvkit.data.unpack import decompressed
from rwkvkit.errors import DataError

PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def read(path: Path, chunk_bytes: int, task_bytes: int | None = None, *, skip_bad: bool = True):
    """Return documents, offsets and the numbers of the bad lines, chunk by chunk."""
    texts, offsets, bad, n_lines = [], [], [], 0
    for chunk in chunks(find_files([Source(path=str(path))]), chunk_bytes, task_bytes):
        found = read_chunk(chunk, skip_bad=skip_bad)
        texts += [text.decode() for text in found.texts]
        offsets += np.asarray(found.offsets).tolist()
        bad += [n_lines + reject.line for reject in found.rejects]
        n_lines += found.n_lines
    return texts, offsets, bad


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("documents")


@settings(max_examples=500, deadline=None)
@example(b'{"text": "a"}\r\n\r\n{"text": "b"}\r\n', 14, "", 20)
@example(b'{"text": "' + b"x" * 500 + b'"}\n{"text": "b"}', 3, ".gz", 9)
@given(contents, st.integers(1, 90), st.sampled_from(list(PACKERS)), st.integers(1, 300))
def test_it_reads_what_a_strict_reader_reads(folder, content, chunk_bytes, suffix, task_bytes):
    path = folder / f"lines.jsonl{suffix}"
    path.write_bytes(PACKERS[suffix](content))
    texts, offsets, bad = read(path, chunk_bytes, task_bytes)
    assert (texts, bad) == strict(content)
    assert offsets == read(path, 1 << 20)[1]
    assert offsets == sorted(set(offsets))
    for text, offset in zip(texts, offsets, strict=True):
        line = content[offset:].replace(b"\r", b"\n").partition(b"\n")[0]
        assert json.loads(line.decode().strip())["text"] == text


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 300), max_size=60),
    st.integers(1, 700),
    st.integers(1, 1000),
    st.booleans(),
    st.sampled_from(list(PACKERS)),
)
def test_no_line_is_lost_or_doubled_at_a_cut(
    folder, lengths, chunk_bytes, task_bytes, newline, suffix
):
    texts = [f"{i} {'x' * length}" for i, length in enumerate(lengths)]
    content = "\n".join(json.dumps({"text": text}) for text in texts) + "\n" * newline
    path = folder / f"cuts.jsonl{suffix}"
    path.write_bytes(PACKERS[suffix](content.encode()))
    assert read(path, chunk_bytes, task_bytes)[0] == texts


def test_a_line_longer_than_many_reads(folder):
    long = "y" * 700_000
    path = folder / "long.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ("a", long, "b")))
    assert read(path, 1000)[0] == ["a", long, "b"]


def test_without_skipping_reading_stops_at_the_first_bad_line(folder):
    path = folder / "stop.jsonl"
    path.write_bytes(b'{"text": "a"}\nbad\n{"text": "b"}\nworse\n')
    assert read(path, 1 << 20, skip_bad=False)[2] == [2]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_several_streams_in_a_file_and_padding(folder, suffix):
    pack = PACKERS[suffix]
    path = folder / f"streams.jsonl{suffix}"
    padding = bytes(1000) if suffix == ".gz" else b"\x50\x2a\x4d\x18\4\0\0\0skip"
    path.write_bytes(pack(b'{"text": "a"}\n{"te') + pack(b'xt": "b"}\n') + padding)
    assert read(path, 5)[0] == ["a", "b"]


def test_zstd_with_a_long_window(folder):
    line = b'{"text": "a"}\n'
    window = 31 - 10 << 3  # a byte for 2 GiB, as of `zstd --ultra --long=31`
    frame = b"\x28\xb5\x2f\xfd\0" + bytes([window]) + (len(line) << 3 | 1).to_bytes(3, "little")
    path = folder / "long.jsonl.zst"
    path.write_bytes(frame + line)
    assert read(path, 1 << 20)[0] == ["a"]


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_few_bytes_that_stand_for_many_come_in_pieces(kind):
    content = b'{"text":"a"}\n' * 700_000
    pack = PACKERS[".gz" if kind == "gzip" else ".zst"]
    packed = pack(content) + pack(b"") + pack(content[:-1]) + pack(b"b")
    pieces = list(decompressed(io.BytesIO(packed), kind))
    assert b"".join(pieces) == content + content[:-1] + b"b"
    assert max(map(len, pieces)) <= 1 << 20


@pytest.mark.parametrize("kind", ["gzip", "zstd", "stored"])
def test_a_stream_that_is_cut_anywhere_is_damaged(kind):
    """Whether a block is packed or stands as it is, and after another stream."""
    content = bytes(range(256)) + b"word " * 20
    if kind == "stored":
        frame = b"\x28\xb5\x2f\xfd\0\x58" + (len(content) << 3 | 1).to_bytes(3, "little")
        packed = frame + content
    else:
        packed = PACKERS[".gz" if kind == "gzip" else ".zst"](content)
    kind = "gzip" if kind == "gzip" else "zstd"
    assert b"".join(decompressed(io.BytesIO(packed * 2), kind)) == content * 2
    for cut in (*range(1, len(packed)), *range(len(packed) + 1, 2 * len(packed))):
        with pytest.raises((EOFError, zlib.error, zstandard.ZstdError)):
            list(decompressed(io.BytesIO((packed * 2)[:cut]), kind))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "flip", "junk"])
def test_damaged_compressed_data_is_named(folder, suffix, damage):
    content = b"".join(b'{"text": "line %d"}\n' % i for i in range(5000))
    packer = zstandard.ZstdCompressor(write_checksum=True)
    packed = gzip.compress(content) if suffix == ".gz" else packer.compress(content)
    middle = len(packed) // 2
    damaged = {
        "cut": packed[:middle],
        "flip": packed[:middle] + bytes([packed[middle] ^ 0x55]) + packed[middle + 1 :],
        "junk": packed + b"this is no compressed data",
    }
    path = folder / f"damaged.jsonl{suffix}"
    path.write_bytes(damaged[damage])
    with pytest.raises(DataError, match="compressed data is damaged or cut off") as caught:
        read(path, 1 << 20)
    assert caught.value.where == str(path)


def test_hashes_are_those_of_the_files(folder):
    import hashlib

    names = ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.jsonl"]
    own = folder / "hashes"
    own.mkdir()
    for name in names:
        content = f'{{"text": "{name}"}}\n'.encode() * 1000 if name[0] != "d" else b""
        (own / name).write_bytes(PACKERS[name[7:]](content))
    inputs = find_files([Source(path=str(own))])
    hashes: dict[int, str] = {}
    n_bytes = 0
    for task in make_tasks(inputs, 5000):
        if task.hashes_only:
            hashes[task.first_file] = hash_file(task.files[0])
        else:
            n_bytes += sum(chunk.input_bytes for chunk in task_chunks(task, 500, hashes))
    contents = [(own / name).read_bytes() for name in names]
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    assert [hashes[i] for i in range(4)] == digests
    assert n_bytes == sum(map(len, contents))


def test_text_files_are_documents_as_they_are(folder):
    own = folder / "texts"
    own.mkdir()
    contents = ["one\r\ntwo\r", "", "ünï", "x" * 5000]
    for i, content in enumerate(contents):
        data = content.encode()
        (own / f"{i}.txt{'.gz' if i == 2 else ''}").write_bytes(
            gzip.compress(data) if i == 2 else data
        )
    for chunk_bytes in (1, 100, 1 << 20):
        inputs = find_files([Source(path=str(own), format="text")])
        found = [read_chunk(c, skip_bad=False) for c in chunks(inputs, chunk_bytes, 5)]
        assert [text.decode() for part in found for text in part.texts] == contents
        assert [file for part in found for file in part.files] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"fine\nbad \xff\nfine", 2, "invalid UTF-8: invalid start byte, byte 0xff at column 5"),
        (b"\xef\xbb\xbftext", 1, "byte order mark"),
    ],
)
def test_a_bad_text_file_is_rejected_with_its_line(folder, content, line, reason):
    path = folder / "bad.txt"
    path.write_bytes(content)
    (chunk,) = chunks(find_files([Source(path=str(path), format="text")]), 1000)
    found = read_chunk(chunk, skip_bad=True)
    assert found.texts == []
    assert found.rejects[0].line == line
    assert reason in found.rejects[0].reason


def test_a_file_that_shrinks_is_noticed(folder):
    path = folder / "shrinks.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 10)
    (task,) = make_tasks(find_files([Source(path=str(path))]))
    path.write_bytes(b"")
    with pytest.raises(DataError, match="changed while it was read"):
        list(task_chunks(task, 1000))
