"""Say in words how two records differ."""

import json
import re
from collections.abc import Iterator
from typing import Any

_HASH = re.compile("[0-9a-f]{64}")


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return ``key old -> new`` for each value that differs, nested keys joined by dots.

    Where one has a list or an object and the other another kind or length, it is ``key changed``.

    Args:
        before: a record as it was read from JSON.
        now: a record that JSON can hold.
    """
    return list(_differences(before, json.loads(json.dumps(now)), ""))


def _differences(was: Any, now: Any, key: str) -> Iterator[str]:
    if isinstance(was, dict) and isinstance(now, dict):
        for name in {**was, **now}:
            label = f"{key}.{name}" if key else name
            yield from _differences(was.get(name), now.get(name), label)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for index, (old, new) in enumerate(zip(was, now, strict=True)):
            yield from _differences(old, new, f"{key}[{index}]")
    elif was != now:
        several = isinstance(was, list | dict) or isinstance(now, list | dict)
        yield f"{key} changed" if several else f"{key} {_short(was)} -> {_short(now)}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return f"{text[:12]}…" if _HASH.fullmatch(text) else text
