"""Supervised fine-tuning of a causal language model on retrieval-augmented prompts.

A prompt holds an instruction, passages and a question; the model learns to go on with the answer::

    loss = - sum over answers, sum over their tokens t of log p(y_t | prompt, y_<t)  /  tokens of all answers of the step

as RAG-FiT (Fleischer et al. 2024, arXiv:2408.02545) does with TRL's trainer, to whose losses, gradients and labels this
loop is equal. Beside plain retrieved passages there are RAFT (Zhang et al. 2024, arXiv:2403.10131: the gold passage among
hard negatives, or left out), and one passage a prompt (RA-DIT, Lin et al. 2023, arXiv:2310.01352).

What differs from the published scripts: an example that is too long loses its lowest-ranked passages and never question
or answer; a row without a trained token is told, and too many of them end the run; the end token is trained whatever the
padding token; the loss of a step is divided once, by the tokens of all its micro-batches and processes; RAFT's passages are
as many with the gold one as without, in an order drawn anew each epoch.

check.py      settings that do not go together
build.py      configuration → rows, passages, network, micro-batches
objective.py  the loss of a micro-batch
validate.py   loss and answers on the validation rows
plan.py       what a run will take
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragtrain import loop, report
from ragtrain.data import demo
from ragtrain.models.causal import set_checkpointing
from ragtrain.models.causal_export import push_to_hub, save_causal, save_merged
from ragtrain.runs import RunFolder
from ragtrain.train.alarms import LossWatch
from ragtrain.train.sft.build import build, group_of, read
from ragtrain.train.sft.check import check
from ragtrain.train.sft.objective import completion_loss
from ragtrain.train.sft.plan import describe, show_rows
from ragtrain.train.sft.validate import evaluation_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ragtrain.config.commands import SftConfig
    from ragtrain.train.sft.build import SftParts

log = logging.getLogger("ragtrain")


@dataclasses.dataclass(frozen=True)
class SftResult:
    """A finished run; a dry run has a plan and nothing else."""

    path: Path | None
    plan: dict[str, Any]
    steps: int = 0
    loss: float | None = None
    evaluation: dict[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**dataclasses.asdict(self), "path": None if self.path is None else str(self.path)}


def run(config: SftConfig) -> SftResult:
    """Train, and leave a run folder whose ``final_model`` loads with plain transformers and peft.

    Raises:
        ConfigError: settings do not go together, a model cannot be loaded, or the output folder holds another run.
        DataError: rows or index cannot be read, or too many rows have nothing to learn.
        NumericsError: the loss is not finite.
        Interrupted: a signal arrived; the state was saved.
    """
    # 1. What to train on, and whether the output folder is free: before anything is built or written.
    check(config)
    loop.check_packages(config.optim, config.run.trackers)
    settings = config.model_dump(mode="json")
    place: dict[str, Any] = {"overwrite": config.run.overwrite, "resume": config.loop.resume}
    RunFolder.check(config.run.output_dir, "sft", settings, **place)
    accelerator = loop.make_accelerator(config.loop)
    with accelerator.main_process_first(), tempfile.TemporaryDirectory(prefix="ragtrain-") as scratch:
        # A dry run of the demo needs the demo, and must leave nothing behind.
        rows = read(config, Path(scratch) if config.run.dry_run and not demo.FOLDER.exists() else demo.FOLDER)
        parts = build(config, rows, accelerator)
    evaluate = evaluation_of(config, parts, rows, accelerator) if rows.validation else None
    show_rows(config, parts)
    plan = describe(config, rows, parts)
    report.panel("Plan", list(plan.items()))
    if config.run.dry_run:
        return SftResult(path=None, plan=plan)

    # 2. The run folder explains itself from the first moment.
    folder = RunFolder.create(config.run.output_dir, "sft", settings, **place)
    report.add_log_file(folder.log_file)
    folder.write_env(device=str(accelerator.device), seed=config.loop.seed)
    folder.write_data(rows.sources)

    # 3. Train.
    training = loop.Training(
        config.loop, config.optim, folder, config.run.trackers,
        memory_flags=("--gradient-checkpointing on", "--max-length (shorter)", "--load-in-4bit"),
        relief=_relief(config, parts),
    )  # fmt: skip
    watch = LossWatch(folder, config.run)
    step = None
    for step in loop.steps(
        parts.model, completion_loss, parts.train, groups=[group_of(config, parts.model)], training=training,
        accelerator=accelerator, evaluate=evaluate,
    ):  # fmt: skip
        watch.after(step)

    # 4. What others can load.
    if accelerator.is_main_process:
        _export(config, parts, folder)
    accelerator.wait_for_everyone()
    if step is None:  # the run was complete already
        last = folder.read_metrics()[-1]
        return SftResult(folder.path, plan, last["step"], last["loss"], dict(last.get("evaluation") or {}))
    return SftResult(folder.path, plan, step.index, step.loss, dict(step.evaluation or {}))


def _relief(config: SftConfig, parts: SftParts) -> Callable[[], str] | None:
    """Return what is done first when the device is full: activations are recomputed from then on."""
    if config.model.gradient_checkpointing != "auto":
        return None
    done: list[str] = []

    def relieve() -> str:
        if done:
            return ""
        set_checkpointing(parts.model, on=True)
        done.append("gradient checkpointing is switched on")
        return done[0]

    return relieve


def _export(config: SftConfig, parts: SftParts, folder: RunFolder) -> None:
    save_causal(parts.model, parts.tokenizer, folder.final_model, sidecar=parts.sidecar, base_name=parts.base_name)
    log.info("final model in %s; next: ragtrain eval --model-dir %s", folder.final_model, folder.path)
    if config.export.merge:
        merged = folder.path / "merged_model"
        save_merged(parts.model, parts.tokenizer, merged, sidecar=parts.sidecar, base_name=parts.base_name)
        log.info("adapters added to the base in %s", merged)
    if config.export.push_to_hub is not None:
        push_to_hub(folder.final_model, config.export.push_to_hub)
