from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtrain.errors import ConfigError, DataError, IndexMismatchError, NumericsError
from ragtrain.index import coarse, exact
from ragtrain.index.exact import Searcher

if TYPE_CHECKING:
    from pathlib import Path

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


@pytest.fixture(params=["resident", "blocks", "streamed", "few scores", "eight bits", "eight bits, streamed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Every way through the search: whole matrix, small blocks, from the file, few candidates at a time."""
    if request.param.startswith("eight bits"):
        in_eight_bits(monkeypatch)
        # Room for a byte a number, but not for the vectors as they are stored.
        return {"memory_bytes": 200 * DIM} if request.param.endswith("streamed") else {}
    if request.param != "resident":
        monkeypatch.setattr(exact, "SCORES", 7 * DIM)
    if request.param == "few scores":
        monkeypatch.setattr(exact, "RESCORED", 3 * DIM)
        monkeypatch.setattr(exact, "QUERIES", 2)
    return {"memory_bytes": 0} if request.param == "streamed" else {}


def test_the_way_is_the_one_it_says(way: dict, request: pytest.FixtureRequest) -> None:
    searcher = Searcher(vectors_of(200), **way)
    name = request.node.callspec.params["way"]
    assert (searcher._coarse is not None) == name.startswith("eight bits")
    assert (searcher._resident is None) == name.endswith("streamed")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("n_docs", [1, 3, 5, 40])
def test_equals_sorting_by_hand(way: dict, dtype: type, n_docs: int) -> None:
    vectors = vectors_of(150).astype(dtype)
    queries = torch.randn(7, DIM)
    hits = Searcher(vectors, **way).search(queries, n_docs)
    ids, scores = by_hand(vectors, queries, n_docs)
    assert hits.ids.tolist() == ids
    assert hits.scores.tolist() == scores
    assert hits.mask.all()
    assert (hits.ids.dtype, hits.scores.dtype, hits.mask.dtype) == (torch.int64, torch.float32, torch.bool)


def test_equal_scores_are_ordered_by_position(way: dict) -> None:
    vectors = vectors_of(200)
    best = vectors[20] * 3
    vectors[[20, 21, 60, *range(100, 160), 199]] = best
    query = torch.from_numpy(best)[None]
    hits = Searcher(vectors, **way).search(query, 5)
    assert hits.ids[0].tolist() == [20, 21, 60, 100, 101], "more equal passages than candidates"
    assert len(set(hits.scores[0].tolist())) == 1


def test_all_passages_equal(way: dict) -> None:
    hits = Searcher(np.ones((90, DIM), np.float16), **way).search(torch.ones(3, DIM), 4)
    assert hits.ids.tolist() == [[0, 1, 2, 3]] * 3


@given(st.integers(1, 60), st.integers(1, 30), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_small_whole_numbers(count: int, n_docs: int, batch: int, seed: int) -> None:
    """Ties everywhere, exact in every precision."""
    generator = np.random.default_rng(seed)
    vectors = generator.integers(-2, 3, (count, 4)).astype(np.float16)
    queries = torch.from_numpy(generator.integers(-2, 3, (batch, 4)).astype(np.float32))
    hits = Searcher(vectors).search(queries, n_docs)
    ids, scores = by_hand(vectors, queries, n_docs)
    assert [row[mask].tolist() for row, mask in zip(hits.ids, hits.mask, strict=True)] == ids
    assert [row[mask].tolist() for row, mask in zip(hits.scores, hits.mask, strict=True)] == scores


def test_the_batch_does_not_matter() -> None:
    searcher, queries = Searcher(vectors_of(3000, dim=96)), torch.randn(33, 96)
    together = searcher.search(queries, 10)
    for row in range(33):
        alone = searcher.search(queries[row : row + 1], 10)
        assert torch.equal(alone.ids[0], together.ids[row])
        assert torch.equal(alone.scores[0], together.scores[row])


def test_more_asked_than_there_is(way: dict) -> None:
    searcher = Searcher(vectors_of(3), **way)
    hits = searcher.search(torch.randn(2, DIM), 5)
    assert hits.mask.tolist() == [[True] * 3 + [False] * 2] * 2
    assert hits.ids[:, 3:].tolist() == [[-1, -1]] * 2
    assert torch.isneginf(hits.scores[:, 3:]).all()
    assert sorted(hits.ids[0, :3].tolist()) == [0, 1, 2]
    assert (searcher.vectors(hits.ids)[:, 3:] == 0).all()


def test_vectors_for_scoring(way: dict) -> None:
    stored = vectors_of(50).astype(np.float16)
    searcher = Searcher(stored, **way)
    ids = torch.tensor([[4, 4, -1], [49, 0, 7]])
    found = searcher.vectors(ids)
    assert found.dtype == torch.float32
    assert found.shape == (2, 3, DIM)
    assert torch.equal(found[1], torch.from_numpy(stored[[49, 0, 7]].astype(np.float32)))
    assert (found[0, 2] == 0).all()
    assert torch.equal(found[0, 0], found[0, 1])


def test_no_question() -> None:
    assert Searcher(vectors_of(3)).search(torch.empty(0, DIM), 2).ids.shape == (0, 2)


def alike(count: int) -> np.ndarray:
    """Return vectors whose scores differ less than bf16 and TF32 can tell."""
    return vectors_of(1) + 1e-3 * vectors_of(count, seed=1)


def test_search_leaves_autograd_and_autocast_alone() -> None:
    searcher, queries = Searcher(alike(500)), torch.randn(4, DIM, requires_grad=True)
    plain = searcher.search(queries, 3)
    assert not plain.scores.requires_grad
    assert plain.ids.tolist() == by_hand(alike(500), queries.detach(), 3)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = searcher.search(queries, 3)
    assert torch.equal(plain.ids, mixed.ids)
    assert torch.equal(plain.scores, mixed.scores)
    half = searcher.search(queries.detach().bfloat16(), 3)
    assert half.scores.dtype == torch.float32


def test_matmul_precision_is_restored() -> None:
    queries = torch.randn(4, DIM)
    torch.set_float32_matmul_precision("medium")
    try:
        found = Searcher(alike(500)).search(queries, 2)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert found.ids.tolist() == by_hand(alike(500), queries, 2)[0]


def test_unusable_questions() -> None:
    searcher = Searcher(vectors_of(20))
    with pytest.raises(IndexMismatchError, match=r"shape \(2, 5\) where the index holds 24 dimensions"):
        searcher.search(torch.randn(2, 5), 2)
    queries = torch.randn(4, DIM)
    queries[2, 3] = torch.nan
    with pytest.raises(NumericsError, match=r"rows \[2\]"):
        searcher.search(queries, 2)


def test_too_large_for_the_memory_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ragtrain"):
        Searcher(vectors_of(20), memory_bytes=100)
    assert "every search reads them from the file" in caplog.text


def test_cosine(make_index) -> None:
    raw = vectors_of(80) * np.linspace(0.1, 10, 80, dtype=np.float32)[:, None]
    index = make_index(raw, metric="cosine", storage="float32")
    queries = torch.randn(3, DIM) * 50
    hits = index.searcher().search(queries, 4)
    cosines = torch.nn.functional.cosine_similarity(queries[:, None], torch.from_numpy(raw)[None], dim=-1)
    reference = cosines.topk(4)
    assert torch.equal(hits.ids, reference.indices)
    torch.testing.assert_close(hits.scores, reference.values, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_faiss_equals_flat(make_index, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="the extra [cpu] is not installed")
    vectors = vectors_of(400)
    vectors[100:160] = vectors[7]
    index = make_index(vectors, faiss=True, storage=storage)
    queries = torch.randn(9, DIM)
    queries[0] = torch.from_numpy(vectors[7])
    flat, other = index.searcher().search(queries, 6), index.searcher(backend="faiss-flat").search(queries, 6)
    assert torch.equal(flat.ids, other.ids)
    assert torch.equal(flat.scores, other.scores)
    assert flat.ids[0].tolist() == [7, 100, 101, 102, 103, 104]
    few = index.searcher(backend="faiss-flat").search(queries, 405)
    assert torch.equal(few.ids, index.searcher().search(queries, 405).ids)
    assert few.mask.sum() == 9 * 400


def test_faiss_file_that_does_not_fit(make_index, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss", reason="the extra [cpu] is not installed")
    index = make_index(vectors_of(10), faiss=True)
    path = index.path / "index.faiss"
    with pytest.raises(DataError, match="no faiss file") as caught:
        make_index(vectors_of(10), name="without").searcher(backend="faiss-flat")
    assert "--index-type faiss-flat" in str(caught.value.hint)
    euclidean = faiss.IndexFlatL2(DIM)
    euclidean.add(vectors_of(10))
    faiss.write_index(euclidean, str(path))
    with pytest.raises(IndexMismatchError, match=r"ranks by distance \(metric 1, L2\).* lengths go from"):
        index.searcher(backend="faiss-flat")
    path.write_bytes(b"1234")
    with pytest.raises(DataError, match="faiss cannot read it"):
        index.searcher(backend="faiss-flat")


def test_faiss_missing(make_index, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    index = make_index(vectors_of(5))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match="faiss is not installed"):
        index.searcher(backend="faiss-flat")


# ---------------------------------------------------------------------------------------------- new vectors


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("metric", ["inner_product", "cosine"])
def test_new_vectors_take_the_place_of_the_old(way: dict, dtype: type, metric: str) -> None:
    old, new = vectors_of(200).astype(dtype), vectors_of(200, seed=5) * np.float32(3)
    searcher = Searcher(old, metric=metric, **way)
    before = old.copy()
    searcher.replace(torch.from_numpy(new).double() if dtype == np.float32 else new)
    held = new / np.linalg.norm(new, axis=1, keepdims=True) if metric == "cosine" else new
    fresh = Searcher(held.astype(dtype), metric=metric)
    queries = torch.randn(5, DIM)
    one, other = searcher.search(queries, 3), fresh.search(queries, 3)
    assert torch.equal(one.ids, other.ids)
    torch.testing.assert_close(one.scores, other.scores, rtol=2e-3 if dtype == np.float16 else 1e-5, atol=1e-3)
    assert torch.equal(searcher.score(queries, one.ids), one.scores)
    gathered = searcher.vectors(one.ids).numpy()
    assert (gathered == gathered.astype(dtype)).all(), "held in the precision of the index"
    np.testing.assert_allclose(gathered, held[one.ids.numpy()], rtol=2e-3, atol=1e-3)
    assert (old == before).all()


def test_new_vectors_that_cannot_be_held_change_nothing() -> None:
    searcher, queries = Searcher(vectors_of(30).astype(np.float16)), torch.randn(2, DIM)
    before = searcher.search(queries, 3)
    with pytest.raises(IndexMismatchError, match=r"\(29, 24\) where \(30, 24\) are held"):
        searcher.replace(vectors_of(29))
    broken = vectors_of(30)
    broken[17, 2] = 1e6
    with pytest.raises(NumericsError, match="number 17 is not finite in float16"):
        searcher.replace(broken)
    after = searcher.search(queries, 3)
    assert torch.equal(before.ids, after.ids)
    assert torch.equal(before.scores, after.scores)


def test_score_is_what_search_says(way: dict) -> None:
    searcher, queries = Searcher(vectors_of(200).astype(np.float16), **way), torch.randn(4, DIM)
    hits = searcher.search(queries, 3)
    assert torch.equal(searcher.score(queries, hits.ids), hits.scores)
    ids = torch.tensor([[5, -1], [-1, -1], [0, 199], [7, 7]])
    scores = searcher.score(queries, ids)
    assert torch.equal(torch.isneginf(scores), ids < 0)
    assert scores[3, 0] == scores[3, 1]


# ---------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_gpu_equals_cpu(dtype: type) -> None:
    vectors = vectors_of(20_000, dim=96).astype(dtype)
    vectors[500:560] = vectors[3]
    queries = torch.randn(64, 96)
    queries[0] = torch.from_numpy(vectors[3].astype(np.float32))
    cpu = Searcher(vectors).search(queries, 20)
    torch.set_float32_matmul_precision("high")
    try:
        for searcher in (Searcher(vectors, "cuda"), Searcher(vectors, "cuda", memory_bytes=0)):
            gpu = searcher.search(queries.cuda(), 20)
            assert gpu.ids.device.type == "cuda"
            assert torch.equal(gpu.ids.cpu(), cpu.ids)
            assert torch.equal(gpu.scores.cpu(), cpu.scores)
            assert torch.equal(searcher.vectors(gpu.ids).cpu(), Searcher(vectors).vectors(cpu.ids))
    finally:
        torch.set_float32_matmul_precision("highest")


def test_halves_of_a_question_keep_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product of a GPU with half-precision vectors, computed here."""
    monkeypatch.setattr(exact, "_wide_product", lambda a, b: a.float() @ b.float())
    vectors = vectors_of(300, dim=64).astype(np.float16)
    searcher, block = Searcher(vectors), torch.from_numpy(vectors)
    queries = torch.randn(9, 64) * torch.logspace(-6, 6, 9)[:, None]
    reference = queries.double() @ block.double().T
    searcher._wide = True
    # Half of the slack is for the product, half for what it is compared with.
    allowed = searcher._slack(queries)[:, None] / 2
    assert ((searcher._product(queries, block) - reference).abs() < allowed).all()
    scale = queries.abs().amax(1, keepdim=True)
    once = (queries / scale).half().double() @ block.double().T * scale
    assert ((once - reference).abs() > allowed).any(dim=1).all(), "one half alone is not enough"
