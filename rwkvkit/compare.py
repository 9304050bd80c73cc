"""Say in words how two records differ."""

import json
from typing import Any


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return ``key old -> new`` for each value that differs, nested keys joined by dots.

    Args:
        before: a record as it was read from JSON.
        now: a record that JSON can hold.
    """
    old, new = _flat(before), _flat(json.loads(json.dumps(now)))
    return [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
