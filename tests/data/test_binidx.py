import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvkit import BinidxWriter, open_binidx
from rwkvkit.errors import DataError

documents = st.lists(st.lists(st.integers(0, 65535), max_size=20), max_size=20)


def write(prefix, lists, dtype=np.uint16):
    with BinidxWriter(prefix, dtype) as writer:
        for tokens in lists:
            writer.add(np.array(tokens) if len(tokens) else np.empty(0, np.uint16))
    return writer


def interrupted():
    yield [2, 3]
    raise KeyboardInterrupt


@settings(max_examples=50, deadline=None)
@given(documents)
def test_what_is_written_is_read(tmp_path_factory, lists):
    prefix = tmp_path_factory.mktemp("binidx") / "data"
    writer = write(prefix, lists)
    data = open_binidx(prefix)
    data.verify()
    assert [tokens.tolist() for tokens in data] == lists
    assert data.sizes.tolist() == [len(tokens) for tokens in lists]
    flat = [token for tokens in lists for token in tokens]
    assert data.n_tokens == writer.n_tokens == len(flat)
    assert len(data) == writer.n_documents == len(lists)
    assert (
        data.tokens(len(flat) // 3, len(flat) // 2).tolist()
        == (flat[len(flat) // 3 : len(flat) // 3 + len(flat) // 2])
    )
    for suffix, digest in ((".bin", writer.bin_sha256), (".idx", writer.idx_sha256)):
        content = prefix.with_suffix(suffix).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest


def test_documents_added_together_are_the_same_bytes(tmp_path):
    write(tmp_path / "one", [[1, 2, 3], [], [4]])
    with BinidxWriter(tmp_path / "many") as writer:
        writer.add_many([1, 2, 3], [3, 0])
        writer.add_many([], [])
        writer.add_many(np.array([4], np.uint16), [1])
    for suffix in (".bin", ".idx"):
        one = (tmp_path / "one").with_suffix(suffix).read_bytes()
        assert one == (tmp_path / "many").with_suffix(suffix).read_bytes()


def test_the_golden_pairs_are_read_and_written_byte_by_byte(golden, tmp_path):
    for name in ("docs-x1", "docs-x3"):
        data = open_binidx(golden / name)
        data.verify()
        write(tmp_path / name, data)
        for suffix in (".bin", ".idx"):
            copy = (tmp_path / name).with_suffix(suffix).read_bytes()
            assert copy == (golden / name).with_suffix(suffix).read_bytes()


@pytest.mark.parametrize("suffix", ["", ".bin", ".idx"])
def test_the_prefix_may_carry_a_suffix(golden, suffix):
    assert len(open_binidx(f"{golden}/docs-x1{suffix}")) == 16


def test_a_dot_in_the_prefix_is_no_suffix(tmp_path):
    write(tmp_path / "data.v2", [[1]])
    assert (tmp_path / "data.v2.bin").exists()
    assert open_binidx(tmp_path / "data.v2")[0].tolist() == [1]


def test_indexing(tmp_path):
    write(tmp_path / "d", [[1], [2, 3]])
    data = open_binidx(tmp_path / "d")
    assert data[-1].tolist() == [2, 3]
    assert data[-2].tolist() == [1]
    for wrong in (2, -3):
        with pytest.raises(IndexError, match="of 2"):
            data[wrong]
    for offset, n in ((-1, 1), (0, 4), (3, 1), (0, -1)):
        with pytest.raises(IndexError, match="of 3"):
            data.tokens(offset, n)
    assert data.tokens(3, 0).tolist() == []


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(1, "u1"), (2, "i1"), (3, "i2"), (4, "i4"), (5, "i8"), (7, "f8"), (8, "u2")],
)
def test_every_type_of_the_format(tmp_path, code, dtype):
    write(tmp_path / "d", [[1, 2], [100]], np.dtype(dtype))
    data = open_binidx(tmp_path / "d")
    assert data.dtype == np.dtype(dtype)
    assert data[1].tolist() == [100]
    size = np.dtype(dtype).itemsize
    tail = struct.pack("<iiqqqqq", 2, 1, 0, 2 * size, 0, 1, 2)
    assert (tmp_path / "d.idx").read_bytes() == index(code=code, tail=tail)
    assert (tmp_path / "d.bin").read_bytes() == np.array([1, 2, 100], f"<{dtype}").tobytes()


@pytest.mark.parametrize(
    ("dtype", "token"),
    [("u2", 65536), ("u2", -1), ("u1", 256), ("i2", 40000), ("i4", 2**31), ("u2", 1.5)],
)
def test_a_token_that_does_not_fit_is_refused_and_nothing_is_left(tmp_path, dtype, token):
    with pytest.raises(DataError, match="does not fit"):
        write(tmp_path / "d", [[1, 2], [1, token]], dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_type_without_a_code_is_refused(tmp_path):
    with pytest.raises(DataError, match="no code for tokens of type uint32"):
        BinidxWriter(tmp_path / "d", np.uint32)


def test_sizes_must_sum_up(tmp_path):
    with pytest.raises(ValueError, match="sizes sum up to 3"), BinidxWriter(tmp_path / "d") as w:
        w.add_many([1, 2], [1, 2])
    with pytest.raises(DataError, match="a document has"), BinidxWriter(tmp_path / "d") as w:
        w.add_many([], [2**31])
    with (
        pytest.raises(ValueError, match="a size is negative: -1"),
        BinidxWriter(tmp_path / "d") as w,
    ):
        w.add_many([1, 2], [3, -1])


def test_a_failure_leaves_the_old_pair(tmp_path):
    write(tmp_path / "d", [[1]])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "d", interrupted())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


HEADER = "<9sQBQQ"


def index(magic=b"MMIDIDX\0\0", version=1, code=8, count=2, entries=3, tail=None):
    sizes = struct.pack("<ii", 1, 2)
    offsets = struct.pack("<qq", 0, 2)
    documents = struct.pack("<qqq", 0, 1, 2)
    body = sizes + offsets + documents if tail is None else tail
    return struct.pack(HEADER, magic, version, code, count, entries) + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a binidx index"),
        (b"MMIDIDX\0\0" + b"\1", "not a binidx index"),
        (index(magic=b"TNTIDX\0\0\0"), "not a binidx index"),
        (index(version=2), "version 2 is not known"),
        (index(code=6), "dtype code 6 is not readable"),
        (index(code=99), "dtype code 99 is not readable"),
        (index(entries=2), "2 documents need 3 entries, the index says 2"),
        (index(count=3, entries=4), "3 documents need"),
        (index(count=2**62, entries=2**62 + 1), "documents need"),
        (index()[:-1], "the index has"),
        (index() + b"\0", "the index has"),
        (index(code=4), "no whole number of int32 tokens"),
        (index(tail=struct.pack("<iiqqqqq", 1, 3, 0, 2, 0, 1, 2)), "counts 4 tokens"),
    ],
)
def test_a_malformed_index_is_named(tmp_path, content, message):
    (tmp_path / "d.idx").write_bytes(content)
    (tmp_path / "d.bin").write_bytes(bytes(6))
    with pytest.raises(DataError, match=message) as caught:
        open_binidx(tmp_path / "d")
    assert str(tmp_path / "d") in caught.value.where


