"""Answers of a teacher to questions with their passages, kept as they come."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from ragtrain import report
from ragtrain.data.sft.records import Sample
from ragtrain.data.sft.templates import read_instruction
from ragtrain.errors import DataError
from ragtrain.models.generate import generate
from ragtrain.prepare.journal import Journal, key_of
from ragtrain.prepare.resume import LINE_EVERY_S
from ragtrain.prepare.teach.models import Teacher, load_teacher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.config.commands.teach import TeachConfig
    from ragtrain.data.sft.fitting import Fitted
    from ragtrain.prepare.teach.models import Identity
    from ragtrain.records import Question

log = logging.getLogger("ragtrain")

VERSION = 1
ANSWERS_FILE = "answers.jsonl"
#: Questions whose prompts are written and put into order of length at once.
CHUNK = 1024
#: Batches of answers between two times that they are written down.
BATCHES = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Taught:
    """What the teacher wrote about a question.

    Attributes:
        answer: the answer; empty where it wrote none, or could not be asked.
        ended: whether it came to an end by itself.
        n_docs: passages that it read.
        lost: what its prompt lost for being too long: ``docs``, or ``row`` where the question alone is too long.
        tokens: written.
    """

    answer: str
    ended: bool
    n_docs: int
    lost: str
    tokens: int


def taught(
    questions: Sequence[Question], config: TeachConfig, identity: Identity, journal: Journal
) -> tuple[list[Taught], dict[str, Any]]:
    """Return what the teacher answers to each question, and what is to be said of it.

    Args:
        questions: with the passages that it reads, best first.
        config: which teacher, and how it is asked.
        identity: of it.
        journal: where answers are kept.

    Raises:
        ConfigError: the teacher cannot be had, or has no room for a prompt.
        DataError: its weights cannot be read, or not one prompt fits.
        OutOfMemoryError: one prompt alone does not fit on the device.
    """
    settings = config.teacher
    how = [read_instruction(settings.instruction), settings.max_length, settings.max_new_tokens]
    keys = [_key(question, how, identity) for question in questions]
    # The same question with the same passages is asked once.
    missing = list({key: place for place, key in reversed(list(enumerate(keys))) if key not in journal}.values())[::-1]
    if missing:
        teacher = load_teacher(config)
        _ask(questions, keys, missing, teacher, config, journal)
    else:
        log.info("all questions were answered before: %s", journal.path)
    found = [Taught(**(journal.get(key) or {})) for key in keys]
    about = {
        **identity.to_json(), "answered_now": len(missing), "load_in_8bit": config.teacher.load_in_8bit,
        "max_new_tokens": config.teacher.max_new_tokens, "tokens": sum(each.tokens for each in found),
        "empty": sum(not each.answer for each in found),
        "not_ended": sum(not each.ended and each.lost != "row" for each in found),
        "prompts_without_all_passages": sum(each.lost == "docs" for each in found),
        "prompts_too_long": sum(each.lost == "row" for each in found),
    }  # fmt: skip
    _tell(about, len(found))
    return found, about


def _tell(about: dict[str, Any], rows: int) -> None:
    if about["prompts_too_long"] == rows:
        raise DataError("not one prompt fits, even without passages",
                        hint="raise --max-length, or take a teacher with more positions")  # fmt: skip
    if count := about["prompts_too_long"]:
        log.warning("%d of %d questions are too long for a prompt by themselves, and were not asked", count, rows)
    if count := about["prompts_without_all_passages"]:
        log.warning("of %d of %d prompts the lowest-ranked passages were left out (--max-length)", count, rows)
    if count := about["not_ended"]:
        log.warning("%d of %d answers were cut at %d tokens (--max-new-tokens)", count, rows, about["max_new_tokens"])


def _key(question: Question, how: Sequence[object], identity: Identity) -> str:
    """Return the hash of everything that decides an answer."""
    passages = [(document.title, document.text) for document in question.documents]
    return key_of(VERSION, identity.mark, how, question.question, passages)


def _ask(
    questions: Sequence[Question],
    keys: Sequence[str],
    missing: Sequence[int],
    teacher: Teacher,
    config: TeachConfig,
    journal: Journal,
) -> None:
    """Ask what is not known, prompts of similar length at a time, and write each lot of answers down."""
    size = BATCHES * config.teacher.batch_size
    bar: report.Progress[None] = report.progress(len(questions), "Asking the teacher", every_s=LINE_EVERY_S)
    with bar:
        bar.skip(len(questions) - len(missing))
        for start in range(0, len(missing), CHUNK):
            places = missing[start : start + CHUNK]
            samples = [Sample(questions[p].id, questions[p].question, questions[p].documents) for p in places]
            fitted = teacher.prompter.fitted_prompts(samples, room=config.teacher.max_new_tokens)
            order = sorted(range(len(places)), key=lambda row: -len(fitted[row].ids))
            for at in range(0, len(order), size):
                rows = order[at : at + size]
                found = _answers([fitted[row] for row in rows], teacher, config)
                journal.add(
                    {keys[places[row]]: dataclasses.asdict(each) for row, each in zip(rows, found, strict=True)}
                )
                bar.advance(len(rows))


def _answers(fitted: Sequence[Fitted], teacher: Teacher, config: TeachConfig) -> list[Taught]:
    asked = [row for row in fitted if row.lost != "row"]
    written = iter(
        generate(
            teacher.model,
            teacher.tokenizer,
            [row.ids for row in asked],
            max_new_tokens=config.teacher.max_new_tokens,
            batch_size=config.teacher.batch_size,
        )
    )
    found = []
    for row in fitted:
        if row.lost == "row":
            found.append(Taught("", False, 0, "row", 0))
            continue
        each = next(written)
        answer = teacher.prompter.extract(each.text)
        found.append(Taught(answer, each.ended, len(row.sample.documents), row.lost, each.n_tokens))
    return found
