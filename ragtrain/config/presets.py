"""What ``ragtrain config`` does: list, print, copy and check configuration files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from ragtrain.config import bundled, commands, documents, fields
from ragtrain.config.base import Command
from ragtrain.config.commands import ConfigCopyConfig, ConfigListConfig, ConfigShowConfig, ConfigValidateConfig
from ragtrain.config.load import load_config
from ragtrain.config.sources import Found
from ragtrain.errors import ConfigError

LIST_HINT = "ragtrain config list shows what there is"


@dataclasses.dataclass(frozen=True)
class PresetResult:
    """What a command of this kind found: ``text`` for people on stdout, ``about`` as JSON."""

    text: str
    about: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the result as one JSON object."""
        return self.about


def list_presets(config: ConfigListConfig) -> PresetResult:
    """Return the names of the bundled configurations, each with the first line of its comments."""
    found = {name: _headline(name) for name in bundled.names() if config.match is None or config.match in name}
    width = max(map(len, found), default=0)
    text = "".join(f"{name.ljust(width)}  {line}\n" for name, line in found.items())
    return PresetResult(text, {"configs": [{"name": name, "about": line} for name, line in found.items()]})


def _headline(name: str) -> str:
    first = _read(name).partition("\n")[0]
    return first.removeprefix("#").strip().rstrip(":") if first.startswith("#") else ""


def _read(name: str | None) -> str:
    """Return the text of a bundled configuration.

    Raises:
        ConfigError: There is none of this name.
    """
    path = bundled.path_of(name) if name else None
    if path is None:
        if not name:
            raise ConfigError("the name of a configuration is missing", hint=LIST_HINT)
        close = bundled.nearest(Path(name))
        near = f"; did you mean {close}?" if close is not None else ""
        raise ConfigError(f"there is no bundled configuration {name!r}{near}", hint=LIST_HINT)
    return path.read_text(encoding="utf-8")


def show(config: ConfigShowConfig) -> PresetResult:
    """Return the text of a bundled configuration.

    Raises:
        ConfigError: There is none of this name.
    """
    text = _read(config.preset)
    return PresetResult(text, {"name": config.preset, "text": text})


def copy(config: ConfigCopyConfig) -> PresetResult:
    """Write a bundled configuration to a file of the user's.

    Raises:
        ConfigError: The words are not a name and at most one destination, there is none of this name, or a file is there.
    """
    if not 1 <= len(config.names) <= 2:
        raise ConfigError(
            f"expected the name of a configuration and at most one destination, received {len(config.names)} words",
            hint="as in ragtrain config cp sft/t4-16gb mine.yaml",
        )
    name, *rest = config.names
    text = _read(name)
    target = Path(rest[0]) if rest else Path()
    if target.is_dir() or (rest and rest[0].endswith("/")):
        target = target / f"{Path(name).with_suffix('').name}.yaml"
    if target.exists() and not config.overwrite:
        raise ConfigError(f"{target} is there already", hint="--overwrite writes over it")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return PresetResult(f"{target}\n", {"name": name, "path": str(target)})


# --- validate ----------------------------------------------------------------------------------------------------------


def validate(config: ConfigValidateConfig) -> PresetResult:
    """Check a file against the model of its command.

    Raises:
        ConfigError: It has mistakes, of which all are listed; there is no such file, or it fits no command.
    """
    if config.file is None:
        raise ConfigError("the file to check is missing", hint="as in ragtrain config validate my.yaml")
    if not config.file.exists() and bundled.find(config.file) is None:
        raise ConfigError(f"{config.file}: no such file, and no bundled configuration of that name", hint=LIST_HINT)
    command = _command_of(config.file, config.for_)
    resolved = load_config(command, [config.file])
    given = sum(origin != "default" for origin in resolved.origins.values())
    fields_given = "1 field" if given == 1 else f"{given} fields"
    said = f"{config.file} is a valid configuration of ragtrain {command.name}: {fields_given} given"
    lines = [*resolved.notes, said]
    about = {"file": str(config.file), "command": command.name, "given": given, "notes": list(resolved.notes)}
    return PresetResult("".join(f"{line}\n" for line in lines), about)


def _commands() -> dict[str, type[Command]]:
    """Return every command by its name; those that train come first, because files are mostly theirs."""
    models = [getattr(commands, name) for name in commands.__all__]
    known = [model for model in models if isinstance(model, type) and issubclass(model, Command)]
    return {model.name: model for model in sorted(known, key=lambda model: not model.name.startswith("train "))}


def _command_of(file: Path, name: str | None) -> type[Command]:
    """Return the command that a file is for: as told, by its ``kind``, or the one that understands most of it."""
    known = _commands()
    kind = None if name else _kind(file)
    wanted = name or (f"train {kind}" if kind else None)
    if wanted is not None:
        wanted = wanted.removeprefix("ragtrain ").strip()
        if wanted not in known:
            close = fields.nearest(wanted, known)
            near = f"; did you mean {close}?" if close is not None else ""
            source = "--for" if name else f"{file}: kind"
            raise ConfigError(f"{source}: there is no command {wanted!r}{near}", hint="ragtrain --help lists them")
        return known[wanted]
    read = {model: _understood(model, file) for model in known.values()}
    best = max(read, key=lambda model: read[model])
    if read[best][1] == 0:
        raise ConfigError(
            f"{file}: no command knows any of its keys", hint="say which one it is for, as --for 'train sft'"
        )
    return best


def _understood(model: type[Command], file: Path) -> tuple[int, int]:
    """Return minus the number of problems with a file, and the number of fields that it sets."""
    found = Found(model)
    documents.read_file(found, file)
    return -len(found.problems), len(found.settings)


def _kind(file: Path) -> str | None:
    """Return the ``kind`` of a file, where it says one and can be read."""
    path = bundled.find(file) or (file / "config.yaml" if file.is_dir() else file)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None  # the reader says what is wrong with it, and where
    kind = content.get("kind") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) and kind else None
