"""The RAG model: a retriever, a generator, and the likelihood of a target under each retrieved passage."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig

from ragtrain.errors import ConfigError
from ragtrain.models.encoder import evaluating
from ragtrain.models.readers import IGNORED, Seq2SeqReader, fuse, load_generator, portioned, reader_for
from ragtrain.models.retrieved import Pool, Retrieved

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ragtrain.models.encoder import TextEncoder

__all__ = ["IGNORED", "Pool", "RagModel", "RagOutput", "RagSettings", "Retrieved", "doc_scores", "load_generator"]

TargetStyle = Literal["shift-right", "hf"]
Likelihood = Literal["sequence", "token", "fid"]


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
        likelihood: what an answer's likelihood is: marginalised over passages as a whole (``sequence``) or token by
            token (``token``), or read from all passages at once (``fid``).
        title_sep: between title and text of a passage.
        doc_sep: between passage and question.
    """

    target_style: TargetStyle = "shift-right"
    n_docs: int = 5
    max_input_tokens: int = 300
    max_question_tokens: int = 64
    max_target_tokens: int = 32
    score_temperature: float = 1.0
    likelihood: Likelihood = "sequence"
    title_sep: str = " / "
    doc_sep: str = " // "


@dataclasses.dataclass(frozen=True)
class RagOutput:
    """Likelihoods and scores, from which every objective is made.

    Attributes:
        token_loglik: (batch, n_docs, target tokens) float32 log p(y_t|q,z,y_<t), 0 where no token is scored. Without a
            gradient where passages are read all at once, and of no tokens where it was not asked for.
        smooth: (batch, n_docs) float32 log-probabilities summed over real positions and the vocabulary, if asked for.
        fused_loglik: (batch, target tokens) float32, of a reader of all passages at once; else None.
        scores: (batch, n_docs) float32 inner products of question and passage vectors over the temperature.
        retrieved: what was retrieved.
        target_mask: (batch, target tokens) bool, True where a token is scored.
        prior_counts: (batch,) bool for ``ragtrain.losses.rag_sequence``; None where every prior counts.
        vocab_size: entries of the generator's vocabulary.
        query: (batch, dim) float32 question vectors.
        pool_vectors: (m, dim) float32 vectors of ``retrieved.pool``, if there is one: fresh ones where its encoder is
            trained.
    """

    token_loglik: Tensor
    smooth: Tensor | None
    fused_loglik: Tensor | None
    scores: Tensor
    retrieved: Retrieved
    target_mask: Tensor
    prior_counts: Tensor | None
    vocab_size: int
    query: Tensor
    pool_vectors: Tensor | None = None

    @property
    def loglik(self) -> Tensor:
        """(batch, n_docs) float32 log p(y|q,z), summed over real target tokens."""
        return summed(self.token_loglik)

    @property
    def target_tokens(self) -> Tensor:
        """(batch,) real target tokens that were scored."""
        return self.target_mask.sum(1)


