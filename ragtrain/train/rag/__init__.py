"""Joint training of retriever and generator.

For a question q with target y, n passages z are retrieved, by the inner product of their vector and the question's, by
words, or by both. The generator says how likely the target is under each, and their scores how likely each passage is::

    p(z|q) = softmax_z(<E_Q(q), E_P(z)> / temperature),   p(y|q,z) = prod_t p(y_t|q,z,y_<t)

What is made of the two is the objective (objective.py has the equations): RAG-Sequence or RAG-Token (Lewis et al. 2020,
section 2.1), which teach both networks through the marginal likelihood; PDist or EMDR², which teach the retriever
alone, beside a generator that reads passages one by one or fused in its decoder (FiD); and a contrastive loss beside any
of them. In all of them the gradient with respect to a score is prior minus some posterior: passages under which the
generator finds the answer likely are pulled towards the question.

The generator is a BART, a T5 or a causal language model, trained whole, through adapters, or not at all. The retriever
is trained on the side of questions, on that of passages, on both, or not at all. Passage vectors stay as the index
holds them unless their encoder is trained; the index then follows it (refresh.py), and between two refreshes fresh
scores decide (lookup.py).

What differs from the papers and from the published scripts: targets are shifted properly, the prior is added after the
sum over tokens, the loss is divided by real target tokens over the whole step (or by answers; every term of it is, the
retriever's too), a passage that is too long gives way and never the question, and the search uses the question vector
without dropout.

build.py      configuration → data, networks, index, parameter groups
objective.py  the loss of a micro-batch, for every objective, and the figures beside it
lookup.py     what is retrieved in training: fresh scores, passages to contrast
refresh.py    an index that follows the passage encoder
validate.py   validation during training
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
from ragtrain.models.export import save_rag
from ragtrain.retrieve import Retriever
from ragtrain.runs import RunFolder
from ragtrain.train.alarms import Watch
from ragtrain.train.rag.build import build, check, groups_of, idle, read
from ragtrain.train.rag.objective import loss_of
from ragtrain.train.rag.plan import describe
from ragtrain.train.rag.refresh import IndexRefresh
from ragtrain.train.rag.validate import evaluation_of

if TYPE_CHECKING:
    from ragtrain.config.commands import RagConfig

log = logging.getLogger("ragtrain")


@dataclasses.dataclass(frozen=True)
class RagResult:
    """A finished run; a dry run has a plan and nothing else."""

    path: Path | None
    plan: dict[str, Any]
    steps: int = 0
    loss: float | None = None
    evaluation: dict[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**dataclasses.asdict(self), "path": None if self.path is None else str(self.path)}


def run(config: RagConfig) -> RagResult:
    """Train, and leave a run folder whose ``final_model`` loads with plain transformers.

    Raises:
        ConfigError: the parts do not fit together, or the output folder holds another run.
        DataError: questions or index cannot be read.
        NumericsError: the loss is not finite.
        Interrupted: a signal arrived; the state was saved.
    """
    # 1. What to train on, and whether the output folder is free: before anything is built or written.
    check(config)
    loop.check_packages(config.optim, config.run.trackers)
    if unused := idle(config):
        log.info("without effect in this run: %s", ", ".join(unused))
    settings = config.model_dump(mode="json")
    place: dict[str, Any] = {"overwrite": config.run.overwrite, "resume": config.loop.resume}
    RunFolder.check(config.run.output_dir, "rag", settings, **place)
    accelerator = loop.make_accelerator(config.loop)
    with accelerator.main_process_first(), tempfile.TemporaryDirectory(prefix="ragtrain-") as scratch:
        # A dry run of the demo needs the demo, and must leave nothing behind.
        data = read(config, Path(scratch) if config.run.dry_run and not demo.FOLDER.exists() else demo.FOLDER)
        parts = build(config, data)
        plan = describe(config, data, parts)
    report.panel("Plan", list(plan.items()))
    if config.run.dry_run:
        return RagResult(path=None, plan=plan)

    # 2. The run folder explains itself from the first moment.
    folder = RunFolder.create(config.run.output_dir, "rag", settings, **place)
    report.add_log_file(folder.log_file)
    folder.write_env(device=str(accelerator.device), seed=config.loop.seed)
    folder.write_data(data.sources)

    # 3. Train. What a step logs, saves and evaluates is the loop's; what else happens between two steps stands here.
    model = parts.model.to(accelerator.device)
    asked = config.retriever
    retriever = Retriever.for_model(
        parts.index, model, device=accelerator.device, retrieval=asked.retrieval, search_index=asked.search_index
    )
    refresh = IndexRefresh(folder, retriever, model, asked.refresh_steps) if asked.train_context_encoder else None
    if refresh is not None:
        refresh.start(config.loop.resume)
    watch = Watch(folder, config)
    training = loop.Training(
        config.loop, config.optim, folder, config.run.trackers,
        memory_flags=("--doc-chunk 1", "--gradient-checkpointing"),
        indivisible="in-batch negatives of --infonce-weight" if config.objective.infonce_weight > 0 else "",
    )  # fmt: skip
    step = None
    for step in loop.steps(
        model, loss_of(config, retriever, model, watch), parts.train,
        groups=groups_of(config, model), training=training, accelerator=accelerator,
        evaluate=evaluation_of(config, parts, retriever, refresh) if data.validation else None,
    ):  # fmt: skip
        if refresh is not None and not step.is_last:
            refresh.after(step.index)
        watch.after(step)

    # 4. What others can load.
    if accelerator.is_main_process:
        save_rag(model, folder.final_model)
    accelerator.wait_for_everyone()
    if refresh is not None:  # of a complete run too: it may have ended before its index was written
        data.sources["index"].update(original=data.sources["index"]["path"], path=str(refresh.finish()))
        folder.write_data(data.sources)
    if accelerator.is_main_process:
        log.info("final model in %s; next: ragtrain eval --model-dir %s", folder.final_model, folder.path)
    accelerator.wait_for_everyone()
    if step is None:  # the run was complete already
        last = folder.read_metrics()[-1]
        return RagResult(folder.path, plan, last["step"], last["loss"], dict(last.get("evaluation") or {}))
    return RagResult(folder.path, plan, step.index, step.loss, dict(step.evaluation or {}))
