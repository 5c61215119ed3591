from __future__ import annotations

import numpy as np
import pytest
import torch

from ragtrain.errors import NumericsError, RagtrainError
from ragtrain.graphs import KnowledgeGraph
from ragtrain.index.graph.builder import assemble
from ragtrain.index.graph.rankers import DocumentRanker, Ranker, fuse, highest, rank_documents, unit_range
from ragtrain.records import Passage


@pytest.fixture
def wide() -> KnowledgeGraph:
    generator = np.random.default_rng(3)
    members = [sorted(generator.choice(30, size=size, replace=False).tolist()) for size in generator.integers(0, 6, 40)]
    documents = [Passage(str(i), "", str(i)) for i in range(len(members))]
    return assemble([str(i) for i in range(30)], ["r"], np.array([[0, 0, 1]]), documents, members, {})


def slow(graph: KnowledgeGraph, scores: list[float], ranker: str, k: int, above: float | None) -> list[float]:
    """The definitions of the module's text, document by document."""
    holds = [
        set(graph.document_entities[a:b].tolist())
        for a, b in zip(graph.document_offsets[:-1], graph.document_offsets[1:], strict=True)
    ]
    frequency = {e: sum(e in held for held in holds) for e in range(graph.n_entities)}
    best = sorted(range(graph.n_entities), key=lambda e: (-scores[e], e))[:k]
    found = []
    for held in holds:
        counted = [e for e in held if "topk" not in ranker or e in best]
        counted = [e for e in counted if above is None or scores[e] > above]
        each = {
            "simple": lambda e: scores[e],
            "idf": lambda e: scores[e] / frequency[e],
            "topk": lambda e: 1.0,
            "idf_topk": lambda e: 1 / frequency[e],
        }[ranker]
        found.append(sum(map(each, counted)) if counted else -np.inf)
    return found


@pytest.mark.parametrize("ranker", ["simple", "idf", "topk", "idf_topk"])
@pytest.mark.parametrize("k", [1, 5, 1000])
@pytest.mark.parametrize("above", [None, 0.0])
def test_scores_are_those_of_the_definitions(wide: KnowledgeGraph, ranker: Ranker, k: int, above: float | None) -> None:
    # Few different values, so that there are ties among the entities.
    scores = torch.from_numpy(np.random.default_rng(0).integers(-2, 4, (7, 30)).astype(np.float32))
    found = DocumentRanker(wide, ranker, k).scores(scores, above=above)
    assert found.shape == (7, 40)
    assert found.dtype == torch.float32
    for row in range(7):
        expected = slow(wide, scores[row].tolist(), ranker, k, above)
        torch.testing.assert_close(found[row], torch.tensor(expected, dtype=torch.float32))


def test_documents_without_a_counted_entity_come_last_and_in_order(graph: KnowledgeGraph) -> None:
    scores = torch.tensor([[-3.0, -5.0, -9.0, -20.0, 0.0]])
    found = DocumentRanker(graph, "simple").scores(scores)
    assert found.tolist() == [[-8.0, -14.0, -np.inf, -20.0]]
    assert rank_documents(found).tolist() == [[0, 1, 3, 2]]


def test_equal_scores_are_ordered_by_the_fallback_and_then_by_index() -> None:
    scores = torch.tensor([[1.0, 2.0, 1.0, -torch.inf, -torch.inf, 1.0]])
    assert rank_documents(scores).tolist() == [[1, 0, 2, 5, 3, 4]]
    fallback = torch.tensor([[0.0, 0.0, 7.0, 1.0, 2.0, 0.0]])
    assert rank_documents(scores, fallback=fallback).tolist() == [[1, 2, 0, 5, 4, 3]]
    assert rank_documents(scores, 3, fallback).tolist() == [[1, 2, 0]]
    assert rank_documents(scores, 100).shape == (1, 6)


def test_equal_sums_are_equal_in_whatever_order_they_were_added() -> None:
    """1/3 + 1/7 + 1/5 in two orders differ in the last bit; documents of the same weights must tie."""
    members = [[0, 1, 2], [3, 4, 5], [0, 5], [0, 1], [1, 3], [2, 4], [1, 3, 5], [0, 2, 4]]
    documents = [Passage(str(i), "", str(i)) for i in range(len(members))]
    graph = assemble([str(i) for i in range(6)], ["r"], np.array([[0, 0, 1]]), documents, members, {})
    scores = DocumentRanker(graph, "idf_topk", 6).scores(torch.ones(1, 6))
    weights = {e: 1 / sum(e in held for held in members) for e in range(6)}
    exact = [sum(sorted(weights[e] for e in held)) for held in members]
    for i in range(len(members)):
        for j in range(len(members)):
            if abs(exact[i] - exact[j]) < 1e-12:
                assert scores[0, i] == scores[0, j]


def test_the_highest_are_exactly_k_and_the_first_of_equal_ones() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert highest(scores, 2).int().tolist() == [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert highest(scores, 4).int().tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert highest(scores, 9).all()
    assert not highest(scores, 0).any()


def test_bad_scores_are_refused(graph: KnowledgeGraph) -> None:
    ranker = DocumentRanker(graph)
    with pytest.raises(NumericsError):
        ranker.scores(torch.tensor([[0.0, torch.nan, 0.0, 0.0, 0.0]]))
    with pytest.raises(RagtrainError, match="5 entities"):
        ranker.scores(torch.zeros(2, 4))


def test_scaling_keeps_what_has_a_score_above_what_has_none() -> None:
    scores = torch.tensor(
        [
            [1.0, 3.0, 2.0, 2.0],
            [-torch.inf, 2.0, 2.0, 4.0],
            [-torch.inf, -torch.inf, -3.0, -3.0],
            [5.0, 5.0, 5.0, 5.0],
            [-torch.inf] * 4,
        ]
    )
    expected = [[0.0, 1.0, 0.5, 0.5], [0.0, 0.5, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0] * 4, [0.0] * 4]
    assert unit_range(scores).tolist() == expected
    other = torch.tensor([[0.0, 0.0, 0.0, 8.0]]).expand(5, 4)
    assert fuse(scores, other, 0.25)[0].tolist() == [0.0, 0.25, 0.125, 0.875]


def test_a_graph_without_documents_ranks_none() -> None:
    graph = assemble(["a"], ["r"], np.array([[0, 0, 0]]), [], [], {})
    scores = DocumentRanker(graph).scores(torch.ones(2, 1))
    assert scores.shape == unit_range(scores).shape == rank_documents(scores, 5).shape == (2, 0)
