"""Answers before and after training, what they cost, and what is written and drawn of it.

Each arm is kept in RUN/evaluation as soon as it is answered, so that a measurement that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from ragtrain.evaluate.compress import cost, files, plots, speed, verdict
from ragtrain.evaluate.compress.arms import Stage, arms_of
from ragtrain.evaluate.compress.cuts import cuts
from ragtrain.evaluate.compress.measure import ArmSettings, measure_arms, measure_rates
from ragtrain.models.folders import read_json
from ragtrain.records import write_json
from ragtrain.runs import RunFolder, config_hash
from ragtrain.train.compress.phases import PRETRAINING

if TYPE_CHECKING:
    from pathlib import Path

    from ragtrain.evaluate.compress.measure import ArmResult
    from ragtrain.evaluate.compress.subject import Subject
    from ragtrain.train.compress.phases import Place

log = logging.getLogger("ragtrain")

#: Folder of what was measured already; the file of costs in it.
STORE, COSTS = "evaluation", "costs.json"


def measure_stage(place: Place, stage: Stage, steps: int = 0, adapters: Path | None = None) -> dict[str, ArmResult]:
    """Answer the evaluation rows in every arm of a stage, on the first process while the others wait.

    Args:
        place: of the run.
        stage: before or after training.
        steps: that were trained.
        adapters: folder of those for full passages.

    Returns:
        The arms by name; nothing on other processes, or where there is nothing to ask.
    """
    found: dict[str, ArmResult] = {}
    rows = place.parts.evaluated
    if place.accelerator.is_main_process and rows:
        arms = arms_of(place.config.evaluation.arms, stage, full_adapters=adapters is not None)
        subject, settings = subject_of(place, adapters), settings_of(place)
        kept: dict[str, Any] = {"store": place.folder.path / STORE, "weights": weights_of(place, steps)}
        found = measure_arms(subject, rows, arms, settings, **kept)
        if "compressed" in found:
            found |= measure_rates(subject, rows, settings, **kept)
        name = files.BEFORE_FILE if stage == "before" else files.AFTER_FILE
        files.write_results(place.folder.path / name, found, rows, about(place, steps))
    place.wait()
    return found


def finish(place: Place, steps: int, before: dict[str, ArmResult], after: dict[str, ArmResult]) -> dict[str, Any]:
    """Measure what answers cost, write the report, draw the pictures; return the report."""
    report: dict[str, Any] = {}
    if place.accelerator.is_main_process and (before or after):
        costs = _costs(place, steps)
        rows, path = place.parts.evaluated, place.folder.path
        report = files.write_report(path, {**before, **after}, rows, about(place, steps), costs=costs)
        _draw(place, report, costs)
        verdict.show(report["arms"], report["verdict"])
        for sentence in cost.sentences(costs):
            log.info("%s", sentence)
        log.info("report in %s; next: ragtrain eval --model-dir %s", path / files.REPORT_FILE, path)
    place.wait()
    return report


def subject_of(place: Place, adapters: Path | None = None) -> Subject:
    """Return the network with what asks it."""
    return dataclasses.replace(place.parts.subject, full_adapters=adapters)


def settings_of(place: Place) -> ArmSettings:
    """Return how questions are answered."""
    asked = place.config.evaluation
    return ArmSettings(
        max_new_tokens=asked.max_new_tokens, batch_size=asked.eval_batch_size, seed=place.config.loop.seed,
        precision=place.accelerator.mixed_precision, progress=True,
    )  # fmt: skip


def weights_of(place: Place, steps: int) -> str:
    """Return what stands for the weights: the configuration that made them, and the steps."""
    return f"{config_hash(place.folder.config)}-{steps}"


def about(place: Place, steps: int) -> dict[str, Any]:
    """Return what the figures depend on."""
    config, parts = place.config, place.parts
    return {
        "seed": config.loop.seed, "steps": steps, "precision": place.accelerator.mixed_precision,
        "device": str(place.accelerator.device), "generator": parts.base_name, "settings": parts.settings.to_json(),
        "data": parts.sidecar["data"], "cut": cuts(parts.subject, parts.evaluated), "max_new_tokens": config.evaluation.max_new_tokens,
    }  # fmt: skip


def _costs(place: Place, steps: int) -> dict[str, Any]:
    """Return operations and bytes, and times unless none are wanted; times are kept and not taken again."""
    config, rows, subject = place.config, place.parts.evaluated, subject_of(place)
    asked = config.evaluation
    found: dict[str, Any] = {"cost": cost.measure_cost(subject, rows, max_new_tokens=asked.max_new_tokens)}
    if not asked.speed_repeats:
        return found
    file, key = place.folder.path / STORE / COSTS, weights_of(place, steps)
    kept = read_json(file)
    if kept.get("weights") != key or kept.get("device") != str(place.accelerator.device):
        log.info("timing answers from memory and from full passages")
        times = speed.measure_speed(
            subject, rows, repeats=asked.speed_repeats, batch_sizes=(1, asked.speed_batch_size),
            max_new_tokens=asked.max_new_tokens, precision=place.accelerator.mixed_precision,
        )  # fmt: skip
        kept = {"weights": key, "device": str(place.accelerator.device), "speed": times}
        write_json(file, kept)
    return {**found, "speed": kept["speed"]}


def _draw(place: Place, report: dict[str, Any], costs: dict[str, Any]) -> None:
    path, arms = place.folder.path, report["arms"]
    plots.draw_arms(path / plots.ARMS_PICTURE, arms)
    earlier = path / PRETRAINING
    pretraining = RunFolder.open(earlier).read_metrics() if (earlier / "config.yaml").is_file() else []
    plots.draw_curves(
        path / plots.CURVES_PICTURE, place.folder.read_metrics(), arms=arms, pretraining=pretraining,
        evaluated=min(place.config.evaluation.eval_samples, len(place.parts.evaluated)),
    )  # fmt: skip
    if "speed" in costs:
        plots.draw_speed(path / plots.SPEED_PICTURE, costs["speed"])
    plots.draw_quality_and_cost(path / plots.COST_PICTURE, arms, costs["cost"])
