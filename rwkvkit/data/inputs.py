"""Which files the sources name, in the order they are read."""

import glob
import json
import os
import re
import sysconfig
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rwkvkit.data import remote
from rwkvkit.data.chat import Loss
from rwkvkit.data.forms import Form
from rwkvkit.data.sources import DatasetName, Format, Source
from rwkvkit.errors import DataError, RecipeError, UnreachableError

Compression = Literal["gzip", "zstd"]
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}


@dataclass(frozen=True)
class InputFile:
    """One input file.

    Attributes:
        path: where it is, as the recipe gives it.
        name: how messages and the manifest call it; the path, or for a builtin source the path
            below a name that is the same on every machine.
        source: index of its source in the recipe.
        number: index of the file within its source.
        size: bytes on disk.
        format: what is in it.
        compression: ``gzip``, ``zstd`` or None.
        form: what its lines or rows make.
        loss: which of its tokens count in the loss.
        separator: what stands between the documents of a text file; None where it is one document.
        dataset: the dataset that stands for a file, with the size 0.
        tag: what the server of a remote file calls its content, or None.
    """

    path: str
    name: str
    source: int
    number: int
    size: int
    format: Format
    compression: Compression | None
    form: Form
    loss: Loss
    separator: bytes | None = None
    dataset: DatasetName | None = None
    tag: str | None = None

    @property
    def is_table(self) -> bool:
        """Whether it has rows instead of lines."""
        return self.format in ("parquet", "arrow")

    @property
    def has_own_reader(self) -> bool:
        """Whether one of ``data/readers`` reads it."""
        return self.is_table or self.separator is not None

    @property
    def in_ranges(self) -> bool:
        """Whether ranges of its bytes can be read one by one."""
        return self.format == "parquet" or (self.format == "jsonl" and not self.compression)

    def touched(self) -> tuple[int, int | str]:
        """Return its size, and what changes when its content does.

        Raises:
            UnreachableError: it cannot be reached.
        """
        if self.dataset is not None:
            return 0, ""
        if remote.is_remote(self.path):
            return remote.touched(self.path)
        stat = _stat(self.path, self.name)
        # The time of a rename too; not the inode, which another machine's shard may see differently
        return stat.st_size, f"{stat.st_mtime_ns} {stat.st_ctime_ns}"

    def state(self) -> tuple[int, int, int, int] | None:
        """Return what no other file at its path has: size, times of change, and inode.

        Returns:
            Bytes, the time of the last change of its content and that of its inode, in nanoseconds
            since 1970, and the inode; None for what is not on this machine.

        Raises:
            UnreachableError: it cannot be reached.
        """
        if self.dataset is not None or remote.is_remote(self.path):
            return None
        stat = _stat(self.path, self.name)
        return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino

    def unchanged_since(self, time_ns: int) -> bool:
        """Say whether it is known that what lies elsewhere was not changed after a time.

        Of a file of this machine it is not: the path may lead to another one, as old (``state``).

        Raises:
            UnreachableError: it cannot be reached.
        """
        if self.dataset is not None:
            return True
        if not remote.is_remote(self.path):
            return False
        modified = remote.modified_ns(self.path)
        return modified is not None and modified < time_ns


def find_files(
    sources: Sequence[Source], exclude: Collection[str] = frozenset()
) -> list[InputFile]:
    """Return the files of all sources, in the order of the sources, naturally sorted in each.

    Args:
        sources: where to look.
        exclude: real paths of files to leave out; a build's own output may lie among its inputs.

    Raises:
        DataError: a source names no file, or a file cannot be reached.
        RecipeError: the format of a file must be told.
    """
    return [
        file for number, source in enumerate(sources) for file in _find(source, number, exclude)
    ]


def unreadable(name: str, error: OSError) -> UnreachableError:
    """Return the error for an input that the system does not let be read."""
    return UnreachableError(
        f"cannot be read: {error.strerror or error}",
        where=name,
        hint="check that the file exists and that you may read it",
    )


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Return a sort key that puts ``part-2`` before ``part-10``."""
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], text


def _find(source: Source, number: int, exclude: Collection[str]) -> list[InputFile]:
    if source.dataset is not None:
        found = [(str(source.dataset), str(source.dataset))]
    elif source.builtin:
        found = _standard_library()
    else:
        paths = [path for path in _matches(source) if os.path.realpath(path) not in exclude]
        found = [(path, path) for path in sorted(paths, key=natural_key)]
    if not found and source.path and Path(source.path).is_dir():
        raise DataError(
            "the folder holds no file to read",
            where=source.name,
            hint="if their suffix does not tell the format, say it, such as `format: text`",
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


def _matches(source: Source) -> Iterator[str]:
    assert source.path is not None
    if remote.is_remote(source.path):
        found = remote.find(source.path)
        yield from (path for path in found if path == source.path or _wanted(path, source))
    elif Path(source.path).is_dir():
        for folder, folders, names in os.walk(source.path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in _saved_dataset(Path(folder)) or names:
                if not name.startswith(".") and _wanted(name, source):
                    yield str(Path(folder) / name)
    elif Path(source.path).exists():
        yield source.path
    else:
        # Path.glob takes no absolute patterns before Python 3.13.
        for path in glob.glob(source.path, recursive=True):  # noqa: PTH207
            if not Path(path).is_dir():
                yield path


def _wanted(path: str, source: Source) -> bool:
    """Say whether a file in a folder, or matched on another machine, is one to read."""
    return source.format is not None or source.separator is not None or _guessed(path) is not None


def _saved_dataset(folder: Path) -> list[str]:
    """Return the data files in a folder that ``datasets`` has written, or nothing for any other.

    Raises:
        DataError: it holds several splits, or rows in another order than the files.
    """
    state = folder / "state.json"
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_bytes())["splits"]
        raise DataError(
            f"the dataset has splits: {', '.join(splits)}",
            where=str(folder),
            hint=f"name one: path: {folder / splits[0]}",
        )
    if not (state.is_file() and (folder / "dataset_info.json").is_file()):
        return []
    return [file["filename"] for file in json.loads(state.read_bytes())["_data_files"]]


def _guessed(path: str) -> Format | None:
    name = remote.file_name(path)
    suffix = Path(name).suffix
    plain = name.removesuffix(suffix) if suffix in _COMPRESSIONS else name
    found = _FORMATS.get(Path(plain).suffix)
    return found if plain == name or found == "jsonl" else None


def _suffix(path: str) -> str:
    return Path(remote.file_name(path)).suffix


def _format(path: str, source: Source) -> Format:
    if source.dataset:
        return "arrow"
    if source.builtin or source.separator:
        return "text"
    found = source.format or _guessed(path)
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
    return _stat(path, path).st_size, None


def _stat(path: str, name: str) -> os.stat_result:
    try:
        return Path(path).stat()
    except OSError as error:
        raise unreadable(name, error) from error


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
