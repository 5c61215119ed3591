"""``ragtrain eval`` of causal language models: prompts under one condition or several, answers, scores.

closed-book        no passage: what the model knows by itself
gold               the passages that hold the answer: what it reads out of them
retrieved          what a search finds: what it is worth in use
gold+distractors   the gold passages among wrong ones, in any order: whether it is led astray
distractors-only   wrong passages: whether it abstains, keeps to what it knows, or is led astray

All conditions, and the base under the adapters, are answered from one load. Each has a folder of its own, so that an
evaluation that was stopped goes on with the condition it was at, and there with the questions that are left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
from typing import TYPE_CHECKING, Any

from ragtrain import prepare
from ragtrain.data.sft.prompts import Prompter
from ragtrain.evaluate import conditions, dpr, figures, results, sweeps
from ragtrain.evaluate.kept import Kept
from ragtrain.evaluate.memory import PeakMemory
from ragtrain.evaluate.overlap import Seen, seen_by_causal
from ragtrain.evaluate.prompted import PromptedEvaluation, PromptedSettings, evaluate_samples
from ragtrain.evaluate.resolve import precision_of
from ragtrain.evaluate.results import ConditionsResult, EvalResult
from ragtrain.evaluate.rows import Asked, ask, read_rows
from ragtrain.evaluate.subjects import Causal, Role, causal_of, check_base, load, weights_of
from ragtrain.models.adapters import adapters_off
from ragtrain.records import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from ragtrain.config.commands import EvalConfig
    from ragtrain.data.sft.examples import ExampleFile
    from ragtrain.evaluate.resolve import Subject

log = logging.getLogger("ragtrain")

#: Settings on which no answer depends.
_NOT_DEFINING = {"batch_size"}


@dataclasses.dataclass(frozen=True)
class Job:
    """One evaluation: what is asked of which weights, where it goes, and all that it depends on."""

    role: Role
    asked: Asked
    settings: PromptedSettings
    folder: Path
    described: dict[str, Any]

    @property
    def name(self) -> str:
        """What the console and summaries call it."""
        return self.asked.name if self.role == "tuned" else f"base/{self.asked.name}"


def run(config: EvalConfig, subject: Subject) -> EvalResult | ConditionsResult:
    """Answer the test questions of a causal language model under each condition and write what came of it.

    Raises:
        ConfigError: model, questions or index cannot be found out, a condition cannot be had, or an output folder holds
            another evaluation.
        DataError: a file of them cannot be read, or they do not fit each other.
        OutOfMemoryError: one prompt alone does not fit on the device.
    """
    # 1. What is evaluated, on what.
    device = prepare.resolve_device(config.device)
    root = results.output_folder(config, subject)
    causal = _evaluated(causal_of(subject))
    if config.also_base:
        check_base(causal)
    rows = read_rows(config, causal)
    asked, index = ask(config, causal, rows.examples)
    jobs = _jobs(config, causal, asked, root, _about(subject, rows, index, device))

    # 2. The same evaluation is not made twice, and another one is not overwritten unasked.
    whole = hashlib.sha256("".join(job.described["fingerprint"] for job in jobs).encode()).hexdigest()[:16]
    whole = jobs[0].described["fingerprint"] if len(jobs) == 1 else whole
    results.check_document(config.output_file, whole, overwrite=config.overwrite)
    found = {
        job.name: results.earlier(job.folder, job.described["fingerprint"], overwrite=config.overwrite) for job in jobs
    }
    left = [job for job in jobs if found[job.name] is None]
    dpr.check(config, {job.name: None if job in left else job.folder for job in jobs})
    if not left:
        log.info("%s holds this evaluation already: nothing was done (--overwrite does it again)", root)
    elif len(left) < len(jobs):
        done = ", ".join(job.name for job in jobs if job not in left)
        log.info("%s holds %s already; going on with %s", root, done, ", ".join(job.name for job in left))

    # 3. Answers, scores, files; each evaluation is on the disk before the next one begins.
    made = _answer(causal, left, device, seen_by_causal(config, causal) if left else None)
    evaluations = {
        job.name: EvalResult(job.folder, found[job.name] or made[job.name], reused=found[job.name] is not None)
        for job in jobs
    }

    # 4. What came of it.
    result: EvalResult | ConditionsResult = evaluations[jobs[0].name]
    if len(jobs) > 1:
        summary = {
            "kind": "sft",
            "name": causal.name,
            "fingerprint": whole,
            **conditions.summarise(evaluations, config.seed),
            "sweeps": sweeps.of_conditions(evaluations, config.seed),
        }
        write_json(root / results.SUMMARY_FILE, summary)
        result = ConditionsResult(root, summary, evaluations)
    if config.output_file is not None:
        write_json(config.output_file, _document(result))
        log.info("metrics and predictions in %s", config.output_file)
    if config.dpr_file is not None:
        dpr.write({name: each.path for name, each in evaluations.items()}, config.dpr_file)
    conditions.show(causal.name, evaluations, None if isinstance(result, EvalResult) else result.summary)
    if len(jobs) > 1:
        sweeps.show(result.summary["sweeps"])
    _next(root, jobs, config)
    return result


def _evaluated(causal: Causal) -> Causal:
    """Return a model whose prompts lose passages where training left rows out: every question is to be answered."""
    if causal.prompt.on_overflow != "drop-row":
        return causal
    return dataclasses.replace(causal, prompt=dataclasses.replace(causal.prompt, on_overflow="drop-docs"))


def _about(subject: Subject, rows: ExampleFile, index: dict[str, Any] | None, device: torch.device) -> dict[str, Any]:
    """Return what all evaluations of a run have in common."""
    named = ("path", "sha256", "format", "read")
    return {
        "precision": precision_of(subject, device),
        "checkpoint": subject.checkpoint,
        "skipped": rows.about.get("skipped_lines", 0),
        "data": {name: rows.about.get(name) for name in named},
        "index": None if index is None else {name: value for name, value in index.items() if name != "cached"},
    }


def _jobs(config: EvalConfig, causal: Causal, asked: Sequence[Asked], root: Path, about: dict[str, Any]) -> list[Job]:
    roles: tuple[Role, ...] = ("tuned", "base") if config.also_base else ("tuned",)
    longest = config.max_new_tokens
    if "max_new_tokens" not in config.model_fields_set and causal.max_new_tokens is not None:
        longest = causal.max_new_tokens
    jobs = []
    for role in roles:
        weights = weights_of(causal, role)
        for one in asked:
            folder = root / "base" if role == "base" else root
            settings = PromptedSettings(
                max_new_tokens=longest,
                batch_size=config.batch_size,
                recall_at=() if one.found is None else tuple(sorted(set(config.recall_at))),
                abstain_target=causal.context.abstain_target,
                seed=config.seed,
                precision=about["precision"],
                compat=config.compat,
            )
            retrieval = config.retrieval or causal.context.retrieval
            described = _describe(causal, role, weights, one, settings, about, retrieval)
            jobs.append(Job(role, one, settings, folder / one.name if len(asked) > 1 else folder, described))
    return jobs


def _describe(
    causal: Causal,
    role: Role,
    weights: str,
    asked: Asked,
    settings: PromptedSettings,
    about: dict[str, Any],
    retrieval: str,
) -> dict[str, Any]:
    """Return everything that an evaluation depends on, and its fingerprint."""
    chosen = {name: value for name, value in dataclasses.asdict(settings).items() if name not in ("progress", "kept")}
    searched = asked.condition in ("retrieved", "gold+distractors", "distractors-only") and about["index"] is not None
    described: dict[str, Any] = {
        "kind": "sft",
        "condition": asked.condition,
        "role": role if causal.fine_tuned or causal.network.get("adapter") else "plain",
        "n": len(asked.samples),
        "left_out": asked.left_out,
        "skipped": about["skipped"],
        "model": {"name": causal.name, "checkpoint": about["checkpoint"], "base": causal.base, "fingerprint": weights},
        "data": {**about["data"], "asked_sha256": asked.sha256},
        "index": about["index"] if searched else None,
        "prompt": causal.prompt.to_json(),
        "settings": {
            **chosen, "recall_at": list(settings.recall_at), "n_docs": asked.n_docs, "condition": asked.condition,
            "retrieval": retrieval if searched else None,
            **({} if asked.gold_at is None else {"gold_at": asked.gold_at}),
        },
        "versions": results.versions(),
    }  # fmt: skip
    if asked.contexts is not None:  # the passages themselves are part of what is asked
        described["contexts"] = asked.contexts
    defining = {
        "model": weights,
        "asked": asked.sha256,
        "prompt": described["prompt"],
        "settings": {name: value for name, value in described["settings"].items() if name not in _NOT_DEFINING},
    }
    return {**described, "fingerprint": results.fingerprint_of(defining)}


def _answer(causal: Causal, jobs: Sequence[Job], device: torch.device, seen: Seen | None) -> dict[str, dict[str, Any]]:
    """Answer what is asked, from one load, write each evaluation, and return what was written of it."""
    if not jobs:
        return {}
    model, tokenizer = load(causal, device, jobs[0].settings.precision)
    prompter = Prompter(tokenizer, causal.prompt)
    made = {}
    for job in jobs:
        kept = Kept(job.folder, job.described["fingerprint"])
        settings = dataclasses.replace(job.settings, progress=f"Answering ({job.name})", kept=kept)
        with contextlib.nullcontext() if job.role == "tuned" else adapters_off(model), PeakMemory(device) as peak:
            evaluation = evaluate_samples(
                model, tokenizer, prompter, job.asked.samples, job.asked.references, settings, job.asked.found
            )
        made[job.name] = _summary(evaluation, job, {"device": str(device), "peak": peak.bytes, "seen": seen})
        results.write(job.folder, made[job.name], (record.to_json() for record in evaluation.records))
        kept.done()
        if lost := made[job.name]["lost"]["row"]:
            log.warning("%s: %d questions do not fit into a prompt even without passages, and count as not answered",
                        job.name, lost)  # fmt: skip
    return made


def _summary(evaluation: PromptedEvaluation, job: Job, measured: dict[str, Any]) -> dict[str, Any]:
    """Return ``metrics.json``: metrics first (null where there is no question), then what they depend on.

    Args:
        evaluation: prompts answered.
        job: what was asked.
        measured: the ``device``, the ``peak`` of its memory, and what was ``seen`` in training.
    """
    missing: dict[str, Any] = dict.fromkeys(("em_given_answer", "em_given_no_answer"))
    settings, asked, retrieval = job.settings, job.asked, None
    if asked.found is not None and asked.gold is not None:
        retrieval = figures.rankings(asked.found, asked.gold, settings.recall_at, settings.confidence, settings.seed)
    lost = [record.lost for record in evaluation.records]
    return {
        **missing,
        **evaluation.metrics,
        **figures.told(
            evaluation,
            job.settings.confidence,
            job.settings.seed,
            measured["peak"],
            job.settings.compat,
            measured["seen"],
            retrieval,
        ),
        "lost": {kind: lost.count(kind) for kind in ("docs", "text", "row")},
        **job.described,
        "device": measured["device"],
    }


def _document(result: EvalResult | ConditionsResult) -> dict[str, Any]:
    """Return the one JSON document of ``--output-file``."""
    if isinstance(result, EvalResult):
        return {**result.summary, "predictions": results.read_predictions(result.path)}
    evaluations = {
        name: {**each.summary, "predictions": results.read_predictions(each.path)}
        for name, each in result.evaluations.items()
    }
    return {**result.summary, "evaluations": evaluations}


def _next(root: Path, jobs: Sequence[Job], config: EvalConfig) -> None:
    """Say where answers are and what may be looked at next."""
    if len(jobs) == 1:
        results.say_next(root, config)
        return
    pair = next(((job, base) for base in jobs for job in jobs if base.role == "base" and job.asked is base.asked), None)
    last, first = pair or (jobs[-1], jobs[0])
    log.info("answers and metrics in the folders of %s; next: ragtrain compare %s %s", root, first.folder, last.folder)
