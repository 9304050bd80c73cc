"""The base class of everything that is written in a recipe."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen group of settings: unknown keys and values of another type are errors.

    The docstring under each field is its help text, in the schema and in ``--help``.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
