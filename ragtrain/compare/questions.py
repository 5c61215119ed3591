"""What became of each question between two runs, whose doing it was, and where: slices of the questions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from ragtrain import metrics
from ragtrain.data import kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ragtrain.compare.reading import Answered, Run
    from ragtrain.config.commands import CompareConfig

Outcome = Literal["fixed", "broken", "both right", "both wrong"]
Cause = Literal["retrieval", "reader", "unknown"]
OUTCOMES: tuple[Outcome, ...] = ("fixed", "broken", "both right", "both wrong")
#: Fewer questions than this say nothing of a slice.
SMALLEST_SLICE = 10


@dataclasses.dataclass(frozen=True)
class Changed:
    """One question in two runs.

    Attributes:
        id: of the question.
        outcome: wrong then right, right then wrong, or the same in both, by exact match.
        cause: of a change. ``retrieval``: only one of the two read a passage that holds an answer, the one that is right;
            ``reader``: both did or neither; unknown where a run does not say what it read.
    """

    id: str
    outcome: Outcome
    cause: Cause | None


@dataclasses.dataclass(frozen=True)
class Slice:
    """Questions of one kind: how many, the metric of both runs there, and the difference with its interval."""

    kind: str
    value: str
    n: int
    a: float
    b: float
    delta: float
    low: float
    high: float


def outcomes(a: Run, b: Run, ids: Sequence[str]) -> list[Changed]:
    """Return what became of each question; none where a run writes no answers."""
    if not (a.writes and b.writes):
        return []
    return [_changed(a.answered[each], b.answered[each]) for each in ids]


def _changed(a: Answered, b: Answered) -> Changed:
    if a.em == b.em:
        return Changed(a.id, "both right" if a.em else "both wrong", None)
    right, wrong = (b, a) if b.em else (a, b)
    cause: Cause = "reader"
    if right.read_answer is None or wrong.read_answer is None:
        cause = "unknown"
    elif right.read_answer and not wrong.read_answer:
        cause = "retrieval"
    return Changed(a.id, "fixed" if b.em else "broken", cause)


def counts(changed: Sequence[Changed]) -> dict[str, Any]:
    """Return how many questions had each outcome, and the causes of changes."""
    found: dict[str, Any] = {outcome: sum(each.outcome == outcome for each in changed) for outcome in OUTCOMES}
    for outcome in ("fixed", "broken"):
        causes = [each.cause for each in changed if each.outcome == outcome]
        found[f"{outcome} by"] = {
            cause: causes.count(cause) for cause in ("retrieval", "reader", "unknown") if cause in causes
        }
    return found


def slices(a: Run, b: Run, ids: Sequence[str], metric: str, config: CompareConfig) -> list[Slice]:
    """Return the difference of one metric for each kind of question that has enough of them."""
    values: Mapping[str, Callable[[Answered], str | None]] = {
        "first word": question_type,
        "words of the answer": _answer_length,
        "A read an answer": lambda each: _told(each.read_answer),
        "B read an answer": lambda each: _told(b.answered[each.id].read_answer),
    }
    found: list[Slice] = []
    for kind, value_of in values.items():
        groups: dict[str, list[str]] = {}
        for each in ids:
            value = value_of(a.answered[each])
            if value is not None:
                groups.setdefault(value, []).append(each)
        if len(groups) < 2:
            continue
        for value, members in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
            if len(members) < SMALLEST_SLICE:
                continue
            left, right = ([run.answered[each].score(metric) for each in members] for run in (a, b))
            delta, low, high = metrics.paired_bootstrap(
                left, right, config.bootstrap_samples, config.seed, config.confidence
            )
            found.append(
                Slice(kind, value, len(members), sum(left) / len(left), sum(right) / len(right), delta, low, high)
            )
    return found


def question_type(answered: Answered) -> str | None:
    """Return the question word that a question begins with, or that stands in it first."""
    return kinds.question_type(answered.question)


def _answer_length(answered: Answered) -> str | None:
    return kinds.answer_length(answered.answers)


def _told(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"
