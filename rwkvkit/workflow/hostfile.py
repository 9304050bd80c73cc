"""The file that names the machines of a run, in the format of DeepSpeed and MPI."""

import re
from dataclasses import dataclass
from pathlib import Path

from rwkvkit.errors import UsageError

# A name that ssh takes for a host, never for an option of its own.
_LINE = re.compile(r"([\w][\w.:@-]*)\s+slots\s*=\s*(\d+)")
_LOOPBACK = re.compile(r"localhost|127\.[\d.]+|::1")


@dataclass(frozen=True)
class Host:
    """A machine of a run.

    Attributes:
        name: what ssh is given, ``user@`` included.
        slots: how many processes of the run it takes.
    """

    name: str
    slots: int

    @property
    def address(self) -> str:
        """What the other machines call it."""
        return self.name.rpartition("@")[2]

    @property
    def is_loopback(self) -> bool:
        """Whether each machine means itself by that address."""
        return bool(_LOOPBACK.fullmatch(self.address))


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Read the machines of a run: a line ``HOST slots=N`` each; ``#`` starts a comment.

    Raises:
        UsageError: the file cannot be read, a line is something else, a host stands in it twice,
            or it names none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text"
        raise UsageError(str(reason), where=str(path), hint="name a hostfile") from error
    hosts: list[Host] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        found = _LINE.fullmatch(content)
        if not found or int(found[2]) == 0:
            raise UsageError(
                f"{content!r} is no host with its slots",
                where=f"{path}:{number}",
                hint="a line reads: HOST slots=8",
            )
        name, slots = found[1], int(found[2])
        if name in seen:
            raise UsageError(
                f"{name} is already in line {seen[name]}",
                where=f"{path}:{number}",
                hint="give each host one line, with all its slots",
            )
        seen[name] = number
        hosts.append(Host(name, slots))
    if not hosts:
        raise UsageError("names no host", where=str(path), hint="add a line: HOST slots=8")
    return tuple(hosts)
