"""Say in words how two records differ."""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

_HASH = re.compile("[0-9a-f]{64}")


def differences(
    before: dict[str, Any], now: dict[str, Any], leave_out: Collection[str] = ()
) -> list[str]:
    """Return ``key old -> new`` for each value that differs, nested keys joined by dots.

    Where one has a list or an object and the other another kind or length, it is ``key changed``.

    Args:
        before: a record as it was read from JSON.
        now: a record that JSON can hold.
        leave_out: keys, nested ones joined by dots, that may differ.
    """
    return list(_differences(before, json.loads(json.dumps(now)), "", leave_out))


def _differences(was: Any, now: Any, key: str, leave_out: Collection[str]) -> Iterator[str]:
    if key in leave_out:
        return
    if isinstance(was, dict) and isinstance(now, dict):
        for name in {**was, **now}:
            label = f"{key}.{name}" if key else name
            yield from _differences(was.get(name), now.get(name), label, leave_out)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for index, (old, new) in enumerate(zip(was, now, strict=True)):
            yield from _differences(old, new, f"{key}[{index}]", leave_out)
    elif was != now:
        several = isinstance(was, list | dict) or isinstance(now, list | dict)
        yield f"{key} changed" if several else f"{key} {_short(was)} -> {_short(now)}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return f"{text[:12]}…" if _HASH.fullmatch(text) else text
