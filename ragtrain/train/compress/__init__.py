"""Training of a compressor: passages become a few memory vectors, which a causal language model reads in their place.

The method is OSCAR's (Louis et al. 2025, arXiv:2504.07109) and PISCO's (arXiv:2501.16075): the compressor is trained whole, the
generator by adapters, on answers written by a teacher or given by people; a relevance head may learn a reranker's scores beside
them. A run goes through phases, each of which is passed over when it is done, so that the same command goes on after a kill at
any moment::

    1  reconstruction and continuation of passages       RUN/pretraining
    2  answers before training                           before_training_results.json
    3  training on questions                             RUN/checkpoints, RUN/metrics.jsonl
    4  adapters for full passages, for the comparison    RUN/full_context
    5  answers after training, cost, report, pictures    after_training_results.json, metrics_report.json, *.png

What differs from the published scripts: passages longer than a window are several windows and never cut; compressor, generator
and connector have learning rates of their own; answers are generated in every evaluation; text that costs as much as the
memory is in the comparison.

check.py      settings that do not go together
build.py      configuration → rows, network, micro-batches
objective.py  the losses
phases.py     pre-training, and adapters for full passages
validate.py   loss and answers in the middle of training
measure.py    answers before and after, cost, report, pictures
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
from ragtrain.models.compress.export import save_compress
from ragtrain.runs import RunFolder
from ragtrain.train.alarms import LossWatch
from ragtrain.train.compress.build import build, groups_of, read
from ragtrain.train.compress.check import check, make_accelerator
from ragtrain.train.compress.measure import finish, measure_stage
from ragtrain.train.compress.objective import loss_of
from ragtrain.train.compress.phases import Place, link_final, pretrain, relief_of, resume_of, train_full_context
from ragtrain.train.compress.plan import describe
from ragtrain.train.compress.validate import evaluation_of

if TYPE_CHECKING:
    from ragtrain.config.commands import CompressConfig

log = logging.getLogger("ragtrain")


@dataclasses.dataclass(frozen=True)
class CompressResult:
    """A finished run; a dry run has a plan and nothing else."""

    path: Path | None
    plan: dict[str, Any]
    steps: int = 0
    loss: float | None = None
    evaluation: dict[str, float] = dataclasses.field(default_factory=dict)
    verdict: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**dataclasses.asdict(self), "path": None if self.path is None else str(self.path)}


def run(config: CompressConfig) -> CompressResult:
    """Train, measure, and leave a run folder whose ``final_model`` holds everything but the generator's own weights.

    Raises:
        ConfigError: settings do not go together, a model cannot be loaded, or the output folder holds another run.
        DataError: rows or index cannot be read, or there is nothing to learn.
        NumericsError: the loss is not finite.
        Interrupted: a signal arrived; the state was saved.
    """
    # 1. What to train on, and whether the output folder is free: before anything is built or written.
    check(config)
    loop.check_packages(config.optim, config.run.trackers)
    settings = config.model_dump(mode="json")
    place: dict[str, Any] = {"overwrite": config.run.overwrite, "resume": config.loop.resume}
    RunFolder.check(config.run.output_dir, "compress", settings, **place)
    accelerator = make_accelerator(config)
    with accelerator.main_process_first(), tempfile.TemporaryDirectory(prefix="ragtrain-") as scratch:
        # A dry run of the demo needs the demo, and must leave nothing behind.
        rows = read(config, Path(scratch) if config.run.dry_run and not demo.FOLDER.exists() else demo.FOLDER)
        parts = build(config, rows, accelerator)
    plan = describe(config, rows, parts)
    report.panel("Plan", list(plan.items()))
    if config.run.dry_run:
        return CompressResult(path=None, plan=plan)

    # 2. The run folder explains itself from the first moment.
    folder = RunFolder.create(config.run.output_dir, "compress", settings, **place)
    report.add_log_file(folder.log_file)
    folder.write_env(device=str(accelerator.device), seed=config.loop.seed)
    folder.write_data(rows.sources)
    where = Place(config, parts, folder, accelerator)

    # 3. Windows written back and continued, where that was asked for.
    pretrain(where)

    # 4. What the questions are answered like before training.
    before = measure_stage(where, "before")

    # 5. Train on the questions.
    training = loop.Training(
        config.loop.model_copy(update={"resume": resume_of(config, folder)}), config.optim, folder, config.run.trackers,
        memory_flags=("--gradient-checkpointing on", "--compressor-checkpointing", "--n-docs (fewer)", "--load-in-4bit"),
        relief=relief_of(config, parts.model),
    )  # fmt: skip
    watch = LossWatch(folder, config.run)
    step = None
    for step in loop.steps(
        parts.model, loss_of(config.objective, accelerator), parts.train, groups=groups_of(config, parts.model),
        training=training, accelerator=accelerator, evaluate=evaluation_of(where),
    ):  # fmt: skip
        watch.after(step)

    # 6. What others can load.
    if accelerator.is_main_process:
        save_compress(parts.model, parts.tokenizers, folder.final_model, sidecar=parts.sidecar)
        link_final(folder)
    accelerator.wait_for_everyone()

    # 7. The generator trained as long on the full passages; answers after training, what they cost, and what it all says.
    last = folder.read_metrics()[-1]
    adapters = train_full_context(where, last["step"])
    after = measure_stage(where, "after", last["step"], adapters)
    told = finish(where, last["step"], before, after)
    evaluation = dict(last.get("evaluation") or {})
    return CompressResult(folder.path, plan, last["step"], last["loss"], evaluation, told.get("verdict", {}))