@pytest.mark.parametrize(
    ("tail", "document", "message"),
    [
        (struct.pack("<iiqqqqq", 1, 2, 2, 2, 0, 1, 2), 0, "document 0: its size or offset"),
        (struct.pack("<iiqqqqq", 1, 2, 0, 3, 0, 1, 2), 1, "document 1"),
        (struct.pack("<iiqqqqq", 1, 2, 0, 2**40, 0, 1, 2), 1, "document 1"),
        (struct.pack("<iiqqqqq", 4, -1, 0, 2, 0, 1, 2), 1, "document 1"),
        (struct.pack("<iiqqqqq", 1, 2, 0, 2, 0, 1, 1), None, "document entries"),
    ],
)
def test_verify_finds_what_opening_does_not(tmp_path, tail, document, message):
    (tmp_path / "d.idx").write_bytes(index(tail=tail))
    (tmp_path / "d.bin").write_bytes(bytes(6))
    data = open_binidx(tmp_path / "d")
    with pytest.raises(DataError, match=message):
        data.verify()
    if document == 1:
        with pytest.raises(DataError, match="outside the data"):
            data[document]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 90), st.binary(max_size=8))
def test_random_damage_is_an_error_or_harmless(tmp_path_factory, junk, at, bin_content):
    folder = tmp_path_factory.mktemp("fuzz")
    content = index()
    (folder / "d.idx").write_bytes(content[:at] + junk + content[at + len(junk) :])
    (folder / "d.bin").write_bytes(bin_content)
    try:
        data = open_binidx(folder / "d")
        for i in range(len(data)):
            assert data[i].size == data.sizes[i]
    except DataError:
        return
    assert data.n_tokens * data.dtype.itemsize == len(bin_content)


@pytest.mark.parametrize("missing", [".bin", ".idx"])
def test_a_missing_file_is_named(tmp_path, missing):
    write(tmp_path / "d", [[1]])
    (tmp_path / f"d{missing}").unlink()
    with pytest.raises(DataError, match="no such file") as caught:
        open_binidx(tmp_path / "d")
    assert caught.value.where.endswith(f"d{missing}")


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    (tmp_path / "d.idx").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        open_binidx(tmp_path / "d")
