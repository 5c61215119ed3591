"""``ragtrain config list``, ``config show``, ``config cp`` and ``config validate``."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ragtrain.config.base import Command


class ConfigListConfig(Command):
    """List the configurations that come with ragtrain.

    Each can be given as --config NAME, printed, copied and changed.
    """

    name: ClassVar[str] = "config list"
    examples: ClassVar[tuple[str, ...]] = ("ragtrain config list", "ragtrain config list --match sft")

    match: str | None = None
    """Only names that contain this text."""


class ConfigShowConfig(Command):
    """Print a bundled configuration with its comments."""

    name: ClassVar[str] = "config show"
    examples: ClassVar[tuple[str, ...]] = ("ragtrain config show sft/t4-16gb",)
    positional: ClassVar[str | None] = "preset"
    positional_metavar: ClassVar[str] = "NAME"

    preset: str | None = None
    """Name as ``ragtrain config list`` has it."""


class ConfigCopyConfig(Command):
    """Copy a bundled configuration, to change it."""

    name: ClassVar[str] = "config cp"
    examples: ClassVar[tuple[str, ...]] = (
        "ragtrain config cp sft/t4-16gb",
        "ragtrain config cp paper/training-asqa configs/paper/training-asqa.yaml",
    )
    positional: ClassVar[str | None] = "names"
    positional_metavar: ClassVar[str] = "NAME [DEST]"

    names: tuple[str, ...] = ()
    """Name as ``ragtrain config list`` has it, and the file or folder to write; without it, the current folder."""
    overwrite: bool = False
    """Write over a file that is there."""


class ConfigValidateConfig(Command):
    """Check a configuration file without running it: all mistakes at once, with their lines."""

    name: ClassVar[str] = "config validate"
    examples: ClassVar[tuple[str, ...]] = (
        "ragtrain config validate sft/t4-16gb",
        "ragtrain config validate sft/80gb --for 'train sft'",
    )
    positional: ClassVar[str | None] = "file"
    positional_metavar: ClassVar[str] = "FILE"

    file: Path | None = None
    """YAML file, run folder, or name of a bundled configuration."""
    for_: str | None = None
    """Command that it is for, as 'train sft'; without it, what the file's ``kind`` says, or the command that knows its
    keys."""
