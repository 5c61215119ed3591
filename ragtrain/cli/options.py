"""A configuration model turned into the signature that Typer reads: one option a field, none declared by hand."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ragtrain.cli.execute import Request
from ragtrain.config import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ragtrain.config.base import Command

GENERAL = "Configuration and output"
WORDS = "words_"
# Named with a trailing underscore so that no field of a model can collide with them. Names are separated by commas.
GENERAL_OPTIONS: Mapping[str, tuple[str, Any, str]] = {
    "config_": (
        "--config",
        list[Path] | None,
        "YAML file, a run folder, or a name of ``ragtrain config list``; may be repeated, and a later file wins.",
    ),
    "config_path_": ("-cp,--config-path", Path | None, "Folder of --config-name, as Hydra has it."),
    "config_name_": (
        "-cn,--config-name",
        str | None,
        "YAML file below --config-path, with or without its suffix, your own or a bundled one; read before --config.",
    ),
    "print_config_": (
        "--print-config",
        bool,
        "Print the resolved configuration, with where each value came from, and exit.",
    ),
    "print_schema_": ("--print-schema", bool, "Print the JSON schema of the YAML file and exit."),
    "json_": ("--json", bool, "Print the result to stdout as one JSON document."),
    "quiet_": ("--quiet", bool, "Say nothing but warnings and errors."),
    "traceback_": ("--traceback", bool, "Show the Python traceback of an error."),
}
GENERAL_METAVARS: Mapping[str, str] = {"config_": "FILE", "config_path_": "DIR", "config_name_": "NAME"}
GENERAL_FLAGS = ("--help", *(flag for flags, _, _ in GENERAL_OPTIONS.values() for flag in flags.split(",")))


def command_function(command: type[Command], target: str, execute: Callable[[Request], int]) -> Callable[..., None]:
    """Return the function that Typer turns into a command.

    Values stay text: bounds and types are checked by the model, where all errors can be reported at once.

    Args:
        command: Model of the command.
        target: ``module:function`` to call with the configuration.
        execute: What to do with the request; returns the exit code.
    """

    def function(**given: Any) -> None:  # noqa: ANN401 - one keyword a field
        words, unknown = split_words(given.pop(WORDS) or [])
        general = {name.rstrip("_"): given.pop(name) for name in GENERAL_OPTIONS}
        flags = {name: _as_text(value) for name, value in given.items() if value is not None and value != []}
        files = tuple(general.pop("config") or ())
        request = Request(command, target, files, tuple(words), {**flags, **unknown}, GENERAL_FLAGS, **general)
        raise typer.Exit(execute(request))

    parameters = [_words_parameter(command)]
    parameters += [_field_parameter(leaf) for leaf in fields.leaves(command).values()]
    parameters += [_general_parameter(name) for name in GENERAL_OPTIONS]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    function.__doc__ = command.__doc__
    return function


def split_words(words: list[str]) -> tuple[list[str], dict[str, str | None]]:
    """Separate words from flags that the parser did not know; such a flag takes its value along.

    >>> split_words(["a=1", "--n-dcos", "5", "--b=2"])
    (['a=1'], {'--n-dcos': '5', '--b': '2'})
    """
    plain: list[str] = []
    unknown: dict[str, str | None] = {}
    waiting: str | None = None
    for word in words:
        if word.startswith("-") and len(word) > 1 and not word[1].isspace():
            flag, equals, text = word.partition("=")
            unknown[flag] = text if equals else None
            waiting = None if equals else flag
        elif waiting is not None and "=" not in word:
            unknown[waiting] = word
            waiting = None
        else:
            plain.append(word)
            waiting = None
    return plain, unknown


def _as_text(value: object) -> object:
    if isinstance(value, list):
        return [str(item) for item in value]
    return value if isinstance(value, bool) else str(value)


def _words_parameter(command: type[Command]) -> inspect.Parameter:
    metavar = f"{command.positional_metavar} [KEY=VALUE]...".strip()
    information = typer.Argument(metavar=metavar, show_default=False, help="Fields by YAML path or by name.")
    return _parameter(WORDS, list[str] | None, information)


def _field_parameter(leaf: fields.Leaf) -> inspect.Parameter:
    shape = leaf.shape
    kind: Any = {bool: bool, Path: Path}.get(shape.scalar, str)
    negative = f"/--no-{leaf.flag[2:]}" if shape.scalar is bool else ""
    information = typer.Option(
        leaf.flag + negative,
        help=help_text(leaf),
        metavar=None if shape.scalar is bool else fields.metavar(shape),
        show_default=False,
        rich_help_panel=leaf.title,
        autocompletion=(lambda: list(shape.choices)) if shape.choices else None,
    )
    return _parameter(leaf.name, (list[kind] if shape.many else kind) | None, information)


def _general_parameter(name: str) -> inspect.Parameter:
    flags, kind, text = GENERAL_OPTIONS[name]
    metavar = GENERAL_METAVARS.get(name)
    information = typer.Option(
        *flags.split(","), help=text, metavar=metavar, show_default=False, rich_help_panel=GENERAL
    )
    return _parameter(name, kind, information, default=False if kind is bool else None)


def _parameter(name: str, kind: Any, information: object, default: object = None) -> inspect.Parameter:  # noqa: ANN401
    annotation = Annotated[kind, information]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def help_text(leaf: fields.Leaf) -> str:
    """Return the description with the default; a default of nothing is what the description itself explains."""
    if leaf.default in (None, (), ""):
        return leaf.description
    default = fields.show(leaf.default)
    if leaf.shape.scalar is bool:
        default = "on" if leaf.default else "off"
    return f"{leaf.description} [default: {default}{'; may be null' if leaf.shape.optional else ''}]"
