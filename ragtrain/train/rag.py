"""Joint training of question encoder and generator: RAG-Sequence (Lewis et al. 2020, section 2.1).

For a question q with target y, the n passages z with the highest inner product of their vector and the question's are
retrieved, and both networks are trained on

    loss = -log sum_z p(z|q) p(y|q,z),   p(z|q) = softmax_z(<E_Q(q), E_P(z)>),   p(y|q,z) = prod_t p(y_t|q,z,y_<t).

The gradient with respect to a score is prior minus posterior: passages under which the generator finds the answer
likely are pulled towards the question. Passage vectors stay as the index holds them (query-side training).

What differs from the paper and from the published scripts: targets are shifted properly, the prior is added after the
sum over tokens, the loss is divided by real target tokens over the whole step (or by answers), a passage that is too
long gives way and never the question, and the search uses the question vector without dropout.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from accelerate import PartialState
from accelerate.utils import gather_object

from ragtrain import loop, losses, metrics, prepare, report
from ragtrain.config.commands import FetchConfig, PrepareConfig
from ragtrain.data import demo, fetch
from ragtrain.data.batches import BatchSettings, QuestionSource, RagBatch
from ragtrain.data.prompts import bare_ids, passage_string
from ragtrain.data.training import TrainingQuestions, read_training
from ragtrain.evaluate.answers import AnswerSettings, evaluate_questions, summarise
from ragtrain.index.search import DenseIndex
from ragtrain.models import memory
from ragtrain.models.export import load_rag, save_rag
from ragtrain.models.rag import RagModel, RagSettings, load_generator
from ragtrain.retrieve import Retriever
from ragtrain.runs import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from ragtrain.config.commands import RagConfig
    from ragtrain.records import Question

log = logging.getLogger("ragtrain")

#: Learning rate of pre-trained models of ordinary size, and what the small demo models were tuned for.
LEARNING_RATE = 3e-5
DEMO_LEARNING_RATE = 1e-3
#: At 1e-3 the small question encoder loses what it knows within twenty steps (docs/log.md).
DEMO_RETRIEVER_LEARNING_RATE = 1e-4
#: sentence-transformers trains its cosine encoders with a scale of 20.
COSINE_TEMPERATURE = 0.05


@dataclasses.dataclass(frozen=True)
class RagParts:
    """What ``build`` makes of a configuration and its data."""

    model: RagModel
    index: DenseIndex
    train: QuestionSource
    validation: QuestionSource


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

    # 3. Train. What a step logs, saves and evaluates is the loop's; nothing else happens between two steps here.
    retriever = Retriever.for_model(parts.index, parts.model, device=accelerator.device)
    training = loop.Training(config.loop, config.optim, folder, config.run.trackers)
    step = None
    for step in loop.steps(  # noqa: B007 - the last one is reported
        parts.model, loss_of(config, retriever), parts.train,
        groups=groups_of(config, parts.model), training=training, accelerator=accelerator,
        evaluate=evaluation_of(config, parts, retriever) if data.validation else None,
    ):  # fmt: skip
        pass

    # 4. What others can load.
    if accelerator.is_main_process:
        save_rag(parts.model, folder.final_model)
        log.info("final model in %s; next: ragtrain eval --model-dir %s", folder.final_model, folder.path)
    accelerator.wait_for_everyone()
    if step is None:  # the run was complete already
        last = folder.read_metrics()[-1]
        return RagResult(folder.path, plan, last["step"], last["loss"], dict(last.get("evaluation") or {}))
    return RagResult(folder.path, plan, step.index, step.loss, dict(step.evaluation or {}))


def read(config: RagConfig, demo_folder: Path) -> TrainingQuestions:
    """Read the questions and find the index; without training data, those of the demo set, made in ``demo_folder``.

    Raises:
        DataError: a file cannot be read, or holds no question with an answer.
    """
    path, index_path = config.data.train_data, config.data.index_path
    if path is None:
        log.info("no --train-data: training on the built-in demo set")
        path = demo_folder
        fetch.run(FetchConfig(dataset="demo", output_dir=path))
        if index_path is None and not (path / "index").exists():
            prepare.run(PrepareConfig(passages=path / "passages.jsonl", output_dir=path / "index"))
    data = read_training(config.data, path, config.loop.seed)
    data.sources["index"] = {"path": str(index_path or data.folder / "index")}
    return data


def build(config: RagConfig, data: TrainingQuestions) -> RagParts:
    """Build the networks, open the index, tokenise questions and passages.

    Raises:
        ConfigError: a model cannot be loaded or is of the wrong kind.
        IndexMismatchError: the question encoder's vectors do not fit the index.
    """
    asked = config.model
    index = DenseIndex.open(Path(data.sources["index"]["path"]))
    if asked.model_dir is not None:
        start = load_rag(asked.model_dir)
        encoder, generator, tokenizer = start.question_encoder, start.generator, start.generator_tokenizer
    else:
        encoder = prepare.question_encoder(index, asked.question_encoder)
        generator, tokenizer = load_generator(asked.generator or demo.GENERATOR)
    # BART has as many positions as it was trained with; T5 has no limit.
    most = getattr(generator.config, "max_position_embeddings", None) or asked.max_input_tokens
    if most < asked.max_input_tokens:
        log.info("max_input_tokens is %d instead of %d: the generator reads no more", most, asked.max_input_tokens)
    settings = RagSettings(
        target_style=asked.target_style, n_docs=asked.n_docs, max_input_tokens=min(most, asked.max_input_tokens),
        max_question_tokens=asked.max_question_tokens, max_target_tokens=asked.max_target_tokens,
        score_temperature=asked.score_temperature or (COSINE_TEMPERATURE if index.metric == "cosine" else 1.0),
    )  # fmt: skip
    data.sources["rag"] = dataclasses.asdict(settings)
    model = RagModel(
        encoder, generator, tokenizer, settings,
        train_question_encoder=asked.train_question_encoder, gradient_checkpointing=asked.gradient_checkpointing,
    )  # fmt: skip
    data.sources["index"].update(count=index.count, encoder=index.manifest["encoder"])
    return RagParts(model, index, source_of(config, model, data.train), source_of(config, model, data.validation))


def source_of(config: RagConfig, model: RagModel, questions: list[Question]) -> QuestionSource:
    """Return the micro-batches of a question set."""
    settings = BatchSettings(
        max_question_tokens=config.model.max_question_tokens, max_target_tokens=config.model.max_target_tokens,
        batch_size=config.loop.batch_size, seed=config.loop.seed, prompt=model.question_encoder.settings.query_prompt,
        normalize_by=config.objective.normalize_by, answer_choice=config.objective.answer_choice,
        unscored_tokens=1 if config.model.target_style == "hf" else 0,
    )  # fmt: skip
    return QuestionSource(questions, model.question_encoder.tokenizer, model.generator_tokenizer, settings)


def groups_of(config: RagConfig, model: RagModel) -> list[loop.ParamGroup]:
    """Return the parameter groups: the generator, and the question encoder where it is trained."""
    asked, optim = config.model, config.optim
    small = asked.generator is None and asked.model_dir is None
    rate = optim.learning_rate or (DEMO_LEARNING_RATE if small else LEARNING_RATE)
    groups = [loop.ParamGroup("generator", list(model.generator.parameters()), rate)]
    if asked.train_question_encoder:
        untold = DEMO_RETRIEVER_LEARNING_RATE if small and optim.learning_rate is None else rate
        encoder = list(model.question_encoder.parameters())
        groups.append(loop.ParamGroup("question_encoder", encoder, optim.retriever_learning_rate or untold))
    return groups


def loss_of(config: RagConfig, retriever: Retriever) -> Callable[[nn.Module, RagBatch], losses.LossOutput]:
    """Return the loss of a micro-batch: the marginal likelihood, and what tells whether retrieval learns."""
    epsilon = config.objective.label_smoothing

    def loss(model: nn.Module, batch: RagBatch) -> losses.LossOutput:
        lookup = retriever.for_questions(batch.generator_questions)
        output = model(batch.question_ids, batch.question_mask, batch.targets, lookup, with_smooth=epsilon > 0)
        smoothing = losses.Smoothing(epsilon, output.smooth, output.vocab_size) if epsilon > 0 else None
        marginal = losses.rag_sequence(
            output.loglik, output.scores, output.retrieved.mask, smoothing=smoothing, prior_counts=output.prior_counts
        )
        n = len(batch.ids)
        nll, found = marginal.nll.detach().sum(), [
            metrics.first_hit(question.answers, [passage.text for passage in retriever.passages(lookup.hits, row)])
            for row, question in enumerate(batch.questions)
        ]  # fmt: skip
        return losses.LossOutput(
            total=marginal.loss.sum(),
            weight=batch.weight,
            parts={
                "nll_per_token": (nll, output.target_tokens.sum()),
                "nll_per_answer": (nll, n),
                "recall@1": (sum(rank == 1 for rank in found), n),
                f"recall@{retriever.n_docs}": (sum(rank is not None for rank in found), n),
                "prior_entropy": (marginal.prior_entropy.sum(), n),
                "posterior_entropy": (marginal.posterior_entropy.sum(), n),
            },
        )

    return loss


def evaluation_of(config: RagConfig, parts: RagParts, retriever: Retriever) -> Callable[[nn.Module], dict[str, float]]:
    """Return what the loop calls for validation: the loss on all its questions, and greedy answers to them.

    Every process takes its share; all of them get the same figures.
    """
    source, state = parts.validation, PartialState()
    loss = loss_of(config, retriever)
    settings = AnswerSettings(
        n_docs=config.model.n_docs, recall_at=(1, config.model.n_docs), num_beams=1,
        max_new_tokens=config.model.max_target_tokens, max_question_tokens=config.model.max_question_tokens,
        batch_size=config.loop.batch_size,
    )  # fmt: skip

    def validate(model: nn.Module) -> dict[str, float]:
        sums = []
        for indices in source.ordered()[state.process_index :: state.num_processes]:
            batch = source.collate(indices, 0).to(state.device)
            sums.append((float(loss(model, batch).total), batch.weight))
        mine = source.questions[state.process_index :: state.num_processes]
        records = evaluate_questions(cast("RagModel", model), retriever, mine, settings).records
        totals, weights = zip(*gather_object(sums), strict=True)
        values, _ = summarise(gather_object(list(records)), settings)
        return {"eval_loss": sum(totals) / sum(weights), **{f"eval_{name}": values[name] for name in values}}

    return validate


def describe(config: RagConfig, data: TrainingQuestions, parts: RagParts) -> dict[str, Any]:
    """Return the plan: what is read, for how many steps, and what it takes; nothing is written."""
    per_epoch, world = len(parts.train.plan(0)), PartialState().num_processes
    steps = loop.total_steps(config.loop, per_epoch, world)
    effective = config.loop.batch_size * config.loop.gradient_accumulation_steps * world
    sample = [passage_string(*parts.index.passages.texts(i)) for i in range(min(512, parts.index.count))]
    lengths = sorted(map(len, bare_ids(parts.model.generator_tokenizer, sample)))
    longest = min(lengths[int(0.95 * (len(lengths) - 1))] + 24, parts.model.settings.max_input_tokens)
    rows, vocab = config.loop.batch_size * config.model.n_docs, parts.model.vocab_size
    half = loop.resolve_precision(config.loop.mixed_precision) != "no"
    held = memory.activation_bytes(
        parts.model.generator.config, rows, longest, half=half, checkpointing=config.model.gradient_checkpointing
    ) + memory.logit_bytes(rows, parts.train.target_token_count // len(data.train) + 1, vocab)
    state = memory.state_bytes(parts.model)
    trained = sum(p.numel() for p in parts.model.parameters() if p.requires_grad)
    return {
        "training questions": len(data.train),
        "validation questions": len(data.validation),
        "target tokens an epoch": parts.train.target_token_count,
        "passages": parts.index.count,
        "tokens a passage": f"{sum(lengths) / len(lengths):.0f} on average, 95 % up to {longest - 24}",
        "steps": f"{steps} ({steps * effective / len(data.train):.1f} epochs)",
        "effective batch": f"{effective} questions = {config.loop.batch_size} x "
        f"{config.loop.gradient_accumulation_steps} accumulated x {world} processes, {config.model.n_docs} passages each",
        "learning rate": ", ".join(f"{g.name} {g.learning_rate:g}" for g in groups_of(config, parts.model)),
        "trained parameters": f"{trained:,}",
        "memory estimate": f"{memory.readable(state + held)} a process: {memory.readable(state)} weights, gradients "
        f"and optimizer, about {memory.readable(held)} activations",
        "output": str(config.run.output_dir),
    }
