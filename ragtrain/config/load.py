"""Defaults, YAML files, KEY=VALUE arguments and flags become one frozen, validated configuration.

Later sources win: defaults < files in the order given < arguments < flags. Every error of every source is reported at
once, each with its path, the value received, what was expected and where it stands.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from ragtrain.config import aliases, fields
from ragtrain.config.base import Command
from ragtrain.config.documents import read_file
from ragtrain.config.sources import Found, Problem, Setting, read_flags, read_words
from ragtrain.errors import ConfigError

C = TypeVar("C", bound=Command)
DEFAULT = "default"
LONGEST_VALUE = 60


@dataclasses.dataclass(frozen=True, slots=True)
class Resolved(Generic[C]):
    """A configuration, and for each field (by dotted path) where its value came from.

    An origin is ``default``, ``file:line``, ``argument`` or ``flag``, with `` as KEY`` where the key of another program was
    read. ``notes`` are lines that tell of such keys, and of bundled files that stand for missing ones.
    """

    config: C
    origins: Mapping[str, str]
    notes: Sequence[str] = ()


def load_config(
    command: type[C],
    files: Iterable[str | Path] = (),
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    *,
    known_flags: Iterable[str] = (),
) -> Resolved[C]:
    """Resolve a command's configuration.

    Args:
        command: The model of the command.
        files: YAML files (or folders that hold a ``config.yaml``, or names of bundled ones); a later one wins.
        overrides: KEY=VALUE texts, dotted or section-less, ~KEY, and bare words for the command's positional field.
        flags: Values by field name; texts are parsed as on the command line. A name that starts with a dash is a flag
            that the command line did not know.
        known_flags: Flags outside the model, which an unknown one may have been meant to be.

    Raises:
        ConfigError: Anything is unknown, malformed or out of bounds; the message lists everything.
    """
    found = Found(command)
    for file in files:
        read_file(found, Path(file))
    read_words(found, overrides)
    read_flags(found, flags or {}, known_flags)
    last = found.settle()
    config, problems = _validate(command, last)
    problems = found.problems + problems
    if config is None or problems:
        raise _config_error(command, problems)
    origins = {dotted: last[dotted].origin if dotted in last else DEFAULT for dotted in fields.leaves(command)}
    return Resolved(config, origins, [*found.said, *aliases.tell(found.notes)])


def _validate(command: type[C], settings: Mapping[str, Setting]) -> tuple[C | None, list[Problem]]:
    tree: dict[str, Any] = {}
    for name in fields.sections(command):
        # A section whose default differs from its class's own defaults keeps those differences under a partial mapping.
        default = command.model_fields[name].default
        tree[name] = default.model_dump(exclude_unset=True) if hasattr(default, "model_dump") else {}
    for setting in settings.values():
        place = tree
        for part in setting.leaf.path[:-1]:
            place = place.setdefault(part, {})
        place[setting.leaf.name] = setting.value
    try:
        return command.model_validate(tree), []
    except ValidationError as error:
        return None, _from_pydantic(command, error, settings)


def _from_pydantic(command: type[Command], error: ValidationError, settings: Mapping[str, Setting]) -> list[Problem]:
    table = fields.leaves(command)
    problems: dict[tuple[str, str], Problem] = {}
    for item in error.errors(include_url=False):
        parts = [str(part) for part in item["loc"]]
        dotted = next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in table), "")
        setting = settings.get(dotted)
        if item["type"] in ("value_error", "assertion_error") or not dotted:
            message = item["msg"].removeprefix("Value error, ")
        else:
            message = f"expected {fields.expected(table[dotted].shape)}"
        subject = dotted or ".".join(parts)
        origin = setting.origin if setting is not None else DEFAULT
        value = [setting.value] if setting is not None else []
        problems[subject, message] = Problem(subject, origin, message, value[0] if value else None, bool(value))
    return list(problems.values())


def _config_error(command: type[Command], problems: Sequence[Problem]) -> ConfigError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"{count} in the configuration of ragtrain {command.name}:"]
    lines += [f"  {_render(command, problem)}" for problem in problems]
    return ConfigError("\n".join(lines), hint=f"ragtrain {command.name} --help lists every option with its default")


def _render(command: type[Command], problem: Problem) -> str:
    if problem.subject.startswith("-"):
        value = f" {problem.value}" if problem.has_value else ""
        return f"{problem.subject}{value}: {problem.message}"
    if not problem.subject:
        return problem.message
    leaf = fields.leaves(command).get(problem.subject)
    origin = f"flag {leaf.flag}" if problem.origin == "flag" and leaf is not None else problem.origin
    received = f" = {_received(problem.value)}" if problem.has_value else ""
    return f"{problem.subject}{received} ({origin}): {problem.message}"


def _received(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, str) else repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
