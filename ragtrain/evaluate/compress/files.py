"""What is written of a measurement.

before_training_results.json   arms that need no training, with every answer
after_training_results.json    the others, with every answer
metrics_report.json            all arms with intervals, the verdict, what was cut, cost and speed, and what it all depends on
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ragtrain.data.compress.records import CompressExample
    from ragtrain.evaluate.compress.measure import ArmResult

BEFORE_FILE = "before_training_results.json"
AFTER_FILE = "after_training_results.json"
REPORT_FILE = "metrics_report.json"


def write_results(
    path: Path, results: Mapping[str, ArmResult], rows: Sequence[CompressExample], about: Mapping[str, Any]
) -> None:
    """Write arms with every answer to ``before_training_results.json`` or ``after_training_results.json``."""
    raise NotImplementedError


def write_report(
    folder: Path,
    results: Mapping[str, ArmResult],
    rows: Sequence[CompressExample],
    about: Mapping[str, Any],
    *,
    costs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``metrics_report.json`` and return it.

    Keys: ``arms`` (``ArmResult.to_json`` by name, in the order of tables), ``verdict``, ``n``, ``cut``, what ``costs`` holds
    (``speed``, ``flops``, ``memory``), and ``about`` (seed, data, settings, versions, hardware).

    Args:
        folder: where the file goes.
        results: of before and after.
        rows: the questions.
        about: what all of it depends on.
        costs: what the measurements of cost return, by what they are called.
    """
    raise NotImplementedError
