"""How help looks: plain text in titled groups, for a terminal of any width and for a pipe.

Typer's own rich tables need four columns before the description, which leaves a dozen characters for it on 80
columns, and importing rich would cost more than everything else that ``--help`` does. What Typer hands over is ``Any`` here:
newer versions of Typer bring their own copy of click and older ones use the real one.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NARROWEST, WIDEST = 40, 120
LABEL_SHARE = 0.42


class HelpCommand(TyperCommand):
    """A command whose help is grouped by the sections of its model."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ANN401
        """Return the usage line's parts with our metavars as they stand; Typer would add brackets to them."""
        words = [param.metavar or "" for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return ["[OPTIONS]", *words]

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write usage, description, options by group, and examples."""
        width = _width()
        blocks = [_usage(self, ctx, width), _paragraph(self.help or "", width, "  ")]
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if param.param_type_name == "option" and not getattr(param, "hidden", False):
                title = getattr(param, "rich_help_panel", None) or ""
                groups.setdefault(title, []).append((option_label(param), getattr(param, "help", None) or ""))
        ungrouped = groups.pop("", [])  # Typer's own --help
        groups.setdefault(next(reversed(groups), "Options"), []).extend(ungrouped)
        column = _column((label for rows in groups.values() for label, _ in rows), width)
        blocks += [_title(title) + _rows(rows, width, column) for title, rows in groups.items()]
        blocks.append(_title("KEY=VALUE") + _paragraph(KEY_VALUE_HELP, width, "  "))
        if self.epilog:
            blocks.append(_title("Examples") + "".join(_example(line, width) for line in self.epilog.splitlines()))
        formatter.write("\n".join(blocks))


class HelpGroup(TyperGroup):
    """A group whose help lists every command below it with its whole name."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write usage, description, commands, options and the exit codes."""
        width = _width()
        rows = [(name, (command.help or "").strip().partition("\n")[0]) for name, command in walk(self)]
        options = [(option_label(param), getattr(param, "help", None) or "") for param in self.get_params(ctx)]
        column = _column((label for label, _ in rows + options), width)
        blocks = [_usage(self, ctx, width), _paragraph(self.help or "", width, "  ")]
        blocks += [_title("Commands") + _rows(rows, width, column), _title("Options") + _rows(options, width, column)]
        if self.epilog:
            blocks.append("".join(_paragraph(line, width, "") for line in self.epilog.splitlines()))
        formatter.write("\n".join(blocks))


KEY_VALUE_HELP = (
    "Any field can be given by its YAML path or its name, as loop.max_steps=100 or max_steps=100. Flags win over "
    "KEY=VALUE, KEY=VALUE over --config files, those over defaults. null means none; lists are separated by commas."
)


def walk(group: TyperGroup, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command below a group with its whole name: groups first, in the order of work."""
    for name, command in sorted(group.commands.items(), key=lambda item: not isinstance(item[1], TyperGroup)):
        if isinstance(command, TyperGroup):
            yield from walk(command, f"{prefix}{name} ")
        elif not command.hidden:
            yield f"{prefix}{name}", command


def option_label(param: Any) -> str:  # noqa: ANN401
    """Return ``--max-steps INT``, ``--[no-]overwrite`` or ``-h, --help``."""
    if param.secondary_opts:
        return f"--[no-]{param.opts[-1][2:]}"
    label = ", ".join(sorted(param.opts, key=len))
    return f"{label} {param.metavar}" if param.metavar else label


def _width() -> int:
    return max(NARROWEST, min(shutil.get_terminal_size((80, 24)).columns, WIDEST))


def _title(text: str) -> str:
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return (typer.style(text, bold=True) if coloured else text) + "\n"


def _usage(command: TyperCommand | TyperGroup, ctx: Any, width: int) -> str:  # noqa: ANN401
    pieces = " ".join(command.collect_usage_pieces(ctx))
    return _paragraph(f"Usage: {ctx.command_path} {pieces}", width, "")


def _paragraph(text: str, width: int, indent: str) -> str:
    return textwrap.fill(_plain(text), width, initial_indent=indent, subsequent_indent=indent or "  ") + "\n"


def _plain(text: str) -> str:
    return " ".join(text.replace("``", "").split())


def _column(labels: Iterable[str], width: int) -> int:
    """Return where descriptions start: after the longest label that leaves them most of the width."""
    widest = int(width * LABEL_SHARE)
    return max([len(label) for label in labels if len(label) <= widest - 4] or [0]) + 4


def _rows(rows: Iterable[tuple[str, str]], width: int, column: int) -> str:
    """Lay out labels beside their descriptions; a label that is too long gets a line of its own."""
    lines: list[str] = []
    for label, text in rows:
        wrapped = textwrap.wrap(_plain(text), width - column, break_on_hyphens=False) or [""]
        if len(label) + 4 > column:
            lines.append(f"  {label}")
        else:
            lines.append(f"  {label}".ljust(column) + wrapped.pop(0))
        lines += [" " * column + line for line in wrapped]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _example(text: str, width: int) -> str:
    """Break a long command before a flag, so that it can be pasted as it stands."""
    lines, current = [], ""
    for word in _units(text):
        if current and len(current) + len(word) + 5 > width:
            lines.append(current + " \\")
            current = "  "
        current += (" " if current.strip() else "") + word
    return "".join(f"  {line}\n" for line in [*lines, current])


def _units(text: str) -> Iterator[str]:
    """Yield words, each flag together with its value."""
    unit = ""
    for word in shlex.split(text, posix=False):
        if word.startswith("--") and unit:
            yield unit
            unit = word
        elif unit.startswith("--"):
            yield f"{unit} {word}"
            unit = ""
        elif unit:
            yield unit
            unit = word
        else:
            unit = word
    if unit:
        yield unit
