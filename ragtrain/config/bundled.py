"""The configurations that come with ragtrain: ``sft/debug-cpu``, ``paper/training-asqa`` and so on."""

from __future__ import annotations

from pathlib import Path

import ragtrain
from ragtrain.config import fields

FOLDER = Path(ragtrain.__file__).parent / "configs"
SUFFIXES = (".yaml", ".yml")
# Where RAG-FiT and many others keep theirs; the bundled ones are found under the same paths.
USERS_FOLDER = "configs"


def names() -> list[str]:
    """Return the name of every bundled configuration, as ``sft/debug-cpu``, in order."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


def path_of(name: str) -> Path | None:
    """Return the file of a bundled configuration's name, with or without its suffix."""
    plain = name[: -len(Path(name).suffix)] if Path(name).suffix in SUFFIXES else name
    return FOLDER / f"{plain}.yaml" if plain in names() else None


def find(path: Path) -> Path | None:
    """Return the bundled file that a path stands for: one that is not there, but among those of ragtrain.

    What follows a folder ``configs`` counts as the name, so that ``configs/paper/training-asqa.yaml`` finds its bundled
    counterpart where there is no such file.
    """
    return None if path.exists() else path_of(_name(path))


def label(preset: Path) -> str:
    """Return how messages call a bundled file: ``ragtrain/configs/sft/debug-cpu.yaml``."""
    return f"ragtrain/configs/{preset.relative_to(FOLDER).as_posix()}"


def nearest(path: Path) -> str | None:
    """Return the bundled name that a path was most likely meant to be."""
    known = {name: name for name in names()} | {name.rpartition("/")[2]: name for name in names()}
    close = fields.nearest(_name(path), known)
    return known[close] if close is not None else None


def choose(folder: Path | None, name: str) -> Path:
    """Return the file that Hydra's ``--config-path`` and ``--config-name`` mean.

    ``FOLDER/NAME.yaml`` where there is such a file; without a folder, ``configs/NAME.yaml`` and then ``NAME.yaml``; else
    the path that ``find`` looks for among the bundled ones.
    """
    file = name if Path(name).suffix in SUFFIXES else f"{name}.yaml"
    tried = [folder / file] if folder is not None else [Path(USERS_FOLDER) / file, Path(file)]
    return next((path for path in tried if path.is_file()), tried[0])


def _name(path: Path) -> str:
    parts = list(path.parts)
    if USERS_FOLDER in parts:
        parts = parts[len(parts) - parts[::-1].index(USERS_FOLDER) :]
    text = Path(*parts).as_posix() if parts else ""
    return text[: -len(Path(text).suffix)] if Path(text).suffix in SUFFIXES else text
