"""Figures of answered questions beside exact match and F1: other scores, counts, slices, speed and memory.

All of them are made from the records alone, whichever kind of model wrote the answers. What has no value for a question (a share
of passages where nothing was read) is missing there and counted; it is never a zero.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import statistics
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ragtrain import metrics
from ragtrain.data import kinds
from ragtrain.evaluate.answers import BOOTSTRAP_SAMPLES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ragtrain.evaluate.overlap import Seen
    from ragtrain.records import Document

    Interval = tuple[float, float]

log = logging.getLogger("ragtrain")

#: Scores that are 0 or 1.
_RATES = frozenset({"em", "contains", "recall_em", "answer_in_context"})
#: Metrics over questions whose passages hold an answer, and over those whose passages hold none.
_GIVEN = {"em_given_hit": True, "em_given_answer": True, "em_given_miss": False, "em_given_no_answer": False}


_AGAINST_ANSWERS: tuple[metrics.Score, ...] = ("contains", "rouge_l", "bleu", "chrf")
_AGAINST_PASSAGES = (metrics.k_precision, metrics.answer_in_context, metrics.quoted_support)
#: What tables call the scores of ``scores_of``.
_LABELS = {
    "contains": "a reference in the answer", "rouge_l": "ROUGE-L", "bleu": "BLEU, mean of answers", "chrf": "chrF, mean of answers",
    "recall_em": "a reference in the answer (RecallEM)",
    "k_precision": "words of the answer in passages read", "answer_in_context": "the answer in a passage read",
    "quoted_support": "quotations that passages hold", "answer_mrr": "MRR of the first passage with an answer",
}  # fmt: skip


class Read(Protocol):
    """A passage that was read."""

    @property
    def title(self) -> str:
        """Its title."""

    @property
    def text(self) -> str:
        """Its text."""

    @property
    def has_answer(self) -> bool:
        """Whether it holds an answer."""


class Timed(Protocol):
    """An answer that took time."""

    @property
    def seconds(self) -> float:
        """Time of the answer."""

    @property
    def new_tokens(self) -> int:
        """Tokens written."""


class Answered(Timed, Protocol):
    """A question answered, by whatever model."""

    @property
    def question(self) -> str:
        """The question."""

    @property
    def answers(self) -> tuple[str, ...]:
        """Every reference."""

    @property
    def prediction(self) -> str:
        """The answer given."""

    @property
    def em(self) -> float:
        """Exact match."""

    @property
    def f1(self) -> float:
        """Token F1."""

    @property
    def first_hit(self) -> int | None:
        """Rank of the first passage found that holds an answer."""

    @property
    def depth(self) -> int:
        """Passages searched; 0 where nothing was."""

    @property
    def documents(self) -> Sequence[Read]:
        """What was read."""


class Evaluated(Protocol):
    """All questions answered, with main metrics and their intervals."""

    @property
    def metrics(self) -> dict[str, float]:
        """Means, and ``questions_per_s``."""

    @property
    def intervals(self) -> dict[str, Interval]:
        """Of the metrics that have one."""

    @property
    def records(self) -> Sequence[Answered]:
        """Each question."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """Means, their intervals, and over how many questions each is.

    Attributes:
        metrics: means by name.
        intervals: of each mean, Wilson's for rates and bootstrap for other scores.
        counts: of each, the questions that it is over (``n``) and those that have no such score (``missing``).
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    counts: dict[str, dict[str, int]]


def scores_of(record: Answered, compat: metrics.Compat = "squad") -> dict[str, float]:
    """Return a question's scores beside exact match and F1: against right answers, and against what was read.

    What is not defined for it is left out: what an answer takes from passages where none were read, or of an empty answer.
    """
    scores: dict[str, float] = {
        name: metrics.score(name, record.prediction, record.answers, compat) for name in _AGAINST_ANSWERS
    }
    if compat == "ragfit":
        scores["recall_em"] = metrics.ragfit_recall_em(record.prediction, record.answers)
    texts = [text for document in record.documents for text in (document.title, document.text) if text]
    if texts:
        scores |= {rule.__name__: rule(record.prediction, texts) for rule in _AGAINST_PASSAGES}
    if record.depth:  # behind what was searched, no passage is known to hold one
        scores["answer_mrr"] = 0.0 if record.first_hit is None else 1 / record.first_hit
    return {name: score for name, score in scores.items() if not math.isnan(score)}


