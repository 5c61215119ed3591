"""Rankings of a graph's documents that stand beside each other on the same questions.

bm25         words
ppr          personalised PageRank from the question's entities, as HippoRAG has it; nothing is learnt
bm25+ppr     both, each scaled to 0 to 1 for each question
dense        vectors, where an index is given
model        the network
model+bm25   the network and words
model+dense  the network and vectors
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from ragtrain.errors import IndexMismatchError
from ragtrain.index.bm25 import BM25Index
from ragtrain.index.graph.pagerank import Walks, ppr_batch
from ragtrain.index.graph.rankers import DocumentRanker, fuse, rank_documents
from ragtrain.index.search import DenseIndex
from ragtrain.prepare.encoders import question_encoder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from ragtrain.evaluate.graph_model import Scorer
    from ragtrain.graphs import GraphQuestion, KnowledgeGraph

Fusion = Literal["none", "bm25", "dense"]

#: What of the walk and of words counts in ``bm25+ppr``.
HALF = 0.5


def evaluated(fusion: Fusion) -> str:
    """Return the ranking that a way of fusing stands for."""
    return "model" if fusion == "none" else f"model+{fusion}"


class Dense:
    """Documents of a graph by the vectors of an index; a document that was split has the score of its best piece.

    Attributes:
        index: the index.
        without: documents that the index does not have; they have no score.
    """

    def __init__(self, path: Path, graph: KnowledgeGraph, device: torch.device) -> None:
        """Open an index of the graph's documents.

        Raises:
            DataError: it is no index.
            IndexMismatchError: it has no document of the graph.
        """
        self.index = DenseIndex.open(path)
        known = {document.id: number for number, document in enumerate(graph.documents)}
        titles = {document.title: number for number, document in enumerate(graph.documents)}
        places = [_place(passage.id, passage.title, known, titles) for passage in self.index.passages]
        self._places = torch.tensor(places, dtype=torch.long)
        self._count = len(graph.documents)
        held = len(set(places) - {-1})
        if not held:
            raise IndexMismatchError(
                "holds none of the graph's documents, by id or by title", path=self.index.path,
                hint="prepare it from the same passages as the graph",
            )  # fmt: skip
        self.without = self._count - held
        self._encoder = question_encoder(self.index).to(device)
        self._searcher = self.index.searcher(device)

    def scores(self, questions: Sequence[str]) -> Tensor:
        """Return (B, D) float32 scores, minus infinity for documents that the index does not have."""
        vectors = torch.from_numpy(self._encoder.encode_questions(list(questions)))
        hits = self._searcher.search(vectors, self.index.count)
        found = torch.full((len(questions), self._count + 1), -torch.inf)
        places = self._places[hits.ids.cpu()]
        places = torch.where(places < 0, self._count, places)
        return found.scatter_reduce_(1, places, hits.scores.cpu().float(), "amax")[:, : self._count]


def _place(identifier: str, title: str, known: dict[str, int], titles: dict[str, int]) -> int:
    """Return the document that a passage is, or is a piece of; -1 for none."""
    whole = identifier.rpartition("#")[0]
    for key, table in ((identifier, known), (whole, known), (title, titles)):
        if key in table:
            return table[key]
    return -1


class Systems:
    """All rankings of one graph.

    Attributes:
        names: in the order in which tables show them.
    """

    def __init__(self, scorer: Scorer, weight: float, dense: Dense | None = None) -> None:
        """Take in the documents.

        Args:
            scorer: the network on the graph.
            weight: share of the network in what it is fused with.
            dense: an index of the documents.
        """
        graph = scorer.found.graph
        self.scorer, self.weight, self.dense = scorer, weight, dense
        self._words = BM25Index.of(graph.documents)
        self._walks = Walks(graph)
        self._sums = DocumentRanker(graph, "simple")
        vectors = ["dense"] if dense is not None else []
        self.names = [
            "bm25",
            "ppr",
            "bm25+ppr",
            *vectors,
            "model",
            "model+bm25",
            *(f"model+{name}" for name in vectors),
        ]

    def rank(self, questions: Sequence[GraphQuestion], logits: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (B, D) scores of documents and their (B, D) order, best first, by each ranking.

        Args:
            questions: what is asked.
            logits: (B, N) of the network.
        """
        texts = [question.question for question in questions]
        words = torch.from_numpy(np.stack([self._words.scores(text) for text in texts]))
        walked = torch.from_numpy(ppr_batch(self._walks, [question.entities for question in questions]))
        walk = self._sums.scores(walked, above=0.0)
        model, rarity = self.scorer.documents(logits)
        found = {
            "bm25": words,
            "ppr": walk,
            "bm25+ppr": fuse(walk, words, HALF),
            "model": model,
            "model+bm25": fuse(model, words, self.weight),
        }
        if self.dense is not None:
            found["dense"] = self.dense.scores(texts)
            found["model+dense"] = fuse(model, found["dense"], self.weight)
        return {
            name: (found[name], rank_documents(found[name], fallback=rarity if name.startswith("model") else None))
            for name in self.names
        }
