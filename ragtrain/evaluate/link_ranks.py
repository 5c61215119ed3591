"""Ranks of held-out triples among all entities, in both directions.

Triples that ask the same (one head and relation, or one tail and relation) are one query, scored once; queries of a relation
stand together, so that a network whose relations depend on the query's computes them once for all of them.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from ragtrain import report
from ragtrain.errors import OutOfMemoryError
from ragtrain.models.gfm.ranks import filtered

if TYPE_CHECKING:
    from torch import Tensor

    from ragtrain.models.gfm.edges import GraphTensors
    from ragtrain.models.gfm.known import KnownTails
    from ragtrain.models.gfm.model import GfmSettings
    from ragtrain.models.gfm.ultra import UltraSettings

#: Entities that a prediction lists.
TOP = 10
#: Bytes that a batch of queries may take: on a processor, where larger ones gain nothing, and as a share of a GPU's free memory.
_CPU_BYTES, _GPU_SHARE = 1 << 26, 0.4
#: Tensors as large as all states of a batch that exist at a time: states, messages, hidden values.
_TENSORS = 8
_MOST = 256


class Scorer(Protocol):
    """A network that scores all entities as tails: ``GraphNetwork`` and ``UltraNetwork``."""

    @property
    def settings(self) -> GfmSettings | UltraSettings:
        """Its form."""
        ...

    def score_tails(self, graph: GraphTensors, relation_features: Tensor, heads: Tensor, relations: Tensor) -> Tensor:
        """Return (B, N) logits."""
        ...


@dataclasses.dataclass(frozen=True)
class LinkRanks:
    """What became of n triples; the first column asked for the tail, the second for the head.

    Attributes:
        ranks: (n, 2) filtered, ties against the model.
        negatives: (n, 2) entities that each was ranked against.
        scores: (n, 2) of the true entity.
        top: (n, 2, TOP) the best entities, known true ones left out and the triple's own among them; -1 where there are
            fewer.
        top_scores: (n, 2, TOP).
        queries: that were scored.
        seconds: that took.
    """

    ranks: np.ndarray
    negatives: np.ndarray
    scores: np.ndarray
    top: np.ndarray
    top_scores: np.ndarray
    queries: int
    seconds: float


def rank_links(
    network: Scorer, graph: GraphTensors, features: Tensor | None, triples: Tensor, known: KnownTails, *,
    most: int | None = None, progress: str = "Ranking entities",
) -> LinkRanks:  # fmt: skip
    """Rank the tail and the head of each triple among all entities.

    Args:
        network: that scores.
        graph: whose edges messages travel along; none of ``triples`` is among them. It says the device.
        features: text vectors of relations, where the network reads them.
        triples: (n, 3) head, direct relation, tail.
        known: tails that are true, which are no mistakes: of the graph and of all that was held out.
        most: queries in a batch, at most.
        progress: what a progress display calls the work.

    Raises:
        NumericsError: a score is not a number.
        OutOfMemoryError: one query alone does not fit on the device.
    """
    begin, device = time.perf_counter(), graph.device
    triples, known = triples.long().to(device), known.to(device)
    half = known.n_relations
    heads = torch.cat([triples[:, 0], triples[:, 2]])
    relations = torch.cat([triples[:, 1], triples[:, 1] + half])
    targets = torch.cat([triples[:, 2], triples[:, 0]])
    # Both directions of a relation side by side.
    order = (relations % half) * 2 + relations // half
    keys, query = torch.unique(order * graph.n_entities + heads, return_inverse=True)
    asked_heads, order = keys % graph.n_entities, keys // graph.n_entities
    asked = order // 2 + (order % 2) * half
    found = _Found(len(targets), min(TOP, graph.n_entities), device)
    size = min(most or _MOST, batch_size(graph, network.settings.hidden_dim))
    features = None if features is None else features.to(device)
    bar: report.Progress[None] = report.progress(len(keys), progress)
    by_query = torch.argsort(query, stable=True)
    starts = torch.searchsorted(query[by_query], torch.arange(len(keys) + 1, device=device))
    with torch.inference_mode(), bar:
        start = 0
        while start < len(keys):
            part = slice(start, min(start + size, len(keys)))
            try:
                scores = network.score_tails(graph, features, asked_heads[part], asked[part]).float()  # type: ignore[arg-type]
                known_pairs = known.pairs(asked_heads[part], asked[part])
                rows = by_query[starts[part.start] : starts[part.stop]]
                found.put(rows, query[rows] - start, scores, targets[rows], known_pairs)
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise OutOfMemoryError(f"one query on {graph.n_entities} entities does not fit on {device}: {error}",
                                           hint="give --device cpu") from error  # fmt: skip
                size = max(1, size // 2)
                continue
            bar.advance(part.stop - start)
            start = part.stop
    return found.result(len(triples), len(keys), time.perf_counter() - begin)


def batch_size(graph: GraphTensors, width: int) -> int:
    """Return how many queries fit into the memory that a batch may take."""
    device, room = graph.device, _CPU_BYTES
    if device.type == "cuda":
        room = int(torch.cuda.mem_get_info(device)[0] * _GPU_SHARE)
    each = 4 * width * (_TENSORS * graph.n_entities + 4 * graph.n_relations)
    return max(1, min(_MOST, room // max(1, each)))


class _Found:
    """Ranks and best entities, filled batch by batch."""

    def __init__(self, n: int, top: int, device: torch.device) -> None:
        self.ranks = torch.zeros(n, dtype=torch.long, device=device)
        self.negatives = torch.zeros_like(self.ranks)
        self.scores = torch.zeros(n, device=device)
        self.top = torch.full((n, top), -1, dtype=torch.long, device=device)
        self.top_scores = torch.zeros(n, top, device=device)

    def put(self, places: Tensor, rows: Tensor, scores: Tensor, targets: Tensor, known: tuple[Tensor, Tensor]) -> None:
        """Take the scores (Q, N) of queries; target i belongs to row ``rows[i]`` and to place ``places[i]``."""
        ranks = filtered(scores, targets, known, rows)
        own = scores[rows, targets]
        true = torch.bincount(known[0], minlength=len(scores))
        # The target is known or not; it is no entity that it was ranked against in either case.
        listed = torch.isin(rows * scores.shape[1] + targets, known[0] * scores.shape[1] + known[1])
        self.ranks[places], self.scores[places] = ranks, own
        self.negatives[places] = scores.shape[1] - true[rows] - (~listed).long()
        others = scores.clone()
        others[known] = -torch.inf
        width = self.top.shape[1]
        best, entities = others.topk(min(width + 1, others.shape[1]), dim=1)
        best, entities = best[rows], entities[rows]
        # A target that nobody knows stands among the others, and is not to be there twice.
        same = entities == targets[:, None]
        best = torch.where(same, -torch.inf, best)
        best, order = torch.sort(best, dim=1, descending=True, stable=True)
        entities = entities.gather(1, order)
        column = torch.arange(width, device=scores.device)
        at = (ranks - 1)[:, None]
        source = (column - (column > at).long()).clamp(max=entities.shape[1] - 1)
        top, values = entities.gather(1, source), best.gather(1, source)
        top = torch.where(column == at, targets[:, None], top)
        values = torch.where(column == at, own[:, None], values)
        empty = values == -torch.inf
        self.top[places], self.top_scores[places] = torch.where(empty, -1, top), torch.where(empty, 0.0, values)

    def result(self, n: int, queries: int, seconds: float) -> LinkRanks:
        """Return everything on the CPU, tails and heads of a triple beside each other."""

        def paired(values: Tensor) -> np.ndarray:
            both = values.cpu().numpy()
            return np.stack([both[:n], both[n:]], axis=1)

        return LinkRanks(
            ranks=paired(self.ranks), negatives=paired(self.negatives), scores=paired(self.scores), top=paired(self.top),
            top_scores=paired(self.top_scores), queries=queries, seconds=seconds,
        )  # fmt: skip
