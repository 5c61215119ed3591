"""From scores of entities to a ranking of documents.

With p the scores of entities, df(e) the number of documents that hold entity e, and T the k entities of the highest scores:

    simple    score(d) = sum over e in d of p(e)
    idf       score(d) = sum over e in d of p(e) / df(e)
    topk      score(d) = |entities of d in T|
    idf_topk  score(d) = sum over e in d and T of 1 / df(e)

Source: ``gfmrag/doc_rankers.py`` of RManLuo/gfm-rag at v1.0.0. What differs: a document in which no entity counts has no score
(minus infinity) instead of 0, which with ``simple`` would be better than a negative one; sums are float64 rounded to float32, so
that what is equal is equal on every device; and equal scores are ordered by another score or by the documents' order, where
the original leaves it to an unstable sort.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from ragtrain.errors import NumericsError, RagtrainError

if TYPE_CHECKING:
    from torch import Tensor

    from ragtrain.graphs import KnowledgeGraph

Ranker = Literal["simple", "idf", "topk", "idf_topk"]


class DocumentRanker:
    """Scores the documents of one graph by those of its entities.

    Attributes:
        frequency: (N,) float64, documents that hold each entity.
        count: number of documents, D.
    """

    def __init__(
        self,
        graph: KnowledgeGraph,
        ranker: Ranker = "idf_topk",
        top_k: int = 20,
        device: torch.device | str = "cpu",
    ) -> None:
        """Take in which document holds which entities.

        Args:
            graph: entities and documents.
            ranker: how entities count.
            top_k: ``topk`` and ``idf_topk``: entities that count; where there are fewer, all do.
            device: where scores will be.
        """
        self.ranker, self.top_k, self.count = ranker, top_k, len(graph.documents)
        entities = torch.from_numpy(graph.document_entities).to(torch.int64)
        sizes = torch.from_numpy(graph.document_offsets).diff()
        documents = torch.repeat_interleave(torch.arange(self.count), sizes)
        # A document names an entity once, whatever its maker wrote.
        pairs = torch.unique(documents * max(1, graph.n_entities) + entities)
        held = torch.bincount(pairs // max(1, graph.n_entities), minlength=self.count)
        self._offsets = torch.cat([held.new_zeros(1), held.cumsum(0)]).to(device)
        self._entities = (pairs % max(1, graph.n_entities)).to(device)
        self.frequency = torch.bincount(self._entities.cpu(), minlength=graph.n_entities).double().to(device)
        self._idf = torch.where(self.frequency > 0, 1 / self.frequency.clamp(min=1), 0.0)

    def scores(self, entity_scores: Tensor, *, above: float | None = None) -> Tensor:
        """Return the scores of documents.

        Args:
            entity_scores: (B, N) scores of entities.
            above: entities count only if their score is greater; for scores of which 0 says "not reached".

        Returns:
            (B, D) float32, minus infinity where no entity of a document counts.

        Raises:
            NumericsError: a score is not a number.
            RagtrainError: the scores are of another number of entities.
        """
        if entity_scores.ndim != 2 or entity_scores.shape[1] != len(self.frequency):
            shape = tuple(entity_scores.shape)
            raise RagtrainError(f"scores of shape {shape} are not of {len(self.frequency)} entities")
        if bool(torch.isnan(entity_scores).any()):
            raise NumericsError(
                "a score of an entity is not a number", hint="look at the loss; lower the learning rate"
            )
        counted = self._counted(entity_scores, above)
        values = entity_scores.double() if self.ranker in ("simple", "idf") else torch.ones_like(entity_scores).double()
        if self.ranker in ("idf", "idf_topk"):
            values = values * self._idf
        values = torch.where(counted, values, 0.0)
        held = self._sum(counted.double()) > 0
        return torch.where(held, self._sum(values), -torch.inf).float()

    def _counted(self, entity_scores: Tensor, above: float | None) -> Tensor:
        """Return (B, N) whether an entity counts."""
        if self.ranker in ("topk", "idf_topk"):
            counted = highest(entity_scores, self.top_k)
        else:
            counted = torch.ones_like(entity_scores, dtype=torch.bool)
        return counted if above is None else counted & (entity_scores > above)

    def _sum(self, values: Tensor) -> Tensor:
        """Return (B, D) sums of (B, N) values over the entities of documents."""
        # Not index_add: on a GPU it adds in an order that changes from call to call.
        offsets = self._offsets.expand(len(values), -1).contiguous()
        return torch.segment_reduce(values[:, self._entities], "sum", offsets=offsets, axis=1, initial=0)


def highest(scores: Tensor, k: int) -> Tensor:
    """Return (B, N) whether a score is one of its row's k highest; of equal ones the first count. All if k > N."""
    k = min(k, scores.shape[1])
    if k <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    least = scores.topk(k, dim=1).values[:, -1:]
    above, equal = scores > least, scores == least
    room = k - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= room))


def rank_documents(scores: Tensor, k: int | None = None, fallback: Tensor | None = None) -> Tensor:
    """Return the documents of the highest scores, best first.

    Args:
        scores: (B, D); minus infinity for a document that has none.
        k: how many; without it, or where there are fewer, all.
        fallback: (B, D) another score by which equal ones are ordered; what is equal in both stands in order of index.

    Returns:
        (B, min(k, D)) int64.
    """
    if fallback is None:
        order = scores.argsort(dim=1, descending=True, stable=True)
    else:
        first = fallback.to(scores.device).argsort(dim=1, descending=True, stable=True)
        order = first.gather(1, scores.gather(1, first).argsort(dim=1, descending=True, stable=True))
    return order if k is None else order[:, :k]


def unit_range(scores: Tensor) -> Tensor:
    """Return (B, D) scores scaled to 0 to 1 in each row: ``(s - low) / (high - low)``.

    What has no score (minus infinity) becomes 0; where there is such a document, ``low`` is at most 0, so that few documents of
    equal scores stay above it. A row in which all are equal becomes 0, or 1 where others have no score.
    """
    if not scores.numel():
        return scores
    finite = scores.isfinite()
    partial = ~finite.all(1, keepdim=True)
    low = scores.masked_fill(~finite, torch.inf).amin(1, keepdim=True)
    low = torch.where(partial, low.clamp(max=0.0), low)
    high = scores.masked_fill(~finite, -torch.inf).amax(1, keepdim=True)
    scaled = torch.where(high > low, (scores - low) / (high - low), partial.to(scores.dtype))
    return scaled.masked_fill(~finite, 0.0)


def fuse(graph_scores: Tensor, other: Tensor, weight: float = 0.5) -> Tensor:
    """Return ``weight * graph + (1 - weight) * other`` of both (B, D) scores, each scaled by ``unit_range``."""
    return weight * unit_range(graph_scores) + (1 - weight) * unit_range(other)
