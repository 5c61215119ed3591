"""Rankings against gold items: recall of the set, filtered ranks as link prediction counts them, MRR, nDCG."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


def gold_ranks(ranking: Iterable[int], gold: Collection[int]) -> list[int]:
    """Return the ranks, counted from 1 and rising, of the gold items that a ranking holds.

    What the ranking does not hold has no rank here; the functions below take it in by the number of gold items.
    """
    wanted = set(gold)
    return [rank for rank, item in enumerate(ranking, 1) if item in wanted]


def recall_at(ranks: Iterable[int], n_gold: int, k: int) -> float:
    """Return the share of a question's gold items among the first ``k``: true recall of the set; nan without gold.

    ``|gold and first k| / n_gold``, as HippoRAG and GFM-RAG's retrieval evaluation count it. ``n_gold`` counts items that
    are in no ranking too, such as documents that the graph does not have.

    Args:
        ranks: of ``gold_ranks``.
        n_gold: gold items of the question.
        k: how many places count.
    """
    return sum(rank <= k for rank in ranks) / n_gold if n_gold else math.nan


def filtered_ranks(ranks: Iterable[int]) -> list[int]:
    """Return the rank of each gold item among the items that are not gold: those above it that are gold do not count.

    Source: ranking of GFM-RAG's training (``utils.evaluate``) and of link prediction (Bordes et al. 2013). Gold items at
    1 and 3 have the filtered ranks 1 and 2, so that hits@2 is 1 where recall@2 is 0.5.
    """
    return [rank - above for above, rank in enumerate(sorted(ranks))]


def hits_at(ranks: Iterable[int], n_gold: int, k: int) -> float:
    """Return the share of gold items with a (filtered) rank of at most ``k``; nan without gold."""
    return recall_at(ranks, n_gold, k)


def reciprocal_rank(ranks: Iterable[int], n_gold: int) -> float:
    """Return the mean of ``1 / rank`` over gold items, 0 for those without a rank; nan without gold.

    With ``filtered_ranks`` this is the MRR that link prediction and GFM-RAG report; with ``ranks[:1]`` and ``n_gold`` 1 it is
    the one of question answering, of the first gold item.
    """
    return math.fsum(1 / rank for rank in ranks) / n_gold if n_gold else math.nan


def any_hit_at(ranks: Iterable[int], n_gold: int, k: int) -> float:
    """Return 1.0 if any gold item is among the first ``k``, else 0.0: hits@k of question answering; nan without gold."""
    return float(any(rank <= k for rank in ranks)) if n_gold else math.nan


def ndcg_at(ranks: Iterable[int], n_gold: int, k: int) -> float:
    """Return the normalised discounted cumulative gain of the first ``k`` places, every gold item worth 1; nan without gold.

    ``sum of 1 / log2(rank + 1)`` over gold items among the first k, divided by that of the best ranking, which has
    ``min(n_gold, k)`` gold items first. Source: Järvelin and Kekäläinen, ACM TOIS 20 (2002), in the form of trec_eval's
    ``ndcg_cut``.
    """
    if not n_gold:
        return math.nan
    best = math.fsum(1 / math.log2(rank + 1) for rank in range(1, min(n_gold, k) + 1))
    return min(1.0, math.fsum(1 / math.log2(rank + 1) for rank in ranks if rank <= k) / best)
