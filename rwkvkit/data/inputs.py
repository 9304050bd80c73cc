"""An input file: what is in it, and what tells it from another one."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rwkvkit.data import remote
from rwkvkit.data.chat import Loss
from rwkvkit.data.forms import Form
from rwkvkit.data.sources import DatasetName, Format
from rwkvkit.errors import UnreachableError

Compression = Literal["gzip", "zstd"]


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

    def touched(self) -> tuple[int, str]:
        """Return its size, and what changes when its content does.

        Raises:
            UnreachableError: it cannot be reached.
        """
        if self.dataset is not None:
            return 0, ""
        if remote.is_remote(self.path):
            return remote.touched(self.path)
        stat = file_stat(self.path, self.name)
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
        stat = file_stat(self.path, self.name)
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


def unreadable(name: str, error: OSError) -> UnreachableError:
    """Return the error for an input that the system does not let be read."""
    return UnreachableError(
        f"cannot be read: {error.strerror or error}",
        where=name,
        hint="check that the file exists and that you may read it",
    )


def file_stat(path: str, name: str) -> os.stat_result:
    """Return what the system knows of a local file; ``name`` is for messages.

    Raises:
        UnreachableError: it cannot be reached.
    """
    try:
        return Path(path).stat()
    except OSError as error:
        raise unreadable(name, error) from error
