"""The RAG model: a question encoder, a generator, and the likelihood of a target under each retrieved passage."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig

from ragtrain.errors import ConfigError, DataError
from ragtrain.models.encoder import evaluating
from ragtrain.models.folders import load_tokenizer, load_weights, local_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ragtrain.models.encoder import TextEncoder

TargetStyle = Literal["shift-right", "hf"]
IGNORED = -100
#: Generators whose decoder and head are known: transformers' model types.
GENERATORS = ("bart", "t5", "mt5")


@dataclasses.dataclass(frozen=True)
class RagSettings:
    """What belongs to a RAG model besides its networks, and is saved with it.

    Attributes:
        target_style: ``shift-right`` feeds the decoder the target shifted by its start token; ``hf`` feeds it the
            target itself and predicts the target without its first token, as ``facebook/rag-*`` was trained.
        n_docs: passages marginalised over.
        max_input_tokens: generator input, passage and question together.
        max_question_tokens: longest question the question encoder reads.
        max_target_tokens: longest answer, end token included.
        score_temperature: what inner products are divided by before they become a prior. Cosines need one well below
            1: their softmax is flat, and a flat prior teaches the retriever next to nothing.
        title_sep: between title and text of a passage.
        doc_sep: between passage and question.
    """

    target_style: TargetStyle = "shift-right"
    n_docs: int = 5
    max_input_tokens: int = 300
    max_question_tokens: int = 64
    max_target_tokens: int = 32
    score_temperature: float = 1.0
    title_sep: str = " / "
    doc_sep: str = " // "


@dataclasses.dataclass(frozen=True)
class Retrieved:
    """Passages found for a batch of questions, assembled with them into generator inputs.

    Attributes:
        vectors: (batch, n_docs, dim) float32, the passages' vectors in the index.
        mask: (batch, n_docs) bool, False where fewer passages were found.
        ids: (batch, n_docs) int64 positions in the index, -1 where ``mask`` is False.
        input_ids: (batch * n_docs, tokens) generator inputs, the passages of one question after each other.
        attention_mask: (batch * n_docs, tokens), 1 where there is a token.
    """

    vectors: Tensor
    mask: Tensor
    ids: Tensor
    input_ids: Tensor
    attention_mask: Tensor


@dataclasses.dataclass(frozen=True)
class RagOutput:
    """Likelihoods and scores, from which every objective is made.

    Attributes:
        loglik: (batch, n_docs) float32 log p(y|q,z), summed over real target tokens.
        smooth: (batch, n_docs) float32 log-probabilities summed over real positions and the vocabulary, if asked for.
        scores: (batch, n_docs) float32 inner products of question and passage vectors over the temperature.
        retrieved: what was retrieved.
        target_tokens: (batch,) real target tokens that were scored.
        prior_counts: (batch,) bool for ``ragtrain.losses.rag_sequence``; None where every prior counts.
        vocab_size: entries of the generator's vocabulary.
    """

    loglik: Tensor
    smooth: Tensor | None
    scores: Tensor
    retrieved: Retrieved
    target_tokens: Tensor
    prior_counts: Tensor | None
    vocab_size: int


class RagModel(nn.Module):
    """Question encoder and generator, trained through the passages that an index returns.

    Attributes:
        question_encoder: the question tower; passage vectors are the index's.
        generator: a BART or T5 for conditional generation.
        generator_tokenizer: its tokenizer.
        settings: what is saved with the model.
    """

    def __init__(
        self,
        question_encoder: TextEncoder,
        generator: PreTrainedModel,
        generator_tokenizer: PreTrainedTokenizerBase,
        settings: RagSettings | None = None,
        *,
        train_question_encoder: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Put the parts together.

        The generator's own generation settings (forced tokens, n-gram blocking, length penalties made for
        summarisation) are reset to what its model configuration says, as transformers' RAG does: otherwise the same
        weights would answer differently here and there.

        Raises:
            ConfigError: the generator is neither a BART nor a T5.
        """
        super().__init__()
        config = generator.config
        if config.model_type not in GENERATORS:
            raise ConfigError(
                f"generator is a {config.model_type} model; expected one of {', '.join(GENERATORS)}",
                hint="Choose a BART or T5 model with --generator.",
            )
        self.question_encoder = question_encoder
        self.generator = generator
        self.generator_tokenizer = generator_tokenizer
        self.settings = settings or RagSettings()
        self.train_question_encoder = train_question_encoder
        self.question_encoder.requires_grad_(train_question_encoder)
        self._noisy_encoder = _has_dropout(question_encoder)
        self.generator.generation_config = GenerationConfig.from_model_config(config)
        if gradient_checkpointing:
            # Renamed within transformers 5; the first argument is the same.
            enable = getattr(generator, "activation_checkpointing_enable", generator.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        self.pad_token_id: int = config.pad_token_id
        self.decoder_start_token_id: int = _start_token(config)

    @property
    def vocab_size(self) -> int:
        """Entries of the generator's vocabulary."""
        return cast("int", self._part("lm_head").out_features)

    def train(self, mode: bool = True) -> RagModel:
        """Set training mode; a frozen question encoder stays without dropout."""
        super().train(mode)
        if not self.train_question_encoder:
            self.question_encoder.eval()
        return self

    def forward(
        self,
        question_ids: Tensor,
        question_mask: Tensor,
        targets: Tensor,
        retrieve: Callable[[Tensor], Retrieved],
        *,
        with_smooth: bool = False,
    ) -> RagOutput:
        """Retrieve, and return the log-likelihood of each target under each passage found.

        The search uses the question vector without dropout, the score the one with it: noise in what is found would
        not be paid back by any gradient.

        Args:
            question_ids: (batch, question tokens) of the question encoder's tokenizer.
            question_mask: (batch, question tokens).
            targets: (batch, target tokens) of the generator's tokenizer with its special tokens, padded with -100
                (the pad token is ignored too).
            retrieve: (batch, dim) float32 question vectors to passages. Rows of missing passages may hold anything.
            with_smooth: also return what label smoothing needs.
        """
        query, retrieved = self.retrieve(question_ids, question_mask, retrieve)
        decoder_input_ids, labels, prior_counts = self.decoder_inputs(targets)
        n_docs = retrieved.vectors.shape[1]
        loglik, smooth = self.target_loglik(
            self.encode(retrieved.input_ids, retrieved.attention_mask),
            retrieved.attention_mask,
            decoder_input_ids.repeat_interleave(n_docs, dim=0),
            labels.repeat_interleave(n_docs, dim=0),
            with_smooth=with_smooth,
        )
        return RagOutput(
            loglik=loglik.view(-1, n_docs),
            smooth=None if smooth is None else smooth.view(-1, n_docs),
            scores=self.scores(query, retrieved),
            retrieved=retrieved,
            target_tokens=(labels != IGNORED).sum(1),
            prior_counts=prior_counts,
            vocab_size=self.vocab_size,
        )

    def retrieve(
        self, question_ids: Tensor, question_mask: Tensor, retrieve: Callable[[Tensor], Retrieved]
    ) -> tuple[Tensor, Retrieved]:
        """Return question vectors (batch, dim) for scoring, and the passages found with their noiseless twins."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_question_encoder):
            query = self.question_encoder(question_ids, question_mask)
        search = query.detach()
        if self.question_encoder.training and self._noisy_encoder:
            with evaluating(self.question_encoder):
                search = self.question_encoder(question_ids, question_mask)
        return query, retrieve(search)

    def scores(self, query: Tensor, retrieved: Retrieved) -> Tensor:
        """Return (batch, n_docs) float32 scores, whose softmax is the prior."""
        return doc_scores(query, retrieved.vectors) / self.settings.score_temperature

    def decoder_inputs(self, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what the decoder reads, what it is to predict (-100: nothing), and whose prior counts.

        Args:
            targets: (batch, target tokens), padded with -100 or the pad token.

        Returns:
            (batch, target tokens) decoder inputs, (batch, target tokens) labels, and for style ``hf`` a (batch,)
            bool that is False where transformers loses the prior: targets of a single predicted token.
        """
        real = targets.masked_fill(targets == self.pad_token_id, IGNORED)
        filled = real.masked_fill(real == IGNORED, self.pad_token_id)
        if self.settings.target_style == "hf":
            labels = torch.cat([real[:, 1:], real.new_full((len(real), 1), IGNORED)], dim=1)
            has_second = labels[:, 1] != IGNORED if labels.shape[1] > 1 else labels.new_zeros(len(labels)).bool()
            return filled, labels, has_second
        start = filled.new_full((len(filled), 1), self.decoder_start_token_id)
        return torch.cat([start, filled[:, :-1]], dim=1), real, None

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the generator encoder's states (rows, tokens, width) of (rows, tokens) inputs."""
        mask = _never_empty(attention_mask)
        return cast("Tensor", self._part("encoder")(input_ids=input_ids, attention_mask=mask).last_hidden_state)

    def target_loglik(
        self,
        states: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor,
        labels: Tensor,
        *,
        with_smooth: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return log p(labels | inputs) of each row, float32.

        Only positions with a label meet the language-model head.

        Args:
            states: (rows, tokens, width) encoder states.
            attention_mask: (rows, tokens).
            decoder_input_ids: (rows, target tokens).
            labels: (rows, target tokens), -100 where nothing is to be predicted.
            with_smooth: also return the sum of log-probabilities over positions and the whole vocabulary.

        Returns:
            (rows,) sums over target tokens, and the smoothing sums or None.
        """
        hidden = self._part("decoder")(
            input_ids=decoder_input_ids,
            encoder_hidden_states=states,
            encoder_attention_mask=_never_empty(attention_mask),
            use_cache=False,
        ).last_hidden_state
        keep = labels != IGNORED
        logits = self._head(hidden[keep]).float()
        token_loglik = -nn.functional.cross_entropy(logits, labels[keep], reduction="none")
        loglik = _spread(token_loglik, keep)
        return loglik, _spread(torch.log_softmax(logits, dim=-1).sum(-1), keep) if with_smooth else None

    def _head(self, hidden: Tensor) -> Tensor:
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


def doc_scores(query: Tensor, vectors: Tensor) -> Tensor:
    """Return the inner products (batch, n_docs) of (batch, dim) and (batch, n_docs, dim), float32 under autocast too.

    bfloat16 would round DPR's scores, which are 60 to 90, to half a nat.
    """
    with torch.autocast(query.device.type, enabled=False):
        return torch.bmm(vectors.float(), query.float().unsqueeze(-1)).squeeze(-1)


def load_generator(name_or_path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a BART or T5 generator and its tokenizer from a folder or the hub, float32.

    Raises:
        ConfigError: there is no such model, or it is of another kind.
        DataError: weights or tokenizer are missing or cannot be read safely.
    """
    folder = local_folder(name_or_path, kind="generator")
    name = str(name_or_path)
    try:
        kind = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
    except (OSError, ValueError) as error:
        raise DataError(f"not a model of transformers' own: {error}", path=name) from error
    if kind not in GENERATORS:
        raise ConfigError(
            f"generator {name!r} is a {kind} model; expected one of {', '.join(GENERATORS)}",
            hint="Choose a BART or T5 model with --generator.",
        )
    return load_weights(AutoModelForSeq2SeqLM, folder, name), load_tokenizer(folder, name)


def _start_token(config: Any) -> int:  # noqa: ANN401 - any transformers configuration
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        # T5 starts at its pad token; its configuration class no longer has a field that says so.
        start = config.pad_token_id
    return cast("int", start)


def _spread(values: Tensor, keep: Tensor) -> Tensor:
    """Sum values of the kept positions over each row: (kept,) and (rows, positions) to (rows,)."""
    table = values.new_zeros(keep.shape)
    table[keep] = values
    return table.sum(1)


def _never_empty(attention_mask: Tensor) -> Tensor:
    """Let a row without any token see its first position: attention over nothing is NaN, even in the gradient."""
    empty = attention_mask.sum(1, keepdim=True) == 0
    first = torch.arange(attention_mask.shape[1], device=attention_mask.device) == 0
    return attention_mask.masked_fill(empty & first, 1)


def _has_dropout(encoder: TextEncoder) -> bool:
    """Say whether two passes in training mode can differ."""
    layers = any(isinstance(part, nn.Dropout) and part.p > 0 for part in encoder.modules())
    config = encoder.model.config.to_dict()
    rates = [value for key, value in config.items() if "drop" in key and isinstance(value, int | float)]
    return layers or any(rate > 0 for rate in rates)
