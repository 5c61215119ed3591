"""Reciprocal rank fusion against the paper's sum, and what chooses passages against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtrain.errors import RagtrainError
from ragtrain.index import fusion
from ragtrain.index.exact import Searcher


def by_hand(rankings: list[list[int]], n: int, k: int = 60) -> list[int]:
    """Cormack, Clarke and Büttcher (2009): RRFscore(d) = sum over r of 1 / (k + r(d))."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, document in enumerate(ranking, start=1):
            if document >= 0:
                scores[document] = scores.get(document, 0.0) + 1 / (k + rank)
    best = sorted(scores, key=lambda d: (-scores[d], d))[:n]
    return best + [-1] * (n - len(best))


rankings = st.integers(1, 12).flatmap(
    lambda depth: st.lists(
        st.permutations(range(16)).flatmap(
            lambda order: st.integers(0, depth).map(lambda n: (order[:n] + [-1] * depth)[:depth])
        ),
        min_size=2,
        max_size=3,
    )
)


@given(rankings, st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_equals_the_sum_by_hand(lists: list[list[int]], n: int) -> None:
    fused = fusion.fuse([np.array([ranking]) for ranking in lists], n)
    assert fused.tolist() == [by_hand(lists, n)]


def test_rows_are_fused_on_their_own_and_ties_are_ordered_by_position() -> None:
    one, other = np.array([[5, 3], [1, -1]]), np.array([[3, 5], [2, 9]])
    assert fusion.fuse([one, other], 3).tolist() == [[3, 5, -1], [1, 2, 9]]


def test_the_constant_is_the_papers() -> None:
    # With k = 60, two middling ranks beat one first place; with k = 0 they do not.
    one, other = np.array([[0, 1, 2, 7]]), np.array([[3, 4, 5, 7]])
    assert fusion.fuse([one, other], 1).tolist() == [[7]]
    assert fusion.fuse([one, other], 1, k=0).tolist() == [[0]]


class Words:
    """Search by words that says what it is told."""

    def __init__(self, found: list[list[int]]) -> None:
        self.found = found

    def search(self, texts: list[str], depth: int) -> np.ndarray:
        return np.array([(row + [-1] * depth)[:depth] for row in self.found])


@pytest.fixture
def searcher() -> Searcher:
    return Searcher(np.random.default_rng(0).normal(size=(150, 8)).astype(np.float16))


def test_words_choose_and_inner_products_score(searcher: Searcher) -> None:
    queries = torch.randn(3, 8)
    words = Words([[7, 3, 140], [9], []])
    hits = fusion.search(searcher, words, "bm25", queries, ["a", "b", "c"], 3)
    dense = searcher.search(queries, 3).ids.tolist()
    assert hits.ids[0].tolist() == [7, 3, 140]
    assert hits.ids[1].tolist() == [9, *[i for i in dense[1] if i != 9][:2]], "the nearest vectors follow"
    assert hits.ids[2].tolist() == dense[2]
    vectors = searcher.vectors(hits.ids).double()
    torch.testing.assert_close(hits.scores, (vectors * queries.double()[:, None]).sum(-1).float())
    assert hits.mask.all()


def test_both_are_fused(searcher: Searcher) -> None:
    queries = torch.randn(2, 8)
    found = [[7, 3, 140], [9]]
    hits = fusion.search(searcher, Words(found), "hybrid", queries, ["a", "b"], 5)
    dense = searcher.search(queries, fusion.POOL).ids.tolist()
    for row in range(2):
        assert hits.ids[row].tolist() == by_hand([dense[row], found[row]], 5)
    assert torch.equal(hits.scores, searcher.score(queries, hits.ids))


def test_a_place_is_empty_only_where_there_are_no_more_passages() -> None:
    searcher = Searcher(np.eye(3, 8, dtype=np.float16))
    for retrieval in ("bm25", "hybrid"):
        hits = fusion.search(searcher, Words([[1]]), retrieval, torch.randn(1, 8), ["a"], 5)
        assert sorted(hits.ids[0].tolist()) == [-1, -1, 0, 1, 2]
        assert hits.mask[0].tolist() == [True] * 3 + [False] * 2
        assert torch.isneginf(hits.scores[0, 3:]).all()


@pytest.mark.parametrize("texts", [None, ["only one"]])
def test_words_need_texts(searcher: Searcher, texts: list[str] | None) -> None:
    with pytest.raises(RagtrainError, match="needs the text of each of 2 questions") as caught:
        fusion.search(searcher, Words([[1], [2]]), "hybrid", torch.randn(2, 8), texts, 3)
    assert "texts=" in str(caught.value.hint)
    assert fusion.search(searcher, None, "dense", torch.randn(2, 8), None, 3).mask.all()
