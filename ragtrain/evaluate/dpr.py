"""Answers in the JSON that DPR's retriever and FiD write and read, which other scripts score again.

One list of objects: ``question``, ``answers``, ``prediction`` and ``ctxs``, the passages that were read, in their order, as ``id``,
``title``, ``text``, ``score`` and ``has_answer``; and ``id`` of the question.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from ragtrain.errors import ConfigError
from ragtrain.evaluate import results
from ragtrain.records import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ragtrain.config.commands import EvalConfig

log = logging.getLogger("ragtrain")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the answers of an evaluation.

    The score of a passage is that of the search, higher for better; where the evaluation keeps ranks only, it is the rank from 0,
    negative.
    """
    return [
        {
            "id": row["id"],
            "question": row["question"],
            "answers": row["answers"],
            "prediction": row["prediction"],
            "ctxs": [
                {
                    "id": document["id"], "title": document["title"], "text": document["text"],
                    "score": document["score"] if "score" in document else -float(document["rank"]),
                    "has_answer": document["has_answer"],
                }
                for document in row["documents"]
            ],
        }
        for row in results.read_predictions(folder)
    ]  # fmt: skip


def path_of(file: Path, name: str, *, several: bool) -> Path:
    """Return where an evaluation goes: of several, ``answers.json`` has ``answers.base.gold.json`` for the one ``base/gold``."""
    return file.with_name(f"{file.stem}.{name.replace('/', '.')}{file.suffix}") if several else file


def check(config: EvalConfig, folders: Mapping[str, Path | None]) -> None:
    """Refuse to replace files that are not of these evaluations.

    Args:
        config: says which file, if any.
        folders: of each evaluation by its name; None where it is still to be made.

    Raises:
        ConfigError: one holds something else, and ``--overwrite`` was not given.
    """
    if config.dpr_file is None or config.overwrite:
        return
    for name, folder in folders.items():
        file = path_of(config.dpr_file, name, several=len(folders) > 1)
        if file.exists() and (folder is None or _read(file) != rows_of(folder)):
            raise ConfigError(f"{file} exists and is not of this evaluation",
                              hint="give --overwrite to replace it, or another --dpr-file")  # fmt: skip


def _read(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write(folders: Mapping[str, Path], file: Path) -> None:
    """Write the answers of evaluations, a file each."""
    for name, folder in folders.items():
        path = path_of(file, name, several=len(folders) > 1)
        write_json(path, rows_of(folder))
        log.info("predictions in the form of DPR and FiD in %s", path)
