"""What every stage of ``prepare`` is: a typed class, its fields the keys of the recipe."""

from typing import Any, ClassVar

from rwkvkit.config import Config


class Stage(Config):
    """A step of ``prepare``."""

    key: ClassVar[str]
    """Its name in a recipe."""

    version: ClassVar[int] = 1
    """Raised when the same settings give other bytes."""

    takes: ClassVar[str | None] = None
    """What must stand before it: ``text``, ``tokens``, ``binidx`` or nothing."""

    gives: ClassVar[str]
    """What stands after it."""

    repeatable: ClassVar[bool] = False
    """Whether a chain may hold several of it."""

    shorthand: ClassVar[str | None] = None
    """The field that a bare value in the recipe sets (``encode: world``)."""

    @classmethod
    def expand(cls, value: Any) -> Any:
        """Turn what the recipe has under the key into a mapping of fields.

        A stage without a value (``- plan``) has none; a bare value goes to ``shorthand``. Whether
        the fields are right is for validation to say.
        """
        if value is None:
            return {}
        if isinstance(value, dict) or cls.shorthand is None:
            return value
        return {cls.shorthand: value}

    def settings(self) -> dict[str, Any]:
        """Return what the bytes of the output depend on, for the manifest."""
        return self.model_dump(mode="json")

    def summary(self) -> str:
        """Say in a few words what the stage will do."""
        return " ".join(f"{name}={value}" for name, value in self.settings().items())
