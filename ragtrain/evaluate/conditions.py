"""What evaluations under several conditions say together: one table, and differences on the same questions.

Of questions answered wrongly, a reader's error had the answer in its prompt and a retrieval error did not. What
distraction costs is exact match with the gold passages among wrong ones less that with the gold ones alone; what retrieval
costs is exact match with what was found less that with the gold ones; what passages give is exact match with them less that
without any. Knowledge and passages are in conflict where a question is answered rightly without any passage and wrongly with them.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from ragtrain import metrics, report
from ragtrain.evaluate import figures, results
from ragtrain.evaluate.answers import BOOTSTRAP_SAMPLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ragtrain.evaluate.results import EvalResult

log = logging.getLogger("ragtrain")

CLOSED = "closed-book"
#: What a difference between two conditions is called: name, less what, of what.
_PAIRS = (
    ("robustness to distractors", "gold", "gold+distractors"),
    ("retrieved instead of gold passages", "gold", "retrieved"),
    ("gold passages over closed-book", "closed-book", "gold"),
    ("retrieved passages over closed-book", "closed-book", "retrieved"),
    ("gold among distractors over closed-book", "closed-book", "gold+distractors"),
    ("wrong passages over closed-book", "closed-book", "distractors-only"),
)
_COLUMNS = (
    ("em", "exact match"), ("f1", "F1"), ("contains", "contains"), ("answer_in_prompt", "answer in prompt"), ("reader_error", "reader error"),
    ("retrieval_error", "retrieval error"), ("abstained", "abstained"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Difference:
    """Exact match of ``b`` less that of ``a`` over the ``n`` questions of both, with its interval."""

    name: str
    a: str
    b: str
    n: int
    delta: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Conflict:
    """How many of the ``n`` questions that are answered rightly without passages go wrong with them.

    Attributes:
        name: the evaluation with passages.
        n: questions answered rightly without any.
        rate: share of them answered wrongly, with its interval:
        low: lower end,
        high: upper end.
    """

    name: str
    n: int
    rate: float
    low: float
    high: float


def summarise(evaluations: Mapping[str, EvalResult], seed: int) -> dict[str, Any]:
    """Return the metrics of each evaluation by its name, the differences between them, and knowledge conflicts."""
    shown = {
        name: {"path": str(each.path), "n": each.summary["n"], "left_out": each.summary["left_out"],
               **each.metrics, "questions_per_s": each.summary["questions_per_s"],
               "intervals": each.summary["intervals"]}
        for name, each in evaluations.items()
    }  # fmt: skip
    return {
        "evaluations": shown,
        "differences": [dataclasses.asdict(each) for each in differences(evaluations, seed)],
        "conflicts": [dataclasses.asdict(each) for each in conflicts(evaluations)],
    }


def conflicts(evaluations: Mapping[str, EvalResult]) -> Iterator[Conflict]:
    """Yield the knowledge conflict of every evaluation with passages that stands beside one of the same model without any."""
    for name, each in evaluations.items():
        role, condition = _split(name)
        closed = evaluations.get(f"{role}{CLOSED}")
        if condition == CLOSED or closed is None:
            continue
        alone, read = (
            {row["id"]: bool(row["em"]) for row in results.read_predictions(one.path)} for one in (closed, each)
        )
        known = [identifier for identifier in read if alone.get(identifier)]
        if known:
            lost = sum(not read[identifier] for identifier in known)
            confidence = float(each.summary.get("confidence", 0.95))
            yield Conflict(name, len(known), lost / len(known), *metrics.wilson(lost, len(known), confidence))


def _split(name: str) -> tuple[str, str]:
    """Return whose evaluation a name stands for, ``base/`` or nothing, and its condition."""
    role, slash, condition = name.rpartition("/")
    return role + slash, condition


def differences(evaluations: Mapping[str, EvalResult], seed: int) -> Iterator[Difference]:
    """Yield what two evaluations differ by, for every pair that says something."""
    scores = {
        name: {row["id"]: float(row["em"]) for row in results.read_predictions(each.path)}
        for name, each in evaluations.items()
    }
    pairs = [(f"{name} ({role})" if role else name, f"{role}/{a}" if role else a, f"{role}/{b}" if role else b)
             for role in ("", "base") for name, a, b in _PAIRS]  # fmt: skip
    pairs += [(f"fine-tuning, {name}", f"base/{name}", name) for name in evaluations]
    for name, a, b in pairs:
        if a not in scores or b not in scores:
            continue
        both = [identifier for identifier in scores[a] if identifier in scores[b]]
        if both:
            left, right = ([scores[side][identifier] for identifier in both] for side in (a, b))
            yield Difference(name, a, b, len(both), *metrics.paired_bootstrap(left, right, BOOTSTRAP_SAMPLES, seed))


def show(name: str, evaluations: Mapping[str, EvalResult], summary: Mapping[str, Any] | None) -> None:
    """Show evaluations as a table on stderr, in percent, and what those of the model differ by; one by itself in full."""
    if summary is None:
        (only,) = evaluations.values()
        _show_one(name, only.summary)
        return
    columns = [(key, label) for key, label in _COLUMNS if any(key in each.summary for each in evaluations.values())]
    rows = [
        (
            _split(label)[1], each.summary["role"], each.summary["n"],
            *(_interval(each.summary, key) if key in ("em", "f1") else _percent(each.summary.get(key))
              for key, _ in columns),
            f"{each.summary['questions_per_s']:.1f}",
        )
        for label, each in evaluations.items()
    ]  # fmt: skip
    report.table(
        f"{name}: percent [95 %]",
        ("condition", "model", "questions", *(label for _, label in columns), "questions/s"),
        rows,
    )
    lines = [
        (each["name"], f"{100 * each['delta']:+.1f} [{100 * each['low']:+.1f}, {100 * each['high']:+.1f}]", each["n"])
        for each in summary["differences"]
        if not each["b"].startswith("base/")
    ]
    if lines:
        report.table("Differences in exact match, points [95 %]", ("what", "points", "questions"), lines)
    lost = [
        (each["name"], report.format_interval(each["rate"], each["low"], each["high"]), each["n"])
        for each in summary["conflicts"]
        if not each["name"].startswith("base/")
    ]
    if lost:
        report.table(
            "Known without passages, wrong with them: percent [95 %]", ("condition", "percent", "questions"), lost
        )


def _show_one(name: str, summary: Mapping[str, Any]) -> None:
    n, held = summary["n"], round(summary["answer_in_prompt"] * summary["n"])
    recalls = [(f"answer_recall@{k}", f"answer-recall@{k}", n) for k in summary["settings"]["recall_at"]]
    lines = [
        ("em", "exact match", n),
        ("f1", "F1", n),
        *figures.lines(summary),
        *recalls,
        ("answer_in_prompt", "an answer in the prompt's passages", n),
        ("em_given_answer", "exact match where there is one", held),
        ("em_given_no_answer", "exact match where there is none", n - held),
        ("reader_error", "wrong although there is one", n),
        ("retrieval_error", "wrong where there is none", n),
        ("abstained", "abstained", n),
        ("ended", "ended before the limit", n),
    ]
    rows = [(label, _interval(summary, key), count) for key, label, count in lines if summary.get(key) is not None]
    title = (
        f"{name}, {summary['condition']}: {n} questions, {summary['n_docs']:.1f} passages in {summary['prompt_tokens']:.0f} "
        f"tokens a prompt, {summary['questions_per_s']:.1f} questions/s"
    )
    report.table(title, ("metric", f"percent [{100 * summary['confidence']:g} %]", "questions"), rows)
    figures.log_speed(summary)


def _interval(summary: Mapping[str, Any], key: str) -> str:
    return report.format_interval(summary[key], *summary["intervals"][key])


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f}"
