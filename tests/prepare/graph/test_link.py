from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ragtrain.data.graph_questions import read_graph_questions
from ragtrain.errors import ConfigError, DataError
from ragtrain.index.graph.builder import GraphBuilder, assemble
from ragtrain.prepare.graph import EntityLinker, NameVectors, link_entities, plain, questions, synonyms
from ragtrain.prepare.graph.openie import graph_of
from ragtrain.records import Passage


def linked(graph, texts, **more) -> list[list[str]]:
    return [[graph.entities[number] for number, _ in links] for links in link_entities(texts, graph, **more)]


@pytest.fixture
def graph(passages):
    return graph_of(plain.extract(passages, max_mentions=40, min_documents=1))[0]


def test_names_and_questions(graph) -> None:
    texts = ["norway", "Who sang Brother in  OSLO?", "What is the young of a cat called?", "Nothing of the kind"]
    assert linked(graph, texts) == [["Norway"], ["Brother", "Oslo"], ["Cat"], []]
    assert all(score == 1 for links in link_entities(texts, graph) for _, score in links)


def test_accents_and_scripts() -> None:
    builder = GraphBuilder()
    for pair in (("Aschenbrödel", "München"), ("東京", "日本"), ("Akinoshū Kenji", "C++")):
        builder.triple(pair[0], "of", pair[1])
    graph = builder.finish()
    texts = [
        "the composer of Aschenbrodel",
        "東京はどこですか",
        "Akinoshu Kenji's birthplace",
        "Is C++ a C?",
        "Munchen",
    ]
    assert linked(graph, texts) == [["Aschenbrödel"], ["東京"], ["Akinoshū Kenji"], ["C++"], ["München"]]


def test_short_forms_of_titles() -> None:
    builder = GraphBuilder()
    for number in range(7):
        builder.triple(f"Brother (song {number})", "of", "Seattle")
    builder.triple("Stay (film)", "of", "Stay (song)")
    graph = builder.finish()
    assert linked(graph, ["who sang Stay?", "who sang Brother?"]) == [["Stay (film)", "Stay (song)"], []]


def test_what_only_deleted_passages_had_is_not_found(graph) -> None:
    keep = graph.triples[(graph.triples[:, 0] != 0) & (graph.triples[:, 2] != 0)]
    members = [[i for i in graph.document_entities[a:b].tolist() if i] for a, b in
               zip(graph.document_offsets[:-1], graph.document_offsets[1:], strict=True)]  # fmt: skip
    less = assemble(graph.entities, graph.relations, keep, graph.documents, members, {})
    assert graph.entities[0] == "Oslo"
    assert linked(graph, ["Where is Oslo?"]) == [["Oslo"]]
    assert linked(less, ["Where is Oslo?"]) == [[]]


