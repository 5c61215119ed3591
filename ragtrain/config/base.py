"""What every configuration model shares: frozen, nothing extra, one description a field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from ragtrain.config.aliases import Alias, Reading

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A group of fields: one panel of ``--help``, one mapping of the YAML file."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    title: ClassVar[str] = "Options"


class Output(Section):
    """Where a command writes and how much it says."""

    title: ClassVar[str] = "Output"

    overwrite: bool = False
    """Replace what stands at the output path instead of refusing."""


class Command(Section):
    """A whole command: sections, and fields of its own.

    ``name`` is what is typed after ``ragtrain``; ``positional`` is the field that bare words (those that are neither
    flags nor KEY=VALUE) fill, and ``positional_metavar`` what help calls them. ``aliases`` are keys of other programs, and
    ``readings`` values of the command's own keys as other programs write them; ``reshape`` puts a file of another program
    into such keys, where that takes more than a key at a time (a staticmethod of nodes of YAML).
    """

    name: ClassVar[str]
    examples: ClassVar[tuple[str, ...]] = ()
    positional: ClassVar[str | None] = None
    positional_metavar: ClassVar[str] = ""
    aliases: ClassVar[Mapping[str, Alias]] = {}
    readings: ClassVar[Mapping[str, Reading]] = {}
    reshape: ClassVar[Callable[..., Any] | None] = None


__all__ = [
    "Command",
    "Decay",
    "Fraction",
    "NonNegativeFloat",
    "NonNegativeInt",
    "Output",
    "Path",
    "PositiveFloat",
    "PositiveInt",
    "Section",
]
