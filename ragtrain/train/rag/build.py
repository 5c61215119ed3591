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
from ragtrain.index.search import DenseIndex
from ragtrain.models.export import load_rag
from ragtrain.models.rag import RagModel, RagSettings, load_generator

if TYPE_CHECKING:
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
