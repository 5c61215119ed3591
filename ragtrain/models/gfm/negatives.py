"""Corrupted triples for learning to complete a graph.

Of a batch of B triples the tails of the first half and the heads of the rest are replaced, as in ULTRA
(``negative_sampling``), and what a head was replaced in is then asked as a query for tails, (t, r + R, ?). What differs:
of an odd batch the middle triple takes turns, where it always lost its head there; and candidates are numbered rather than
listed, so that no (B, N) mask is made.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ragtrain.models.gfm.known import KnownTails


@dataclasses.dataclass(frozen=True)
class Queries:
    """Queries for tails, with candidates.

    Attributes:
        heads: (B,) entities that are asked from.
        relations: (B,) in [0, 2R).
        candidates: (B, 1 + k) entities: the true tail first, then those that are not.
    """

    heads: Tensor
    relations: Tensor
    candidates: Tensor


def tail_queries(triples: Tensor, n_relations: int, turn: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return head, relation in [0, 2R) and tail of what a batch asks: (B,) each.

    Args:
        triples: (B, 3) head, direct relation, tail. The first ``(B + turn % 2) // 2`` are asked for their tail, the others
            for their head.
        n_relations: R.
        turn: number of the batch; with an odd B, halves are the larger in turn.
    """
    heads, relations, tails = triples.long().unbind(dim=1)
    direct = torch.arange(len(triples), device=triples.device) < (len(triples) + turn % 2) // 2
    return (
        torch.where(direct, heads, tails),
        torch.where(direct, relations, relations + n_relations),
        torch.where(direct, tails, heads),
    )


def draw(
    known: KnownTails, triples: Tensor, k: int, generator: torch.Generator, *, strict: bool = True, turn: int = 0
) -> Queries:
    """Return queries with their true tail and k others, drawn uniformly with replacement.

    Strictly, what is drawn is no known tail of the query and not its own; without, any entity, the true one too. A query
    of which every entity is a true tail has no such thing: it draws from all but its own.

    Args:
        known: the tails that the training graph knows.
        triples: (B, 3) head, direct relation, tail.
        k: number of others.
        generator: draws; on its device, whatever that of the triples.
        strict: leave out known tails.
        turn: number of the batch (``tail_queries``).
    """
    heads, relations, tails = tail_queries(triples, known.n_relations, turn)
    if not strict:
        others = torch.randint(known.n_entities, (len(heads), k), generator=generator, device=generator.device)
        return Queries(heads, relations, torch.cat([tails[:, None], others.to(tails.device)], dim=1))
    match = known.match(heads, relations)
    below, own = known.below(heads, relations, tails)
    left = known.n_entities - match.count - (~own).long()
    uniform = torch.rand((len(heads), k), generator=generator, device=generator.device, dtype=torch.float64)
    uniform = uniform.to(tails.device)
    numbers = torch.minimum((uniform * left[:, None]).long(), left[:, None] - 1)
    # A true tail that the graph does not know has a number among the others, which is passed over.
    number = (tails - below)[:, None]
    numbers = numbers + (~own[:, None] & (numbers >= number)).long()
    others = known.skip(match, numbers)
    if bool((left <= 0).any()):
        spare = (uniform * (known.n_entities - 1)).long().clamp_(max=max(0, known.n_entities - 2))
        spare = spare + (spare >= tails[:, None]).long()
        others = torch.where((left <= 0)[:, None], spare.clamp_(max=known.n_entities - 1), others)
    return Queries(heads, relations, torch.cat([tails[:, None], others], dim=1))
