"""Personalised PageRank on a knowledge graph: what a retriever without training finds.

    p = (1 - d) r + d Wᵀ p,   W(u, v) = triples between u and v / triples of u,   r = restart, sums to 1

Every triple is walked both ways, whatever its relation; what an entity without a triple holds goes back to the restart. Source:
HippoRAG (Gutiérrez et al., NeurIPS 2024), sections 2.2 and 2.3: restart at the entities of the question, each weighted by its
specificity, 1 / (documents that hold it), d = 0.5; documents are scored by the sum over their entities, here
``DocumentRanker(graph, "simple")`` with ``above=0``. What differs: no synonym edges beyond those that the graph has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.graphs import KnowledgeGraph

#: HippoRAG's; the usual one of web graphs is 0.85.
DAMPING = 0.5


class Walks:
    """Steps of a random walk on one graph, as compressed rows of where it may come from.

    Attributes:
        count: number of entities, N.
        frequency: (N,) int64 documents that hold each entity.
    """

    def __init__(self, graph: KnowledgeGraph) -> None:
        self.count = graph.n_entities
        heads, tails = graph.triples[:, 0].astype(np.int64), graph.triples[:, 2].astype(np.int64)
        targets, sources = np.concatenate([heads, tails]), np.concatenate([tails, heads])
        order = np.argsort(targets, kind="stable")
        self._sources, targets = sources[order], targets[order]
        self._starts = np.flatnonzero(np.r_[True, targets[1:] != targets[:-1]])[: len(targets)]
        self._rows = targets[self._starts]
        degree = np.bincount(targets, minlength=self.count)
        self._share = np.divide(1.0, degree, out=np.zeros(self.count), where=degree > 0)
        self._alone = np.flatnonzero(degree == 0)
        # An entity counts once for a document, however often it is listed.
        documents = np.repeat(np.arange(len(graph.documents)), np.diff(graph.document_offsets))
        pairs = np.unique(documents * np.int64(max(1, self.count)) + graph.document_entities)
        self.frequency = np.bincount(pairs % max(1, self.count), minlength=self.count)

    def step(self, scores: np.ndarray) -> np.ndarray:
        """Return (N,) where the walk is after one step from (N,), without what entities without a triple hold."""
        moved = np.zeros(self.count)
        if len(self._starts):
            moved[self._rows] = np.add.reduceat((scores * self._share)[self._sources], self._starts)
        return moved

    def lost(self, scores: np.ndarray) -> float:
        """Return what entities without a triple hold."""
        return float(scores[self._alone].sum())

    def specificity(self, seeds: Sequence[int]) -> np.ndarray:
        """Return the weights of seeds: 1 / documents that hold them, 1 for those in none."""
        return np.asarray(1.0 / np.maximum(self.frequency[np.asarray(seeds, dtype=np.int64)], 1))


def ppr(
    graph: KnowledgeGraph | Walks,
    seeds: Sequence[int],
    weights: Sequence[float] | np.ndarray | None = None,
    *,
    damping: float = DAMPING,
    tolerance: float = 1e-9,
    most_steps: int = 1000,
) -> np.ndarray:
    """Return (N,) float64 scores of entities that sum to 1; all 0 without seeds.

    Power iteration from the restart. The error in the sum of absolute differences falls by ``damping`` each step; it ends
    when ``change * damping / (1 - damping)``, which bounds it, is below ``tolerance``.

    Args:
        graph: the graph, or its ``Walks`` where there is more than one question.
        seeds: ids of entities; what is named twice counts twice.
        weights: of the seeds; without it their specificity.
        damping: chance of going on instead of restarting.
        tolerance: largest error of the result, summed over entities.
        most_steps: end of the iteration in any case.

    Raises:
        ConfigError: ``damping`` is not in [0, 1), or a weight is negative, or all are 0.
    """
    if not 0 <= damping < 1:
        raise ConfigError(f"damping is {damping}", hint="choose 0 or more and less than 1; 0.5 and 0.85 are common")
    walks = graph if isinstance(graph, Walks) else Walks(graph)
    restart = np.zeros(walks.count)
    if not len(seeds):
        return restart
    given = np.asarray(walks.specificity(seeds) if weights is None else weights, dtype=np.float64)
    if given.shape != (len(seeds),) or not np.isfinite(given).all() or given.min() < 0 or given.sum() <= 0:
        raise ConfigError(f"weights {given[:8].tolist()} of {len(seeds)} seeds", hint="give positive weights, one each")
    np.add.at(restart, np.asarray(seeds, dtype=np.int64), given / given.sum())
    scores = restart
    for _ in range(most_steps):
        moved = damping * walks.step(scores) + (1 - damping + damping * walks.lost(scores)) * restart
        change = float(np.abs(moved - scores).sum())
        scores = moved
        if change * damping <= tolerance * (1 - damping):
            break
    return scores


def ppr_batch(graph: KnowledgeGraph | Walks, seeds: Sequence[Sequence[int]], *, damping: float = DAMPING) -> np.ndarray:
    """Return (B, N) float64 scores of entities for the seeds of B questions, weighted by specificity."""
    walks = graph if isinstance(graph, Walks) else Walks(graph)
    scores = np.zeros((len(seeds), walks.count))
    for row, each in enumerate(seeds):
        scores[row] = ppr(walks, each, damping=damping)
    return scores
