"""Predictions of what completes a graph, two lines a triple, as one row a triple: its tail's and its head's rank.

The two queries of a triple are not independent, so that triples are what is compared, resampled and counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ragtrain.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: What two runs are compared by.
METRICS = ("mrr", "hits@1", "hits@3", "hits@10")
_DIRECTIONS = ("tail", "head")


def by_triple(rows: Sequence[tuple[int | None, Any]], path: Path) -> list[tuple[int | None, Any]]:
    """Return rows of link predictions put together by triple; rows of anything else as they are.

    The triple stands as the row's only answer, so that two runs that were asked for other triples under one id are noticed.

    Raises:
        DataError: a rank is no number from 1, or a triple was asked twice, or in one direction alone.
    """
    if not rows or not all(isinstance(row, dict) and "triple" in row and "direction" in row for _, row in rows):
        return list(rows)
    found: dict[str, tuple[int | None, dict[str, Any]]] = {}
    for line, row in rows:
        identifier, direction, rank = str(row.get("id")), str(row["direction"]), row.get("rank")
        if direction not in _DIRECTIONS or not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise DataError(f"rank {rank!r} in direction {direction!r}", path=path, line=line, field="rank",
                            hint="a line has a rank from 1, and the direction tail or head")  # fmt: skip
        name = identifier.removesuffix(f"-{direction}")
        triple = " — ".join(map(str, row["triple"])) if isinstance(row["triple"], list) else str(row["triple"])
        ranks = found.setdefault(name, (line, {"id": name, "question": triple, "answers": [triple], "link_ranks": {}}))[
            1
        ]
        if direction in ranks["link_ranks"]:
            raise DataError(f"the {direction} of triple {name!r} is asked twice", path=path, line=line, field="id")
        ranks["link_ranks"][direction] = rank
    for line, row in found.values():
        if len(row["link_ranks"]) != len(_DIRECTIONS):
            raise DataError(f"triple {row['id']!r} was asked in one direction alone", path=path, line=line, field="direction",
                            hint="evaluate again: the file was cut")  # fmt: skip
        row["link_ranks"] = [row["link_ranks"][direction] for direction in _DIRECTIONS]
    return list(found.values())


def score(ranks: Sequence[int], metric: str) -> float:
    """Return the mean over a triple's queries of 1 / rank (``mrr``) or of whether it is at most k (``hits@k``)."""
    if metric == "mrr":
        return sum(1 / rank for rank in ranks) / len(ranks)
    k = int(metric.partition("@")[2])
    return sum(rank <= k for rank in ranks) / len(ranks)


def describe(metric: str, points: str, *, more: bool) -> str:
    """Return what a difference means: ``points`` is its size in words."""
    if metric == "mrr":
        return f"B's mean reciprocal rank is {points} {'higher' if more else 'lower'}"
    k = metric.partition("@")[2]
    where = "first" if k == "1" else f"among the first {k}"
    return f"B ranks the true entity {where} for {points} {'more' if more else 'fewer'} queries"
