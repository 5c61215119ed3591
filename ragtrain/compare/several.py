"""More than two runs together: who beats whom, several seeds of one method, and what quality costs."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ragtrain import significance
from ragtrain.errors import DataError
from ragtrain.runs import RunFolder, config_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.compare.reading import Run
    from ragtrain.config.commands import CompareConfig

log = logging.getLogger("ragtrain")

PREDICTIONS = "predictions.jsonl"
_LONGEST = 40
#: What an evaluation costs: figure, and whether less of it is better.
COSTS = {"latency_p50_s": True, "questions_per_s": False, "peak_memory_bytes": True}
#: How they are shown: name, and what one unit of it is.
_SHOWN = {
    "latency_p50_s": ("median time (ms)", 1e-3),
    "questions_per_s": ("questions a second", 1.0),
    "peak_memory_bytes": ("peak memory (GiB)", 2.0**30),
}


@dataclasses.dataclass(frozen=True)
class Wins:
    """Questions that run ``row`` answers better than run ``column``: counts [row][column]."""

    metric: str
    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Point:
    """Quality and cost of a run; ``best`` where no other run is at least as good in both and better in one."""

    name: str
    quality: float
    cost: float
    best: bool


def short_names(names: Sequence[str]) -> list[str]:
    """Return the parts of paths in which they differ, as they are read in titles and pictures; letters where none are left."""
    parts = [[part for part in PurePath(name).parts if part not in ("eval", "/", PREDICTIONS)] for name in names]
    while all(len(each) > 1 for each in parts) and len({each[0] for each in parts}) == 1:
        parts = [each[1:] for each in parts]
    shown = ["/".join(each) for each in parts]
    shown = [name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}" for name in shown]
    return shown if len(set(shown)) == len(shown) else [f"{chr(65 + i)} {name}" for i, name in enumerate(shown)]


def cost_label(cost: str) -> str:
    """Return what a cost is called in tables."""
    return _SHOWN[cost][0]


def cost_text(cost: str, value: float) -> str:
    """Return a cost in the unit of its name, to three places that count."""
    shown = value / _SHOWN[cost][1]
    return f"{shown:.0f}" if shown >= 100 else f"{shown:.3g}"


def common(runs: Sequence[Run]) -> list[str]:
    """Return the questions that all runs answered, in the order of the first."""
    return [each for each in runs[0].answered if all(each in run.answered for run in runs[1:])]


def main_metric(runs: Sequence[Run]) -> str:
    """Return the metric by which many runs are set side by side."""
    if all(run.writes for run in runs):
        return "em"
    if all(run.links for run in runs):
        return "mrr"
    return "recall@5" if all(each.n_gold for run in runs for each in run.answered.values()) else "answer_recall@1"


def wins(runs: Sequence[Run], metric: str, tolerance: float) -> Wins:
    """Count, for each pair of runs, the questions that one answers better."""
    ids = common(runs)
    scores = [[run.answered[each].score(metric) for each in ids] for run in runs]
    counted = tuple(
        tuple(sum(x > y + tolerance for x, y in zip(mine, theirs, strict=True)) for theirs in scores) for mine in scores
    )
    return Wins(metric, tuple(run.name for run in runs), counted)


def methods(runs: Sequence[Run]) -> list[list[Run]]:
    """Return runs by method: those whose configurations agree but for the seed and what it names.

    Raises:
        DataError: a run has no configuration, so that nothing says what method it is.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run.folder is None:
            raise DataError("no config.yaml around the predictions: its method is not known", path=run.path,
                            hint="--group-seeds takes run folders")  # fmt: skip
        folder = RunFolder.open(run.folder)
        found.setdefault(f"{folder.kind} {config_hash(_without_seed(folder.config))}", []).append(run)
    return list(found.values())


def _without_seed(config: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_seed(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name != "seed"
    }


def over_seeds(groups: Sequence[Sequence[Run]], metric: str, config: CompareConfig) -> list[dict[str, Any]]:
    """Return each method against the first, with the uncertainty of questions and of seeds kept apart."""
    import numpy as np

    ids = common([run for group in groups for run in group])
    if not ids:
        return []
    scores = [np.array([[run.answered[each].score(metric) for each in ids] for run in group]) for group in groups]
    return [
        {
            "metric": metric, "a": groups[0][0].name, "b": group[0].name, "n": len(ids),
            **significance.seeds_bootstrap(scores[0], found, config.bootstrap_samples, config.seed, config.confidence),
        }
        for group, found in zip(groups[1:], scores[1:], strict=True)
    ]  # fmt: skip


def pareto(runs: Sequence[Run], metric: str, cost: str) -> list[Point]:
    """Return quality against one cost, for the runs that have both; empty unless two do."""
    ids = common(runs)
    less = COSTS[cost]
    pairs = [
        (run.name, sum(run.answered[each].score(metric) for each in ids) / len(ids), float(value))
        for run in runs
        if ids and isinstance(value := run.summary.get(cost), int | float)
    ]
    if len(pairs) < 2:
        return []

    def beaten(quality: float, value: float) -> bool:
        return any(
            q >= quality and (v <= value if less else v >= value) and (q, v) != (quality, value) for _, q, v in pairs
        )

    return [Point(name, quality, value, not beaten(quality, value)) for name, quality, value in pairs]
