"""What finds documents over a knowledge graph without training: words, PageRank, and both.

Recall is the true one of the set: supporting documents among the first k, over all supporting documents, also of questions
without an entity and of documents that the graph does not have.

    python benchmarks/graph_baselines.py --graph musique_train_hipporag
    python benchmarks/graph_baselines.py --graph musique_train_hipporag --seeds names --damping 0.85
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ragtrain import metrics
from ragtrain.data.graph_questions import read_graph_questions
from ragtrain.index.bm25 import import_bm25s, words_of
from ragtrain.index.graph.names import EntityNames
from ragtrain.index.graph.pagerank import DAMPING, Walks, ppr_batch
from ragtrain.index.graph.rankers import DocumentRanker, Ranker, fuse, rank_documents
from ragtrain.index.graph.read import load_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from ragtrain.graphs import GraphQuestion, KnowledgeGraph

DEPTHS = (2, 5, 10, 20)
RANKERS: tuple[Ranker, ...] = ("simple", "idf", "topk", "idf_topk")


def ascii_words(text: str) -> list[str]:
    """Return the runs of ASCII letters and digits, as simple scripts cut words."""
    return re.findall(r"[a-z0-9]+", text.lower())


def bm25(
    graph: KnowledgeGraph, questions: Sequence[GraphQuestion], k1: float, words: Callable[[str], list[str]]
) -> Tensor:
    """Return (B, D) BM25 scores of title and text, b = 0.75."""
    retriever = import_bm25s().BM25(k1=k1, b=0.75, method="lucene")
    retriever.index([words(f"{d.title} {d.text}") for d in graph.documents], show_progress=False)
    return torch.from_numpy(np.stack([retriever.get_scores(words(q.question)) for q in questions]))


def recalls(questions: Sequence[GraphQuestion], scores: Tensor) -> str:
    """Return the mean recall at each depth, in per cent."""
    rows = rank_documents(scores, max(DEPTHS)).tolist()
    means = []
    for k in DEPTHS:
        each = [
            metrics.recall_at(
                metrics.gold_ranks(row, q.supporting_documents), len(q.supporting_documents) + q.missing_documents, k
            )
            for row, q in zip(rows, questions, strict=True)
        ]
        means.append(f"{100 * float(np.nanmean(each)):.1f}")
    return " | ".join(means)


def main() -> None:
    """Read a graph and its questions, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", type=Path, required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument(
        "--seeds", choices=["file", "names"], default="file", help="the file's entities, or those named"
    )
    parser.add_argument("--damping", type=float, default=DAMPING)
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    read = load_graph(given.graph)
    graph = read.graph
    print(f"reading: {time.process_time() - started:.2f} s")
    questions = read_graph_questions(given.graph, graph, given.split).questions
    names = EntityNames(graph.entities)
    seeds = [q.entities if given.seeds == "file" else names.mentions(q.question) for q in questions]
    print(
        f"{len(questions)} questions, {sum(not each for each in seeds)} without a seed; {read.about['documents']} documents"
    )
    started = time.process_time()
    walked = torch.from_numpy(ppr_batch(Walks(graph), seeds, damping=given.damping))
    print(f"PageRank: {1000 * (time.process_time() - started) / len(questions):.1f} ms a question")
    print("| method | " + " | ".join(f"R@{k}" for k in DEPTHS) + " |\n|---|" + "---|" * len(DEPTHS))
    words = {"BM25": bm25(graph, questions, 1.5, words_of), "BM25 k1=1.2": bm25(graph, questions, 1.2, ascii_words)}
    for name, scores in words.items():
        print(f"| {name} | {recalls(questions, scores)} |")
    for ranker in RANKERS:
        scores = DocumentRanker(graph, ranker).scores(walked, above=0.0)
        print(f"| PageRank, {ranker} | {recalls(questions, scores)} |")
        for name, other in words.items():
            print(f"| PageRank, {ranker} + {name} | {recalls(questions, fuse(scores, other))} |")


if __name__ == "__main__":
    main()