def told(
    evaluation: Evaluated,
    confidence: float,
    seed: int,
    peak_memory_bytes: int | None,
    compat: metrics.Compat = "squad",
    seen: Seen | None = None,
    retrieval: Figures | None = None,
) -> dict[str, Any]:
    """Return what ``metrics.json`` tells beside the main metrics, which it repeats nowhere but in ``intervals`` and ``counts``.

    Args:
        evaluation: all questions answered.
        confidence: level of the intervals.
        seed: of the bootstrap.
        peak_memory_bytes: the most memory meanwhile; None where nobody measured it.
        compat: whose rules scores follow.
        seen: what the model was trained on, where that is known.
        retrieval: of ``rankings``, where data says which passages support an answer.
    """
    records = evaluation.records
    more = figures(records, confidence, seed, compat)
    if retrieval is not None:
        more = Figures(*({**own, **found} for own, found in zip(_parts(more), _parts(retrieval), strict=True)))
    seconds = len(records) / evaluation.metrics["questions_per_s"] if records else 0.0
    intervals = {**evaluation.intervals, **more.intervals}
    return {
        **more.metrics,
        **speed(records, seconds, peak_memory_bytes, confidence, seed),
        "confidence": confidence,
        "intervals": {name: list(ends) for name, ends in intervals.items()},
        "counts": {**counts_of(list(evaluation.intervals), records), **more.counts},
        "slices": slices(records, confidence, seed, {} if seen is None else {"seen in training": seen.column(records)}),
    }


def _parts(made: Figures) -> tuple[dict[str, Any], ...]:
    return made.metrics, made.intervals, made.counts


def rankings(
    found: Sequence[Sequence[Document]],
    gold: Sequence[frozenset[str]],
    depths: Sequence[int],
    confidence: float,
    seed: int,
) -> Figures:
    """Return what a search found of the passages that support an answer: ``metrics.ranking_scores``, meant over questions.

    Questions of which the data names no such passage are missing.

    Args:
        found: passages of each question, best first.
        gold: ids of those that support its answer, found or not.
        depths: every k of ``supporting_recall@k``, ``hits@k`` and ``ndcg@k``.
        confidence: level of the intervals.
        seed: of the bootstrap.
    """
    rows = [
        metrics.ranking_scores([document.id for document in one], wanted, depths)
        for one, wanted in zip(found, gold, strict=True)
    ]
    return _means(rows, list(dict.fromkeys(name for row in rows for name in row)), confidence, seed)


