"""Which rows share a sequence: whole rows behind each other, or branches that grow from one common beginning."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import numpy as np

from ragtrain.data.sft.records import IGNORED
from ragtrain.errors import RagtrainError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.data.sft.records import Encoded

#: Part of every row that its common beginning must be: less saves little and makes long sequences.
LEAST_SHARE = 0.25
#: Rows that grow from one beginning at most: attention is computed between all of them, although they are kept apart.
MOST_MEMBERS = 64


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Fill bins with whole rows: the longest first, each into the fullest bin that still has room for it.

    Bins are found by the lowest set bit of a number that has bit r set where a bin with room for r tokens is open, so
    that a row costs one pass over ``capacity`` bits.

    Args:
        lengths: tokens of each row.
        capacity: tokens of a bin.

    Returns:
        Rows of each bin, in the order in which they were put in.

    Raises:
        RagtrainError: a row is longer than a bin.
    """
    if len(lengths) and max(lengths) > capacity:
        raise RagtrainError(f"a row of {max(lengths)} tokens does not fit into sequences of {capacity}")
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    open_rooms = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        length = lengths[row]
        fitting = open_rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = with_room[room].pop()
            if not with_room[room]:
                open_rooms &= ~(1 << room)
        else:
            room, number = capacity, len(bins)
            bins.append([])
        bins[number].append(row)
        with_room[room - length].append(number)
        open_rooms |= 1 << (room - length)
    return bins


@dataclasses.dataclass(frozen=True, slots=True)
class SharedGroup:
    """Rows that begin with the same tokens.

    Attributes:
        members: the rows.
        prefix: how many tokens they share; 0 for a row that stands alone.
    """

    members: tuple[int, ...]
    prefix: int

    def tokens(self, lengths: Sequence[int]) -> int:
        """Return how many tokens are read: the common ones once."""
        return sum(lengths[i] for i in self.members) - (len(self.members) - 1) * self.prefix


def shared_groups(
    encoded: Sequence[Encoded],
    *,
    most_members: int = MOST_MEMBERS,
    most_tokens: int | None = None,
    least_share: float = LEAST_SHARE,
) -> list[SharedGroup]:
    """Group rows by the tokens they begin with, so that the fewest tokens are read.

    Rows are sorted by their tokens, which puts common beginnings beside each other; among all ways of cutting that order
    into stretches, the one that saves most tokens is taken (dynamic programming). The prefix ends at least one token
    before the first trained token of every member: each branch predicts its own first token.

    Args:
        encoded: the rows; those without tokens are in no group.
        most_members: rows in a group.
        most_tokens: tokens of a group of more than one row; without it there is no limit.
        least_share: part of every member that the common beginning must be.

    Returns:
        Groups in the order of their first rows, members in the order of rows.
    """
    order = sorted((i for i, row in enumerate(encoded) if len(row.ids)), key=lambda i: encoded[i].ids.tobytes())
    lengths = [len(encoded[i].ids) for i in order]
    starts = [_first_trained(encoded[i]) - 1 for i in order]
    common = [0, *(_common(encoded[a].ids, encoded[b].ids) for a, b in itertools.pairwise(order))]
    limit = float("inf") if most_tokens is None else most_tokens
    # saved[j]: most tokens saved among the first j rows of the order; the last stretch of that cut is (first, prefix).
    saved, last = [0], [(0, 0)]
    for j in range(len(order)):
        best, choice = saved[j], (j, 0)
        prefix, tokens, longest = starts[j], lengths[j], lengths[j]
        for i in range(j - 1, max(-1, j - most_members), -1):
            prefix = min(prefix, common[i + 1], starts[i])
            tokens, longest = tokens + lengths[i], max(longest, lengths[i])
            # A longer stretch only has a shorter prefix and a longer longest row.
            if prefix <= 0 or prefix < least_share * longest:
                break
            gain = (j - i) * prefix
            if tokens - gain <= limit and saved[i] + gain > best:
                best, choice = saved[i] + gain, (i, prefix)
        saved.append(best)
        last.append(choice)
    groups, end = [], len(order)
    while end:
        first, prefix = last[end]
        groups.append(SharedGroup(tuple(sorted(order[first:end])), prefix))
        end = first
    return sorted(groups, key=lambda group: group.members)


def token_ratio(lengths: Sequence[int], groups: Sequence[SharedGroup]) -> float:
    """Return tokens of the rows by tokens that are read when common beginnings are read once."""
    read = sum(group.tokens(lengths) for group in groups)
    return sum(lengths[i] for group in groups for i in group.members) / read if read else 1.0


def _first_trained(row: Encoded) -> int:
    """Return the place of the first trained token (the first token of a row never is), or of the last token."""
    trained = np.flatnonzero(row.labels[1:] != IGNORED)
    return int(trained[0]) + 1 if len(trained) else len(row.ids)


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Return how many tokens two rows have in common at their beginning."""
    n = min(len(one), len(other))
    different = np.flatnonzero(one[:n] != other[:n])
    return int(different[0]) if len(different) else n
