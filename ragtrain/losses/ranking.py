"""Losses over scores of entities and of documents, for graph models.

All take logits (batch, entities), compute in float32, and return one number for each row of the batch, so that a trainer sums
them and divides by what it knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from ragtrain.errors import RagtrainError

if TYPE_CHECKING:
    from torch import Tensor


def self_adversarial_bce(logits: Tensor, positives: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """Return the binary cross-entropy of each row, hard negatives weighing more (Sun et al. 2019, arXiv:1902.10197, eq. 5).

    The weights of a row's positives sum to 1 and so do those of its negatives::

        loss = ( sum_pos -log sigma(s_i) / n_pos + sum_neg w_j -log(1 - sigma(s_j)) ) / 2
        w = softmax over negatives of s_j / temperature, without gradient; 1 / n_neg with temperature 0

    A row without positives is the mean of its negatives, and the other way round: it is divided by 1 instead of 2. Pretraining
    has one positive in column 0, fine-tuning any number anywhere.

    Source: GFM-RAG's losses of both stages; ULTRA and NBFNet have the first.

    Args:
        logits: (batch, candidates).
        positives: (batch, candidates) bool; without it, column 0.
        temperature: of the weights of negatives; 0 weighs them alike.

    Returns:
        (batch,) float32, in nats.

    Raises:
        RagtrainError: the shapes differ, or the temperature is negative.
    """
    if temperature < 0:
        raise RagtrainError(f"the temperature of negatives is {temperature}; expected 0 or more")
    if positives is None:
        positives = torch.zeros_like(logits, dtype=torch.bool)
        positives[:, 0] = True
    logits, positives = _checked(logits, positives)
    n_positives = positives.sum(1, dtype=torch.float32)
    n_negatives = logits.shape[1] - n_positives
    with torch.no_grad():
        if temperature > 0:
            weights = torch.softmax((logits / temperature).masked_fill(positives, -torch.inf), 1)
            weights = weights.masked_fill(positives, 0.0)  # NaN where all are positive
        else:
            weights = (~positives).float() / n_negatives.clamp(min=1).unsqueeze(1)
        weights = weights + positives.float() / n_positives.clamp(min=1).unsqueeze(1)
    # -log sigma(s) is softplus(-s), and -log(1 - sigma(s)) softplus(s).
    losses = F.softplus(torch.where(positives, -logits, logits))
    groups = (n_positives > 0).float() + (n_negatives > 0).float()
    return (losses * weights).sum(1) / groups.clamp(min=1)


def list_cross_entropy(logits: Tensor, positives: Tensor) -> Tensor:
    """Return the listwise cross-entropy of each row over probabilities of single entities.

    It is ListCE of GFM-RAG::

        loss = mean over positives of -log( sigma(s_i) / sum_j sigma(s_j) )

    GFM-RAG adds 1e-5 to the quotient and to its denominator. Among 100,000 entities an untrained quotient is 1e-5
    itself, which halves the gradient, and bounds it for hard positives. Here it is the difference of logarithms, which
    needs no such term.

    Args:
        logits: (batch, entities).
        positives: (batch, entities) bool.

    Returns:
        (batch,) float32, in nats; 0 for a row without positives, which is to be left out of the divisor.

    Raises:
        RagtrainError: the shapes differ.
    """
    logits, positives = _checked(logits, positives)
    scores = F.logsigmoid(logits)
    return _listwise(scores, positives)


def document_cross_entropy(
    logits: Tensor,
    document_entities: Tensor,
    document_offsets: Tensor,
    positives: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the listwise cross-entropy of each row over documents.

    The score of a document is the weighted mean probability of its entities, so that a document does not win by holding
    many (a sum of logits grows with their number)::

        p(d) = sum_{e in d} w_e sigma(s_e) / sum_{e in d} w_e
        loss = mean over positives of -log( p(d) / sum_d' p(d') )

    Documents without entities, or without any of weight, have no score: they are no competitors, and no positives.

    Args:
        logits: (batch, entities).
        document_entities: (m,) int, the entities of all documents one after another.
        document_offsets: (documents + 1,) int; those of document d are at [offsets[d], offsets[d + 1]).
        positives: (batch, documents) bool.
        weights: (entities,) not negative, as one over the number of documents that hold an entity; without it 1.

    Returns:
        (batch,) float32, in nats; 0 for a row without positives that have a score, see ``scored_documents``.

    Raises:
        RagtrainError: the shapes differ.
    """
    scores = document_scores(logits, document_entities, document_offsets, weights)
    if positives.shape != scores.shape:
        raise RagtrainError(
            f"positives have shape {tuple(positives.shape)}; expected one of each document, {tuple(scores.shape)}"
        )
    return _listwise(scores, positives.bool() & scores.isfinite())


def document_scores(
    logits: Tensor, document_entities: Tensor, document_offsets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return the log of the weighted mean probability of each document's entities, (batch, documents); see above.

    A document without entities of weight has -inf.
    """
    entities, offsets = document_entities.long(), document_offsets.long()
    counts = offsets.diff()
    document = torch.repeat_interleave(torch.arange(len(counts), device=logits.device), counts)
    values = F.logsigmoid(logits.float())[:, entities]
    if weights is not None:
        values = values + weights.float().log()[entities]
    with torch.no_grad():
        largest = values.new_full((len(logits), len(counts)), -torch.inf)
        largest.scatter_reduce_(1, document.expand_as(values), values.detach(), "amax")
        largest = largest.clamp_(min=torch.finfo(torch.float32).min)
    shares = torch.zeros_like(largest).index_add(1, document, (values - largest[:, document]).exp())
    whole = logits.new_zeros(len(counts), dtype=torch.float32)
    ones = torch.ones_like(entities, dtype=torch.float32) if weights is None else weights.float()[entities]
    whole.index_add_(0, document, ones)
    there = (whole > 0) & (shares > 0)
    logs = torch.where(there, shares, 1.0).log() + largest - torch.where(whole > 0, whole, 1.0).log()
    return torch.where(there, logs, -torch.inf)


def scored_documents(document_entities: Tensor, document_offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return which documents have a score: (documents,) bool, those that hold an entity of weight."""
    if weights is None:
        return document_offsets.diff() > 0
    heavy = (weights > 0).long()[document_entities.long()]
    total = torch.cat([heavy.new_zeros(1), heavy.cumsum(0)])
    return total[document_offsets.long()].diff() > 0


def _listwise(scores: Tensor, positives: Tensor) -> Tensor:
    """Return the mean of -log softmax(scores) over the positives of each row, 0 where there are none."""
    count = positives.sum(1)
    alone = torch.where(positives, scores, 0.0).sum(1)  # not a product: -inf times 0 is NaN
    # A row in which nothing has a score has no positives either; a 0 keeps its gradient from being NaN.
    empty = scores.isneginf().all(1, keepdim=True)
    whole = torch.logsumexp(torch.where(empty, 0.0, scores), 1)
    return torch.where(count > 0, whole - alone / count.clamp(min=1), 0.0)


def _checked(logits: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    if logits.dim() != 2 or logits.shape != positives.shape:
        raise RagtrainError(
            f"logits have shape {tuple(logits.shape)} and positives {tuple(positives.shape)}; "
            "expected the same (batch, candidates)"
        )
    return logits.float(), positives.bool()
