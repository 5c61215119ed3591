"""Search by words against the formula of Lucene's BM25, over files read from the disk."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ragtrain.errors import ConfigError, DataError, IndexMismatchError
from ragtrain.index import bm25
from ragtrain.index.bm25 import BM25Index, add_bm25, highest, words_of
from ragtrain.index.search import DenseIndex
from ragtrain.records import Passage

if TYPE_CHECKING:
    from pathlib import Path

PASSAGES = [
    Passage("a", "Oslo", "Oslo is the capital of Norway. Norway is cold."),
    Passage("b", "", "The capital of France is Paris; Paris is in France."),
    Passage("c", "Straße", "ÉCOLE 東京"),
    Passage("d", "", "!!!"),
    Passage("e", "Norway", "norway NORWAY Norway's fjords and the sea, the sea, the sea"),
]


def manifest(passages: list[Passage]) -> dict:
    return {"files": {"other": {"size": 1}}, "count": len(passages), "passages_sha256": "abc"}


def made(folder: Path, passages: list[Passage] = PASSAGES, **settings: bool) -> BM25Index:
    return BM25Index.open(folder, add_bm25(folder, manifest(passages), passages, **settings))


def by_hand(passages: list[Passage], question: str, k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    """Kamphuis et al. (2020), BM25 of Lucene without the coarse lengths: idf = log(1 + (N - n + 0.5) / (n + 0.5))."""
    documents = [words_of(f"{p.title} {p.text}") for p in passages]
    mean = sum(map(len, documents)) / len(documents)
    scores = np.zeros(len(documents))
    for word in words_of(question):
        n = sum(word in document for document in documents)
        for i, document in enumerate(documents):
            tf = document.count(word)
            idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            scores[i] += idf * tf / (tf + k1 * (1 - b + b * len(document) / mean)) if tf else 0
    return scores


def test_words_are_letters_and_digits_casefolded() -> None:
    assert words_of("Straße don't ÉCOLE x_1 3.14") == ["strasse", "don", "t", "école", "x_1", "3", "14"]
    assert words_of("東京は TOKYO です") == ["東", "京", "は", "tokyo", "で", "す"]
    assert words_of("The cat", frozenset({"the"})) == ["cat"]
    assert words_of("!? …") == []


@pytest.mark.parametrize(
    "question", ["capital of Norway", "norway norway sea", "STRASSE", "京", "nothing known", "", "the the paris"]
)
def test_scores_are_the_formula(tmp_path: Path, question: str) -> None:
    index = made(tmp_path)
    expected = by_hand(PASSAGES, question)
    np.testing.assert_allclose(index.scores(question), expected, rtol=1e-5, atol=1e-6)
    order = [i for i in sorted(range(len(PASSAGES)), key=lambda i: (-expected[i], i)) if expected[i] > 0]
    assert index.search([question], 4).tolist() == [(order + [-1] * 4)[:4]]


def test_many_random_passages(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    passages = [
        Passage(str(i), "", " ".join(f"w{word}" for word in generator.zipf(1.5, generator.integers(1, 30)) % 50))
        for i in range(300)
    ]
    index = made(tmp_path, passages)
    questions = [" ".join(f"w{word}" for word in generator.integers(0, 50, 4)) for _ in range(20)]
    found = index.search(questions, 10)
    for row, question in zip(found, questions, strict=True):
        expected = by_hand(passages, question)
        best = np.sort(expected)[::-1][:10]
        np.testing.assert_allclose(expected[row], best, rtol=1e-5)


def test_equal_scores_are_ordered_by_position() -> None:
    scores = np.array([1, 3, 0, 3, 1, 3, 1], dtype=np.float32)
    assert highest(scores, 2).tolist() == [1, 3]
    assert highest(scores, 4).tolist() == [1, 3, 5, 0]
    assert highest(scores, 7).tolist() == [1, 3, 5, 0, 4, 6], "0 is no match"
    assert highest(np.zeros(4, np.float32), 2).tolist() == []


def test_scores_stay_on_the_disk_and_files_are_in_the_manifest(tmp_path: Path) -> None:
    written = add_bm25(tmp_path, manifest(PASSAGES), PASSAGES)
    index = BM25Index.open(tmp_path, written)
    assert isinstance(index._retriever.scores["data"], np.memmap)
    assert written["bm25"]["stopwords"] is False
    assert {"other", "bm25/words.json", "bm25/vocab.index.json"} <= set(written["files"])
    for name, entry in written["files"].items():
        if name.startswith("bm25/"):
            assert (tmp_path / name).stat().st_size == entry["size"]
    assert json.loads((tmp_path / "manifest.json").read_text()) == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bm25", "manifest.json"], "nothing is left aside"


def test_common_words_can_be_left_out(tmp_path: Path) -> None:
    index = made(tmp_path, stopwords=True)
    assert index.search(["the of is"], 3).tolist() == [[-1, -1, -1]]
    assert index.search(["the sea"], 1).tolist() == [[4]]


def test_passages_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bm25, "CHUNK", 2)
    counted: list[int] = []
    add_bm25(tmp_path, manifest(PASSAGES), PASSAGES, progress=counted.append)
    assert counted == [2, 2, 1]


def test_what_is_missing_or_does_not_belong_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no BM25 index") as caught:
        BM25Index.open(tmp_path, manifest(PASSAGES))
    assert "--bm25" in str(caught.value.hint)
    made(tmp_path)
    with pytest.raises(IndexMismatchError, match="other passages"):
        BM25Index.open(tmp_path, {**manifest(PASSAGES), "passages_sha256": "other"})
    (tmp_path / "bm25" / "params.index.json").write_text("{")
    with pytest.raises(DataError, match="no BM25 index"):
        BM25Index.open(tmp_path, manifest(PASSAGES))
    with pytest.raises(DataError, match="no passage has a word"):
        add_bm25(tmp_path, manifest(PASSAGES[3:4]), PASSAGES[3:4])


def test_library_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ConfigError, match="bm25s is not installed"):
        bm25.import_bm25s()


def test_an_index_without_words_names_the_command(make_index) -> None:
    index = make_index(np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32))
    with pytest.raises(DataError, match="no BM25 index") as caught:
        index.words()
    assert f"ragtrain index prepare --index-path {index.path} --bm25" in str(caught.value.hint)
    with pytest.raises(DataError, match="no faiss file") as caught:
        index.searcher(backend="faiss")
    assert f"ragtrain index prepare --index-path {index.path} --index-type hnsw" in str(caught.value.hint)
    add_bm25(index.path, index.manifest, index.passages[:9])
    assert DenseIndex.open(index.path).words().search(["text 3"], 1).tolist() == [[3]]
