"""Whose doing a difference is, measured: the first run's reader on the passages of the second.

With A's reader on B's passages in between (``ragtrain eval --model-dir A --contexts-from B``), the difference falls apart exactly,
question by question: ``B - A = (A on B's passages - A) + (B - A on B's passages)``; the first part is what other passages did
to the same reader, the second what another reader did with the same passages.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ragtrain import metrics
from ragtrain.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.compare.reading import Run
    from ragtrain.config.commands import CompareConfig


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a difference with its paired bootstrap interval, and the questions it fixed and broke by exact match."""

    delta: float
    low: float
    high: float
    fixed: int
    broken: int


@dataclasses.dataclass(frozen=True)
class Attribution:
    """The difference of a metric, in the part of retrieval and that of the reader; their ``delta`` add up to it."""

    metric: str
    n: int
    a: float
    swapped: float
    b: float
    retrieval: Part
    reader: Part
    same_passages: float | None

    @property
    def sentence(self) -> str:
        """All of it in words."""
        parts = [
            f"{name} {100 * part.delta:+.1f} [{100 * part.low:+.1f}, {100 * part.high:+.1f}]"
            for name, part in (
                ("other passages to the same reader", self.retrieval),
                ("another reader on the same passages", self.reader),
            )
        ]
        return f"of {100 * (self.b - self.a):+.1f} points, {parts[0]}; {parts[1]}"


def attribute(a: Run, swapped: Run, b: Run, config: CompareConfig) -> list[Attribution]:
    """Return the parts of exact match and F1, over the questions that all three answered.

    Args:
        a: the first run.
        swapped: its reader on the passages of the second.
        b: the second.
        config: bootstrap and seed.

    Raises:
        DataError: a run writes no answers, no question is in all three, or the passages are not those of the second run.
    """
    for run in (a, swapped, b):
        if not run.writes:
            raise DataError("writes no answers, which attribution is of", path=run.path)
    ids = [each for each in a.answered if each in swapped.answered and each in b.answered]
    if not ids:
        raise DataError("shares no question with both runs", path=swapped.path,
                        hint=f"ragtrain eval --model-dir {a.name} --contexts-from {b.name}")  # fmt: skip
    same = _same_passages(swapped, b, ids)
    if same is not None and same < 0.5:
        raise DataError(f"only {same:.0%} of its questions were answered from the passages of {b.name}", path=swapped.path,
                        hint=f"ragtrain eval --model-dir {a.name} --contexts-from {b.name}")  # fmt: skip
    found = []
    for metric in ("em", "f1"):
        scores = [[run.answered[each].score(metric) for each in ids] for run in (a, swapped, b)]
        mean_a, mean_swapped, mean_b = (sum(each) / len(ids) for each in scores)
        parts = _part(scores[0], scores[1], config), _part(scores[1], scores[2], config)
        found.append(Attribution(metric, len(ids), mean_a, mean_swapped, mean_b, *parts, same_passages=same))
    return found


def _part(before: Sequence[float], after: Sequence[float], config: CompareConfig) -> Part:
    delta, low, high = metrics.paired_bootstrap(before, after, config.bootstrap_samples, config.seed, config.confidence)
    pairs = list(zip(before, after, strict=True))
    return Part(delta, low, high, sum(x < 1 <= y for x, y in pairs), sum(y < 1 <= x for x, y in pairs))


def _same_passages(swapped: Run, b: Run, ids: Sequence[str]) -> float | None:
    """Return the share of questions read from the same passages, by id in any order; None where a run does not say."""
    said = [
        ({str(each.get("id")) for each in left}, {str(each.get("id")) for each in right})
        for identifier in ids
        if (left := swapped.answered[identifier].documents) and (right := b.answered[identifier].documents)
    ]
    return sum(left == right for left, right in said) / len(said) if said else None
