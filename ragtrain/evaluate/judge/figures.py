"""Verdicts → rates with intervals, what is missing and why, how often the judge agrees with itself and with exact match."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ragtrain import metrics
from ragtrain.evaluate.judge.prompts import QUESTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ragtrain.evaluate.judge.asking import Verdict
    from ragtrain.evaluate.judge.prompts import Question

#: Why there is no verdict of a row that there is nothing to ask about.
NOTHING = "nothing to judge"
#: Verdicts of rows by question, in the order of the rows; None where there was nothing to ask.
Verdicts = dict["Question", list["Verdict | None"]]


def values_of(verdicts: Sequence[Verdict | None]) -> list[bool | None]:
    """Return what was said of each row; None where it is missing."""
    return [None if each is None else each.value for each in verdicts]


def figures(
    rows: Sequence[Mapping[str, Any]], verdicts: Verdicts, retested: Mapping[int, Mapping[Question, Verdict]]
) -> dict[str, Any]:
    """Return the figures of ``judge.json``.

    ``judge_correct`` and ``judge_faithful`` (rates of yes), ``judge_agrees_with_em`` (rows where *correct* and exact match say the
    same), ``unreadable_replies`` (first replies that could not be read): null where there is nothing. All of them stand in
    ``intervals`` (Wilson's, 95 %) and ``counts`` (``n``, ``missing``). ``missing``: why. ``retest``: of those asked twice.

    Args:
        rows: of ``predictions.jsonl``.
        verdicts: of each of them.
        retested: second verdicts, by the number of the row.
    """
    made: dict[str, Any] = {}
    intervals: dict[str, list[float]] = {}
    counts: dict[str, dict[str, int]] = {}

    def rate(name: str, said: Sequence[bool | None]) -> None:
        known = [each for each in said if each is not None]
        made[name] = sum(known) / len(known) if known else None
        counts[name] = {"n": len(known), "missing": len(said) - len(known)}
        if known:
            intervals[name] = list(metrics.wilson(sum(known), len(known)))

    for name in QUESTIONS:
        rate(f"judge_{name}", values_of(verdicts[name]))
    exact = [row.get("em") for row in rows]
    right = values_of(verdicts["correct"])
    pairs = zip(right, exact, strict=True)
    rate("judge_agrees_with_em", [None if a is None or b is None else a == (b == 1) for a, b in pairs])
    given = [each for name in QUESTIONS for each in verdicts[name] if each is not None]
    firsts = [each.first_unreadable for each in given if each.first_unreadable is not None]
    rate("unreadable_replies", firsts)
    return {
        **made,
        "intervals": intervals,
        "counts": counts,
        "missing": {f"judge_{name}": _reasons(verdicts[name]) for name in QUESTIONS},
        "retest": _retest(verdicts, retested) if retested else None,
        "tokens": _tokens([*given, *(each for row in retested.values() for each in row.values())]),
    }


def _reasons(verdicts: Iterable[Verdict | None]) -> dict[str, int]:
    reasons = [NOTHING if each is None else each.missing for each in verdicts]
    return {reason: reasons.count(reason) for reason in sorted({reason for reason in reasons if reason is not None})}


def _retest(verdicts: Verdicts, retested: Mapping[int, Mapping[Question, Verdict]]) -> dict[str, Any]:
    """Return how often the judge said the same when it was asked the same once more."""
    made: dict[str, Any] = {"n": len(retested)}
    for name in QUESTIONS:
        pairs = []
        for place, second in retested.items():
            first = verdicts[name][place]
            if first is not None and name in second:
                pairs.append((first.value, second[name].value))
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        same = sum(a == b for a, b in both)
        made[name] = {
            "agreement": same / len(both) if both else None,
            "interval": list(metrics.wilson(same, len(both))) if both else None,
            "kappa": kappa(both),
            "n": len(both),
            "missing": len(pairs) - len(both),
        }
    return made


def kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    """Return Cohen's kappa of pairs of verdicts; None where both always say the same one thing, or nothing.

    ``(p - e) / (1 - e)``: p the share of equal pairs, e the share expected of two who say yes as often, independently. Source: J.
    Cohen, Educational and Psychological Measurement 20 (1960), p. 40.
    """
    if not pairs:
        return None
    n = len(pairs)
    first, second = sum(a for a, _ in pairs), sum(b for _, b in pairs)
    expected = first * second + (n - first) * (n - second)  # times n squared, so that 1 is met exactly
    if expected == n * n:
        return None
    return (n * sum(a == b for a, b in pairs) - expected) / (n * n - expected)


def _tokens(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Return what the verdicts cost: replies, tokens of prompts and replies, and replies whose tokens are not known."""
    replies = [reply for each in verdicts for reply in each.replies]
    known = [reply for reply in replies if reply.prompt_tokens is not None and reply.new_tokens is not None]
    return {
        "replies": len(replies),
        "prompt": sum(reply.prompt_tokens or 0 for reply in known),
        "new": sum(reply.new_tokens or 0 for reply in known),
        "unknown": len(replies) - len(known),
    }
