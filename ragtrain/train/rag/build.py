"""From a configuration to data, networks, index and parameter groups."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ragtrain import loop, prepare
from ragtrain.config.commands import FetchConfig, PrepareConfig
from ragtrain.data import demo, fetch
from ragtrain.data.batches import BatchSettings, QuestionSource
from ragtrain.data.training import TrainingQuestions, read_training
from ragtrain.errors import ConfigError
from ragtrain.index.search import DenseIndex
from ragtrain.models.adapters import add_lora
from ragtrain.models.export import load_rag
from ragtrain.models.rag import Likelihood, RagModel, RagSettings, load_generator
from ragtrain.models.readers import is_causal

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

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


def check(config: RagConfig) -> None:
    """Refuse what does not go together, all of it at once.

    Raises:
        ConfigError: naming each pair of settings.
    """
    objective, model, retriever = config.objective, config.model, config.retriever
    trains_retriever = model.train_question_encoder or retriever.train_context_encoder
    bad = [
        (
            model.reader == "fid" and objective.objective in ("rag-sequence", "rag-token") and trains_retriever,
            f"model.reader=fid has no likelihood to marginalise, which objective.objective={objective.objective} needs: "
            "take pdist or emdr, or --no-train-question-encoder",
        ),
        (
            objective.label_smoothing > 0 and (objective.objective == "rag-token" or model.reader == "fid"),
            "objective.label_smoothing goes with passages read one by one and objectives of whole answers",
        ),
        (
            not (model.train_generator or trains_retriever),
            "model.train_generator, model.train_question_encoder and retriever.train_context_encoder are all off: there "
            "is nothing to train",
        ),
        (
            retriever.train_context_encoder and retriever.search_index != "flat",
            "retriever.train_context_encoder changes vectors, which only retriever.search_index=flat follows",
        ),
        (
            retriever.retriever_lora_rank > 0 and not trains_retriever,
            "retriever.retriever_lora_rank adapts an encoder, and none is trained",
        ),
        (
            config.lora.lora_rank > 0 and not model.train_generator,
            "lora.lora_rank adapts the generator, which model.train_generator=false freezes",
        ),
        (
            model.target_style == "hf" and (model.reader == "fid" or objective.objective == "rag-token"),
            "model.target_style=hf is how facebook/rag-sequence-* was trained: it goes with objectives of whole answers",
        ),
    ]
    if problems := [message for wrong, message in bad if wrong]:
        raise ConfigError("; ".join(problems), hint="change one of the settings named")


def build(config: RagConfig, data: TrainingQuestions) -> RagParts:
    """Build the networks, open the index, tokenise questions and passages.

    Raises:
        ConfigError: a model cannot be loaded or is of the wrong kind.
        IndexMismatchError: the encoders' vectors do not fit the index.
    """
    asked, retriever = config.model, config.retriever
    index = DenseIndex.open(Path(data.sources["index"]["path"]), passages=config.data.passages_path)
    passages = None
    if asked.model_dir is not None:
        start = load_rag(asked.model_dir)
        encoder, generator, tokenizer = start.question_encoder, start.generator, start.generator_tokenizer
        passages = start.passage_encoder
    else:
        encoder = prepare.question_encoder(index, asked.question_encoder)
        generator, tokenizer = load_generator(asked.generator or demo.GENERATOR)
    if retriever.train_context_encoder:
        if passages is None or retriever.context_encoder is not None:
            passages = prepare.context_encoder(index, retriever.context_encoder)
    else:
        passages = None
    settings = settings_of(config, generator, cosine=index.metric == "cosine")
    data.sources["rag"] = dataclasses.asdict(settings)
    model = RagModel(
        encoder, generator, tokenizer, settings, passage_encoder=passages,
        train_question_encoder=asked.train_question_encoder, gradient_checkpointing=asked.gradient_checkpointing,
    )  # fmt: skip
    model.doc_chunk = asked.doc_chunk
    adapt(config, model)
    data.sources["index"].update(count=index.count, encoder=index.manifest["encoder"])
    return RagParts(model, index, source_of(config, model, data.train), source_of(config, model, data.validation))


def settings_of(config: RagConfig, generator: PreTrainedModel, *, cosine: bool) -> RagSettings:
    """Return what is saved with the model, resolved for this generator and an index of cosines or inner products."""
    asked = config.model
    # BART and most causal models have as many positions as they were trained with; T5 has no limit.
    most = getattr(generator.config, "max_position_embeddings", None) or asked.max_input_tokens
    if is_causal(generator.config):
        most -= asked.max_target_tokens if most > asked.max_input_tokens - asked.max_target_tokens else 0
    if most < asked.max_input_tokens:
        log.info("max_input_tokens is %d instead of %d: the generator reads no more", most, asked.max_input_tokens)
    likelihood: Likelihood = "token" if config.objective.objective == "rag-token" else "sequence"
    return RagSettings(
        target_style=asked.target_style, n_docs=asked.n_docs, max_input_tokens=min(most, asked.max_input_tokens),
        max_question_tokens=asked.max_question_tokens, max_target_tokens=asked.max_target_tokens,
        score_temperature=asked.score_temperature or (COSINE_TEMPERATURE if cosine else 1.0),
        likelihood="fid" if asked.reader == "fid" else likelihood,
    )  # fmt: skip


def adapt(config: RagConfig, model: RagModel) -> None:
    """Freeze what is not trained, and put LoRA adapters where they were asked for."""
    lora = config.lora
    if not config.model.train_generator:
        model.generator.requires_grad_(False)
    elif lora.lora_rank:
        add_lora(
            model.generator, lora.lora_rank, alpha=lora.lora_alpha, dropout=lora.lora_dropout,
            targets=lora.lora_targets,
        )  # fmt: skip
    if rank := config.retriever.retriever_lora_rank:
        if config.model.train_question_encoder:
            add_lora(model.question_encoder.model, rank)
        if model.passage_encoder is not None:
            add_lora(model.passage_encoder.model, rank)


def source_of(config: RagConfig, model: RagModel, questions: list[Question]) -> QuestionSource:
    """Return the micro-batches of a question set."""
    settings = BatchSettings(
        max_question_tokens=config.model.max_question_tokens, max_target_tokens=config.model.max_target_tokens,
        batch_size=config.loop.batch_size, seed=config.loop.seed, prompt=model.question_encoder.settings.query_prompt,
        normalize_by=config.objective.normalize_by, answer_choice=config.objective.answer_choice,
        unscored_tokens=1 if config.model.target_style == "hf" else 0, causal=model.reader.causal,
    )  # fmt: skip
    return QuestionSource(questions, model.question_encoder.tokenizer, model.generator_tokenizer, settings)


def groups_of(config: RagConfig, model: RagModel) -> list[loop.ParamGroup]:
    """Return the parameter groups: the networks that are trained, each with its learning rate."""
    asked, optim = config.model, config.optim
    small = asked.generator is None and asked.model_dir is None
    rate = optim.learning_rate or (DEMO_LEARNING_RATE if small else LEARNING_RATE)
    untold = DEMO_RETRIEVER_LEARNING_RATE if small and optim.learning_rate is None else rate
    towers: dict[str, nn.Module | None] = {
        "question_encoder": model.question_encoder, "passage_encoder": model.passage_encoder,
    }  # fmt: skip
    groups: list[tuple[str, nn.Module, float, int]] = [("generator", model.generator, rate, 0)]
    for name, tower in towers.items():
        if tower is not None:
            tower_rate = optim.retriever_learning_rate or untold
            groups.append((name, tower, tower_rate, config.retriever.freeze_retriever_steps))
    return [
        loop.ParamGroup(name, parameters, rate, frozen_steps=frozen)
        for name, network, rate, frozen in groups
        if (parameters := [parameter for parameter in network.parameters() if parameter.requires_grad])
    ]
