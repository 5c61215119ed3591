"""Conditions that a comparison must meet, as ``em>=0`` or ``latency_p95<=1.1x``."""

from __future__ import annotations

import dataclasses
import operator
import re
from typing import TYPE_CHECKING

from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ragtrain.compare.differences import Comparison
    from ragtrain.compare.reading import Run

_GATE = re.compile(r"^\s*([\w@.-]+?)\s*(<=|>=|<|>|==)\s*([+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(x?)\s*$")
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq,
}  # fmt: skip
#: Figures of an evaluation that have short names.
_NAMES = {
    "latency_p50": "latency_p50_s", "latency_p95": "latency_p95_s", "latency_mean": "latency_mean_s",
    "memory": "peak_memory_bytes", "exact_match": "em",
}  # fmt: skip
#: Figures with an interval among the scores that are no fractions.
_NO_RATES = ("mr",)


@dataclasses.dataclass(frozen=True)
class Gate:
    """A condition: ``metric`` (maybe with the end of its interval, ``em.low``), how it is compared, and with what.

    With ``ratio`` it is B's value over A's; else B - A, in points of a rate (em>=-1 allows one point less) and in the
    figure's own unit of others.
    """

    text: str
    metric: str
    end: str
    compared: str
    bound: float
    ratio: bool


@dataclasses.dataclass(frozen=True)
class Judged:
    """A gate met or not by a run, against the first, with the value that decided."""

    gate: str
    value: float
    met: bool
    run: str = ""


def parse(text: str) -> Gate:
    """Read a gate.

    Raises:
        ConfigError: it is none.
    """
    found = _GATE.match(text)
    if found is None:
        raise ConfigError(f"--gate {text!r} is no condition",
                          hint="as 'em>=0' (points), 'em.low>=-1' (end of the interval), 'latency_p95<=1.1x' (ratio)")  # fmt: skip
    metric, compared, bound, ratio = found.groups()
    metric, _, end = metric.partition(".")
    if end not in ("", "low", "high") or (end and ratio):
        raise ConfigError(f"--gate {text!r}: {'.' + end!r} cannot be had" + (" of a ratio" if ratio else ""),
                          hint="the ends of an interval are .low and .high")  # fmt: skip
    return Gate(text, _NAMES.get(metric, metric), end, compared, float(bound), ratio == "x")


def judge(gates: Sequence[Gate], comparison: Comparison, a: Run, b: Run) -> list[Judged]:
    """Return every gate with the value that decides it.

    Raises:
        ConfigError: a gate names a figure that the comparison does not have.
    """
    return [dataclasses.replace(_judged(gate, comparison, a, b), run=b.name) for gate in gates]


def named(judged: Judged, *, several_runs: bool) -> str:
    """Return a gate and its value in words, with the run where there are several that it is asked of."""
    return f"{judged.gate}{f' of {judged.run}' if several_runs else ''} (it is {judged.value:.4g})"


def _judged(gate: Gate, comparison: Comparison, a: Run, b: Run) -> Judged:
    by_name = {each.metric: each for each in comparison.differences}
    if gate.metric in by_name:
        d = by_name[gate.metric]
        points = {"": d.delta, "low": d.low, "high": d.high}
        value = _ratio(d.a, d.b) if gate.ratio else 100 * points[gate.end]
    else:
        pair = [each.summary.get(gate.metric) for each in (a, b)]
        if not all(isinstance(each, int | float) for each in pair) or gate.end:
            known = sorted({*by_name, *(name for name, v in b.summary.items() if isinstance(v, int | float))})
            raise ConfigError(f"--gate {gate.text!r}: {gate.metric!r} is not measured in both runs",
                              hint=f"known here: {', '.join(known)}")  # fmt: skip
        left, right = (float(each) for each in pair if isinstance(each, int | float))
        scale = 100 if all(_is_rate(gate.metric, run) for run in (a, b)) else 1
        value = _ratio(left, right) if gate.ratio else scale * (right - left)
    return Judged(gate.text, value, _OPERATORS[gate.compared](round(value, 12), gate.bound))


def _is_rate(metric: str, run: Run) -> bool:
    """Return whether an evaluation states a figure as a fraction, which a gate is in points of."""
    intervals = run.summary.get("intervals")
    return isinstance(intervals, dict) and metric in intervals and metric not in _NO_RATES


def _ratio(a: float, b: float) -> float:
    return b / a if a else float("inf") if b else 1.0
