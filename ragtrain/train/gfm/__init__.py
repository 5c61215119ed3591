"""A graph foundation model that retrieves: pre-trained on the triples of graphs, fine-tuned on labelled questions.

A network of L rounds of messages (NBFNet, Zhu et al. 2021) scores every entity of a graph for a query: a triple whose tail
is wanted, or a question that starts from the entities it names. Relations are text vectors, so that one network serves any graph
(GFM-RAG, Luo et al. 2025, arXiv:2502.01113).

pretrain   a triple (h, r, ?) against corrupted ones: binary cross-entropy, hard negatives weighing more. The query's own
           edge is taken out of the graph, for that query alone.
finetune   a question against all entities: binary and listwise cross-entropy of the entities of its supporting documents, and
           of the documents themselves where that is wanted; documents are ranked by their entities.

What differs from the published code: held-out triples and questions are what is validated on, and they are in no training
graph; the number of a validation does not depend on the batch; questions that could not be linked count; all relations of a
pair are kept; the listwise loss is computed in its stable form. Losses are sums divided by queries, over micro-batches and
processes.

data.py      graphs, questions and their vectors
sources.py   micro-batches of triples and of questions
task.py      the network with the graphs it works on, and the losses
validate.py  ranks of held-out triples, and of the documents of held-out questions
build.py     configuration → graphs, network, micro-batches
plan.py      what a run will take
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragtrain import loop, report
from ragtrain.data import demo
from ragtrain.errors import CheckpointError
from ragtrain.models.folders import SIDECAR, read_json
from ragtrain.models.gfm.export import save_gfm, save_v1
from ragtrain.models.gfm.model import GraphNetwork
from ragtrain.models.gfm.ultra import FILE as ULTRA_FILE
from ragtrain.models.gfm.ultra import UltraNetwork, save_ultra
from ragtrain.records import write_json
from ragtrain.runs import RunFolder
from ragtrain.train.alarms import LossWatch
from ragtrain.train.gfm.build import build, check, read
from ragtrain.train.gfm.plan import describe
from ragtrain.train.gfm.task import loss_of
from ragtrain.train.gfm.validate import evaluation_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ragtrain.config.commands import GfmConfig
    from ragtrain.train.gfm.build import GfmParts

log = logging.getLogger("ragtrain")

#: Where a run keeps its network for GFM-RAG 1, which calls it so.
PRETRAINED = "pretrained"


@dataclasses.dataclass(frozen=True)
class GfmResult:
    """A finished run; a dry run has a plan and nothing else."""

    path: Path | None
    plan: dict[str, Any]
    steps: int = 0
    loss: float | None = None
    evaluation: dict[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**dataclasses.asdict(self), "path": None if self.path is None else str(self.path)}


def run(config: GfmConfig) -> GfmResult:
    """Train, and leave a run folder whose ``final_model`` an evaluation, a search or a further training starts from.

    Raises:
        ConfigError: settings do not go together, a model cannot be loaded, or the output folder holds another run.
        DataError: graphs or questions cannot be read, or hold nothing to learn from.
        NumericsError: the loss is not finite.
        CheckpointError: the run began with other graphs or questions.
        Interrupted: a signal arrived; the state was saved.
    """
    # 1. What to train on, and whether the output folder is free: before anything is built or written.
    check(config)
    loop.check_packages(config.optim, config.run.trackers)
    settings = config.model_dump(mode="json")
    place: dict[str, Any] = {"overwrite": config.run.overwrite, "resume": config.loop.resume}
    RunFolder.check(config.run.output_dir, "gfm", settings, **place)
    accelerator = loop.make_accelerator(config.loop)
    with accelerator.main_process_first(), tempfile.TemporaryDirectory(prefix="ragtrain-") as scratch:
        # A dry run of the demo needs the demo, and must leave nothing behind.
        data = read(config, Path(scratch) if config.run.dry_run and not demo.FOLDER.exists() else demo.FOLDER)
        parts = build(config, data)
    _check_data(config, data.sources)
    plan = describe(config, data, parts)
    report.panel("Plan", list(plan.items()))
    if config.run.dry_run:
        return GfmResult(path=None, plan=plan)

    # 2. The run folder explains itself from the first moment.
    folder = RunFolder.create(config.run.output_dir, "gfm", settings, **place)
    report.add_log_file(folder.log_file)
    folder.write_env(device=str(accelerator.device), seed=config.loop.seed)
    folder.write_data(data.sources)

    # 3. Train.
    parts.model.to(accelerator.device)
    training = loop.Training(
        config.loop, config.optim, folder, config.run.trackers, memory_flags=("--activation-checkpointing",)
    )
    watch = LossWatch(folder, config.run)
    step = None
    for step in loop.steps(
        parts.model, loss_of(config), parts.train, groups=[parts.group], training=training, accelerator=accelerator,
        evaluate=evaluation_of(config, parts, accelerator) if parts.has_validation else None,
    ):  # fmt: skip
        watch.after(step)

    # 4. What others can load.
    if accelerator.is_main_process:
        save(parts, folder.final_model)
        if config.model.save_pretrained and isinstance(parts.model.network, GraphNetwork):
            save_v1(parts.model.network, folder.path / PRETRAINED, sidecar=parts.sidecar)
            log.info("for GFM-RAG 1 in %s", folder.path / PRETRAINED)
        log.info("final model in %s; next: ragtrain eval --model-dir %s", folder.final_model, folder.path)
    accelerator.wait_for_everyone()
    if step is None:  # the run was complete already
        last = folder.read_metrics()[-1]
        return GfmResult(folder.path, plan, last["step"], last["loss"], dict(last.get("evaluation") or {}))
    return GfmResult(folder.path, plan, step.index, step.loss, dict(step.evaluation or {}))


def _check_data(config: GfmConfig, sources: Mapping[str, Any]) -> None:
    """Refuse to go on with a run whose graphs, questions or text encoder were changed since it began.

    Raises:
        CheckpointError: they were; the run's ``data.json`` says what they had been.
    """
    folder = config.run.output_dir
    begun = (folder / "data.json").is_file() and any((folder / "checkpoints").glob("step-*"))
    if not begun or config.run.overwrite or config.loop.resume == "never":
        return
    before = read_json(folder / "data.json")
    for what in ("graphs", "questions", "text_encoder"):
        there, here = _marks(before.get(what)), _marks(sources.get(what))
        if what in before and there != here:
            raise CheckpointError(
                f"the run began with other {what.replace('_', ' ')}: {', '.join(sorted(there - here)) or 'fewer'} there, "
                f"{', '.join(sorted(here - there)) or 'fewer'} here", path=folder,
                hint=f"to learn from what is there now: another --output-dir with --model-dir {folder}, or --resume never",
            )  # fmt: skip


def _marks(about: Any) -> set[str]:  # noqa: ANN401 - of a file
    """Return the hashes in what ``data.json`` says of graphs, questions or an encoder, wherever their files are."""
    if isinstance(about, dict) and not {"fingerprint", "sha256"} & about.keys():
        about = list(about.values())
    each = about if isinstance(about, list) else [about]
    return {str(one.get("fingerprint") or one.get("sha256")) for one in each if isinstance(one, dict)}


def save(parts: GfmParts, folder: Path) -> None:
    """Write the final model: our own form, or ULTRA's where training began with one of its checkpoints."""
    if isinstance(parts.model.network, UltraNetwork):
        save_ultra(parts.model.network, folder / ULTRA_FILE)
        write_json(folder / SIDECAR, {**parts.sidecar, "network": "ultra"})
    else:
        save_gfm(parts.model.network, folder, sidecar=parts.sidecar)
