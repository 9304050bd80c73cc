"""Which files the sources name, in the order they are read."""

import glob
import os
import re
import stat
import sysconfig
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from rwkvkit import files
from rwkvkit.data import remote
from rwkvkit.data.inputs import Compression, InputFile, file_stat
from rwkvkit.data.sources import Format, Source
from rwkvkit.errors import DataError, RecipeError

_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
_MOST_NAMES = 3  # of files that are not read as one might think
_NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}


def find_files(
    sources: Sequence[Source],
    exclude: Collection[str] = frozenset(),
    skipped: dict[int, list[str]] | None = None,
) -> list[InputFile]:
    """Return the files of all sources, in the order of the sources, naturally sorted in each.

    Args:
        sources: where to look.
        exclude: real paths of files to leave out; a build's own output may lie among its inputs.
        skipped: receives, by the number of the source, the files of a folder that are left out
            since their suffix tells no format.

    Raises:
        DataError: a source names no file, or what is none, or a file cannot be reached.
        RecipeError: the format of a file must be told.
    """
    found = []
    for number, source in enumerate(sources):
        left_out: list[str] = []
        found += _find(source, number, exclude, left_out)
        if skipped is not None and left_out:
            skipped[number] = sorted(left_out, key=natural_key)
    return found


def source_line(
    source: Source, inputs: Sequence[InputFile], skipped: Sequence[str], times: int
) -> str:
    """Say in words what was found of a source.

    Args:
        source: as the recipe has it.
        inputs: its files.
        skipped: the files that were left out; see ``find_files``.
        times: how often each document stands in the corpus.
    """
    counts = Counter(file.format for file in inputs)
    mixed = ", ".join(f"{count:,} {form}" for form, count in counts.most_common())
    line = (
        f"source {source.name}: {len(inputs):,} {'file' if len(inputs) == 1 else 'files'}"
        + (f" ({mixed})" if len(counts) > 1 else "")
        + f", {sum(file.size for file in inputs):,} bytes, x{times}"
    )
    if skipped:
        line += f"; skipped {len(skipped):,} of unknown suffix: {_some(skipped)}"
    if source.path and (source.format == "text" or source.separator):
        odd = [file.path for file in inputs if _guessed(file.path) not in (None, "text")]
        if odd:
            line += f"; {len(odd):,} read as text in spite of the suffix: {_some(odd)}"
    return line


