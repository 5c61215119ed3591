"""What changed between evaluated runs, question by question, and whether it is more than chance.

Every run is compared with the first. Runs are aligned by question id; scores are computed anew from predictions and
references, by one rule for all; each difference has a paired bootstrap interval (``metrics.paired_bootstrap``), a p-value
(``significance.permutation_p``) corrected for the metrics beside it, an effect size, and the smallest difference that so many
questions would show.

reading.py      predictions of a run, ours or others' (foreign.py)
differences.py  two runs on the same questions: each metric
judged.py       verdicts of a judge on both
attribution.py  retrieval's part of a difference and the reader's, from contexts that were swapped
questions.py    fixed, broken, both wrong, and by whom; slices
several.py      more than two runs: wins, seeds, quality against cost
gates.py        conditions that are to be met
show.py         tables and sentences on the console
markdown.py     the same as a text
page.py         the same as one HTML file, with every question; plots.py as pictures
"""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import TYPE_CHECKING, Any

from ragtrain.compare import attribution, gates, markdown, page, plots, several
from ragtrain.compare.differences import Comparison, Difference, compare, depths, describe, difference, label
from ragtrain.compare.reading import Answered, Run, read_run, read_runs
from ragtrain.compare.show import show
from ragtrain.errors import ConfigError, DataError, GateError
from ragtrain.records import write_json

if TYPE_CHECKING:
    from ragtrain.config.commands import CompareConfig

__all__ = [
    "Answered",
    "CompareResult",
    "Comparison",
    "Difference",
    "Run",
    "compare",
    "depths",
    "describe",
    "difference",
    "label",
    "read_run",
    "read_runs",
    "run",
    "show",
]

log = logging.getLogger("ragtrain")


@dataclasses.dataclass(frozen=True)
class CompareResult:
    """Every run against the first.

    Attributes:
        runs: their names.
        confidence: level of the intervals.
        bootstrap_samples: resamples.
        seed: of all draws.
        comparisons: each other run against the first.
        wins: questions won, each run against each, where there are more than two.
        seeds: each method against the first, where runs were grouped.
        pareto: quality against each cost that is measured.
        gates: conditions, met or not.
        attribution: parts of the difference of the first two runs, where contexts were swapped.
    """

    runs: tuple[str, ...]
    confidence: float
    bootstrap_samples: int
    seed: int
    comparisons: tuple[Comparison, ...]
    wins: several.Wins | None = None
    seeds: tuple[dict[str, Any], ...] = ()
    pareto: dict[str, list[several.Point]] = dataclasses.field(default_factory=dict)
    gates: tuple[gates.Judged, ...] = ()
    attribution: tuple[attribution.Attribution, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: what is not a number is null."""
        comparisons = [comparison.to_json() for comparison in self.comparisons]
        document = {**dataclasses.asdict(self), "runs": list(self.runs), "comparisons": comparisons}
        return {name: _finite(value) for name, value in document.items()}


def _finite(value: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def run(config: CompareConfig) -> CompareResult:
    """Compare evaluated runs with the first of them, show a table for each and return the numbers.

    Raises:
        ConfigError: fewer than two runs, or a gate that is none.
        DataError: predictions are missing or cannot be read, the runs answered different questions (unless
            ``intersect``), or have different reference answers for a question.
        GateError: a gate was not met; everything that was asked for is written.
    """
    if len(config.runs) < 2:
        raise ConfigError(f"a comparison needs two runs or more, and {len(config.runs)} given",
                          hint="ragtrain compare RUN_A RUN_B")  # fmt: skip
    conditions = [gates.parse(text) for text in config.gate]
    runs = read_runs(config.runs)
    comparisons = tuple(compare(runs[0], other, config) for other in runs[1:])
    judged = [
        each for comparison, other in zip(comparisons, runs[1:], strict=True)
        for each in gates.judge(conditions, comparison, runs[0], other)
    ]  # fmt: skip
    metric = several.main_metric(runs)
    shared = bool(several.common(runs))
    result = CompareResult(
        tuple(each.name for each in runs), config.confidence, config.bootstrap_samples, config.seed, comparisons,
        wins=several.wins(runs, metric, config.tolerance) if len(runs) > 2 and shared else None,
        seeds=tuple(_seeds(runs, metric, config)),
        pareto={cost: points for cost in several.COSTS if (points := several.pareto(runs, metric, cost))},
        gates=tuple(judged), attribution=tuple(_attribution(runs, config)),
    )  # fmt: skip
    for comparison, other in zip(comparisons, runs[1:], strict=True):
        show(comparison, runs[0], other, config)
    _write(result, runs, config)
    if unmet := [gates.named(each, several_runs=len(runs) > 2) for each in judged if not each.met]:
        raise GateError(f"not met: {'; '.join(unmet)}", hint="the comparison itself is complete", result=result)
    return result


def _attribution(runs: list[Run], config: CompareConfig) -> list[attribution.Attribution]:
    if config.swapped is None:
        return []
    if len(runs) != 2:
        raise ConfigError(f"--swapped is of two runs, and {len(runs)} are given")
    return attribution.attribute(runs[0], read_runs([config.swapped])[0], runs[1], config)


def _seeds(runs: list[Run], metric: str, config: CompareConfig) -> list[dict[str, Any]]:
    if not config.group_seeds:
        return []
    groups = several.methods(runs)
    if len(groups) < 2:
        raise DataError("all runs are of one method: their configurations differ in nothing but the seed",
                        hint="leave --group-seeds out")  # fmt: skip
    return several.over_seeds(groups, metric, config)


def _write(result: CompareResult, runs: list[Run], config: CompareConfig) -> None:
    """Write what was asked for beside the tables."""
    from ragtrain.compare.show import show_several

    show_several(result)
    if config.output_file is not None:
        write_json(config.output_file, result.to_json())
        log.info("comparison written to %s", config.output_file)
    if config.md is not None:
        markdown.write(config.md, result, runs)
        log.info("comparison as Markdown in %s", config.md)
    if config.html is not None:
        page.write(config.html, result, runs)
        log.info("comparison as a page in %s", config.html)
    if config.plots is not None:
        for path in plots.write(config.plots, result):
            log.info("plot in %s", path)
