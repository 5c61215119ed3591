"""From a configuration to data, networks, index and parameter groups."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from ragtrain import loop, prepare
from ragtrain.data.batches import BatchSettings, QuestionSource
from ragtrain.data.training import TrainingQuestions, read_training
from ragtrain.errors import ConfigError
from ragtrain.index.search import DenseIndex

if TYPE_CHECKING:
    from torch import nn

    from ragtrain.config.commands import RagConfig
    from ragtrain.models.rag import RagModel
    from ragtrain.records import Question

#: Learning rate of pre-trained models of ordinary size, and what the small demo models were tuned for.
LEARNING_RATE = 3e-5
DEMO_LEARNING_RATE = 1e-3
#: At 1e-3 the small question encoder loses what it knows within twenty steps (docs/log.md).
DEMO_RETRIEVER_LEARNING_RATE = 1e-4


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
        path = prepare.demo_set(demo_folder, with_index=index_path is None)
    data = read_training(config.data, path, config.loop.seed)
    data.sources["index"] = {"path": str(index_path or data.folder / "index")}
    return data


def check(config: RagConfig) -> None:
    """Refuse what does not go together, all of it at once.

    Raises:
        ConfigError: naming each pair of settings.
    """
    objective, model, retriever, lora = config.objective, config.model, config.retriever, config.lora
    trains_retriever = config.trains_retriever
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
            lora.lora_rank > 0 and not model.train_generator,
            "lora.lora_rank adapts the generator, which model.train_generator=false freezes",
        ),
        (
            lora.lora_rank == 0 and lora != type(lora)(),
            "lora.lora_alpha, lora.lora_dropout and lora.lora_targets shape the generator's adapters, and lora.lora_rank is "
            "0",
        ),
        (
            retriever.context_encoder is not None and not retriever.train_context_encoder,
            "retriever.context_encoder names an encoder to train, and retriever.train_context_encoder is off: passage "
            "vectors are the index's",
        ),
        (
            retriever.freeze_retriever_steps > 0 and not (model.train_generator and trains_retriever),
            "retriever.freeze_retriever_steps lets the generator learn before the retriever, and only one is trained",
        ),
        (
            objective.infonce_weight > 0 and not trains_retriever,
            "objective.infonce_weight teaches the retriever, and none is trained",
        ),
        (
            objective.label_smoothing > 0 and objective.objective in ("pdist", "emdr") and not model.train_generator,
            f"objective.label_smoothing smooths the generator's loss, and objective.objective={objective.objective} has "
            "none where the generator is frozen",
        ),
        (
            model.target_style == "hf" and model.reader == "fid",
            "model.target_style=hf is how facebook/rag-* was trained: it goes with passages read one by one",
        ),
    ]
    if problems := [message for wrong, message in bad if wrong]:
        raise ConfigError("; ".join(problems), hint="change one of the settings named")


def idle(config: RagConfig) -> list[str]:
    """Return the settings that were changed and have no effect beside the others.

    They are told and not refused: one YAML file may serve several runs that differ in a flag.
    """
    objective, retriever = config.objective, config.retriever
    untouched, resting = type(objective)(), type(retriever)()
    asked: list[tuple[bool, object, object, str]] = [
        (objective.infonce_weight > 0, objective.hard_negatives, untouched.hard_negatives, "hard_negatives"),
        (objective.infonce_weight > 0, objective.infonce_temperature, None, "infonce_temperature"),
        (objective.objective == "pdist", objective.target_temperature, untouched.target_temperature,
         "target_temperature"),
        (retriever.train_context_encoder, retriever.refresh_steps, resting.refresh_steps, "refresh_steps"),
        (retriever.train_context_encoder, retriever.over_retrieve, resting.over_retrieve, "over_retrieve"),
        (config.trains_retriever, config.optim.retriever_learning_rate, None, "retriever_learning_rate"),
    ]  # fmt: skip
    return [name for in_use, value, usual, name in asked if not in_use and value != usual]


def build(config: RagConfig, data: TrainingQuestions) -> RagParts:
    """Build the networks, open the index, tokenise questions and passages.

    Raises:
        ConfigError: a model cannot be loaded or is of the wrong kind.
        IndexMismatchError: the encoders' vectors do not fit the index.
    """
    index = DenseIndex.open(Path(data.sources["index"]["path"]), passages=config.data.passages_path)
    model = prepare.rag_model(config, index)
    data.sources["rag"] = dataclasses.asdict(model.settings)
    data.sources["index"].update(count=index.count, encoder=index.manifest["encoder"])
    return RagParts(model, index, source_of(config, model, data.train), source_of(config, model, data.validation))


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
