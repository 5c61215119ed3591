"""A configuration written out: as commented YAML that can be read back, and as a JSON schema."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from ragtrain.config import fields
from ragtrain.config.base import Command

COMMENT_WIDTH = 100
# What every YAML reader takes for a string without quotes.
PLAIN = re.compile(r"[A-Za-z_./][\w./@+-]*\Z", re.ASCII)
WORDS_WITH_A_MEANING = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "none"}


def dump_yaml(config: Command, origins: Mapping[str, str] | None = None) -> str:
    """Return the configuration as YAML, each field under its description; with ``origins``, where each came from.

    ``load_config(type(config), [file])`` on the text gives an equal configuration.
    """
    command = type(config)
    values = config.model_dump(mode="json")
    lines = [*_comment(f"ragtrain {command.name}: {_first_line(command)}", "")]
    section: tuple[str, ...] = ()
    for leaf in fields.leaves(command).values():
        if leaf.path[:-1] != section:
            section = leaf.path[:-1]
            model = fields.sections(command)[section[0]] if section else command
            lines += ["", *_comment(_first_line(model), ""), *([f"{section[0]}:"] if section else [])]
        indent = "  " * len(section)
        lines += _comment(leaf.description, indent)
        origin = f"  # {origins[leaf.dotted]}" if origins is not None else ""
        lines.append(f"{indent}{leaf.name}: {_scalar(_lookup(values, leaf.path))}{origin}")
    return "\n".join(lines) + "\n"


def json_schema(command: type[Command]) -> dict[str, Any]:
    """Return the JSON schema of the command's YAML file, for editors and other programs."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **command.model_json_schema(),
        "title": f"ragtrain {command.name}",
    }


def _first_line(model: type[Any]) -> str:
    return (model.__doc__ or "").strip().partition("\n")[0]


def _comment(text: str, indent: str) -> list[str]:
    prefix = f"{indent}# "
    return textwrap.wrap(text, COMMENT_WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_long_words=False)


def _lookup(values: Mapping[str, Any], path: tuple[str, ...]) -> object:
    for part in path[:-1]:
        values = values[part]
    return values[path[-1]]


def _scalar(value: object) -> str:
    """Write a value so that YAML 1.1 and 1.2 readers agree on it."""
    if isinstance(value, list):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    if isinstance(value, str):
        plain = PLAIN.match(value) and value.lower() not in WORDS_WITH_A_MEANING
        # JSON escapes DEL and C1 controls nowhere, YAML forbids them raw: ASCII escapes are the common ground.
        return value if plain else json.dumps(value, ensure_ascii=not value.isprintable())
    if isinstance(value, float):
        text = repr(value)
        # PyYAML takes 1e-08 for a string; with a point it is a number to every reader.
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    return json.dumps(value)
