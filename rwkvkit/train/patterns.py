"""Parameters by name pattern."""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from rwkvkit.errors import RecipeError


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern means a parameter.

    Args:
        pattern: the name or its start up to a dot, with or without ``blocks.N.``, with wildcards.
        name: the parameter's name, as a checkpoint has it.
    """
    return any(
        fnmatchcase(form, pattern) or fnmatchcase(form, f"{pattern}.*") for form in _forms(name)
    )


def matching(
    patterns: Sequence[str], names: Iterable[str], where: str, fixed: Iterable[str] = ()
) -> set[str]:
    """Return the names that any of the patterns means.

    Args:
        patterns: see :func:`matches`.
        names: of parameters.
        where: the recipe's key, for messages.
        fixed: names of parameters that do not train, for messages.

    Raises:
        RecipeError: a pattern matches nothing.
    """
    names = list(names)
    found: set[str] = set()
    for pattern in patterns:
        own = {name for name in names if matches(pattern, name)}
        if not own and any(matches(pattern, name) for name in fixed):
            raise RecipeError(
                f"{pattern!r} names parameters that do not train anyway",
                where=where,
                hint="remove it",
            )
        if not own:
            short = (form.removesuffix(".weight") for name in names for form in _forms(name)[::-1])
            forms = dict.fromkeys(short)
            near = difflib.get_close_matches(pattern, list(forms), n=3, cutoff=0.4)
            raise RecipeError(
                f"the pattern {pattern!r} matches nothing",
                where=where,
                hint=f"near it: {', '.join(near or list(forms)[:5])}",
            )
        found |= own
    return found


def plain_name(name: str) -> str:
    """Return the name that a parameter has without an adapter around its matrix."""
    return name.replace(".base_layer.", ".")


def _forms(name: str) -> list[str]:
    """The whole name, and the name inside its block."""
    return [name, name.split(".", 2)[2]] if name.startswith("blocks.") else [name]
