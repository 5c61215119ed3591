from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from ragtrain.errors import NumericsError
from ragtrain.graphs import KnowledgeGraph
from ragtrain.index.graph.builder import GraphBuilder
from ragtrain.models.encoder import TextEncoder, evaluating
from ragtrain.prepare.relations import question_features, relation_features, relation_texts

NAMES = ["capital of", "inverse_capital of", "首都", "located in"]


@pytest.fixture
def graph() -> KnowledgeGraph:
    return make(NAMES)


def make(names: list[str]) -> KnowledgeGraph:
    builder = GraphBuilder()
    for name in names:
        builder.triple("a", name, "b")
    return builder.finish()


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count texts of each call of the encoder."""
    seen: list[int] = []
    for name in ("encode_passages", "encode_questions"):
        original = getattr(TextEncoder, name)

        def counted(self: TextEncoder, texts: list[object], *rest: object, original=original, **more: object) -> object:
            seen.append(len(texts))
            return original(self, texts, *rest, **more)

        monkeypatch.setattr(TextEncoder, name, counted)
    return seen


def one_by_one(encoder: TextEncoder, texts: list[str], *, question: bool) -> np.ndarray:
    """Return the vectors as the network gives them for one text at a time."""
    rows = []
    with evaluating(encoder):
        for text in texts:
            tokens = encoder.tokenize_questions([text]) if question else encoder.tokenize_passages([("", text)])
            rows.append(encoder(**tokens)[0].numpy())
    return np.stack(rows)


def test_relations_and_their_inverses_have_a_row_each(graph: KnowledgeGraph, encoder: TextEncoder) -> None:
    found = relation_features(graph, encoder, device="cpu")
    assert found.shape == (8, encoder.dim)
    assert found.dtype == np.float32
    texts = [*NAMES, *(f"inverse_{name}" for name in NAMES)]
    assert relation_texts(graph) == texts
    np.testing.assert_allclose(found, one_by_one(encoder, texts, question=False), atol=1e-5)
    # Of one text, and yet two relations: row 1 is the relation of that name, row 4 the inverse of relation 0.
    assert np.array_equal(found[1], found[4])
    assert not np.allclose(found[5], found[4])


def test_questions_are_encoded_as_questions(encoder: TextEncoder) -> None:
    questions = ["Who?", "Where is Vienna?", "Who?"]
    found = question_features(questions, encoder, device="cpu")
    np.testing.assert_allclose(found, one_by_one(encoder, questions, question=True), atol=1e-5)
    assert question_features([], encoder).shape == (0, encoder.dim)


def test_what_was_encoded_is_found_again_by_its_content(
    graph: KnowledgeGraph, encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = calls(monkeypatch)
    first = relation_features(graph, encoder, tmp_path, device="cpu")
    assert seen == [7]
    assert np.array_equal(relation_features(graph, encoder, tmp_path, device="cpu"), first)
    assert seen == [7]
    asked = question_features(["a", "b"], encoder, tmp_path, device="cpu")
    assert np.array_equal(question_features(["a", "b"], encoder, tmp_path, device="cpu"), asked)
    assert seen == [7, 2]
    # Another order, other names, another encoder: other vectors.
    moved = relation_features(make(NAMES[::-1]), encoder, tmp_path, device="cpu")
    assert np.array_equal(moved[0], first[3])
    assert len(seen) == 3
    prompt = encoder.settings.passage_prompt
    try:
        object.__setattr__(encoder.settings, "passage_prompt", "relation: ")
        other = relation_features(graph, encoder, tmp_path, device="cpu")
    finally:
        object.__setattr__(encoder.settings, "passage_prompt", prompt)
    assert not np.allclose(other, first)


@pytest.mark.parametrize("damage", ["vectors.npy", "meta.json", "missing"])
def test_damaged_vectors_are_made_again(
    graph: KnowledgeGraph, encoder: TextEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    first = relation_features(graph, encoder, tmp_path, device="cpu")
    (folder,) = tmp_path.glob("relations-*")
    assert json.loads((folder / "meta.json").read_text())["rows"] == 8
    if damage == "missing":
        (folder / "vectors.npy").unlink()
    else:
        content = (folder / damage).read_bytes()
        (folder / damage).write_bytes(content[:-8] + b"\0" * 8)
    with caplog.at_level(logging.WARNING, "ragtrain"):
        assert np.array_equal(relation_features(graph, encoder, tmp_path, device="cpu"), first)
    assert "encoding again" in caplog.text
    caplog.clear()
    relation_features(graph, encoder, tmp_path, device="cpu")
    assert "encoding again" not in caplog.text


def test_a_folder_that_cannot_be_written_to_has_its_cache_elsewhere(
    graph: KnowledgeGraph, encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    seen = calls(monkeypatch)
    (tmp_path / "g").mkdir()
    for _ in range(2):
        relation_features(graph, encoder, tmp_path / "g", device="cpu")
    assert len(seen) == 1
    assert list((tmp_path / "cache").rglob("vectors.npy"))
    assert not list((tmp_path / "g").iterdir())


def test_a_broken_encoder_is_named(
    graph: KnowledgeGraph, encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: TextEncoder, texts: list[object], *_: object) -> np.ndarray:
        return np.full((len(texts), self.dim), np.nan, dtype=np.float32)

    monkeypatch.setattr(TextEncoder, "encode_passages", broken)
    with pytest.raises(NumericsError, match="'capital of'"):
        relation_features(graph, encoder, tmp_path, device="cpu")
    assert not list(tmp_path.glob("relations-*"))
