"""The fields of a command as a flat table: path, flag, type in words, and how text becomes a value.

Everything that shows or reads a configuration (flags, YAML, ``--print-config``, reference pages) goes through
``leaves``, so that a field is declared once, in its model.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import annotated_types
from pydantic import BaseModel

from ragtrain.config.base import Command, Section

NULLS = ("null", "~")


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """What a field's annotation says: one scalar type, a list of it or not, its bounds.

    ``scalar`` is one of bool, int, float, str, Path; ``choices`` are the values of a ``Literal``.
    """

    scalar: type
    choices: tuple[str, ...] = ()
    many: bool = False
    optional: bool = False
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """One field: its place, its shape, its default and its description."""

    path: tuple[str, ...]
    title: str
    shape: Shape
    default: Any
    description: str

    @property
    def name(self) -> str:
        """The field's own name, unique in its command."""
        return self.path[-1]

    @property
    def dotted(self) -> str:
        """The path in a YAML file, as ``loop.max_steps``."""
        return ".".join(self.path)

    @property
    def flag(self) -> str:
        """The option of the command line, as ``--max-steps``; a name that Python reserves has an underscore after it."""
        return "--" + self.name.rstrip("_").replace("_", "-")


@functools.cache
def leaves(command: type[Command]) -> Mapping[str, Leaf]:
    """Return every field of a command by its dotted path: its own fields first, then section by section."""
    declared = sorted(_walk(command, command.model_construct(), ()), key=lambda leaf: len(leaf.path) > 1)
    return types.MappingProxyType({leaf.dotted: leaf for leaf in declared})


@functools.cache
def sections(command: type[Command]) -> Mapping[str, type[Section]]:
    """Return the sections of a command by the name of their field."""
    found = {name: info.annotation for name, info in command.model_fields.items() if _is_section(info.annotation)}
    return types.MappingProxyType(typing.cast("dict[str, type[Section]]", found))


def by_name(command: type[Command], name: str) -> list[Leaf]:
    """Return the fields that are called ``name``, in whatever section."""
    return [leaf for leaf in leaves(command).values() if leaf.name == name]


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _walk(model: type[Section], defaults: Section, path: tuple[str, ...]) -> Iterable[Leaf]:
    for name, info in model.model_fields.items():
        default = getattr(defaults, name, None)
        if _is_section(info.annotation):
            section = typing.cast("type[Section]", info.annotation)
            yield from _walk(section, default if default is not None else section.model_construct(), (*path, name))
        else:
            description = " ".join((info.description or "").split())
            shape = _shape(info.annotation, info.metadata)
            yield Leaf((*path, name), model.title, shape, default, description)


