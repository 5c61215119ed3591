"""What chooses passages: vectors, words, or both.

Both rankings become one by reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009):

    RRFscore(d) = sum over rankings r that hold d of 1 / (k + rank_r(d)),   k = 60, ranks from 1

The scores of what is chosen are inner products in every case: the fusion says which passages are read, and in what
order, and the retriever's prior stays one over vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from ragtrain.errors import RagtrainError
from ragtrain.index.exact import Hits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ragtrain.index.bm25 import BM25Index
    from ragtrain.index.exact import Searcher

Retrieval = Literal["dense", "bm25", "hybrid"]

#: The paper's k.
K = 60
#: Passages of each ranking that are fused, at least.
POOL = 100


def fuse(rankings: Sequence[np.ndarray], n: int, k: int = K) -> np.ndarray:
    """Return (batch, n) ids by falling RRF score, then rising id; -1 where the rankings hold fewer.

    Args:
        rankings: each (batch, depth) int64 ids, best first, none twice in a row; -1 is an empty place.
        n: ids wanted for each row.
        k: the constant of the formula.
    """
    batch = len(rankings[0])
    fused = np.full((batch, n), -1, dtype=np.int64)
    weights = np.concatenate([1.0 / (k + np.arange(1, ranking.shape[1] + 1)) for ranking in rankings])
    for row in range(batch):
        ids = np.concatenate([ranking[row] for ranking in rankings])
        held = ids >= 0
        unique, places = np.unique(ids[held], return_inverse=True)
        scores = np.bincount(places, weights=weights[held], minlength=len(unique))
        # `unique` rises, so that a stable sort leaves equal scores in order of position.
        best = unique[np.argsort(-scores, kind="stable")[:n]]
        fused[row, : len(best)] = best
    return fused


def search(
    searcher: Searcher,
    words: BM25Index | None,
    retrieval: Retrieval,
    queries: Tensor,
    texts: Sequence[str] | None,
    n_docs: int,
) -> Hits:
    """Return the ``n_docs`` passages that vectors, words, or both choose; scores are inner products.

    Where fewer passages than asked share a word with a question, those of the nearest vectors follow: a place is empty
    only where the index holds no more passages.

    Args:
        searcher: search by vectors.
        words: search by words; None does for ``dense``.
        retrieval: what chooses.
        queries: (batch, dim) question vectors.
        texts: the questions; None does for ``dense``.
        n_docs: passages for each question.

    Raises:
        RagtrainError: ``bm25`` or ``hybrid`` without texts, or with another number of them.
    """
    if retrieval == "dense":
        return searcher.search(queries, n_docs)
    if words is None or texts is None or len(texts) != len(queries):
        given = "no texts" if texts is None else f"{len(texts)} texts"
        raise RagtrainError(
            f"retrieval {retrieval!r} needs the text of each of {len(queries)} questions: {given} were given",
            hint="call for_questions(tokens, texts=questions)",
        )
    depth = min(n_docs if retrieval == "bm25" else max(n_docs, POOL), searcher.count)
    found = words.search(texts, depth)
    if retrieval == "hybrid":
        chosen = fuse([searcher.search(queries, depth).ids.cpu().numpy(), found], n_docs)
    else:
        chosen = np.full((len(texts), n_docs), -1, dtype=np.int64)
        chosen[:, :depth] = found
        short = np.flatnonzero(found[:, -1] < 0)
        if len(short):
            rest = searcher.search(queries[torch.from_numpy(short).to(queries.device)], depth).ids.cpu().numpy()
            for row, near in zip(short, rest, strict=True):
                held = found[row][found[row] >= 0]
                more = near[~np.isin(near, held)][: depth - len(held)]
                chosen[row, :depth] = np.concatenate([held, more])
    ids = torch.from_numpy(chosen).to(searcher.device)
    return Hits(ids, searcher.score(queries, ids), ids >= 0)
