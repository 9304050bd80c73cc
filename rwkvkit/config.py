"""The base class of everything that is written in a recipe."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=2**62)]
"""A number of tokens or steps, which may be written ``1.5e9``."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What random generators take."""


class Config(BaseModel):
    """A frozen group of settings: unknown keys and values of another type are errors.

    The docstring under each field is its help text, in the schema and in ``--help``.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
