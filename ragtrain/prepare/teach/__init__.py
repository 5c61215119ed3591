"""``ragtrain data teach``: questions and passages become rows with reranker scores and a teacher's answers.

The steps are OSCAR's (Louis et al. 2025, section 4): passages are found for each question, a cross-encoder scores them, the best
are kept, and a larger model answers from these. What is learnt afterwards are its answers (sequence-level distillation)
and its scores.

Scores and answers gather in ``NAME.teach/`` as they come, under hashes of all that decides them: a stopped command goes on
with the first row that it lacks, and another one with other settings asks nothing twice. The file itself is written at the end.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

from ragtrain.data import caches
from ragtrain.data.sft.templates import read_instruction
from ragtrain.errors import ConfigError, Interrupted
from ragtrain.prepare.journal import Journal, key_of
from ragtrain.prepare.resume import Stopped, stoppable
from ragtrain.prepare.teach import output
from ragtrain.prepare.teach.agreement import judged
from ragtrain.prepare.teach.answers import ANSWERS_FILE, taught
from ragtrain.prepare.teach.models import Identity, reranker_identity, teacher_identity
from ragtrain.prepare.teach.questions import Asked, questions_path, read_asked
from ragtrain.prepare.teach.rerank import SCORES_FILE, reranked
from ragtrain.prepare.teach.sources import Found, chosen, with_passages

if TYPE_CHECKING:
    from pathlib import Path

    from ragtrain.config.commands.teach import TeachConfig
    from ragtrain.prepare.teach.output import TeachResult
    from ragtrain.records import Question

log = logging.getLogger("ragtrain")

#: Changes whenever the same request gives other rows.
VERSION = 1


def run(config: TeachConfig) -> TeachResult:
    """Write questions with passages, scores and a teacher's answers.

    Raises:
        ConfigError: settings that contradict each other, a model that is not there, or a file that is not to be replaced.
        DataError: questions, passages or weights cannot be read.
        Interrupted: it was stopped; what was scored and answered is kept.
        OutOfMemoryError: a single row does not fit on the device.
    """
    if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        raise ConfigError("questions are taught by one process", hint="start it without a launcher")
    if config.rerank.reranker_model is None and not config.teacher.teach:
        searched = config.passages is not None or config.index is not None
        if not searched:
            raise ConfigError("neither passages nor scores nor answers are asked for",
                              hint="give --passages or --index, --reranker-model, or leave --no-teach out")  # fmt: skip
    target = config.output_file
    path = questions_path(config)
    identities = reranker_identity(config), teacher_identity(config)
    asked = read_asked(config, path)
    request = _request(config, asked, identities)
    before = output.standing(target)
    if before is not None and before["request"] == request and not config.overwrite:
        log.info("%s is up to date", target)
        return output.show(output.TeachResult(target, before["rows"], up_to_date=True, info=before))
    output.refuse_existing(target, overwrite=config.overwrite)
    work = output.work_folder(target)
    work.mkdir(parents=True, exist_ok=True)
    with caches.locked(work, "teaches the same rows"), stoppable():
        try:
            return output.show(_made(config, asked, identities, work, request))
        except KeyboardInterrupt as interrupt:
            raise Interrupted(
                f"stopped; scores and answers so far are kept in {work}",
                signal_number=signal.SIGTERM if isinstance(interrupt, Stopped) else signal.SIGINT,
                hint="the same command goes on from there",
            ) from interrupt


def _made(
    config: TeachConfig, asked: Asked, identities: tuple[Identity | None, Identity | None], work: Path, request: str
) -> TeachResult:
    reranker, teacher = identities
    found = with_passages(asked.questions, config, work)
    questions, about_scores = found.questions, None
    if reranker is not None:
        questions, about_scores = reranked(questions, config, reranker, Journal(work / SCORES_FILE))
    if found.ranked or reranker is not None:
        questions = [_cut(question, config) for question in questions]
    elif "keep_docs" in config.model_fields_set and config.keep_docs is not None:
        log.warning(
            "--keep-docs %d has no effect: nothing says which passages of the rows are the best (--reranker-model does)",
            config.keep_docs,
        )
    answers, about_answers, agreement = None, None, None
    if teacher is not None:
        if config.teacher.teacher_model is None:
            log.warning(
                "no --teacher-model: the built-in demo model answers, which has read about invented things only"
            )
        answers, about_answers = taught(questions, config, teacher, Journal(work / ANSWERS_FILE))
        agreement = judged(questions, answers, config.teacher)
    names = {
        name: each.name for name, each in (("reranker_model", reranker), ("teacher_model", teacher)) if each is not None
    }
    rows, rejected = output.rows_of(questions, answers, agreement, config, names)
    info = _info(config, asked, found, questions) | {
        "reranker": about_scores, "teacher": about_answers, "agreement": agreement.about if agreement else None,
        "request": request,
    }  # fmt: skip
    if not rows:
        log.warning("not one answer was kept: %s is empty; those of the teacher are in %s", config.output_file,
                    work / output.REJECTED_FILE)  # fmt: skip
    return output.write(config.output_file, rows, rejected, info)


def _cut(question: Question, config: TeachConfig) -> Question:
    documents = chosen(question.documents, config.keep_docs, keep_gold=config.keep_gold)
    return dataclasses.replace(question, documents=documents)


def _info(config: TeachConfig, asked: Asked, found: Found, kept: list[Question]) -> dict[str, Any]:
    documents = [document for question in kept for document in question.documents]
    return {
        "name": config.output_file.name,
        "questions": asked.about,
        "passages": {
            **found.about, "questions": len(found.questions), "without": len(found.without),
            "found": sum(len(question.documents) for question in found.questions),
        },
        "kept": {
            "passages": len(documents), "gold": sum(bool(document.is_gold) for document in documents),
            "keep_docs": config.keep_docs, "answer_recall": output.recall(kept),
        },
    }  # fmt: skip


def _request(config: TeachConfig, asked: Asked, identities: tuple[Identity | None, Identity | None]) -> str:
    """Return a short name of everything that decides the rows."""
    left_out = {"output_file", "device", "overwrite", "questions"}
    settings = config.model_dump(mode="json", exclude=left_out)
    marks = [None if identity is None else identity.mark for identity in identities]
    instruction = read_instruction(config.teacher.instruction)
    found = [path.stat().st_mtime_ns for path in (config.passages, config.index) if path is not None and path.exists()]
    return key_of(VERSION, settings, asked.about["sha256"], marks, instruction, found)[:16]
