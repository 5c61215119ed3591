from __future__ import annotations

import re
from pathlib import Path

import bm25s
import numpy as np
import pytest
import torch

from ragtrain import metrics
from ragtrain.data.graph_questions import read_graph_questions
from ragtrain.errors import ConfigError
from ragtrain.graphs import KnowledgeGraph
from ragtrain.index.graph.builder import assemble
from ragtrain.index.graph.pagerank import Walks, ppr, ppr_batch
from ragtrain.index.graph.rankers import DocumentRanker, fuse, rank_documents
from ragtrain.index.graph.read import read_graph
from ragtrain.records import Passage


def random_graph(seed: int, entities: int, triples: int) -> KnowledgeGraph:
    generator = np.random.default_rng(seed)
    rows = np.stack(
        [
            generator.integers(0, entities - 2, triples),  # the last two entities stand alone
            generator.integers(0, 3, triples),
            generator.integers(0, entities - 2, triples),
        ],
        axis=1,
    )
    documents = [Passage(str(i), "", "x") for i in range(8)]
    members = [generator.integers(0, entities, 4).tolist() for _ in documents]
    return assemble([str(i) for i in range(entities)], ["r", "s", "t"], np.unique(rows, axis=0), documents, members, {})


def dense(graph: KnowledgeGraph, restart: np.ndarray, damping: float) -> np.ndarray:
    """Solve p = (1 - d) r + d (Wᵀ p + r aᵀ p) with a 1 for entities without a triple."""
    count = graph.n_entities
    weights = np.zeros((count, count))
    for head, _, tail in graph.triples.tolist():
        weights[head, tail] += 1
        weights[tail, head] += 1
    degree = weights.sum(1, keepdims=True)
    transition = np.where(degree > 0, weights / np.where(degree > 0, degree, 1), restart[None, :])
    return np.linalg.solve(np.eye(count) - damping * transition.T, (1 - damping) * restart)


@pytest.mark.parametrize("damping", [0.0, 0.5, 0.85])
@pytest.mark.parametrize("seed", range(4))
def test_against_a_dense_solution(damping: float, seed: int) -> None:
    graph = random_graph(seed, 25, 30)
    seeds, weights = [3, 24, 7, 3], [1.0, 2.0, 0.5, 0.25]
    restart = np.zeros(25)
    for each, weight in zip(seeds, weights, strict=True):
        restart[each] += weight / 3.75
    found = ppr(graph, seeds, weights, damping=damping)
    np.testing.assert_allclose(found, dense(graph, restart, damping), atol=1e-9)
    assert found.sum() == pytest.approx(1)


def test_the_tolerance_bounds_the_error() -> None:
    graph = random_graph(9, 40, 80)
    exact = dense(graph, np.eye(40)[5], 0.85)
    for tolerance in (1e-1, 1e-3, 1e-6):
        assert np.abs(ppr(graph, [5], damping=0.85, tolerance=tolerance) - exact).sum() <= tolerance


def test_seeds_count_by_specificity_and_questions_without_any_score_nothing(graph: KnowledgeGraph) -> None:
    walks = Walks(graph)
    assert walks.frequency.tolist() == [1, 2, 1, 1, 0]
    rows = ppr_batch(walks, [[1, 4], [], [0]])
    np.testing.assert_allclose(rows[0], ppr(graph, [1, 4], [0.5, 1.0]))
    assert not rows[1].any()
    # An entity whose only triple is with itself keeps all.
    assert ppr(walks, [4])[4] == pytest.approx(1)
    scores = DocumentRanker(graph, "simple").scores(torch.from_numpy(rows), above=0.0)
    assert scores[1].tolist() == [-np.inf] * 4


def test_all_triples_of_a_pair_count() -> None:
    documents: list[Passage] = []
    once = assemble("abc", "rs", np.array([[0, 0, 1], [0, 0, 2]]), documents, [], {})
    twice = assemble("abc", "rs", np.array([[0, 0, 1], [0, 1, 1], [0, 0, 2]]), documents, [], {})
    assert ppr(once, [0])[1] == pytest.approx(ppr(once, [0])[2])
    assert ppr(twice, [0])[1] == pytest.approx(2 * ppr(twice, [0])[2])


@pytest.mark.parametrize(
    ("weights", "damping"),
    [([1.0], 1.0), ([1.0], -0.1), ([-1.0], 0.5), ([0.0], 0.5), ([1.0, 1.0], 0.5), ([np.nan], 0.5)],
)
def test_impossible_settings_are_refused(graph: KnowledgeGraph, weights: list[float], damping: float) -> None:
    with pytest.raises(ConfigError):
        ppr(graph, [0], weights, damping=damping)


def test_the_baselines_of_musique(real_data: Path) -> None:
    """True recall at 2, 5, 10 and 20 of 100 questions over 1,890 documents, as measured before this code was written.

    BM25 with k1 = 1.2, b = 0.75 on runs of ASCII letters and digits of title and text; PageRank with the file's own entities.
    The row of idf_topk differs from the figures measured then (37.8 47.2 57.8 61.8): those came from an unstable sort of
    entities, of which many have equal scores; here the first of equal ones counts.
    """
    folder = real_data / "graph" / "musique_train_hipporag"
    graph = read_graph(folder)
    questions = read_graph_questions(folder, graph).questions

    def words(text: str) -> list[str]:
        return re.findall(r"[a-z0-9]+", text.lower())

    retriever = bm25s.BM25(k1=1.2, b=0.75)
    retriever.index([words(f"{d.title} {d.text}") for d in graph.documents], show_progress=False)
    lexical = torch.from_numpy(np.stack([retriever.get_scores(words(q.question)) for q in questions]))
    walked = torch.from_numpy(ppr_batch(graph, [q.entities for q in questions]))
    simple = DocumentRanker(graph, "simple").scores(walked, above=0.0)
    best = DocumentRanker(graph, "idf_topk", 20).scores(walked, above=0.0)

    def recall(scores: torch.Tensor) -> list[float]:
        rows = rank_documents(scores, 20).tolist()
        ranks = [metrics.gold_ranks(row, q.supporting_documents) for row, q in zip(rows, questions, strict=True)]
        gold = [len(q.supporting_documents) + q.missing_documents for q in questions]
        each = [[metrics.recall_at(r, n, k) for r, n in zip(ranks, gold, strict=True)] for k in (2, 5, 10, 20)]
        return [round(100 * float(np.mean(values)), 1) for values in each]

    assert recall(lexical) == [40.4, 48.8, 59.0, 68.9]
    assert recall(simple) == [35.2, 45.0, 56.1, 60.4]
    assert recall(best) == [37.3, 47.5, 57.8, 61.8]
    assert recall(fuse(simple, lexical)) == [41.7, 54.1, 62.4, 70.2]
