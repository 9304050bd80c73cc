"""Say in words how two records differ."""

import json
import re
from typing import Any

_HASH = re.compile("[0-9a-f]{64}")


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return ``key old -> new`` for each value that differs, nested keys joined by dots.

    Args:
        before: a record as it was read from JSON.
        now: a record that JSON can hold.
    """
    old, new = _flat(before), _flat(json.loads(json.dumps(now)))
    return [
        f"{key} {_short(old.get(key))} -> {_short(new.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Return the plain values inside nested dicts and lists, by dotted key."""
    if isinstance(value, dict):
        parts = [(f"{key}.{name}" if key else name, inner) for name, inner in value.items()]
    elif isinstance(value, list):
        parts = [(f"{key}[{index}]", inner) for index, inner in enumerate(value)]
    else:
        return {key: value}
    return {name: plain for part, inner in parts for name, plain in _flat(inner, part).items()}


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if _HASH.fullmatch(text) else text
