"""What PageRank finds on graphs that were made in different ways: true set recall of the questions that are linked to each.

Run: ``python benchmarks/graph_quality.py GRAPH… [--split train]`` on folders of ``ragtrain index prepare --graph --graph-questions …``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ragtrain.data.graph_questions import read_graph_questions
from ragtrain.index.graph.pagerank import Walks, ppr
from ragtrain.index.graph.rankers import DocumentRanker, rank_documents
from ragtrain.index.graph.read import read_graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.graphs import GraphQuestion, KnowledgeGraph

DEPTHS = (1, 2, 5, 10, 20)


def recall(graph: KnowledgeGraph, questions: Sequence[GraphQuestion]) -> dict[int, float]:
    """Return the mean share of supporting documents among the first k, by k; a question without an entity finds none."""
    walks, ranker = Walks(graph), DocumentRanker(graph, "simple")
    shares: dict[int, list[float]] = {k: [] for k in DEPTHS}
    for question in questions:
        gold = set(question.supporting_documents)
        if not gold and not question.missing_documents:
            continue
        found: list[int] = []
        if question.entities:
            scores = ppr(walks, question.entities, walks.specificity(question.entities))
            ranked = rank_documents(ranker.scores(torch.from_numpy(scores)[None], above=0.0), max(DEPTHS))
            found = ranked[0].tolist()
        for k in DEPTHS:
            shares[k].append(len(gold & set(found[:k])) / (len(gold) + question.missing_documents))
    return {k: float(np.mean(part)) for k, part in shares.items()}


def main() -> None:
    """Print a row a graph."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("graphs", nargs="+", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--most", type=int, default=None, help="questions")
    asked = parser.parse_args()
    for folder in asked.graphs:
        graph = read_graph(folder)
        questions = read_graph_questions(folder, graph, asked.split).questions[: asked.most]
        shown = "  ".join(f"R@{k} {100 * share:.1f}" for k, share in recall(graph, questions).items())
        print(
            f"{folder}: {graph.n_entities} entities, {len(graph.triples)} triples, {len(questions)} questions: {shown}"
        )


if __name__ == "__main__":
    main()
