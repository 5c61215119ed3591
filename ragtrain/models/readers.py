"""How a generator reads: from inputs and targets to the log-likelihood of every target token.

An encoder-decoder (BART, T5) reads passage and question with its encoder and the answer with its decoder; a causal
language model reads both as one text. Everything above a reader sees (rows, target tokens) log-likelihoods and does not
know which of the two it was.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from ragtrain.errors import ConfigError, DataError
from ragtrain.models.folders import load_tokenizer, load_weights, local_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
#: Encoder-decoders whose decoder and head are known: transformers' model types.
SEQ2SEQ = ("bart", "t5", "mt5")
#: Tokens, padding included, below which a portion of rows is not worth its own pass through the network.
LEAST_TOKENS = {"cpu": 512, "gpu": 16384}
HINT = "Choose a BART or T5 model, or a causal language model, with --generator."


def is_causal(config: Any) -> bool:  # noqa: ANN401 - any transformers configuration
    """Say whether a generator of this configuration is a causal language model (else it is a BART or T5).

    Raises:
        ConfigError: it is neither.
    """
    if config.model_type in SEQ2SEQ:
        return False
    both_ways = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not (both_ways or config.is_encoder_decoder):
        return True
    raise ConfigError(
        f"generator is a {config.model_type} model; expected one of {', '.join(SEQ2SEQ)}, or a causal language model",
        hint=HINT,
    )


class Seq2SeqReader:
    """A BART or T5 that reads inputs with its encoder and targets with its decoder."""

    causal = False

    def __init__(self, generator: PreTrainedModel) -> None:
        self.generator = generator

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""
        return cast("int", self._part("lm_head").out_features)

    def trim(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return (rows, tokens) inputs without the columns in which no row has a token."""
        longest = max(1, int(attention_mask.sum(1).max()))
        return input_ids[:, :longest], attention_mask[:, :longest]

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the encoder's states (rows, tokens, width) of (rows, tokens) inputs."""
        mask = never_empty(attention_mask)
        return cast("Tensor", self._part("encoder")(input_ids=input_ids, attention_mask=mask).last_hidden_state)

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor,
        labels: Tensor,
        *,
        with_smooth: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return what ``token_loglik`` returns, from (rows, tokens) inputs."""
        states = self.encode(input_ids, attention_mask)
        return self.token_loglik(states, attention_mask, decoder_input_ids, labels, with_smooth=with_smooth)

    def token_loglik(
        self,
        states: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor,
        labels: Tensor,
        *,
        with_smooth: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return log p(label) at each target position, 0 where there is none; only real positions meet the head.

        Args:
            states: (rows, tokens, width) encoder states.
            attention_mask: (rows, tokens).
            decoder_input_ids: (rows, target tokens).
            labels: (rows, target tokens), -100 where nothing is to be predicted.
            with_smooth: also sum log-probabilities over the whole vocabulary.

        Returns:
            (rows, target tokens) float32, and the same summed over the vocabulary (zeros unless asked for).
        """
        hidden = self._part("decoder")(
            input_ids=decoder_input_ids,
            encoder_hidden_states=states,
            encoder_attention_mask=never_empty(attention_mask),
            use_cache=False,
        ).last_hidden_state
        keep = labels != IGNORED
        return picked(self.head(hidden[keep]), labels, keep, with_smooth=with_smooth)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits (positions, vocabulary) of decoder states, exactly as the generator makes them."""
        config = self.generator.config
        if config.model_type == "bart":
            return cast("Tensor", self.generator.lm_head(hidden) + self.generator.final_logits_bias)
        # A T5 of the first version ties its head to the embeddings and scales for it; version 1.1 does neither.
        if getattr(config, "scale_decoder_outputs", config.tie_word_embeddings):
            hidden = hidden * config.d_model**-0.5
        return cast("Tensor", self.generator.lm_head(hidden))

    def _part(self, name: Literal["encoder", "decoder", "lm_head"]) -> Any:  # noqa: ANN401 - a transformers module
        bart = self.generator.config.model_type == "bart" and name != "lm_head"
        return getattr(self.generator.model if bart else self.generator, name)


class CausalReader:
    """A causal language model that reads the target right after its input, which is padded on the left."""

    causal = True

    def __init__(self, generator: PreTrainedModel) -> None:
        self.generator = generator
        known = inspect.signature(type(generator).forward).parameters
        self._keeps, self._positions = "logits_to_keep" in known, "position_ids" in known

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""
        return int(self.generator.config.get_text_config().vocab_size)

    def trim(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return (rows, tokens) inputs without the columns in which no row has a token."""
        longest = max(1, int(attention_mask.sum(1).max()))
        return input_ids[:, -longest:], attention_mask[:, -longest:]

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor,
        labels: Tensor,
        *,
        with_smooth: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return log p(label) at each target position, 0 where there is none.

        The answer is appended to the input, so that the last ``target tokens + 1`` positions predict it in every row,
        and only they meet the head.

        Args:
            input_ids: (rows, tokens), padded on the left.
            attention_mask: (rows, tokens), 1 where there is a token.
            decoder_input_ids: (rows, target tokens): the answer itself, any token where a label is -100.
            labels: (rows, target tokens), -100 where nothing is to be predicted.
            with_smooth: also sum log-probabilities over the whole vocabulary.

        Returns:
            (rows, target tokens) float32, and the same summed over the vocabulary (zeros unless asked for).
        """
        keep = labels != IGNORED
        mask = torch.cat([attention_mask, keep.to(attention_mask.dtype)], dim=1)
        inputs: dict[str, Any] = {"input_ids": torch.cat([input_ids, decoder_input_ids], dim=1), "attention_mask": mask}
        if self._positions:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        n = labels.shape[1] + 1
        if self._keeps:
            inputs["logits_to_keep"] = n
        logits = self.generator(**inputs, use_cache=False).logits[:, -n:-1]
        return picked(logits[keep], labels, keep, with_smooth=with_smooth)


Reader = Seq2SeqReader | CausalReader


def reader_for(generator: PreTrainedModel) -> Reader:
    """Return how this generator reads.

    Raises:
        ConfigError: it is neither a BART, a T5 nor a causal language model.
    """
    return CausalReader(generator) if is_causal(generator.config) else Seq2SeqReader(generator)


def portioned(order: Sequence[int], lengths: Sequence[int], *, on_cpu: bool) -> list[list[int]]:
    """Cut rows, longest first, into portions of similar length.

    A new portion begins where a row would be padded by more than a tenth, and the one before has enough tokens to keep
    the device busy.

    Args:
        order: rows by falling length.
        lengths: tokens of each row.
        on_cpu: whether the CPU computes, which is busy with fewer tokens.
    """
    least = LEAST_TOKENS["cpu" if on_cpu else "gpu"]
    portions: list[list[int]] = [[]]
    for row in order:
        now = portions[-1]
        if now and lengths[row] < 0.9 * lengths[now[0]] and len(now) * lengths[now[0]] >= least:
            portions.append([])
        portions[-1].append(row)
    return portions


def fuse(states: Tensor, attention_mask: Tensor, n_docs: int) -> tuple[Tensor, Tensor]:
    """Lay the encoder states of each question's passages end to end: fusion in the decoder (Izacard & Grave 2021).

    Args:
        states: (batch * n_docs, tokens, width), the passages of one question after each other.
        attention_mask: (batch * n_docs, tokens).
        n_docs: passages of each question.

    Returns:
        (batch, n_docs * tokens, width) states and their (batch, n_docs * tokens) mask.
    """
    rows, tokens, width = states.shape
    batch = rows // n_docs
    return states.view(batch, n_docs * tokens, width), attention_mask.view(batch, n_docs * tokens)


def picked(logits: Tensor, labels: Tensor, keep: Tensor, *, with_smooth: bool) -> tuple[Tensor, Tensor]:
    """Return log p(label) of the kept positions in their places, (rows, target tokens) float32, 0 elsewhere.

    Args:
        logits: (kept, vocabulary).
        labels: (rows, target tokens).
        keep: (rows, target tokens) bool.
        with_smooth: the second result sums log-probabilities over the vocabulary; else it is zero.
    """
    logits = logits.float()
    table = torch.zeros(keep.shape, dtype=torch.float32, device=keep.device)
    token = table.masked_scatter(keep, -nn.functional.cross_entropy(logits, labels[keep], reduction="none"))
    return token, table.masked_scatter(keep, torch.log_softmax(logits, dim=-1).sum(-1)) if with_smooth else table


def never_empty(attention_mask: Tensor) -> Tensor:
    """Let a row without any token see its first position: attention over nothing is NaN, even in the gradient."""
    empty = attention_mask.sum(1, keepdim=True) == 0
    first = torch.arange(attention_mask.shape[1], device=attention_mask.device) == 0
    return attention_mask.masked_fill(empty & first, 1)


def load_generator(name_or_path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a generator (BART, T5 or a causal language model) and its tokenizer from a folder or the hub, float32.

    Raises:
        ConfigError: there is no such model, or it is of another kind.
        DataError: weights or tokenizer are missing or cannot be read safely.
    """
    folder = local_folder(name_or_path, kind="generator")
    name = str(name_or_path)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"not a model of transformers' own: {error}", path=name) from error
    try:
        causal = is_causal(config)
    except ConfigError as error:
        raise ConfigError(error.message.replace("generator is", f"generator {name!r} is", 1), hint=HINT) from error
    tokenizer = load_tokenizer(folder, name)
    if causal and tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # as is usual: what is padded is masked
    return load_weights(AutoModelForCausalLM if causal else AutoModelForSeq2SeqLM, folder, name), tokenizer
