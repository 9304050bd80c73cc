import json
import os
import random
from pathlib import Path

import pytest
from pydantic import ValidationError

from rwkvkit.data.finding import find_files, natural_key, source_line
from rwkvkit.data.sources import Source
from rwkvkit.errors import DataError, RecipeError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names):
    for path in map(Path, names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")


def names(path, **settings):
    return [file.name for file in find_files([Source(path=path, **settings)])]


def test_natural_order_of_numbers():
    expected = ["part-1", "part-2", "part-10", "part-10b", "part-11", "party", "z-1", "z-01"]
    expected = sorted(expected, key=natural_key)
    assert expected[:5] == ["part-1", "part-2", "part-10", "part-10b", "part-11"]
    shuffled = random.Random(3).sample(expected, len(expected))
    assert sorted(shuffled, key=natural_key) == expected
    assert sorted(["a", "1", "", "1a", "a1"], key=natural_key) == ["", "1", "1a", "a", "a1"]


def test_globs():
    touch("d/part-10.jsonl", "d/part-2.jsonl", "d/e/part-1.jsonl", "d/.hidden.jsonl", "d/x.txt")
    assert names("d/*.jsonl") == ["d/part-2.jsonl", "d/part-10.jsonl"]
    assert names("d/**/*.jsonl") == ["d/e/part-1.jsonl", "d/part-2.jsonl", "d/part-10.jsonl"]


def test_a_name_with_glob_characters_is_a_file_first():
    touch("d[1].jsonl", "d1.jsonl")
    assert names("d[1].jsonl") == ["d[1].jsonl"]
    assert names("d[2-1]*.jsonl".replace("2-1", "0-9")) == ["d1.jsonl"]


def test_a_folder_gives_its_jsonl_files_or_all_of_a_told_format():
    touch("d/b.jsonl.zst", "d/a.json", "d/c/d.ndjson.gz", "d/notes.md", "d/.git/x.jsonl")
    assert names("d") == ["d/a.json", "d/b.jsonl.zst", "d/c/d.ndjson.gz"]
    assert names("d", format="text") == [
        "d/a.json", "d/b.jsonl.zst", "d/c/d.ndjson.gz", "d/notes.md",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "format", "compression"),
    [
        ("a.jsonl", "jsonl", None),
        ("a.json", "jsonl", None),
        ("a.ndjson.gz", "jsonl", "gzip"),
        ("a.jsonl.zst", "jsonl", "zstd"),
    ],
)
def test_the_suffix_tells_the_format(name, format, compression):
    touch(name)
    (file,) = find_files([Source(path=name)])
    assert (file.format, file.compression, file.size) == (format, compression, 3)


def test_another_suffix_needs_the_format():
    touch("a.md", "b.md.gz", "c.txt")
    for name, more in (("a.md", {}), ("b.md.gz", {}), ("c.txt", {"field": "body"})):
        with pytest.raises(RecipeError, match="does not tell the format") as caught:
            names(name, **more)
        assert "format: text" in caught.value.hint
        assert caught.value.where == name
    (file,) = find_files([Source(path="b.md.gz", format="text")])
    assert (file.format, file.compression) == ("text", "gzip")


def test_a_folder_gives_its_texts_too_and_says_what_it_leaves_out():
    touch("d/1.txt", "d/2.txt.gz", "d/e/3.txt.zst", "d/a.jsonl", "d/README.md", "d/.hidden")
    source, skipped = Source(path="d"), {}
    found = find_files([source], skipped=skipped)
    assert [file.name for file in found] == ["d/1.txt", "d/2.txt.gz", "d/a.jsonl", "d/e/3.txt.zst"]
    assert skipped == {0: ["d/README.md"]}
    line = (
        "source d: 4 files (3 text, 1 jsonl), 12 bytes, x2; skipped 1 of unknown suffix: README.md"
    )
    assert source_line(source, found, skipped[0], 2) == line


