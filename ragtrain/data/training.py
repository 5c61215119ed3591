"""Which questions a run trains on and validates on, and what is written down of them."""

from __future__ import annotations

import dataclasses
import logging
import random
from typing import TYPE_CHECKING, Any, Literal

from ragtrain.data.formats import read_questions
from ragtrain.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from ragtrain.config.commands import RagDataConfig
    from ragtrain.records import Question

log = logging.getLogger("ragtrain")


@dataclasses.dataclass(frozen=True)
class TrainingQuestions:
    """The questions of a run.

    Attributes:
        train: with at least one answer each.
        validation: likewise; empty where there are none.
        folder: where the training questions stand, and beside them passages, index and test questions.
        sources: for ``data.json``: paths, hashes and counts.
    """

    train: list[Question]
    validation: list[Question]
    folder: Path
    sources: dict[str, Any]


def read_training(config: RagDataConfig, path: Path, seed: int) -> TrainingQuestions:
    """Read training and validation questions.

    Args:
        config: what to read and how many; its ``val_data`` defaults to ``validation.jsonl`` beside the training file.
        path: the training questions, a file or a dataset folder.
        seed: of the draw where fewer are wanted than there are.

    Raises:
        DataError: a file cannot be read, or holds no question with an answer.
    """
    folder = path if path.is_dir() else path.parent
    beside, test = folder / "validation.jsonl", folder / "test.jsonl"
    val_path = config.val_data or (beside if beside.is_file() and beside != path else None)
    train, about_train = _answerable(config, path, "train", config.max_train_samples, seed)
    sources: dict[str, Any] = {"train": about_train}
    validation: list[Question] = []
    if val_path is None:
        log.warning("no validation questions: no best checkpoint and no early stopping; give --val-data")
    else:
        validation, sources["validation"] = _answerable(config, val_path, "validation", config.max_val_samples, seed)
    sources["test"] = {"path": str(test if test.is_file() else val_path or path)}
    return TrainingQuestions(train, validation, folder, sources)


def _answerable(
    config: RagDataConfig, path: Path, split: Literal["train", "validation"], most: int | None, seed: int
) -> tuple[list[Question], dict[str, Any]]:
    """Return the questions that have an answer, at most so many, and what is written down of them."""
    file = read_questions(
        path, split=split, question_key=config.question_key, answer_key=config.answer_key,
        skip_bad_lines=config.skip_bad_lines,
    )  # fmt: skip
    usable = [question for question in file.questions if any(answer.strip() for answer in question.answers)]
    left_out = len(file.questions) - len(usable)
    if not usable:
        raise DataError("holds no question with an answer", path=path)
    if left_out:
        log.warning("%s: %d of %d questions have no answer and are left out", path, left_out, len(file.questions))
    if most is not None and len(usable) > most:
        usable = random.Random(seed).sample(usable, most)
    about = {
        "path": str(path), "format": file.format, "sha256": file.sha256, "questions": len(usable),
        "without_answer": left_out, "skipped_lines": file.skipped,
    }  # fmt: skip
    return usable, about
