"""Approximate indexes of faiss: built block by block from the stored vectors, and measured against exact search.

``hnsw``   a graph of neighbours (Malkov and Yashunin 2018): fast, the whole vectors in memory
``ivf``    inverted lists around centres (Sivic and Zisserman 2003), whole vectors
``ivfpq``  inverted lists of product-quantised vectors (Jégou, Douze and Schmid 2011): some bytes a vector

All rank by inner product; unit vectors make it the cosine. What is measured is what a search through
``ragtrain.index.faiss_search`` returns, candidates scored again included.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ragtrain.errors import ConfigError
from ragtrain.index.faiss_search import import_faiss

if TYPE_CHECKING:
    from collections.abc import Callable

    from ragtrain.config.commands import AnnConfig
    from ragtrain.index.exact import Hits, Searcher

log = logging.getLogger("ragtrain")

Kind = Literal["faiss-flat", "hnsw", "ivf", "ivfpq"]

#: Vectors for each centre below which faiss says that the centres are badly learned, and what it uses at most.
LEAST_PER_CENTRE = 39
MOST_PER_CENTRE = 256
#: Numbers of the vectors that centres are learned from (1 GiB of float32).
LEARNED_FROM = 2**28
#: Vectors added at a time.
ADDED = 8192
#: Depths at which recall is measured, questions searched at a time, and noise relative to a vector's length.
DEPTHS = (1, 5, 20, 100)
BATCH = 32
NOISE = 0.5


def settings_for(kind: Kind, config: AnnConfig, count: int, dim: int) -> dict[str, int]:
    """Return the settings of an index of ``count`` vectors; what is reduced for a small corpus is logged.

    Raises:
        ConfigError: the vectors cannot be compressed as asked, or are too few.
    """
    if kind == "faiss-flat":
        return {}
    if kind == "hnsw":
        return {"links": config.hnsw_links, "ef_construction": config.ef_construction, "ef_search": config.ef_search}
    sample = min(count, max(1, LEARNED_FROM // dim))
    asked = config.n_lists or max(1, round(4 * math.sqrt(count)))
    lists = max(1, min(asked, sample // LEAST_PER_CENTRE))
    if config.n_lists is not None and lists < asked:
        log.warning(
            "%d inverted lists instead of %d: centres are learned from %d vectors, %d for each at least",
            lists, asked, sample, LEAST_PER_CENTRE,
        )  # fmt: skip
    settings = {"n_lists": lists, "n_probe": min(config.n_probe, lists)}
    return settings if kind == "ivf" else {**settings, **_compression(config.pq_bytes, sample, dim)}


def _compression(parts: int, sample: int, dim: int) -> dict[str, int]:
    if dim % parts:
        fitting = [n for n in range(1, dim + 1) if dim % n == 0]
        nearest = min(fitting, key=lambda n: (abs(n - parts), n))
        raise ConfigError(
            f"ann.pq_bytes is {parts}, which does not divide the {dim} dimensions of the vectors",
            hint=f"--pq-bytes {nearest} does",
        )
    bits = next((n for n in range(8, 3, -1) if 2**n * LEAST_PER_CENTRE <= sample), None)
    if bits is None:
        raise ConfigError(
            f"{sample} vectors are too few to learn how to compress them ({16 * LEAST_PER_CENTRE} at least)",
            hint="an index this small needs no compression: --index-type flat",
        )
    if bits < 8:
        log.warning(
            "each part of a vector takes %d bits instead of 8: %d vectors are too few to learn more", bits, sample
        )
    return {"pq_parts": parts, "pq_bits": bits}


def expected_bytes(kind: Kind, settings: dict[str, int], count: int, dim: int) -> int:
    """Return about how large ``index.faiss`` will be."""
    whole, centres = 4 * dim, 4 * dim * settings.get("n_lists", 0)
    if kind == "faiss-flat":
        return count * whole
    if kind == "hnsw":  # twice the links on the lowest level, where nearly all are, and where they begin
        return count * (whole + 8 * settings["links"] + 12)
    if kind == "ivf":
        return count * (whole + 8) + centres
    bits = settings["pq_bits"]
    return count * (settings["pq_parts"] * bits // 8 + 8) + centres + (whole << bits)


def build(
    vectors: np.ndarray, kind: Kind, settings: dict[str, int], progress: Callable[[int], object] | None = None
) -> Any:  # noqa: ANN401 - faiss has no types
    """Return a faiss index of (count, dim) vectors, in their order.

    Args:
        vectors: float16 or float32, mapped from a file or not; read block by block.
        kind: which index.
        settings: those of ``settings_for``.
        progress: called with the number of vectors added, after each block.

    Raises:
        ConfigError: faiss is not installed.
    """
    index = _empty(kind, settings, vectors.shape[1])
    if not index.is_trained:
        sample = _sample(vectors, settings)
        log.info("learning %d centres from %d vectors", settings["n_lists"], len(sample))
        index.train(sample)
    for start in range(0, len(vectors), ADDED):
        rows = np.ascontiguousarray(vectors[start : start + ADDED], dtype=np.float32)
        index.add(rows)
        if progress is not None:
            progress(len(rows))
    return index


def _empty(kind: Kind, settings: dict[str, int], dim: int) -> Any:  # noqa: ANN401
    faiss = import_faiss()
    if kind == "faiss-flat":
        return faiss.IndexFlatIP(dim)
    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dim, settings["links"], faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction, graph.hnsw.efSearch = settings["ef_construction"], settings["ef_search"]
        return graph
    centres, lists = faiss.IndexFlatIP(dim), settings["n_lists"]
    if kind == "ivf":
        index = faiss.IndexIVFFlat(centres, dim, lists, faiss.METRIC_INNER_PRODUCT)
    else:
        parts, bits = settings["pq_parts"], settings["pq_bits"]
        index = faiss.IndexIVFPQ(centres, dim, lists, parts, bits, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = settings["n_probe"]
    return index


def _sample(vectors: np.ndarray, settings: dict[str, int]) -> np.ndarray:
    """Return (m, dim) float32 vectors to learn centres from, evenly drawn, as many as faiss uses and memory allows."""
    count, dim = vectors.shape
    centres = max(settings["n_lists"], 2 ** settings.get("pq_bits", 0))
    wanted = min(count, MOST_PER_CENTRE * centres, max(1, LEARNED_FROM // dim))
    chosen = np.sort(np.random.default_rng(0).choice(count, size=wanted, replace=False))
    sample = np.empty((wanted, dim), dtype=np.float32)
    for start in range(0, wanted, ADDED):
        sample[start : start + ADDED] = vectors[chosen[start : start + ADDED]]
    return sample


@dataclasses.dataclass(frozen=True)
class Recall:
    """What an approximate index finds of what exact search finds.

    Attributes:
        queries: how many there were, and what they were.
        recall: for each depth n, the mean share of the exact n best passages among the n found.
        exact_ms: milliseconds a question, searched ``BATCH`` at a time; ``approximate_ms`` likewise.
    """

    queries: dict[str, Any]
    recall: dict[int, float]
    exact_ms: float
    approximate_ms: float


def measure(approximate: Searcher, exact: Searcher, vectors: np.ndarray, samples: int, seed: int = 0) -> Recall:
    """Search both ways with passages' own vectors and noise, and compare what is found.

    Noise has half the length of the vector and any direction. The passage that a question was made from is left out of
    both answers: finding it says nothing.

    Args:
        approximate: the index to measure.
        exact: its slow twin.
        vectors: (count, dim), of which questions are made.
        samples: number of questions, at most one a passage.
        seed: of the passages drawn and the noise.
    """
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.choice(len(vectors), size=min(samples, len(vectors)), replace=False))
    own = np.asarray(vectors[chosen], dtype=np.float32)
    noise = generator.standard_normal(own.shape, dtype=np.float32)
    noise *= NOISE * np.linalg.norm(own, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    queries = torch.from_numpy(own + noise)
    depths = [n for n in DEPTHS if n < len(vectors)]
    asked = (max(depths) if depths else 0) + 1
    truth, exact_ms = _timed(exact, queries, asked)
    found, approximate_ms = _timed(approximate, queries, asked)
    recall = {n: recall_at(n, _others(found, chosen), _others(truth, chosen)) for n in depths}
    what = f"vectors of passages with noise of {NOISE:g} of their length; the passage itself is left out"
    return Recall({"count": len(chosen), "what": what}, recall, exact_ms, approximate_ms)


def recall_at(n: int, found: list[list[int]], truth: list[list[int]]) -> float:
    """Return the mean share of the first n of ``truth`` among the first n of ``found``."""
    return float(np.mean([len(set(a[:n]) & set(b[:n])) / n for a, b in zip(found, truth, strict=True)]))


def _timed(searcher: Searcher, queries: torch.Tensor, n_docs: int) -> tuple[list[Hits], float]:
    searcher.search(queries[:BATCH], n_docs)  # the first is slow
    started = time.perf_counter()
    hits = [searcher.search(queries[start : start + BATCH], n_docs) for start in range(0, len(queries), BATCH)]
    return hits, 1000 * (time.perf_counter() - started) / len(queries)


def _others(hits: list[Hits], chosen: np.ndarray) -> list[list[int]]:
    ids = torch.cat([part.ids for part in hits]).tolist()
    return [[i for i in row if i != own] for row, own in zip(ids, chosen.tolist(), strict=True)]
