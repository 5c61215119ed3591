"""The RAG model of a configuration, built around an index: for training, and for looking at what was trained."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ragtrain.data import demo
from ragtrain.errors import IndexMismatchError
from ragtrain.models.adapters import add_lora
from ragtrain.models.export import load_rag
from ragtrain.models.rag import Likelihood, RagModel, RagSettings, load_generator
from ragtrain.models.readers import is_causal
from ragtrain.prepare.encoders import context_encoder, question_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ragtrain.config.commands import RagConfig
    from ragtrain.index.search import DenseIndex

log = logging.getLogger("ragtrain")

#: sentence-transformers trains its cosine encoders with a scale of 20.
COSINE_TEMPERATURE = 0.05


def rag_model(config: RagConfig, index: DenseIndex, settings: RagSettings | None = None) -> RagModel:
    """Return the model of a configuration as it is before training: frozen where it stays, with adapters where asked for.

    Args:
        config: of the run.
        index: whose encoders are meant where none is named.
        settings: as they were resolved before; without it they are resolved for index and generator.

    Raises:
        ConfigError: a model cannot be loaded or is of the wrong kind.
        IndexMismatchError: the encoders' vectors do not fit the index.
    """
    asked, retriever = config.model, config.retriever
    passages = None
    if asked.model_dir is not None:
        start = load_rag(asked.model_dir)
        encoder, generator, tokenizer = start.question_encoder, start.generator, start.generator_tokenizer
        passages = start.passage_encoder
        _check_index(asked.model_dir, start, config, index)
        settings = settings or settings_of(config, generator, cosine=index.metric == "cosine", start=start.settings)
    else:
        encoder = question_encoder(index, asked.question_encoder)
        generator, tokenizer = load_generator(asked.generator or demo.GENERATOR)
    if not retriever.train_context_encoder:
        passages = None
    elif passages is None or retriever.context_encoder is not None:
        passages = context_encoder(index, retriever.context_encoder)
    settings = settings or settings_of(config, generator, cosine=index.metric == "cosine")
    model = RagModel(
        encoder, generator, tokenizer, settings, passage_encoder=passages,
        train_question_encoder=asked.train_question_encoder, gradient_checkpointing=asked.gradient_checkpointing,
    )  # fmt: skip
    model.doc_chunk = asked.doc_chunk
    model.passage_fingerprint = None if passages is None else passages.fingerprint()
    adapt(config, model)
    return model


def _check_index(name: str, start: RagModel, config: RagConfig, index: DenseIndex) -> None:
    """Refuse a model whose both towers were trained beside vectors that are not of its passage tower."""
    if start.passage_encoder is None or config.retriever.train_context_encoder:  # then the index follows the tower
        return
    if start.passage_encoder.fingerprint() != index.manifest["encoder"].get("fingerprint"):
        raise IndexMismatchError(
            f"its vectors are not of the passage encoder that was trained with the question encoder of {name}",
            path=index.path,
            hint="give the index that the run left in its folder (--index-path RUN/index), or --train-context-encoder, "
            "which encodes the passages anew",
        )


def settings_of(
    config: RagConfig, generator: PreTrainedModel, *, cosine: bool, start: RagSettings | None = None
) -> RagSettings:
    """Return what is saved with the model, resolved for this generator and an index of cosines or inner products.

    ``start`` is what the model was saved with that training begins from: its temperature goes on where none is given.
    """
    asked = config.model
    if start is not None and start.target_style != asked.target_style:
        log.warning("%s was trained with target style %s, and is trained with %s from here on (--target-style)",
                    asked.model_dir, start.target_style, asked.target_style)  # fmt: skip
    # Transformers' own models have no temperature: theirs is 1, whatever the index.
    usual = start.score_temperature if start is not None else COSINE_TEMPERATURE if cosine else 1.0
    # BART and most causal models have as many positions as they were trained with; T5 has no limit.
    causal = is_causal(generator.config)
    own = generator.config.get_text_config() if causal else generator.config
    limit = getattr(own, "max_position_embeddings", None)
    most = int(limit or asked.max_input_tokens)
    if limit and causal:  # input and answer are one text
        most -= asked.max_target_tokens
    if most < asked.max_input_tokens:
        log.info("max_input_tokens is %d instead of %d: the generator reads no more", most, asked.max_input_tokens)
    likelihood: Likelihood = "token" if config.objective.objective == "rag-token" else "sequence"
    return RagSettings(
        target_style=asked.target_style, n_docs=asked.n_docs, max_input_tokens=min(most, asked.max_input_tokens),
        max_question_tokens=asked.max_question_tokens, max_target_tokens=asked.max_target_tokens,
        score_temperature=asked.score_temperature or usual,
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
