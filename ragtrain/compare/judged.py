"""What a judge said of two runs' answers (``ragtrain eval --judge``), where it was the same judge under the same prompts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ragtrain.compare.reading import Run

METRICS = ("judge_correct", "judge_faithful")
_JUDGE_FILE = "judge.json"
#: What makes one judge: not where it was asked.
_SAME = ("model", "fingerprint", "prompts")


def verdicts(row: Mapping[str, Any]) -> dict[str, bool]:
    """Return the verdicts of a row by metric, without those that are missing."""
    said = row.get("judged")
    if not isinstance(said, dict):
        return {}
    found = {metric: said.get(metric.removeprefix("judge_")) for metric in METRICS}
    return {metric: value for metric, value in found.items() if isinstance(value, bool)}


def both_judged(a: Run, b: Run, ids: Sequence[str], metric: str) -> list[str]:
    """Return the questions of which both runs have a verdict; what is missing in one counts in neither."""
    return [each for each in ids if metric in a.answered[each].judged and metric in b.answered[each].judged]


def remark(a: Run, b: Run, ids: Sequence[str]) -> str | None:
    """Return why the verdicts on two runs cannot be compared; None where they can, or where there are none."""
    if not any(both_judged(a, b, ids, metric) for metric in METRICS):
        return None
    there, here = _judge(a), _judge(b)
    if there and there == here:
        return None
    return f"verdicts are not compared: the judge is {_named(there)} in A and {_named(here)} in B"


def _judge(run: Run) -> dict[str, Any] | None:
    """Return a run's judge: model, its fingerprint and the version of its prompts, as ``judge.json`` or the one file of an evaluation says."""
    document: Any = run.summary.get("judge")
    beside = run.path.with_name(_JUDGE_FILE)
    if not isinstance(document, dict) and beside.is_file():
        try:
            document = json.loads(beside.read_text(encoding="utf-8"))
        except ValueError:
            return None
    about = document.get("judge") if isinstance(document, dict) else None
    return {name: about.get(name) for name in _SAME} if isinstance(about, dict) else None


def _named(judge: dict[str, Any] | None) -> str:
    if judge is None:
        return "unknown"
    weights = f"{judge['fingerprint']}, " if judge["fingerprint"] else ""
    return f"{judge['model']} ({weights}prompts {judge['prompts']})"


def describe(metric: str, points: str, *, more: bool) -> str:
    """Return what a difference means: ``points`` is its size in words."""
    what = "correct" if metric == "judge_correct" else "faithful to what was read"
    return f"the judge finds B's answers {what} in {points} {'more' if more else 'fewer'} of the questions"
