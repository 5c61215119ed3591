"""Approximate indexes: settings, building in blocks, recall against a slow twin, search that leaves no place empty."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from ragtrain.config.commands import AnnConfig
from ragtrain.errors import ConfigError, IndexMismatchError
from ragtrain.index import ann
from ragtrain.index.exact import Hits, Searcher
from ragtrain.index.faiss_search import FaissSearcher

if TYPE_CHECKING:
    from pathlib import Path

faiss = pytest.importorskip("faiss", reason="the extra [cpu] is not installed")

DIM = 16
KINDS = ["faiss-flat", "hnsw", "ivf", "ivfpq"]


def clustered(count: int, seed: int = 0, clusters: int = 40) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(clusters, DIM)) * 2
    return (centres[np.arange(count) % clusters] + generator.normal(size=(count, DIM))).astype(np.float16)


def written(tmp_path: Path, vectors: np.ndarray, kind: str, **settings: int) -> tuple[FaissSearcher, dict]:
    resolved = ann.settings_for(kind, AnnConfig(**{"pq_bytes": 4, **settings}), *vectors.shape)
    path = tmp_path / f"{kind}.faiss"
    faiss.write_index(ann.build(vectors, kind, resolved), str(path))
    return FaissSearcher(path, vectors), resolved


# ---------------------------------------------------------------------------------------------- settings


def test_lists_follow_the_number_of_vectors_and_are_few_enough_to_be_learned(caplog: pytest.LogCaptureFixture) -> None:
    config = AnnConfig()
    assert ann.settings_for("ivf", config, 1_000_000, 768)["n_lists"] == 4000
    assert ann.settings_for("ivf", config, 3900, 64) == {"n_lists": 100, "n_probe": 32}
    assert ann.settings_for("ivf", config, 20, 64) == {"n_lists": 1, "n_probe": 1}
    assert not caplog.records, "what nobody asked for is not reduced"
    with caplog.at_level(logging.WARNING, "ragtrain"):
        assert ann.settings_for("ivf", AnnConfig(n_lists=500), 3900, 64)["n_lists"] == 100
    assert "100 inverted lists instead of 500" in caplog.text


def test_lists_are_bounded_by_the_memory_to_learn_them_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann, "LEARNED_FROM", 39 * 50 * DIM)
    assert ann.settings_for("ivf", AnnConfig(), 100_000, DIM)["n_lists"] == 50
    assert ann._sample(clustered(4000), {"n_lists": 50}).shape == (39 * 50, DIM)


def test_compression_that_does_not_fit_is_refused_or_reduced(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="pq_bytes is 64, which does not divide the 100 dimensions") as caught:
        ann.settings_for("ivfpq", AnnConfig(), 50_000, 100)
    assert caught.value.hint == "--pq-bytes 50 does"
    with pytest.raises(ConfigError, match="600 vectors are too few"):
        ann.settings_for("ivfpq", AnnConfig(), 600, 128)
    assert ann.settings_for("ivfpq", AnnConfig(), 9984, 128)["pq_bits"] == 8
    with caplog.at_level(logging.WARNING, "ragtrain"):
        assert ann.settings_for("ivfpq", AnnConfig(), 9983, 128)["pq_bits"] == 7
    assert "7 bits instead of 8" in caplog.text


# ---------------------------------------------------------------------------------------------- building


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_make_the_index_that_faiss_makes_at_once(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clustered(1300)
    settings = ann.settings_for(kind, AnnConfig(pq_bytes=4, n_probe=4), *vectors.shape)
    added: list[int] = []
    monkeypatch.setattr(ann, "ADDED", 500)
    built = ann.build(vectors, kind, settings, added.append)
    assert added == [500, 500, 300]
    wide = vectors.astype(np.float32)
    names = {
        "faiss-flat": "Flat", "hnsw": "HNSW32", "ivf": f"IVF{settings.get('n_lists')},Flat",
        "ivfpq": f"IVF{settings.get('n_lists')},PQ4x{settings.get('pq_bits')}",
    }  # fmt: skip
    reference = faiss.index_factory(DIM, names[kind], faiss.METRIC_INNER_PRODUCT)
    if kind == "hnsw":
        reference.hnsw.efConstruction = 200
        reference.hnsw.efSearch = 128
    if kind.startswith("ivf"):
        reference.nprobe = 4
        reference.train(wide)
    reference.add(wide)
    assert isinstance(built, type(faiss.downcast_index(reference)))
    assert built.metric_type == faiss.METRIC_INNER_PRODUCT
    queries = np.random.default_rng(1).normal(size=(20, DIM)).astype(np.float32)
    found, expected = built.search(queries, 5)[1], reference.search(queries, 5)[1]
    overlap = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found, expected, strict=True)])
    # The same centres; of a graph only as good an approximation.
    assert overlap == 1 if kind != "hnsw" else overlap > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_known_before(tmp_path: Path, kind: str) -> None:
    vectors = clustered(3000)
    _, settings = written(tmp_path, vectors, kind)
    expected = ann.expected_bytes(kind, settings, 3000, DIM)
    assert expected == pytest.approx((tmp_path / f"{kind}.faiss").stat().st_size, rel=0.05)


# ---------------------------------------------------------------------------------------------- recall


def test_recall_is_what_a_loop_counts(tmp_path: Path) -> None:
    vectors = clustered(900)
    approximate, _ = written(tmp_path, vectors, "ivf", n_lists=20, n_probe=1)
    measured = ann.measure(approximate, Searcher(vectors), vectors, samples=50, seed=3)
    generator = np.random.default_rng(3)
    chosen = np.sort(generator.choice(900, size=50, replace=False))
    noise = generator.standard_normal((50, DIM), dtype=np.float32)
    shares: dict[int, list[float]] = {1: [], 5: [], 20: [], 100: []}
    for row, own in enumerate(chosen.tolist()):
        vector = vectors[own].astype(np.float32)
        query = vector + noise[row] * (0.5 * np.linalg.norm(vector) / np.linalg.norm(noise[row]))
        order = np.argsort(-(vectors.astype(np.float64) @ query.astype(np.float64)), kind="stable").tolist()
        truth = [i for i in order if i != own]
        got = [i for i in approximate.search(torch.from_numpy(query)[None], 101).ids[0].tolist() if i != own]
        for n, values in shares.items():
            values.append(sum(i in got[:n] for i in truth[:n]) / n)
    assert measured.recall == {n: pytest.approx(np.mean(values), abs=2e-3) for n, values in shares.items()}
    assert 0.3 < measured.recall[100] < 0.99
    assert measured.queries["count"] == 50
    assert "the passage itself is left out" in measured.queries["what"]
    assert min(measured.exact_ms, measured.approximate_ms) > 0


def test_an_exact_index_has_full_recall_and_a_wrong_one_has_not(tmp_path: Path) -> None:
    vectors = clustered(300)
    flat, _ = written(tmp_path, vectors, "faiss-flat")
    assert set(ann.measure(flat, Searcher(vectors), vectors, 40).recall.values()) == {1.0}
    first = SimpleNamespace(search=lambda q, n: Hits(torch.arange(n).expand(len(q), n), torch.zeros(len(q), n), None))
    assert ann.measure(first, Searcher(vectors), vectors, 40).recall[5] < 0.5


def test_depths_that_a_small_index_does_not_have_are_left_out(tmp_path: Path) -> None:
    vectors = clustered(6)
    flat, _ = written(tmp_path, vectors, "faiss-flat")
    assert list(ann.measure(flat, Searcher(vectors), vectors, 40).recall) == [1, 5]


# ---------------------------------------------------------------------------------------------- searching


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_exact_whatever_chose(tmp_path: Path, kind: str) -> None:
    vectors = clustered(1200)
    searcher, _ = written(tmp_path, vectors, kind)
    exact, queries = Searcher(vectors), torch.randn(9, DIM)
    hits = searcher.search(queries, 6)
    assert hits.mask.all()
    assert torch.equal(hits.scores, exact.score(queries, hits.ids))
    assert torch.equal(hits.scores, hits.scores.sort(dim=1, descending=True).values)
    best = exact.search(queries, 6).ids
    assert np.mean([len(set(a) & set(b)) / 6 for a, b in zip(hits.ids.tolist(), best.tolist(), strict=True)]) > (
        0.4 if kind == "ivfpq" else 0.8
    )


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq"])
def test_no_place_is_empty_while_there_are_passages(tmp_path: Path, kind: str) -> None:
    vectors = clustered(800)
    searcher, _ = written(tmp_path, vectors, kind, n_lists=20, n_probe=1, ef_search=4)
    owner, name, _ = searcher._effort
    before = getattr(owner, name)
    queries = torch.randn(5, DIM)
    hits = searcher.search(queries, 700)
    assert hits.mask.all()
    assert all(len(set(row)) == 700 for row in hits.ids.tolist())
    assert getattr(owner, name) == before, "a search keeps no state"
    everything = searcher.search(queries, 810)
    assert torch.equal(everything.ids, Searcher(vectors).search(queries, 810).ids)
    assert everything.mask.sum() == 5 * 800


def test_more_effort_is_spent_on_short_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(800)
    searcher, _ = written(tmp_path, vectors, "ivf", n_lists=20, n_probe=1)
    asked: list[int] = []
    plain = searcher._propose
    monkeypatch.setattr(searcher, "_propose", lambda q, width: (asked.append(len(q)), plain(q, width))[1])
    searcher.search(torch.randn(30, DIM), 36)
    assert asked[0] == 30
    assert asked[1:] == sorted(asked[1:], reverse=True)
    assert asked[1] < 30


def test_new_vectors_are_refused(tmp_path: Path) -> None:
    searcher, _ = written(tmp_path, clustered(100), "hnsw")
    with pytest.raises(ConfigError, match=r"index.faiss holds the vectors") as caught:
        searcher.replace(clustered(100))
    assert "--search-index flat" in str(caught.value.hint)


# ---------------------------------------------------------------------------------------------- of other tools


def saved(tmp_path: Path, index: object) -> Path:
    faiss.write_index(index, str(tmp_path / "other.faiss"))
    return tmp_path / "other.faiss"


@pytest.mark.parametrize("kind", ["l2 of unit vectors", "dpr", "ids of its own", "rotated"])
def test_other_tools_files_find_what_exact_search_finds(tmp_path: Path, kind: str) -> None:
    vectors = clustered(500).astype(np.float32)
    if kind == "l2 of unit vectors":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        index = faiss.IndexFlatL2(DIM)
        index.add(vectors)
    elif kind == "dpr":
        # DPR's trick: |q - v'|^2 = |q|^2 + phi - 2 q.v, with v' = (v, sqrt(phi - |v|^2)).
        norms = (vectors**2).sum(1)
        extra = np.sqrt(np.maximum(norms.max() - norms, 0))[:, None]
        index = faiss.IndexHNSWFlat(DIM + 1, 32)
        index.add(np.hstack([vectors, extra]).astype(np.float32))
    elif kind == "ids of its own":
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(DIM))
        index.add_with_ids(vectors, np.arange(500)[::-1] * 7)
    else:
        index = faiss.index_factory(DIM, "RR16,IVF8,Flat", faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        faiss.extract_index_ivf(index).nprobe = 8
    searcher = FaissSearcher(saved(tmp_path, index), vectors)
    queries = torch.randn(12, DIM)
    found, expected = searcher.search(queries, 5), Searcher(vectors).search(queries, 5)
    assert torch.equal(found.scores, Searcher(vectors).score(queries, found.ids))
    overlap = np.mean(
        [len(set(a) & set(b)) / 5 for a, b in zip(found.ids.tolist(), expected.ids.tolist(), strict=True)]
    )
    assert overlap > 0.97
    if kind == "rotated":
        faiss.extract_index_ivf(searcher._faiss).nprobe = 1
        assert searcher.search(queries, 490).mask.all(), "lists under a transformation are searched further as well"


def test_a_file_that_ranks_otherwise_is_refused(tmp_path: Path) -> None:
    vectors = clustered(50).astype(np.float32)
    for index, message in [
        (faiss.IndexFlatL2(DIM), "not the order of inner products"),
        (faiss.IndexFlat(DIM, faiss.METRIC_L1), "metric 2"),
        (faiss.IndexFlatIP(DIM + 1), "17 dimensions"),
    ]:
        index.add(np.zeros((50, index.d), np.float32) + np.pad(vectors, ((0, 0), (0, index.d - DIM))))
        with pytest.raises(IndexMismatchError, match=message):
            FaissSearcher(saved(tmp_path, index), vectors)
