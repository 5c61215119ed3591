"""``ragtrain eval`` of runs of ``train compress``: test questions in every arm that needs no further training.

The folder is that of any evaluation: ``metrics.json`` has the figures of answers from memory, ``predictions.jsonl`` a line a
question with its answer from memory, and both have all other arms beside it.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from typing import TYPE_CHECKING, Any

from ragtrain import prepare
from ragtrain.evaluate import figures, results
from ragtrain.evaluate.compress import files, verdict
from ragtrain.evaluate.compress.arms import arms_of
from ragtrain.evaluate.compress.asked import Asked
from ragtrain.evaluate.compress.cuts import cuts
from ragtrain.evaluate.compress.kinds import by_kind
from ragtrain.evaluate.compress.measure import ArmSettings, measure_arms
from ragtrain.evaluate.compress.subject import Trained, load, trained_of, weights_of
from ragtrain.evaluate.compress.tested import read, shown
from ragtrain.evaluate.resolve import precision_of
from ragtrain.evaluate.results import EvalResult
from ragtrain.models.adapters import has_lora
from ragtrain.records import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from ragtrain.config.commands import EvalConfig
    from ragtrain.data.compress.records import CompressExample
    from ragtrain.evaluate.compress.measure import ArmResult
    from ragtrain.evaluate.compress.subject import Subject
    from ragtrain.evaluate.resolve import Subject as Named

log = logging.getLogger("ragtrain")

#: Settings on which no answer depends.
_NOT_DEFINING = {"batch_size"}


def run(config: EvalConfig, named: Named) -> EvalResult:
    """Answer the test questions of a run in every arm, and write what came of it.

    Raises:
        ConfigError: model, questions or index cannot be found out, the rate was not trained, or the output folder holds
            another evaluation.
        DataError: a file of them cannot be read, or they do not fit each other.
        OutOfMemoryError: one prompt alone does not fit on the device.
    """
    # 1. What is evaluated, on what.
    device = prepare.resolve_device(config.device)
    root = results.output_folder(config, named)
    trained = trained_of(named)
    rate = trained.settings.compression_rate if config.compression_rate is None else config.compression_rate
    trained.settings.check_rate(rate)
    rows, about = read(config, trained)
    rows, index = shown(config, trained, rows)
    longest = config.max_new_tokens
    if "max_new_tokens" not in config.model_fields_set and trained.max_new_tokens is not None:
        longest = trained.max_new_tokens
    settings = ArmSettings(
        max_new_tokens=longest, batch_size=config.batch_size, rate=rate, seed=config.seed,
        precision=precision_of(named, device), progress=True,
    )  # fmt: skip
    passages = {
        "n_docs": config.n_docs or trained.context.n_docs,
        "retrieval": None if index is None else index["retrieval"],
    }
    described = _describe(trained, rows, {**about, "index": index, "passages": passages}, settings)

    # 2. The same evaluation is not made twice, and another one is not overwritten unasked.
    results.check_document(config.output_file, described["fingerprint"], overwrite=config.overwrite)
    summary = results.earlier(root, described["fingerprint"], overwrite=config.overwrite)
    reused = summary is not None
    if summary is None:
        summary = _answer(trained, rows, settings, described, root, device)
    else:
        log.info("%s holds this evaluation already: nothing was done (--overwrite does it again)", root)

    # 3. What came of it.
    result = EvalResult(root, summary, reused=reused)
    if config.output_file is not None:
        write_json(config.output_file, {**summary, "predictions": results.read_predictions(root)})
        log.info("metrics and predictions in %s", config.output_file)
    verdict.show(summary["arms"], summary["verdict"], f"{trained.name}, {rate} tokens a vector")
    other = root.parent if root.name == "eval" else root
    log.info("answers and metrics in %s; next: ragtrain compare OTHER_RUN %s", root, other)
    return result


def _describe(
    trained: Trained,
    rows: Sequence[CompressExample],
    about: Mapping[str, Any],
    settings: ArmSettings,
) -> dict[str, Any]:
    """Return everything that an evaluation depends on, and its fingerprint."""
    weights, chosen = weights_of(trained), dataclasses.asdict(settings)
    del chosen["progress"], chosen["rate"]
    asked, index = Asked.hash_of(rows), about["index"]
    described: dict[str, Any] = {
        "kind": "compress",
        "n": len(rows),
        "skipped": about.get("skipped_lines", 0),
        "model": {
            "name": trained.name,
            "checkpoint": trained.named_checkpoint,
            "base": trained.base,
            "fingerprint": weights,
        },
        "data": {**{name: about.get(name) for name in ("path", "sha256", "format", "read")}, "asked_sha256": asked},
        "index": None if index is None else {name: value for name, value in index.items() if name != "cached"},
        "prompt": trained.prompt.to_json(),
        "compressor": trained.settings.to_json(),
        "settings": {**chosen, "compression_rate": settings.rate, **about["passages"]},
        "versions": results.versions(),
    }
    defining = {
        "model": weights,
        "asked": asked,
        "prompt": described["prompt"],
        "arms": list(trained.arms),
        "settings": {name: value for name, value in described["settings"].items() if name not in _NOT_DEFINING},
    }
    return {**described, "fingerprint": results.fingerprint_of(defining)}


def _answer(
    trained: Trained,
    rows: Sequence[CompressExample],
    settings: ArmSettings,
    described: dict[str, Any],
    root: Path,
    device: torch.device,
) -> dict[str, Any]:
    """Answer the questions in every arm, write the evaluation, and return its summary."""
    subject = load(trained, device, settings.precision)
    # What is answered already when this is stopped; the output folder itself holds whole evaluations only.
    store = root.parent / f".{root.name}.arms"
    arms = [
        arm
        for stage in ("before", "after")
        for arm in arms_of(trained.arms, stage, full_adapters=subject.full_adapters is not None)
        if arm.name != "before" and (arm.weights != "base" or has_lora(subject.model.generator))
    ]
    found = measure_arms(subject, rows, arms, settings, store=store, weights=described["model"]["fingerprint"])
    summary = {**_summary(subject, rows, found, settings), **described, "device": str(device)}
    results.write(root, summary, prediction_rows(rows, found))
    shutil.rmtree(store, ignore_errors=True)
    return summary


def _summary(
    subject: Subject, rows: Sequence[CompressExample], found: Mapping[str, ArmResult], settings: ArmSettings
) -> dict[str, Any]:
    """Return ``metrics.json`` without what it depends on: the figures of memory first, then all arms and the verdict."""
    arm = found["compressed"]
    memory = arm.to_json()
    own = {name: memory[name] for name in (*arm.metrics, "intervals", "seconds")}
    speed = figures.speed(arm.records, arm.seconds, None, settings.confidence, settings.seed)
    # The process held full passages as well: what memory takes by itself is for the speed's own measurement.
    speed.pop("peak_memory_bytes", None)
    return {
        **own,
        **speed,
        "confidence": settings.confidence,
        "counts": {name: {"n": len(arm.records), "missing": 0} for name in memory["intervals"]},
        "verdict": verdict.verdict(found, rows, seed=settings.seed, confidence=settings.confidence),
        "arms": files.arms_json(found),
        "kinds": by_kind(found, rows),
        "cut": cuts(subject, rows, settings.rate),
    }


def prediction_rows(rows: Sequence[CompressExample], found: Mapping[str, ArmResult]) -> list[dict[str, Any]]:
    """Return ``predictions.jsonl``: the answer from memory, its scores, the passages, and the answers of other arms."""
    made = []
    for row, line, record in zip(rows, files.question_rows(found, rows), found["compressed"].records, strict=True):
        arms = {name: answer for name, answer in line["arms"].items() if name != "compressed"}
        documents = [document.to_json() for document in row.documents]
        made.append({**record.to_json(), "question": row.question, "answers": list(row.answers), "first_hit": None, "depth": 0,
                     "documents": documents, "arms": arms})  # fmt: skip
    return made
