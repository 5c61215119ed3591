"""Which of a teacher's answers are kept, and how far they agree with the references."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from ragtrain import metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.config.commands.teach import TeacherConfig
    from ragtrain.prepare.teach.answers import Taught
    from ragtrain.records import Question

Verdict = Literal["kept", "disagrees", "empty"]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """A teacher's answers beside the references.

    Attributes:
        verdicts: for each question.
        about: for the manifest: how many questions have references, and over these the shares of answers that match one
            exactly, that contain one, and the mean token F1, each with its 95 % interval.
    """

    verdicts: list[Verdict]
    about: dict[str, Any]


def judged(questions: Sequence[Question], found: Sequence[Taught], settings: TeacherConfig) -> Agreement:
    """Return which answers are kept; where there is no reference, every answer that is not empty is.

    Args:
        questions: with references, or without.
        found: what the teacher answered to each.
        settings: the rule.
    """
    verdicts: list[Verdict] = []
    matches: list[float] = []
    holds: list[float] = []
    overlaps: list[float] = []
    for question, each in zip(questions, found, strict=True):
        references = [answer for answer in question.answers if answer.strip()]
        if references:
            matches.append(metrics.exact_match(each.answer, references))
            holds.append(float(metrics.has_answer(references, each.answer)))
            overlaps.append(metrics.f1(each.answer, references))
        verdicts.append(_verdict(each.answer, bool(references), settings, holds, overlaps))
    counts = {name: verdicts.count(name) for name in ("kept", "disagrees", "empty")}
    rule = f"f1>={settings.min_f1:g}" if settings.agreement == "f1" else settings.agreement
    about: dict[str, Any] = {"rule": rule, "with_reference": len(matches), **counts}
    if matches:
        about |= {
            "exact_match": _share(matches), "contains": _share(holds),
            "f1": [sum(overlaps) / len(overlaps), *metrics.bootstrap_mean(overlaps)],
        }  # fmt: skip
    return Agreement(verdicts, about)


def _verdict(
    answer: str, has_reference: bool, settings: TeacherConfig, holds: Sequence[float], overlaps: Sequence[float]
) -> Verdict:
    if not answer.strip():
        return "empty"
    if not has_reference or settings.agreement == "none":
        return "kept"
    agrees = holds[-1] > 0 if settings.agreement == "contains" else overlaps[-1] >= settings.min_f1
    return "kept" if agrees else "disagrees"


def _share(values: Sequence[float]) -> list[float]:
    """Return a share with its interval."""
    return [sum(values) / len(values), *metrics.wilson(sum(values), len(values))]
