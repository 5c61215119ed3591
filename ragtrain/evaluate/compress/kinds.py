"""The same figures for kinds of questions: by what their answers are like, and by how many passages they have."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from ragtrain import metrics
from ragtrain.evaluate.compress.arms import TABLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ragtrain.data.compress.records import CompressExample
    from ragtrain.evaluate.compress.measure import ArmResult

_DIGIT = re.compile(r"\d")
#: Words of an answer above which it is a long one.
SHORT = 3


def answer_kind(answers: Sequence[str]) -> str:
    """Return what the first reference is like: ``yes or no``, ``number``, ``short`` or ``long``."""
    text = metrics.normalize_answer(answers[0]) if answers else ""
    if text in ("yes", "no"):
        return "yes or no"
    if _DIGIT.search(text):
        return "number"
    return "short" if len(text.split()) <= SHORT else "long"


def by_kind(results: Mapping[str, ArmResult], rows: Sequence[CompressExample]) -> dict[str, dict[str, Any]]:
    """Return ``n`` and the mean ``em`` and ``f1`` of every arm for each kind, in two groups: ``answer`` and ``passages``.

    Kinds are looked at after the fact and are many: a difference within one of them is a hint and no finding.
    """
    groups = {
        "answer": [answer_kind(row.answers) for row in rows],
        "passages": ["one" if len(row.documents) == 1 else "several" if row.documents else "none" for row in rows],
    }
    found: dict[str, dict[str, Any]] = {}
    for group, kinds in groups.items():
        found[group] = {}
        for kind in sorted(set(kinds)):
            places = [place for place, each in enumerate(kinds) if each == kind]
            arms = {
                name: {metric: _mean(results[name].scores(metric), places) for metric in ("em", "f1")}
                for name in TABLE
                if name in results
            }
            found[group][kind] = {"n": len(places), "arms": arms}
    return found


def _mean(scores: Sequence[float], places: Sequence[int]) -> float:
    return math.fsum(scores[place] for place in places) / len(places)