def _shape(annotation: object, metadata: Iterable[Any]) -> Shape:
    """Read an annotation; a field that is none of the known shapes is a mistake of ours, hence TypeError."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _shape(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        if len(inner) == 1:
            return dataclasses.replace(_shape(inner[0], metadata), optional=len(inner) < len(arguments))
    elif origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return dataclasses.replace(_shape(arguments[0], metadata), many=True)
    elif origin is Literal:
        return Shape(str, choices=tuple(str(argument) for argument in arguments))
    elif annotation in (bool, int, float, str, Path):
        return _bounded(Shape(annotation), metadata)
    raise TypeError(f"a configuration field cannot be a {annotation}")


def _bounded(shape: Shape, metadata: Iterable[Any]) -> Shape:
    """Add the bounds that pydantic keeps as ``Gt``, ``Ge``, ``Lt``, ``Le``, alone or inside a ``FieldInfo``."""
    for item in metadata:
        inner = getattr(item, "metadata", None)
        if inner:
            shape = _bounded(shape, inner)
        elif isinstance(item, annotated_types.Gt):
            shape = dataclasses.replace(shape, low=typing.cast("float", item.gt), low_open=True)
        elif isinstance(item, annotated_types.Ge):
            shape = dataclasses.replace(shape, low=typing.cast("float", item.ge))
        elif isinstance(item, annotated_types.Lt):
            shape = dataclasses.replace(shape, high=typing.cast("float", item.lt), high_open=True)
        elif isinstance(item, annotated_types.Le):
            shape = dataclasses.replace(shape, high=typing.cast("float", item.le))
    return shape


NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
METAVARS = {bool: "BOOL", int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}


def expected(shape: Shape) -> str:
    """Say in words which values a field takes, as ``a whole number above 0, or null``."""
    words = f"one of {', '.join(shape.choices)}" if shape.choices else NOUNS[shape.scalar]
    bounds = []
    if shape.low is not None:
        bounds.append(f"above {shape.low:g}" if shape.low_open else f"at least {shape.low:g}")
    if shape.high is not None:
        bounds.append(f"below {shape.high:g}" if shape.high_open else f"at most {shape.high:g}")
    if bounds:
        words += f" {' and '.join(bounds)}"
    if shape.many:
        words = f"a list of which each is {words}"
    return f"{words}, or null" if shape.optional else words


def metavar(shape: Shape) -> str:
    """Return what help shows for the value, as ``INT`` or ``no|fp16|bf16|auto``."""
    word = "|".join(shape.choices) or METAVARS[shape.scalar]
    return f"{word},..." if shape.many else word


def show(value: object) -> str:
    """Return a value as a person would write it on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return ",".join(show(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def parse_text(shape: Shape, text: str) -> object:
    """Turn the text of a flag, an argument or a plain YAML scalar into what pydantic then validates.

    The field's type decides, not the look of the text: ``no`` is a word for ``mixed_precision`` and a boolean for
    ``overwrite``; ``1e-4`` is a number for a number's field; ``null`` is nothing where nothing is allowed.
    """
    stripped = text.strip()
    if shape.many:
        return parse_list(text)
    if shape.optional and _is_null(shape, stripped):
        return None
    if shape.scalar is int:
        return _whole(stripped)
    if shape.scalar is Path and text.startswith("~/"):
        return str(Path(text).expanduser())
    return text if shape.scalar in (str, Path) and not shape.choices else stripped


def _is_null(shape: Shape, text: str) -> bool:
    lowered = text.lower()
    return lowered in NULLS or (lowered == "none" and (shape.scalar is not str or bool(shape.choices)))


def parse_list(text: str, *, empty: bool = True) -> list[str]:
    """Split ``a,b`` or ``[a, b]`` into its items; ``null`` and, with ``empty``, ``none`` are the empty list."""
    text = text.strip()
    if text.lower() in (*NULLS, *(("none",) if empty else ())):
        return []
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    items = (item.strip() for item in text.split(","))
    return [item[1:-1] if item[:1] in "'\"" and item[-1:] == item[:1] else item for item in items if item]


def _whole(text: str) -> int | str:
    """Accept ``1e4`` and ``10_000`` where a whole number is expected; leave the rest to the validator."""
    try:
        number = float(text)
    except ValueError:
        return text
    exact = number.is_integer() and abs(number) < 2**53 and "e" in text.lower()
    return int(number) if exact else text


def nearest(word: str, names: Iterable[str]) -> str | None:
    """Return the known name that ``word`` was most likely meant to be: by spelling, initials or last words."""
    known = list(dict.fromkeys(names))
    plain = word.lower().replace("-", "_").strip("_.")
    if not plain:
        return None
    spelled = {name.replace("-", "_").strip("_"): name for name in reversed(known)}
    close = difflib.get_close_matches(plain, spelled, n=1, cutoff=0.7)
    if close:
        return spelled[close[0]]
    for key, name in spelled.items():
        tail = key.rsplit(".", 1)[-1]
        if plain == "".join(part[:1] for part in tail.split("_")) and len(plain) > 1:
            return name
    for key, name in spelled.items():
        if len(key) > 3 and len(plain) > 3 and (plain.endswith(f"_{key}") or key.endswith(f"_{plain}")):
            return name
    loose = difflib.get_close_matches(plain, spelled, n=1, cutoff=0.55)
    return spelled[loose[0]] if loose else None
