"""What every benchmark's result file starts with: when, where, on what, by which command."""

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rwkvkit.files import write_text


def header(*packages: str, hardware: str | None = None) -> dict[str, Any]:
    """Return date, command, machine, and the versions of Python and ``packages``.

    Args:
        packages: names as pip knows them.
        hardware: what was measured, if not the processor.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "hardware": hardware or processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def processor() -> str:
    """Return the processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def save(results: dict[str, Any], path: Path | None) -> None:
    """Write the results as JSON, if a path was asked for."""
    if path:
        write_text(path, json.dumps(results, indent=1) + "\n")
        print(f"wrote {path}")