def test_a_folder_of_lines_leaves_texts_out():
    """Whoever names a field means lines that have it."""
    touch("d/a.jsonl", *(f"d/{i}.txt" for i in range(5)))
    source, skipped = Source(path="d", field="body"), {}
    found = find_files([source], skipped=skipped)
    assert [file.name for file in found] == ["d/a.jsonl"]
    line = source_line(source, found, skipped[0], 1)
    assert line.endswith("; skipped 5 of unknown suffix: 0.txt, 1.txt, 2.txt, …")


def test_lines_that_are_read_as_text_are_told():
    touch("d/a.jsonl", "d/b.txt", "d/c.md")
    source = Source(path="d", format="text")
    line = source_line(source, find_files([source]), [], 1)
    assert line == "source d: 3 files, 9 bytes, x1; 1 read as text in spite of the suffix: a.jsonl"


def test_a_folder_of_nothing_but_other_files_names_some():
    touch("d/a.csv", "d/b.csv")
    with pytest.raises(DataError, match="no file to read") as caught:
        names("d")
    assert "there is a.csv, b.csv" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset_dict.json", "garbage"),
        ("dataset_dict.json", '{"splits": []}'),
        ("dataset_dict.json", '{"splits": [1]}'),
        ("state.json", '{"_data_files": [{}]}'),
        ("state.json", '{"_data_files": 3}'),
    ],
)
def test_a_damaged_saved_dataset_is_named(name, content):
    touch("d/dataset_info.json")
    Path("d", name).write_text(content)
    with pytest.raises(DataError) as caught:
        names("d")
    assert caught.value.where == f"d/{name}"
    assert caught.value.hint


def test_a_saved_dataset_without_rows_has_no_file_to_read():
    touch("d/dataset_info.json")
    Path("d", "state.json").write_text('{"_data_files": []}')
    with pytest.raises(DataError, match="the folder holds no file to read"):
        names("d")


def test_other_files_by_the_names_of_a_saved_dataset_make_none():
    touch("d/state.json", "d/dataset_info.json", "d/a.jsonl")
    assert names("d") == ["d/a.jsonl", "d/dataset_info.json", "d/state.json"]


def test_what_is_no_file_is_refused():
    """Nobody writes to this pipe: to open it would take forever."""
    os.mkfifo("pipe.jsonl")
    with pytest.raises(DataError, match="not a regular file") as caught:
        names("pipe.jsonl")
    assert "write what it gives into a file" in caught.value.hint


@pytest.mark.parametrize("path", ["none.jsonl", "none/*.jsonl", "**/*.zst"])
def test_no_file_shows_the_working_folder(path, here):
    with pytest.raises(DataError, match="no file matches") as caught:
        names(path)
    assert caught.value.where == path
    assert str(here) in caught.value.hint


def test_an_unreachable_file_is_named(here):
    (here / "loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(DataError, match="cannot be read") as caught:
        names("*.jsonl")
    assert "that the file exists" in caught.value.hint


def test_files_know_their_source_and_number():
    touch("a.jsonl", "b.jsonl", "c.jsonl")
    found = find_files([Source(path="[bc].jsonl"), Source(path="a.jsonl", field="body")])
    assert [(f.name, f.source, f.number) for f in found] == [
        ("b.jsonl", 0, 0), ("c.jsonl", 0, 1), ("a.jsonl", 1, 0),
    ]  # fmt: skip
    assert [f.form.columns for f in found] == [("text",), ("text",), ("body",)]


def test_the_standard_library_is_a_source():
    found = find_files([Source(builtin="python-stdlib")])
    known = {file.name: file for file in found}
    assert "python-stdlib/json/decoder.py" in known
    assert known["python-stdlib/json/decoder.py"].path == json.decoder.__file__
    assert not any("site-packages" in name or "/test/" in name for name in known)
    assert sum(file.size for file in found) > 5_000_000


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"path": "a", "builtin": "python-stdlib"},
        {"builtin": "python-stdlib", "format": "jsonl"},
        {"path": ""},
        {"path": "a", "repeat": 0},
        {"path": "a", "repeat": "4"},
        {"path": "a", "format": "xml"},
        {"path": "a", "feild": "text"},
        {"builtin": "other"},
    ],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValidationError):
        Source.model_validate(settings)