def lines(summary: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Return the rows of a table: metric, label, and questions that it is over; an older evaluation may have none."""
    counts = summary.get("counts", {})
    return [(name, label, counts[name]["n"]) for name, label in _LABELS.items() if name in counts]


def log_speed(summary: Mapping[str, Any]) -> None:
    """Tell latency, throughput and memory in one line."""
    if "latency_mean_s" not in summary:
        return
    peak = summary["peak_memory_bytes"]
    log.info(
        "latency %.3g s on average, %.3g s in the middle, %.3g s at 95 %%; %.3g tokens/s%s",
        summary["latency_mean_s"], summary["latency_p50_s"], summary["latency_p95_s"], summary["tokens_per_s"],
        "" if peak is None else f"; {peak / 2**30:.2f} GiB at most",
    )  # fmt: skip


def figures(records: Sequence[Answered], confidence: float, seed: int, compat: metrics.Compat = "squad") -> Figures:
    """Return the means of ``scores_of``, each over the questions that have the score."""
    rows = [scores_of(record, compat) for record in records]
    return _means(rows, list(_LABELS), confidence, seed)


def _means(rows: Sequence[Mapping[str, float]], names: Sequence[str], confidence: float, seed: int) -> Figures:
    made = Figures({}, {}, {})
    for name in names:
        values = [row[name] for row in rows if name in row]
        if values:
            made.metrics[name] = math.fsum(values) / len(values)
            made.intervals[name] = _interval(name, values, confidence, seed)
            made.counts[name] = {"n": len(values), "missing": len(rows) - len(values)}
    return made


def _interval(name: str, values: Sequence[float], confidence: float, seed: int) -> Interval:
    if name in _RATES or name.startswith("hits@"):
        return metrics.wilson(sum(values), len(values), confidence)
    return metrics.bootstrap_mean(values, BOOTSTRAP_SAMPLES, seed, confidence)


def counts_of(names: Sequence[str], records: Sequence[Answered]) -> dict[str, dict[str, int]]:
    """Return over how many questions each of the main metrics is; none of them is missing where it is asked for."""
    held = sum(any(document.has_answer for document in record.documents) for record in records)
    over = {True: held, False: len(records) - held}
    return {name: {"n": over[_GIVEN[name]] if name in _GIVEN else len(records), "missing": 0} for name in names}


def slices(
    records: Sequence[Answered], confidence: float, seed: int, more: Mapping[str, Sequence[str | None]] | None = None
) -> list[dict[str, Any]]:
    """Return exact match, F1 and ``contains`` for each kind of question, with intervals; the most frequent first.

    Args:
        records: all questions.
        confidence: level of the intervals.
        seed: of the bootstrap.
        more: further kinds by name, with what each question is of it; None where it is nothing.
    """
    values_of: Mapping[str, Callable[[Answered], str | None]] = {
        "first word": lambda record: kinds.question_type(record.question),
        "words of the answer": lambda record: kinds.answer_length(record.answers),
        "an answer was read": _read_answer,
        "rank of the first answer": _rank,
    }
    columns: dict[str, Sequence[str | None]] = {
        kind: [value_of(record) for record in records] for kind, value_of in values_of.items()
    }
    columns |= more or {}
    found = []
    for kind, column in columns.items():
        groups: dict[str, list[Answered]] = {}
        for record, value in zip(records, column, strict=True):
            if value is not None:
                groups.setdefault(value, []).append(record)
        for value, members in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
            found.append({"kind": kind, "value": value, **_of_slice(members, confidence, seed)})
    return found


def _of_slice(records: Sequence[Answered], confidence: float, seed: int) -> dict[str, Any]:
    columns = {
        "em": [record.em for record in records],
        "f1": [record.f1 for record in records],
        "contains": [metrics.contains(record.prediction, record.answers) for record in records],
    }
    means = {name: math.fsum(values) / len(values) for name, values in columns.items()}
    intervals = {name: list(_interval(name, values, confidence, seed)) for name, values in columns.items()}
    return {"n": len(records), **means, "intervals": intervals}


def _read_answer(record: Answered) -> str | None:
    if not record.documents:
        return None
    return "yes" if any(document.has_answer for document in record.documents) else "no"


def _rank(record: Answered) -> str | None:
    if not record.depth:
        return None
    if record.first_hit is None:
        return "none"
    return "1" if record.first_hit == 1 else "2 to 5" if record.first_hit <= 5 else "6 or later"


def speed(
    records: Sequence[Timed], seconds: float, peak_memory_bytes: int | None, confidence: float, seed: int
) -> dict[str, Any]:
    """Return latency, throughput and memory; ``speed_intervals`` are those of the latency over questions.

    Args:
        records: all questions.
        seconds: time of all of them together.
        peak_memory_bytes: the most memory meanwhile; None where nobody measured it.
        confidence: level of the intervals.
        seed: of the bootstrap of the mean.
    """
    if not records:
        return {}
    times = [record.seconds for record in records]
    median, late = (float(value) for value in np.quantile(times, [0.5, 0.95]))
    return {
        "latency_mean_s": math.fsum(times) / len(times),
        "latency_p50_s": median,
        "latency_p95_s": late,
        "questions_per_s": len(records) / seconds,
        "tokens_per_s": sum(record.new_tokens for record in records) / seconds,
        "peak_memory_bytes": peak_memory_bytes,
        "speed_intervals": {
            "latency_mean_s": list(metrics.bootstrap_mean(times, BOOTSTRAP_SAMPLES, seed, confidence)),
            "latency_p50_s": list(quantile_interval(times, 0.5, confidence)),
            "latency_p95_s": list(quantile_interval(times, 0.95, confidence)),
        },
    }


def quantile_interval(values: Sequence[float], share: float, confidence: float) -> Interval:
    """Return an interval of a quantile by order statistics, without regard to how values are distributed.

    The number of values below the quantile is binomial; ``n share +- z sqrt(n share (1 - share))`` gives the ranks of the two
    values, cut to those that there are. Source: W. J. Conover, Practical Nonparametric Statistics (1999), section 3.2.
    """
    ordered, n = sorted(values), len(values)
    spread = statistics.NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(n * share * (1 - share))
    low, high = math.ceil(n * share - spread), math.ceil(n * share + spread)
    return ordered[max(1, low) - 1], ordered[min(n, high) - 1]
