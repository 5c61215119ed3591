"""Which tails of a query are known to be true: what negatives must not be, and what a filtered rank leaves out.

A query is a head and a relation in ``[0, 2R)``; relation r + R is the inverse of r, so that "which heads" of (?, r, t) is
the query (t, r + R) and both directions are one.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from ragtrain.errors import RagtrainError

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Matches:
    """The known tails of each of n queries, as runs in one sorted list.

    Attributes:
        place: (n,) which run, of those with tails; where there is none, any.
        start: (n,) beginning of the query's run in ``KnownTails.tails``.
        count: (n,) its length, 0 where no tail is known.
    """

    place: Tensor
    start: Tensor
    count: Tensor


class KnownTails:
    """All true tails of every query of a graph, in both directions.

    Attributes:
        n_entities: N.
        n_relations: R, direct relations.
        keys: (G,) queries that have tails, as ``head * 2R + relation``, ascending.
        offsets: (G + 1,) where the tails of each lie in ``tails``.
        tails: (2E,) at most; within a query ascending, without repetition.
        codes: like ``tails``: ``query * N + tail``, ascending.
        ranked: like ``tails``; see ``skip``.
    """

    def __init__(self, triples: Tensor, n_entities: int, n_relations: int) -> None:
        """Index triples (E, 3) of head, direct relation, tail; repetitions count once.

        Raises:
            RagtrainError: an entity or relation is out of range.
        """
        triples = triples.reshape(-1, 3).long()
        entities, relations = triples[:, [0, 2]], triples[:, 1]
        if len(triples) and (
            int(entities.min()) < 0
            or int(entities.max()) >= n_entities
            or int(relations.min()) < 0
            or int(relations.max()) >= n_relations
        ):
            raise RagtrainError(f"triples name entities or relations beyond {n_entities} and {n_relations}")
        self.n_entities, self.n_relations = n_entities, n_relations
        heads = torch.cat([triples[:, 0], triples[:, 2]])
        both = torch.cat([relations, relations + n_relations])
        tails = torch.cat([triples[:, 2], triples[:, 0]])
        pairs = torch.unique((heads * (2 * n_relations) + both) * n_entities + tails)  # sorted
        queries = torch.div(pairs, n_entities, rounding_mode="floor")
        self.codes, self.tails = pairs, pairs - queries * n_entities
        self.keys, place, counts = torch.unique_consecutive(queries, return_inverse=True, return_counts=True)
        self.offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        within = torch.arange(len(pairs), device=pairs.device) - self.offsets[place]
        self.ranked = place * (n_entities + 1) + (self.tails - within)

    def to(self, device: torch.device | str) -> KnownTails:
        """Return the same on a device."""
        moved = object.__new__(KnownTails)
        moved.n_entities, moved.n_relations = self.n_entities, self.n_relations
        moved.keys, moved.offsets = self.keys.to(device), self.offsets.to(device)
        moved.codes, moved.tails, moved.ranked = (
            self.codes.to(device), self.tails.to(device), self.ranked.to(device),
        )  # fmt: skip
        return moved

    def match(self, heads: Tensor, relations: Tensor) -> Matches:
        """Return where the known tails of the queries lie; heads and relations: (n,)."""
        if not len(self.keys):
            nothing = torch.zeros_like(heads)
            return Matches(nothing, nothing, nothing)
        wanted = heads.long() * (2 * self.n_relations) + relations.long()
        place = torch.searchsorted(self.keys, wanted).clamp_(max=len(self.keys) - 1)
        found = self.keys[place] == wanted
        start = self.offsets[place]
        return Matches(place, start, torch.where(found, self.offsets[place + 1] - start, 0))

    def pairs(self, heads: Tensor, relations: Tensor) -> tuple[Tensor, Tensor]:
        """Return the known tails of n queries as two lists: the query (0 to n - 1), ascending, and the tail."""
        match = self.match(heads, relations)
        rows = torch.arange(len(heads), device=heads.device).repeat_interleave(match.count)
        begins = match.count.cumsum(0) - match.count
        within = torch.arange(len(rows), device=heads.device) - begins[rows]
        return rows, self.tails[match.start[rows] + within]

    def below(self, heads: Tensor, relations: Tensor, tails: Tensor) -> tuple[Tensor, Tensor]:
        """Return of n triples how many known tails of the query lie below the tail, and whether it is known itself."""
        if not len(self.codes):
            return torch.zeros_like(heads), torch.zeros_like(heads, dtype=torch.bool)
        query = (heads.long() * (2 * self.n_relations) + relations.long()) * self.n_entities
        first, place = torch.searchsorted(self.codes, query), torch.searchsorted(self.codes, query + tails.long())
        return place - first, self.codes[place.clamp(max=len(self.codes) - 1)] == query + tails.long()

    def skip(self, match: Matches, numbers: Tensor) -> Tensor:
        """Return the entity that has each number when only entities that are no known tail are counted, from 0.

        Of the ascending tails t_0, t_1, … of a query, ``t_j - j`` entities below t_j are none; so as many tails lie
        below the u-th other entity as have ``t_j - j <= u``. They ascend within a query and queries have ranges of their
        own, so one search in one sorted list finds all: no (n, N) mask is made.

        Args:
            match: of n queries.
            numbers: (n, k) in [0, N - count).
        """
        if not len(self.tails):
            return numbers
        wanted = match.place[:, None] * (self.n_entities + 1) + numbers
        before = torch.searchsorted(self.ranked, wanted, right=True) - match.start[:, None]
        return numbers + torch.where(match.count[:, None] > 0, before, 0)
