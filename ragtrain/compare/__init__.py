"""What changed between evaluated runs, question by question, and whether it is more than chance.

Every run is compared with the first. Runs are aligned by question id; scores are computed anew from predictions and
references, by one rule for all; each difference has a paired bootstrap interval (``metrics.paired_bootstrap``).

reading.py      predictions of a run, ours or others'
differences.py  two runs on the same questions: each metric with its interval
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from ragtrain import report
from ragtrain.compare.differences import Comparison, Difference, compare, depths, describe, difference, label
from ragtrain.compare.reading import Answered, Run, read_run
from ragtrain.errors import ConfigError
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
    "run",
    "show",
]

log = logging.getLogger("ragtrain")


@dataclasses.dataclass(frozen=True)
class CompareResult:
    """Every run against the first."""

    runs: tuple[str, ...]
    confidence: float
    bootstrap_samples: int
    seed: int
    comparisons: tuple[Comparison, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        comparisons = [comparison.to_json() for comparison in self.comparisons]
        return {**dataclasses.asdict(self), "runs": list(self.runs), "comparisons": comparisons}


def run(config: CompareConfig) -> CompareResult:
    """Compare evaluated runs with the first of them, show a table for each and return the numbers.

    Raises:
        ConfigError: fewer than two runs.
        DataError: predictions are missing or cannot be read, the runs answered different questions (unless
            ``intersect``), or have different reference answers for a question.
    """
    if len(config.runs) < 2:
        raise ConfigError(f"a comparison needs two runs or more, and {len(config.runs)} given",
                          hint="ragtrain compare RUN_A RUN_B")  # fmt: skip
    runs = [read_run(path) for path in config.runs]
    comparisons = tuple(compare(runs[0], other, config) for other in runs[1:])
    result = CompareResult(
        tuple(each.name for each in runs), config.confidence, config.bootstrap_samples, config.seed, comparisons
    )
    for comparison in comparisons:
        show(comparison, config.confidence)
    if config.output_file is not None:
        write_json(config.output_file, result.to_json())
        log.info("comparison written to %s", config.output_file)
    return result


def show(comparison: Comparison, confidence: float) -> None:
    """Show one comparison as a table on stderr, and a sentence for each metric."""
    rows = [
        (label(d.metric), f"{100 * d.a:.1f}", f"{100 * d.b:.1f}", f"{100 * d.delta:+.1f} [{100 * d.low:+.1f}, "
         f"{100 * d.high:+.1f}]", d.wins, d.losses, d.ties)
        for d in comparison.differences
    ]  # fmt: skip
    title = f"A = {comparison.a}, B = {comparison.b}: {comparison.n} questions, percent"
    report.table(title, ("metric", "A", "B", f"B - A [{100 * confidence:g} %]", "B wins", "A wins", "ties"), rows)
    if comparison.only_a or comparison.only_b:
        log.info("left out: %d questions only in A, %d only in B", comparison.only_a, comparison.only_b)
    for remark in comparison.remarks:
        log.warning("%s", remark)
    for d in comparison.differences:
        log.info("%s", d.sentence)
