"""Candidates from eight bits: none of the best is missing, whatever the vectors look like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtrain.index import coarse
from ragtrain.index.exact import Searcher

DIM = 24


def vectors_of(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def by_hand(vectors: np.ndarray, queries: torch.Tensor, n_docs: int) -> tuple[list, list]:
    """The slow twin: every product in float64, sorted by falling score and rising id."""
    ids, scores = [], []
    for query in queries.double().numpy():
        products = [float(np.float32(np.dot(row, query))) for row in vectors.astype(np.float64)]
        order = sorted(range(len(vectors)), key=lambda i: (-products[i], i))[:n_docs]
        ids.append(order)
        scores.append([products[i] for i in order])
    return ids, scores


#: Vectors in eight bits, packed in lots of 60 and looked at in groups of two.
SMALL_LOTS = {"FROM": 1, "GROUP": 2, "PACKED": 60, "ROUNDED": 20, "QUESTIONS": 3}


def in_eight_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    if not coarse.available():
        pytest.skip("this CPU has no eight-bit units")
    for name, value in SMALL_LOTS.items():
        monkeypatch.setattr(coarse, name, value)


@given(
    st.integers(130, 400), st.integers(1, 6), st.sampled_from(["normal", "shifted", "heavy", "equal", "scaled", "sparse"]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_eight_bits_miss_nothing(count: int, n_docs: int, kind: str, seed: int) -> None:
    """Whatever the vectors look like: off centre, with outliers, all alike, of very different lengths, mostly zero."""
    if not coarse.available():
        pytest.skip("this CPU has no eight-bit units")
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(count, DIM))
    queries = generator.normal(size=(4, DIM))
    if kind == "shifted":
        vectors, queries = vectors * 1e-2 + 3, queries + 2
    elif kind == "heavy":
        vectors, queries = vectors**7, queries**5
    elif kind == "equal":
        vectors[:] = vectors[0]
        queries[0] = 0
    elif kind == "scaled":
        vectors *= 10.0 ** generator.integers(-3, 3, (count, 1))
        queries *= 10.0 ** generator.integers(-3, 3, (4, 1))
    elif kind == "sparse":
        vectors *= generator.random(vectors.shape) < 0.1
    wide = vectors.astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        in_eight_bits(patch)
        patch.setattr(coarse, "PACKED", 120)
        searcher = Searcher(wide)
        hits = searcher.search(torch.from_numpy(queries.astype(np.float32)), n_docs)
    assert searcher._coarse is not None
    ids, scores = by_hand(wide, torch.from_numpy(queries.astype(np.float32)), n_docs)
    assert hits.scores.tolist() == scores
    assert hits.ids.tolist() == ids


def test_what_eight_bits_lose_is_bounded_and_the_bound_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    if not coarse.available():
        pytest.skip("this CPU has no eight-bit units")
    vectors, queries = torch.randn(4096, 96), torch.randn(8, 96)
    rounded = coarse.Coarse(vectors.split(512), vectors.mean(0), 4096)
    ((_, rows, packed, scales),) = rounded._lots
    scale = queries.abs().amax(1, keepdim=True) / coarse.TOP
    codes = (queries / scale).round() + coarse.SHIFT
    approximate = coarse._integer_product(codes.to(torch.uint8), packed, scales)[:, :rows] * scale
    error = (approximate - queries @ (vectors - vectors.mean(0)).T).abs()
    lost = torch.linalg.vector_norm(queries - (codes - coarse.SHIFT) * scale, dim=1)
    bound = lost * rounded.longest + torch.linalg.vector_norm(queries, dim=1) * rounded.lost
    assert (error < bound[:, None]).all()
    assert (error.amax(1) > bound / 20).all()
    # Without the bound results do change: it is what keeps them right.
    queries = torch.randn(200, 96, generator=torch.Generator().manual_seed(1))
    usual = Searcher(vectors.numpy())
    monkeypatch.setattr(coarse, "FROM", 1)
    searcher = Searcher(vectors.numpy())
    assert usual._coarse is None
    assert searcher._coarse is not None
    assert torch.equal(searcher.search(queries, 5).ids, usual.search(queries, 5).ids)
    searcher._coarse.lost = searcher._coarse.longest = 0.0
    assert not torch.equal(searcher.search(queries, 5).ids, usual.search(queries, 5).ids)


def test_numbers_whose_lengths_overflow_are_left_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    in_eight_bits(monkeypatch)
    searcher = Searcher(vectors_of(200) * np.float32(1e30), max_norm=1e31)
    assert searcher._coarse is None
    usual = Searcher(vectors_of(200))
    hits = usual.search(torch.randn(2, DIM) * 1e30, 3)
    assert hits.mask.all()


@pytest.mark.parametrize("kind", ["off centre", "outliers", "repeated", "lengths"])
def test_whole_lots_find_what_float32_finds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes that are used, to the bit."""
    if not coarse.available():
        pytest.skip("this CPU has no eight-bit units")
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((20_000, 64), dtype=np.float32)
    if kind == "off centre":
        vectors = vectors * np.float32(0.05) + 1
    elif kind == "outliers":
        vectors[:, 3] *= 60
        vectors[:, 7] += 40
    elif kind == "repeated":
        vectors = vectors[generator.integers(0, 500, len(vectors))]
    else:
        vectors *= np.exp(generator.standard_normal((len(vectors), 1), dtype=np.float32))
    stored = vectors.astype(np.float16)
    queries = torch.from_numpy(stored[:40].astype(np.float32)) + 0.3 * torch.randn(40, 64)
    quick = Searcher(stored)
    monkeypatch.setattr(coarse, "FROM", 10**9)
    plain = Searcher(stored)
    assert quick._coarse is not None
    assert plain._coarse is None
    for n_docs in (1, 7, 60):
        one, other = quick.search(queries, n_docs), plain.search(queries, n_docs)
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.scores, other.scores)