class RagModel(nn.Module):
    """Question encoder and generator, trained through the passages that an index returns.

    Attributes:
        question_encoder: the question tower.
        passage_encoder: the passage tower, where it is trained; else passage vectors are the index's.
        generator: a BART or T5, or a causal language model.
        generator_tokenizer: its tokenizer.
        reader: how the generator reads.
        settings: what is saved with the model.
        doc_chunk: passages of each question whose activations are held at a time; None for all.
        passage_fingerprint: of the passage tower as it was before training, without adapters; None without one.
    """

    def __init__(
        self,
        question_encoder: TextEncoder,
        generator: PreTrainedModel,
        generator_tokenizer: PreTrainedTokenizerBase,
        settings: RagSettings | None = None,
        *,
        passage_encoder: TextEncoder | None = None,
        train_question_encoder: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Put the parts together.

        The generator's own generation settings (forced tokens, n-gram blocking, length penalties made for
        summarisation) are reset to what its model configuration says, as transformers' RAG does: otherwise the same
        weights would answer differently here and there.

        Raises:
            ConfigError: the generator is of no known kind, or cannot read all passages at once.
        """
        super().__init__()
        config = generator.config
        self.reader = reader_for(generator)
        self.question_encoder, self.passage_encoder = question_encoder, passage_encoder
        self.generator = generator
        self.generator_tokenizer = generator_tokenizer
        self.settings = settings or RagSettings()
        if self.reader.causal and self.settings.target_style == "hf":
            raise ConfigError(
                f"a {config.model_type} model reads its targets as they stand: target_style=hf, the unshifted targets of "
                "facebook/rag-*, is for BART and T5",
                hint="Leave --target-style out.",
            )
        if self.reader.causal and self.settings.likelihood == "fid":
            raise ConfigError(
                f"a {config.model_type} model has no encoder whose passages could be fused",
                hint="Take a BART or T5 generator for --reader fid, or leave --reader out.",
            )
        self.doc_chunk: int | None = None
        self.passage_fingerprint: str | None = None
        self.train_question_encoder = train_question_encoder
        if not train_question_encoder:
            self.question_encoder.requires_grad_(False)
        self._noisy_encoder = _has_dropout(question_encoder)
        self.generator.generation_config = GenerationConfig.from_model_config(config)
        if self.reader.causal:
            self.generator.generation_config.pad_token_id = generator_tokenizer.pad_token_id
        if gradient_checkpointing:
            # Renamed within transformers 5; the first argument is the same.
            enable = getattr(generator, "activation_checkpointing_enable", generator.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        pad = generator_tokenizer.pad_token_id if self.reader.causal else config.pad_token_id
        self.pad_token_id = cast("int", pad)
        self.decoder_start_token_id: int = _start_token(config)

    @property
    def vocab_size(self) -> int:
        """Entries of the generator's vocabulary."""
        return self.reader.vocab_size

    def train(self, mode: bool = True) -> RagModel:
        """Set training mode; a network without anything to train stays without dropout."""
        super().train(mode)
        for part in (self.question_encoder, self.generator):
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def forward(
        self,
        question_ids: Tensor,
        question_mask: Tensor,
        targets: Tensor,
        retrieve: Callable[[Tensor], Retrieved],
        *,
        with_smooth: bool = False,
        with_documents: bool = True,
    ) -> RagOutput:
        """Retrieve, and return the log-likelihood of each target under each passage found.

        The search uses the question vector without dropout, the score the one with it: noise in what is found would
        not be paid back by any gradient.

        Args:
            question_ids: (batch, question tokens) of the question encoder's tokenizer.
            question_mask: (batch, question tokens).
            targets: (batch, target tokens) of the generator's tokenizer with its special tokens, padded with -100
                (of an encoder-decoder, the pad token is ignored too).
            retrieve: (batch, dim) float32 question vectors to passages. Rows of missing passages may hold anything.
            with_smooth: also return what label smoothing needs.
            with_documents: where passages are read all at once, also return the likelihood under each alone.
        """
        query, retrieved = self.retrieve(question_ids, question_mask, retrieve)
        decoder_input_ids, labels, prior_counts = self.decoder_inputs(targets)
        vectors, pool_vectors = self._passage_vectors(retrieved)
        token_loglik, smooth, fused = (
            self._read_fused(retrieved, decoder_input_ids, labels, with_documents=with_documents)
            if self.settings.likelihood == "fid"
            else self._read_each(retrieved, decoder_input_ids, labels, with_smooth=with_smooth)
        )
        return RagOutput(
            token_loglik=token_loglik,
            smooth=smooth,
            fused_loglik=fused,
            scores=doc_scores(query, vectors) / self.settings.score_temperature,
            retrieved=retrieved,
            target_mask=labels != IGNORED,
            prior_counts=prior_counts,
            vocab_size=self.vocab_size,
            query=query,
            pool_vectors=pool_vectors,
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
        """Return (batch, n_docs) float32 scores with the index's vectors, whose softmax is the prior."""
        return doc_scores(query, retrieved.vectors) / self.settings.score_temperature

    def _passage_vectors(self, retrieved: Retrieved) -> tuple[Tensor, Tensor | None]:
        """Return (batch, n_docs, dim) vectors of what was retrieved and (m, dim) of the pool, fresh where trained."""
        pool = retrieved.pool
        if pool is None:
            return retrieved.vectors, None
        if pool.inputs is None or self.passage_encoder is None:
            return retrieved.vectors, pool.vectors
        fresh = self.passage_encoder(**pool.inputs)
        return fresh[pool.place], fresh

    def _read_each(
        self, retrieved: Retrieved, decoder_input_ids: Tensor, labels: Tensor, *, with_smooth: bool
    ) -> tuple[Tensor, Tensor | None, None]:
        """Read every passage with its question by itself."""
        batch, n_docs = retrieved.ids.shape
        owner = torch.arange(batch, device=labels.device).repeat_interleave(n_docs)

        def read(rows: Tensor) -> tuple[Tensor, Tensor]:
            ids, mask = self.reader.trim(retrieved.input_ids[rows], retrieved.attention_mask[rows])
            mine = owner[rows]
            return self.reader.read(ids, mask, decoder_input_ids[mine], labels[mine], with_smooth=with_smooth)

        token, smooth = self._in_chunks(read, retrieved, batch)
        return (
            token.view(batch, n_docs, -1),
            smooth.view(batch, n_docs, -1).sum(-1) if with_smooth else None,
            None,
        )

    def _read_fused(
        self, retrieved: Retrieved, decoder_input_ids: Tensor, labels: Tensor, *, with_documents: bool
    ) -> tuple[Tensor, None, Tensor]:
        """Read all passages of a question at once; each of them alone without gradient and dropout."""
        reader = cast("Seq2SeqReader", self.reader)
        batch, n_docs = retrieved.ids.shape
        # An input without passage still holds the question; fused, it would be read as one more passage.
        mask = retrieved.attention_mask * retrieved.mask.reshape(-1, 1)
        states = self._encode_in_chunks(reader, retrieved, batch)
        fused, fused_mask = fuse(states, mask, n_docs)
        loglik, _ = reader.token_loglik(fused, fused_mask, decoder_input_ids, labels)
        if not with_documents:
            return loglik.new_zeros((batch, n_docs, 0)), None, loglik
        owner = torch.arange(batch, device=labels.device).repeat_interleave(n_docs)
        chunks = torch.split(torch.arange(len(owner), device=labels.device), batch * (self.doc_chunk or n_docs))
        with evaluating(self.generator):
            alone = [
                reader.token_loglik(states[rows], mask[rows], decoder_input_ids[owner[rows]], labels[owner[rows]])[0]
                for rows in chunks
            ]
        return torch.cat(alone).view(batch, n_docs, -1), None, loglik

    def _in_chunks(
        self, read: Callable[[Tensor], tuple[Tensor, Tensor]], retrieved: Retrieved, batch: int
    ) -> tuple[Tensor, Tensor]:
        """Return what ``read`` gives for all rows, in portions of neighbouring length: less padding is computed.

        With ``doc_chunk``, a portion's activations are thrown away and made anew, with the same dropout, when their
        gradient is due: the gradient is exact, the memory that of a portion.
        """
        device = retrieved.attention_mask.device
        lengths = retrieved.lengths
        if lengths is None:
            lengths = retrieved.attention_mask.sum(1).tolist()
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        if self.doc_chunk is None:
            portions = portioned(order, lengths, on_cpu=device.type == "cpu")
            if len(portions) == 1:
                return read(torch.arange(len(order), device=device))
            parts = [read(torch.tensor(rows, device=device)) for rows in portions]
        else:
            size = batch * self.doc_chunk
            portions = [order[start : start + size] for start in range(0, len(order), size)]
            parts = [checkpoint(read, torch.tensor(rows, device=device), use_reentrant=False) for rows in portions]
        token, smooth = (torch.cat(each) for each in zip(*parts, strict=True))
        back = torch.tensor(order, device=device).argsort()
        return token[back], smooth[back]

    def _encode_in_chunks(self, reader: Seq2SeqReader, retrieved: Retrieved, batch: int) -> Tensor:
        if self.doc_chunk is None:
            return reader.encode(retrieved.input_ids, retrieved.attention_mask)
        pairs = zip(
            torch.split(retrieved.input_ids, batch * self.doc_chunk),
            torch.split(retrieved.attention_mask, batch * self.doc_chunk),
            strict=True,
        )
        return torch.cat([checkpoint(reader.encode, *pair, use_reentrant=False) for pair in pairs])

    def decoder_inputs(self, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what the decoder reads, what it is to predict (-100: nothing), and whose prior counts.

        Args:
            targets: (batch, target tokens), padded with -100, or of an encoder-decoder with the pad token.

        Returns:
            (batch, target tokens) decoder inputs, (batch, target tokens) labels, and for style ``hf`` a (batch,)
            bool that is False where transformers loses the prior: targets of a single predicted token.
        """
        if self.reader.causal:  # its pad token may be its end token, which is to be predicted
            return targets.masked_fill(targets == IGNORED, self.pad_token_id), targets, None
        real = targets.masked_fill(targets == self.pad_token_id, IGNORED)
        filled = real.masked_fill(real == IGNORED, self.pad_token_id)
        if self.settings.target_style == "hf":
            labels = torch.cat([real[:, 1:], real.new_full((len(real), 1), IGNORED)], dim=1)
            has_second = labels[:, 1] != IGNORED if labels.shape[1] > 1 else labels.new_zeros(len(labels)).bool()
            return filled, labels, has_second
        start = filled.new_full((len(filled), 1), self.decoder_start_token_id)
        return torch.cat([start, filled[:, :-1]], dim=1), real, None

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the states (rows, tokens, width) that the encoder of an encoder-decoder makes of its inputs."""
        return cast("Seq2SeqReader", self.reader).encode(input_ids, attention_mask)

    def target_loglik(
        self, states: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor, labels: Tensor
    ) -> Tensor:
        """Return log p(labels | inputs) of each row of an encoder-decoder, (rows,) float32; see ``token_loglik``."""
        reader = cast("Seq2SeqReader", self.reader)
        return summed(reader.token_loglik(states, attention_mask, decoder_input_ids, labels)[0])


def summed(token_loglik: Tensor) -> Tensor:
    """Return log-likelihoods (...) of whole targets: sums over (..., target tokens), never means."""
    return token_loglik.sum(-1)


def doc_scores(query: Tensor, vectors: Tensor) -> Tensor:
    """Return the inner products (batch, n_docs) of (batch, dim) and (batch, n_docs, dim), float32 under autocast too.

    bfloat16 would round DPR's scores, which are 60 to 90, to half a nat.
    """
    with torch.autocast(query.device.type, enabled=False):
        return torch.bmm(vectors.float(), query.float().unsqueeze(-1)).squeeze(-1)


def _start_token(config: Any) -> int:  # noqa: ANN401 - any transformers configuration
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        # T5 starts at its pad token; its configuration class no longer has a field that says so. A causal language
        # model has no start: it goes on from its input.
        start = config.pad_token_id
    return -1 if start is None else int(start)


def _has_dropout(encoder: TextEncoder) -> bool:
    """Say whether two passes in training mode can differ."""
    layers = any(isinstance(part, nn.Dropout) and part.p > 0 for part in encoder.modules())
    config = encoder.model.config.to_dict()
    rates = [value for key, value in config.items() if "drop" in key and isinstance(value, int | float)]
    return layers or any(rate > 0 for rate in rates)
