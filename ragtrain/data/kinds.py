"""Kinds of questions, by which evaluations and comparisons are broken down."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ragtrain import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable

_FIRST_WORDS = (
    "who",
    "what",
    "when",
    "where",
    "which",
    "why",
    "how many",
    "how",
    "is",
    "are",
    "was",
    "did",
    "does",
    "do",
)
_YES_OR_NO = frozenset({"is", "are", "was", "did", "does", "do"})


def question_type(question: str) -> str | None:
    """Return the question word that a question begins with, or that stands in it first; None without a question.

    ``yes or no`` where it begins with a verb, ``other`` where there is no question word.
    """
    text = question.casefold()
    if not text:
        return None
    first = next((word for word in _FIRST_WORDS if text.startswith(word + " ")), None)
    if first is None:
        within = re.search(r"\b(who|what|when|where|which|why|how)\b", text)
        first = within.group(1) if within else None
    return "yes or no" if first in _YES_OR_NO else first or "other"


def answer_length(answers: Iterable[str]) -> str:
    """Return how many words the shortest reference has, as SQuAD counts them: ``1``, ``2 or 3`` or ``4 or more``."""
    shortest = min((len(metrics.normalize_answer(each).split()) for each in answers), default=0)
    return "1" if shortest <= 1 else "2 or 3" if shortest <= 3 else "4 or more"
