"""``ragtrain index search``: one question to an index, and what it found on the console."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from ragtrain import report
from ragtrain.errors import ConfigError
from ragtrain.index import fusion
from ragtrain.index.search import DenseIndex
from ragtrain.prepare.encoders import question_encoder, resolve_device

if TYPE_CHECKING:
    from pathlib import Path

    from ragtrain.config.commands import SearchConfig


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a question found, best first."""

    question: str
    index_path: Path
    encoder: str
    metric: str
    retrieval: str
    search_index: str
    hits: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**dataclasses.asdict(self), "index_path": str(self.index_path), "hits": list(self.hits)}


def search(config: SearchConfig) -> SearchResult:
    """Search an index with one question and show what it found.

    Raises:
        ConfigError: there is no question, or no encoder for it.
        DataError: the index is damaged, or has no ``index.faiss`` or BM25 index where it is to be searched.
        IndexMismatchError: question encoder and index have different dimensions.
    """
    if not config.question.strip():
        raise ConfigError("there is no question", hint='ragtrain index search "capital of Norway"')
    index = DenseIndex.open(config.index_path)
    device = resolve_device(config.device)
    encoder = question_encoder(index, config.encoder).to(device)
    vectors = torch.from_numpy(encoder.encode_questions([config.question], device=device))
    searcher = index.searcher(device, backend=config.search_index)
    words = None if config.retrieval == "dense" else index.words()
    found = fusion.search(searcher, words, config.retrieval, vectors, [config.question], config.n_docs)
    rows: list[dict[str, Any]] = []
    for position, score in zip(found.ids[0].tolist(), found.scores[0].tolist(), strict=True):
        if position >= 0:
            passage = index.passages[position]
            rows.append({**passage.to_json(), "rank": len(rows) + 1, "score": score, "position": position})
    how = f"{config.retrieval}, {config.search_index}"
    report.table(
        f"{config.question}  ({index.count} passages, {how}, scores: {index.metric})", ["rank", "score", "id", "title", "text"],
        [[row["rank"], f"{row['score']:.3f}", row["id"], row["title"], _shortened(row["text"])] for row in rows],
    )  # fmt: skip
    name = config.encoder or index.question_encoder or "built-in demo encoder"
    return SearchResult(
        config.question, config.index_path, str(name), index.metric, config.retrieval, config.search_index, tuple(rows)
    )


def _shortened(text: str, limit: int = 100) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