def _some(paths: Sequence[str]) -> str:
    names = [remote.file_name(path) for path in paths[:_MOST_NAMES]]
    return ", ".join(names + ["…"] * (len(paths) > _MOST_NAMES))


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Return a sort key that puts ``part-2`` before ``part-10``."""
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], text


def _find(
    source: Source, number: int, exclude: Collection[str], skipped: list[str]
) -> list[InputFile]:
    if source.dataset is not None:
        found = [(str(source.dataset), str(source.dataset))]
    elif source.builtin:
        found = _standard_library()
    else:
        paths: list[str] = []
        for path, wanted in _matches(source):
            if os.path.realpath(path) not in exclude:
                (paths if wanted else skipped).append(path)
        found = [(path, path) for path in sorted(paths, key=natural_key)]
    if not found and source.path and Path(source.path).is_dir():
        raise DataError(
            "the folder holds no file to read",
            where=source.name,
            hint="if their suffix does not tell the format, say it, such as `format: text`"
            + (f"; there is {_some(skipped)}" if skipped else ""),
        )
    if not found:
        raise DataError(
            "no file matches" if source.path else "the standard library has no source files here",
            where=source.name,
            hint="check the address, and what lies there"
            if source.path and remote.is_remote(source.path)
            else f"the working folder is {Path.cwd()}",
        )
    facts = [(0, None) if source.dataset else _size_and_tag(path) for path, _ in found]
    return [
        InputFile(
            path=path,
            name=name,
            source=number,
            number=i,
            size=size,
            format=_format(path, source),
            compression=_COMPRESSIONS.get(_suffix(path)),
            form=source.form,
            loss=source.counted,
            separator=source.separator.encode() if source.separator else None,
            dataset=source.dataset,
            tag=tag,
        )
        for i, ((path, name), (size, tag)) in enumerate(zip(found, facts, strict=True))
    ]


def _matches(source: Source) -> Iterator[tuple[str, bool]]:
    """Yield the files that a path means, each with whether it is one to read."""
    assert source.path is not None
    if remote.is_remote(source.path):
        for path in remote.find(source.path):
            yield path, path == source.path or _wanted(path, source)
    elif Path(source.path).is_dir():
        for folder, folders, names in os.walk(source.path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            saved = _saved_dataset(Path(folder))
            for name in names if saved is None else saved:
                if not name.startswith("."):
                    yield str(Path(folder) / name), _wanted(name, source)
    elif Path(source.path).exists():
        yield source.path, True
    else:
        # Path.glob takes no absolute patterns before Python 3.13.
        for path in glob.glob(source.path, recursive=True):  # noqa: PTH207
            if not Path(path).is_dir():
                yield path, True


def _wanted(path: str, source: Source) -> bool:
    """Say whether a file in a folder, or matched on another machine, is one to read."""
    told = source.format is not None or source.separator is not None
    return told or _told_by_suffix(path, source) is not None


def _saved_dataset(folder: Path) -> list[str] | None:
    """Return the data files in a folder that ``datasets`` has written, or None for any other.

    Raises:
        DataError: it holds several splits, or what it says of itself is damaged.
    """
    state, several = folder / "state.json", folder / "dataset_dict.json"
    if several.is_file():
        splits = files.read_json(several).get("splits")
        if not splits or not _are_names(splits):
            raise _damaged(several)
        raise DataError(
            f"the dataset has splits: {', '.join(splits)}",
            where=str(folder),
            hint=f"name one: path: {folder / splits[0]}",
        )
    if not (state.is_file() and (folder / "dataset_info.json").is_file()):
        return None
    listed = files.read_json(state).get("_data_files")
    if listed is None:  # files of another program by these names
        return None
    rows = listed if isinstance(listed, list) else [None]
    names = [row.get("filename") if isinstance(row, dict) else None for row in rows]
    if not _are_names(names):
        raise _damaged(state)
    return names


def _are_names(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(each, str) and each for each in value)


def _damaged(path: Path) -> DataError:
    return DataError(
        "not as the package datasets writes it",
        where=str(path),
        hint="save the dataset again, or name its files instead of the folder",
    )


def _told_by_suffix(path: str, source: Source) -> Format | None:
    """Return the format that the suffix of a file tells; text has no fields to ask for."""
    found = _guessed(path)
    return None if found == "text" and source.asks_for_fields else found


def _guessed(path: str) -> Format | None:
    name = remote.file_name(path)
    suffix = Path(name).suffix
    plain = name.removesuffix(suffix) if suffix in _COMPRESSIONS else name
    found = _FORMATS.get(Path(plain).suffix)
    return found if plain == name or found in ("jsonl", "text") else None


def _suffix(path: str) -> str:
    return Path(remote.file_name(path)).suffix


def _format(path: str, source: Source) -> Format:
    if source.dataset:
        return "arrow"
    if source.builtin or source.separator:
        return "text"
    found = source.format or _told_by_suffix(path, source)
    if found is None:
        raise RecipeError(
            "the suffix does not tell the format of this file",
            where=path,
            hint="add 'format: text' (one document a file) or 'format: jsonl' to its source",
        )
    return found


def _size_and_tag(path: str) -> tuple[int, str | None]:
    if remote.is_remote(path):
        return remote.size_and_tag(path)
    found = file_stat(path, path)
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, and can be read but once
        raise DataError(
            "not a regular file",
            where=path,
            hint="write what it gives into a file, and name that",
        )
    return found.st_size, None


def _standard_library() -> list[tuple[str, str]]:
    """Return path and name of the standard library's UTF-8 sources that are no tests."""
    root = Path(sysconfig.get_path("stdlib"))
    names = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if not _NOT_STDLIB.intersection(path.relative_to(root).parts)
    ]
    return [
        (str(root / name), f"python-stdlib/{name}")
        for name in sorted(names, key=natural_key)
        if _is_text(root / name)
    ]


def _is_text(path: Path) -> bool:
    try:
        content = path.read_bytes()
        content.decode()
    except (OSError, UnicodeDecodeError):
        return False
    return bool(content) and not content.startswith(b"\xef\xbb\xbf")