class Letters:
    """An encoder of letter counts, which needs no weights."""

    device = torch.device("cpu")

    def __call__(self, names) -> np.ndarray:
        rows = np.array([[n.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz0123456789"] for n in names])
        return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def of_letters(names) -> NameVectors:
    vectors = NameVectors(names, Letters())  # type: ignore[arg-type]
    vectors.encode = Letters()  # type: ignore[method-assign]
    return vectors


def test_unknown_names_by_vectors_above_a_threshold(graph) -> None:
    linker = EntityLinker(graph, of_letters(graph.entities), threshold=0.9)
    (links,), (none,) = linker.link(["When was Fredric Meltzar born?"]), linker.link(["When was Zuqx Wvy born?"])
    ((number, score),) = links
    assert graph.entities[number] == "Fredrik Meltzer"
    assert 0.9 <= score < 1
    assert none == []
    assert EntityLinker(graph, of_letters(graph.entities), threshold=0.999).link(["Fredric Meltzar"]) == [[]]


def slow_pairs(names, vectors, threshold, most):
    pairs = set()
    for here, row in enumerate(vectors):
        others = sorted((-float(row @ other), there) for there, other in enumerate(vectors) if there != here)
        for cosine, there in others[:most]:
            if -cosine >= threshold and re.findall(r"\d", names[here]) == re.findall(r"\d", names[there]):
                pairs.add((min(here, there), max(here, there)))
    return sorted(pairs)


def test_synonyms_by_vectors_against_all_pairs() -> None:
    rng = np.random.default_rng(0)
    names = [f"name {'abcdefgh'[i % 8]}" + ("" if i % 3 else f" {i % 5}") for i in range(60)]
    rows = rng.standard_normal((60, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    vectors = of_letters(names)
    vectors.encode = lambda _: rows  # type: ignore[method-assign]
    found = list(synonyms.by_vector(names, vectors, threshold=0.9, most=5))
    assert found
    assert found == slow_pairs(names, rows, 0.9, 5)
    fresh = {pair[0] for pair in found[:3]}
    part = list(synonyms.by_vector(names, vectors, threshold=0.9, most=5, fresh=fresh))
    assert part
    assert all(fresh & set(pair) for pair in part)
    assert set(part) <= set(found)


def test_numbers_are_never_synonyms() -> None:
    names = ["Apollo 11", "Apollo 12", "Apollo-11", "apollo 11 mission", "1990", "1991"]
    assert list(synonyms.by_vector(names, of_letters(names), threshold=0.5, most=5)) == [(0, 2), (0, 3), (2, 3)]
    assert list(synonyms.by_spelling(names)) == [(0, 2)]


def test_questions_of_every_form_and_missing_documents(graph, passages, tmp_path: Path, asked) -> None:
    gold = {"id": "other", "title": "Norway", "text": passages[1].text, "is_gold": True}
    gone = {"id": "gone", "title": "Gone", "text": "…", "is_gold": True}
    train = asked(
        {"id": "1", "question": "Which flag has Norway?", "answers": ["a"], "documents": [gold, gone]},
        {"id": "2hop__1_2", "question": "nothing", "answers": ["b"], "supporting_facts": ["Cat", "Oslo"]},
    )
    dev = asked({"id": "3", "question": "Brother?", "answers": ["c"]}, name="my-dev.jsonl")
    found = questions.find([train, dev])
    assert [each.split for each in found] == ["train", "validation"]
    counts, known = questions.link_questions(found, graph, tmp_path / "g", lambda: EntityLinker(graph), [0.7])
    assert not known
    assert counts["train"]["missing_documents"] == 1
    assert (counts["train"]["unlinked"], counts["valid"]["unsupported"]) == (1, 1)
    first, second = read_graph_questions(tmp_path / "g" / "questions" / "train.jsonl", graph).questions
    assert [graph.documents[i].id for i in first.supporting_documents] == ["norway"]
    assert (first.missing_documents, second.hops) == (1, 2)
    assert [graph.documents[i].id for i in second.supporting_documents] == ["cat", "oslo"]

    def unused():
        raise AssertionError

    again = questions.link_questions(found, graph, tmp_path / "g", unused, [0.7])
    assert again == (counts, True)
    assert not questions.stale(tmp_path / "g", graph)
    assert questions.stale(tmp_path / "g", dataclasses.replace(graph, fingerprint="0" * 16))
    train.write_text(json.dumps({"id": "1", "question": "Which flag has Norway?", "answers": ["a"]}) + "\n")
    assert not questions.link_questions(found, graph, tmp_path / "g", lambda: EntityLinker(graph), [0.7])[1]


def test_names_of_files_tell_the_split(tmp_path: Path, asked) -> None:
    with pytest.raises(ConfigError, match="does not say whether"):
        questions.find([asked({}, name="questions.jsonl")])
    with pytest.raises(ConfigError, match="are both train questions"):
        questions.find([asked({}), asked({}, name="train-2.jsonl")])
    with pytest.raises(DataError, match="no such file"):
        questions.find([tmp_path / "nowhere.json"])
    assert [each.split for each in questions.find([tmp_path])] == ["train"]


def test_the_demo_encoder_makes_vectors(encoder) -> None:
    vectors = NameVectors(["Oslo", "Oslo fjord", "kitten"], encoder)
    assert np.allclose(np.linalg.norm(vectors.vectors, axis=1), 1, atol=1e-5)
    places, scores = vectors.nearest(vectors.vectors, 4)
    assert places[:, 0].tolist() == [0, 1, 2]
    assert places[:, 3].tolist() == [-1] * 3
    exact = vectors.vectors @ vectors.vectors.T
    assert np.allclose(scores[:, :3], np.take_along_axis(exact, places[:, :3], 1), atol=1e-6)


def test_passages_with_the_same_title() -> None:
    twice = [Passage(f"p{i}", "Publix", f"Publix has {i}00 stores in Florida.") for i in range(2, 4)]
    graph, _ = graph_of(plain.extract(twice, max_mentions=9, min_documents=1))
    assert graph.entities.count("Publix") == 1
    assert len(graph.documents) == 2
