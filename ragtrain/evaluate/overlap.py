"""What of the questions asked was in the training: figures on what was seen say little of what was not.

Source: Lewis, Stenetorp and Riedel, EACL 2021 (arXiv:2008.02637), who found a third of the test questions of NQ and TriviaQA among the
training questions in other words, and two thirds of their answers. Here a question is the same only in the same words (SQuAD's normal
form), so that paraphrases count as not seen.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from ragtrain import metrics
from ragtrain.data.formats import read_questions
from ragtrain.errors import RagtrainError
from ragtrain.evaluate.resolve import train_path_of
from ragtrain.evaluate.rows import training_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ragtrain.config.commands import EvalConfig
    from ragtrain.data.sft.records import Example
    from ragtrain.evaluate.figures import Answered
    from ragtrain.evaluate.resolve import Subject
    from ragtrain.evaluate.subjects import Causal
    from ragtrain.records import Question

log = logging.getLogger("ragtrain")


@dataclasses.dataclass(frozen=True)
class Seen:
    """Training questions and their answers, in SQuAD's normal form."""

    questions: frozenset[str]
    answers: frozenset[str]

    @classmethod
    def of(cls, rows: Iterable[Question | Example]) -> Seen:
        """Take training rows."""
        questions: set[str] = set()
        answers: set[str] = set()
        for row in rows:
            questions.add(metrics.normalize_answer(row.question))
            answers.update(map(metrics.normalize_answer, row.answers))
        return cls(frozenset(questions), frozenset(answers - {""}))

    def kind(self, question: str, answers: Iterable[str]) -> str:
        """Return ``the question``, else ``an answer`` where any reference is one of the training's, else ``neither``."""
        if metrics.normalize_answer(question) in self.questions:
            return "the question"
        return "an answer" if any(metrics.normalize_answer(each) in self.answers for each in answers) else "neither"

    def column(self, records: Sequence[Answered]) -> list[str]:
        """Return the kind of each question asked."""
        return [self.kind(record.question, record.answers) for record in records]


def seen_by_rag(subject: Subject) -> Seen | None:
    """Return what a RAG run was trained on; None where there is no training or its questions are not there any more."""
    path = train_path_of(subject)
    if subject.run is None or path is None:
        return None
    keys = {name: subject.setting("data", name) for name in ("question_key", "answer_key")}
    return _seen(lambda: read_questions(path, split="train", skip_bad_lines=True, **keys).questions)


def seen_by_causal(config: EvalConfig, causal: Causal) -> Seen | None:
    """Return what a run of ``train sft`` was trained on, likewise."""
    return None if causal.run is None else _seen(lambda: training_rows(config, causal))


def _seen(read: Callable[[], Sequence[Question | Example]]) -> Seen | None:
    try:
        return Seen.of(read())
    # What was trained on may have moved or changed; nothing but these slices needs it.
    except (RagtrainError, OSError) as error:
        log.info("there are no slices by what was seen in training: %s", error)
        return None
