"""Answers: RAG-Sequence's thorough decoding (Lewis et al. 2020, section 2.5), batched over questions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from ragtrain.errors import DataError
from ragtrain.losses import log_joint, log_prior
from ragtrain.models.encoder import evaluating
from ragtrain.models.rag import IGNORED, RagModel, Retrieved

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: (candidate, passage) pairs scored at a time: each holds a copy of its passage's encoder states.
SCORED_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Answer:
    """The best answer to a question, and how much each passage had to do with it.

    Attributes:
        text: the answer.
        token_ids: its tokens, without the decoder's start token and padding.
        log_likelihood: log sum_z p(z|q) p(y|q,z); where the answer opens with a BOS token, without that token's.
        candidates: different answers that were weighed.
        passage_ids: the passages' positions in the index, -1 where fewer were found.
        scores: inner products of question and passages, over the model's temperature.
        prior: p(z|q) of each passage.
        posterior: p(z|q,y) of each passage.
    """

    text: str
    token_ids: tuple[int, ...]
    log_likelihood: float
    candidates: int
    passage_ids: tuple[int, ...]
    scores: tuple[float, ...]
    prior: tuple[float, ...]
    posterior: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class _Candidates:
    """Answers to be weighed: ``rows`` (candidates, tokens) from the start token on, ``owner`` (candidates,) question."""

    rows: Tensor
    owner: Tensor


def decode(
    model: RagModel,
    question_ids: Tensor,
    question_mask: Tensor,
    retrieve: Callable[[Tensor], Retrieved],
    *,
    num_beams: int = 4,
    max_new_tokens: int = 32,
) -> list[Answer]:
    """Return the best answer to each question.

    Every passage proposes the answers of its beam search; each different answer is then scored under *every* passage
    of its question, and the one with the highest marginal likelihood wins. The passages are encoded once for both.

    The answers are those of transformers' ``RagSequenceForGeneration.generate`` with de-duplication. Like it, a BOS
    token that all candidates of a question open with is not scored. Unlike it, an answer of one token keeps its
    prior, except in target style ``hf``.

    Args:
        model: the model, in any mode.
        question_ids: (batch, question tokens) of the question encoder's tokenizer.
        question_mask: (batch, question tokens).
        retrieve: (batch, dim) float32 question vectors to passages.
        num_beams: beams of each passage; 1 is greedy.
        max_new_tokens: longest answer.
    """
    with evaluating(model):
        query, retrieved = model.retrieve(question_ids, question_mask, retrieve)
        states = model.encode(retrieved.input_ids, retrieved.attention_mask)
        sequences = model.generator.generate(  # type: ignore[operator]
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=retrieved.attention_mask,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        candidates = _unique(sequences, retrieved.mask, num_beams, model.pad_token_id)
        labels, prior_counts = _labels(model, candidates)
        loglik = _score(model, states, retrieved, candidates, labels)
        scores = model.scores(query, retrieved)
        prior = log_prior(scores, retrieved.mask)
        return _best(model, candidates, loglik, _Prior(prior, prior_counts), scores, retrieved)


@dataclasses.dataclass(frozen=True)
class _Prior:
    """``log``: (batch, n_docs) log p(z|q). ``counts``: (candidates,) bool, None where every prior counts."""

    log: Tensor
    counts: Tensor | None


def _unique(sequences: Tensor, mask: Tensor, num_beams: int, pad: int) -> _Candidates:
    """Return each question's different sequences in the order of its passages; missing passages propose nothing."""
    n_docs = mask.shape[1]
    seen: dict[tuple[int, tuple[int, ...]], int] = {}
    found, rows = mask.flatten().tolist(), sequences.tolist()
    for position, row in enumerate(rows):
        passage = position // num_beams
        if not found[passage]:
            continue
        while len(row) > 1 and row[-1] == pad:
            row.pop()
        seen.setdefault((passage // n_docs, tuple(row)), position)
    kept = list(seen.values())
    owner = torch.tensor([question for question, _ in seen], device=sequences.device)
    return _Candidates(rows=sequences[kept], owner=owner)


def _labels(model: RagModel, candidates: _Candidates) -> tuple[Tensor, Tensor | None]:
    """Return what the decoder is to predict at each position of the candidates, and whose prior counts."""
    rows = candidates.rows
    labels = torch.cat([rows[:, 1:], rows.new_full((len(rows), 1), model.pad_token_id)], dim=1)
    labels = labels.masked_fill(labels == model.pad_token_id, IGNORED)
    prior_counts = None
    if model.settings.target_style == "hf":
        prior_counts = labels[:, 1] != IGNORED if labels.shape[1] > 1 else torch.zeros_like(candidates.owner).bool()
    bos = getattr(model.generator.config, "bos_token_id", None)
    if bos is not None:
        opens = labels[:, 0] == bos
        strangers = set(candidates.owner[~opens].tolist())
        shared = torch.tensor([q not in strangers for q in candidates.owner.tolist()], device=rows.device)
        labels[:, 0] = labels[:, 0].masked_fill(shared, IGNORED)
    return labels, prior_counts


def _score(model: RagModel, states: Tensor, retrieved: Retrieved, candidates: _Candidates, labels: Tensor) -> Tensor:
    """Return log p(y|q,z) of each candidate under each passage of its question: (candidates, n_docs) float32."""
    n_docs = retrieved.mask.shape[1]
    offsets = torch.arange(n_docs, device=states.device)
    step = max(1, SCORED_ROWS // n_docs)
    scored = []
    for start in range(0, len(labels), step):
        part = slice(start, start + step)
        passages = (candidates.owner[part, None] * n_docs + offsets).flatten()
        loglik, _ = model.target_loglik(
            states[passages],
            retrieved.attention_mask[passages],
            candidates.rows[part].repeat_interleave(n_docs, dim=0),
            labels[part].repeat_interleave(n_docs, dim=0),
        )
        scored.append(loglik.view(-1, n_docs))
    return torch.cat(scored)


def _best(
    model: RagModel, candidates: _Candidates, loglik: Tensor, prior: _Prior, scores: Tensor, retrieved: Retrieved
) -> list[Answer]:
    joint = log_joint(loglik, prior.log[candidates.owner], prior.counts)
    marginal = torch.logsumexp(joint, dim=1)
    posterior = torch.softmax(joint, dim=1)
    answers = []
    for question in range(len(scores)):
        own = (candidates.owner == question).nonzero().flatten()
        if not len(own):
            raise DataError(f"no passage was found for question {question} of the batch", hint="Check the index.")
        best = own[marginal[own].argmax()]
        token_ids = _strip(candidates.rows[best].tolist(), model.pad_token_id)
        answers.append(
            Answer(
                text=str(model.generator_tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip(),
                token_ids=token_ids,
                log_likelihood=marginal[best].item(),
                candidates=len(own),
                passage_ids=tuple(retrieved.ids[question].tolist()),
                scores=tuple(scores[question].tolist()),
                prior=tuple(prior.log[question].exp().tolist()),
                posterior=tuple(posterior[best].tolist()),
            )
        )
    return answers


def _strip(row: Sequence[int], pad: int) -> tuple[int, ...]:
    tokens = list(row[1:])
    while tokens and tokens[-1] == pad:
        tokens.pop()
    return tuple(tokens)
