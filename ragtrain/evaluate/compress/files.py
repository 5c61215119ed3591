"""What is written of a measurement.

before_training_results.json   arms that need no training, with every answer
after_training_results.json    the others, with every answer
metrics_report.json            all arms with intervals, the verdict, what was cut, cost and speed, and what it all depends on
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import torch

from ragtrain.evaluate import results as evaluations
from ragtrain.evaluate.compress.arms import TABLE
from ragtrain.evaluate.compress.kinds import by_kind
from ragtrain.evaluate.compress.verdict import verdict
from ragtrain.records import write_json

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
    """Write arms with every answer to ``before_training_results.json`` or ``after_training_results.json``.

    Keys: ``n``, ``arms`` (``ArmResult.to_json`` by name), ``questions`` (of ``question_rows``), and those of ``about``.
    """
    write_json(
        path, {"n": len(rows), "arms": arms_json(results), **_about(about), "questions": question_rows(results, rows)}
    )


def write_report(
    folder: Path,
    results: Mapping[str, ArmResult],
    rows: Sequence[CompressExample],
    about: Mapping[str, Any],
    *,
    costs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``metrics_report.json`` and return it.

    Keys: ``n``, ``before_training`` and ``after_training`` (the scores of answers from memory, nothing else), ``verdict``, ``arms`` (``ArmResult.to_json`` by name, in the order of tables), ``kinds`` of questions, those of ``costs`` (``cost``,
    ``speed``) and of ``about`` (seed, data, what was cut, settings), ``versions`` and ``hardware``.

    Args:
        folder: where the file goes.
        results: of before and after.
        rows: the questions.
        about: what all of it depends on; its ``seed`` is that of the intervals.
        costs: what the measurements of cost return, by what they are called.
    """
    judged = verdict(results, rows, seed=int(about.get("seed", 0)))
    report = {
        "n": len(rows), **_before_and_after(results), "verdict": judged, "arms": arms_json(results), "kinds": by_kind(results, rows), **(costs or {}),
        **_about(about),
    }  # fmt: skip
    write_json(folder / REPORT_FILE, report)
    return report


def _before_and_after(results: Mapping[str, ArmResult]) -> dict[str, dict[str, float]]:
    """Return the scores from memory before and after training, where they were measured: what ScaleDown's guide greps for."""
    found = {"before_training": results.get("before"), "after_training": results.get("compressed")}
    return {
        name: {score: arm.metrics[score] for score in ("em", "f1", "rouge_l", "contains") if score in arm.metrics}
        for name, arm in found.items()
        if arm is not None
    }


def arms_json(results: Mapping[str, ArmResult]) -> dict[str, dict[str, Any]]:
    """Return arms without their records, in the order of tables; of several rates the further ones behind ``compressed``."""
    return {name: results[name].to_json() for name in ordered(results)}


def ordered(results: Mapping[str, ArmResult]) -> list[str]:
    """Return the names of arms in the order of tables, ``compressed@32`` behind ``compressed``."""
    places = {name: place for place, name in enumerate(TABLE)}
    return sorted(results, key=lambda name: (places[name.partition("@")[0]], int(name.partition("@")[2] or 0)))


def question_rows(results: Mapping[str, ArmResult], rows: Sequence[CompressExample]) -> list[dict[str, Any]]:
    """Return each question with its answers in every arm: ``id``, ``question``, ``answers``, ``documents`` (ids), ``arms``."""
    known = {name: {record.id: record for record in results[name].records} for name in ordered(results)}
    found = []
    for row in rows:
        records = {name: records[row.id].to_json() for name, records in known.items()}
        answered = {name: {key: each[key] for key in each if key != "id"} for name, each in records.items()}
        found.append(
            {
                "id": row.id, "question": row.question, "answers": list(row.answers),
                "documents": [document.id for document in row.documents], "arms": answered,
            }
        )  # fmt: skip
    return found


def _about(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what figures depend on, with versions and hardware."""
    cuda = torch.cuda.is_available()
    hardware = {
        "machine": platform.machine(), "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }  # fmt: skip
    return {**about, "versions": evaluations.versions(), "hardware": hardware}
