"""The commands and the function that the console script calls."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

import ragtrain
from ragtrain.cli.execute import execute, is_first_process
from ragtrain.cli.layout import HelpCommand, HelpGroup
from ragtrain.cli.options import command_function
from ragtrain.config.commands import (
    CompareConfig,
    CompressConfig,
    ConfigCopyConfig,
    ConfigListConfig,
    ConfigShowConfig,
    ConfigValidateConfig,
    DoctorConfig,
    EvalConfig,
    FetchConfig,
    GfmConfig,
    InfoConfig,
    PrepareConfig,
    RagConfig,
    RunsConfig,
    SearchConfig,
    SftConfig,
    StatusConfig,
    StoreConfig,
    TeachConfig,
)
from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ragtrain.config.base import Command

COMMANDS: Mapping[type[Command], str] = {
    FetchConfig: "ragtrain.data.fetch:run",
    TeachConfig: "ragtrain.prepare.teach:run",
    PrepareConfig: "ragtrain.prepare:run",
    StoreConfig: "ragtrain.prepare.memory:run",
    SearchConfig: "ragtrain.evaluate.graph_search:search",
    InfoConfig: "ragtrain.prepare:info",
    RagConfig: "ragtrain.train.rag:run",
    SftConfig: "ragtrain.train.sft:run",
    GfmConfig: "ragtrain.train.gfm:run",
    CompressConfig: "ragtrain.train.compress:run",
    ConfigListConfig: "ragtrain.config.presets:list_presets",
    ConfigShowConfig: "ragtrain.config.presets:show",
    ConfigCopyConfig: "ragtrain.config.presets:copy",
    ConfigValidateConfig: "ragtrain.config.presets:validate",
    EvalConfig: "ragtrain.evaluate:run",
    CompareConfig: "ragtrain.compare:run",
    RunsConfig: "ragtrain.overview:list_runs",
    StatusConfig: "ragtrain.overview:status",
    DoctorConfig: "ragtrain.doctor:run",
}
"""Each command's model and the function it calls, imported when the command runs."""

GROUPS: Mapping[str, str] = {
    "data": "Get question sets and passages into one record format, and have models teach them.",
    "index": "Build, adopt, explain and search indexes.",
    "config": "List, print, copy and check configuration files.",
    "train": "Train a part of a retrieval-augmented generation system.",
}

EPILOG = (
    "COMMAND --help shows the options and examples of a command.\n"
    "Exit codes: 0 done, 1 internal, 2 usage or configuration, 3 data, 4 numerics, 5 out of memory, 6 gate not met, "
    "130/143 interrupted."
)
# Flags may be written as --max_steps too; Typer asks this of every option and command name.
CONTEXT: dict[str, Any] = {
    "token_normalize_func": lambda name: name.replace("_", "-"),
    "help_option_names": ["-h", "--help"],
}
# Unknown flags reach the command, which reports them together with everything else that is wrong.
COMMAND_CONTEXT: dict[str, Any] = {**CONTEXT, "ignore_unknown_options": True}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ragtrain {ragtrain.__version__}")
        raise typer.Exit


def build_app() -> typer.Typer:
    """Return the Typer application, made of the configuration models alone."""
    app = typer.Typer(
        cls=HelpGroup, help=ragtrain.__doc__, epilog=EPILOG, context_settings=CONTEXT, rich_markup_mode=None,
        no_args_is_help=True, pretty_exceptions_enable=False,
    )  # fmt: skip

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
        ] = False,
    ) -> None:
        """Only options that stand before a command."""

    groups: dict[str, typer.Typer] = {}
    for command, target in COMMANDS.items():
        group_name, _, name = command.name.rpartition(" ")
        parent = app
        if group_name:
            if group_name not in groups:
                groups[group_name] = typer.Typer(
                    cls=HelpGroup, help=GROUPS[group_name], context_settings=CONTEXT, rich_markup_mode=None,
                    no_args_is_help=True,
                )  # fmt: skip
                app.add_typer(groups[group_name], name=group_name)
            parent = groups[group_name]
        parent.command(
            name, cls=HelpCommand, help=command.__doc__, epilog="\n".join(command.examples),
            context_settings=COMMAND_CONTEXT,
        )(command_function(command, target, execute))  # fmt: skip
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        arguments: What stands after ``ragtrain``; without it, the process's own.
    """
    try:
        result = build_app()(args=arguments, prog_name="ragtrain", standalone_mode=False)
    except typer.Abort:
        return 130
    except BrokenPipeError:
        return 141
    except Exception as exception:
        # Usage errors of Typer's parser: an unknown command, a flag without its value.
        if not hasattr(exception, "format_message"):
            raise
        return _usage_error(exception, sys.argv[1:] if arguments is None else arguments)
    return result if isinstance(result, int) else 0


def _usage_error(exception: Any, arguments: Sequence[str]) -> int:  # noqa: ANN401 - Typer's class has no public name
    from ragtrain import report

    message = exception.format_message()
    if type(exception).__name__ == "NoArgsIsHelpError":
        typer.echo(message or exception.ctx.get_help(), err=True)
    elif is_first_process():
        known = {*GROUPS, *(command.name for command in COMMANDS)}
        typed = (" ".join(arguments[:length]) for length in (2, 1))
        path = next((f"ragtrain {name}" for name in typed if name in known), "ragtrain")
        report.error(ConfigError(message, hint=f"{path} --help shows how to use it"))
    return 2
