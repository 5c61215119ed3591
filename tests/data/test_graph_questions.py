from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from ragtrain.data.graph_questions import (
    cut_questions,
    find_graph_questions,
    fold_questions,
    read_graph_questions,
    write_graph_questions,
)
from ragtrain.errors import DataError
from ragtrain.graphs import GraphQuestion, KnowledgeGraph
from ragtrain.records import Passage


@pytest.fixture
def graph() -> KnowledgeGraph:
    documents = (
        Passage("Vienna", "Vienna", "…"),
        Passage("Vienna#2", "Vienna", "…"),
        Passage("p3", "Austria", "…"),
        Passage("p4", "Austria", "…"),
    )
    return KnowledgeGraph(
        entities=("vienna", "austria", "virginia", "維也納"),
        relations=("r",),
        triples=np.array([[0, 0, 1]], dtype=np.int32),
        documents=documents,
        document_entities=np.array([0, 1, 0, 2, 1], dtype=np.int32),
        document_offsets=np.array([0, 2, 4, 5, 5]),
        held_out={},
        fingerprint="x",
    )


def written(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


FULL = {
    "id": "2hop__12_34",
    "question": "Which state is Vienna in?",
    "answer": "Virginia",
    "answer_aliases": ["VA", "Virginia"],
    "question_entities": ["vienna", "unknown"],
    "supporting_entities": ["virginia", "nobody", "vienna"],
    "supporting_facts": ["Vienna#2", "Nowhere"],
}


def test_names_become_ids_and_unknown_ones_are_counted(graph: KnowledgeGraph, tmp_path: Path) -> None:
    read = read_graph_questions(written(tmp_path / "q.json", FULL), graph)
    assert read.questions == [
        GraphQuestion(
            id="2hop__12_34",
            question="Which state is Vienna in?",
            answers=("Virginia", "VA"),
            entities=(0,),
            supporting_entities=(2, 0),
            supporting_documents=(1,),
            missing_documents=1,
            hops=2,
        )
    ]
    counts = read.counts
    assert (counts.questions, counts.unlinked, counts.unsupported) == (1, 0, 0)
    assert (counts.unknown_entities, counts.unknown_supporting, counts.missing_documents) == (1, 1, 1)
    assert read.about()["questions"] == 1


def test_questions_that_nothing_is_known_of_stay(graph: KnowledgeGraph, tmp_path: Path) -> None:
    records = (
        {"id": "a", "question": "?", "question_entities": ["x"], "supporting_facts": ["Nowhere"]},
        {"id": "b", "question": "??", "answer": "yes", "supporting_facts": [["Vienna", 0], ["Vienna", 3]]},
        {"question": "Only this?"},
    )
    read = read_graph_questions(written(tmp_path / "q.json", *records), graph)
    assert [q.entities for q in read.questions] == [(), (), ()]
    assert [q.supporting_documents for q in read.questions] == [(), (0,), ()]
    # Without entities of its own, a question's supporting entities are those of its documents.
    assert [q.supporting_entities for q in read.questions] == [(), (0, 1), ()]
    assert (read.counts.unlinked, read.counts.unsupported) == (3, 1)
    assert len(read.questions[2].id) == 16


def test_a_title_is_an_id_first_and_else_every_document_of_that_title(graph: KnowledgeGraph, tmp_path: Path) -> None:
    records = (
        {"id": "a", "question": "?", "supporting_facts": ["Vienna"]},
        {"id": "b", "question": "?", "supporting_facts": {"title": ["Austria", "Austria"], "sent_id": [0, 1]}},
    )
    read = read_graph_questions(written(tmp_path / "q.json", *records), graph)
    assert [q.supporting_documents for q in read.questions] == [(0,), (2, 3)]
    assert read.counts.ambiguous_titles == 1


def test_start_and_target_nodes_by_type(graph: KnowledgeGraph, tmp_path: Path) -> None:
    record = {
        "id": "toy", "question": "?", "answer": ["a", "b"],
        "start_nodes": {"entity": ["vienna"], "document": ["none"]},
        "target_nodes": {"document": ["Vienna#2"], "entity": ["virginia"]},
    }  # fmt: skip
    read = read_graph_questions(written(tmp_path / "q.json", record), graph)
    question = read.questions[0]
    assert (question.entities, question.supporting_entities, question.supporting_documents) == ((0,), (2,), (1,))
    assert question.answers == ("a", "b")


def test_gold_documents_of_a_dataset(graph: KnowledgeGraph, tmp_path: Path) -> None:
    """By id where the title is the same, else by title; ids of another corpus mean nothing."""
    second = {"id": "Vienna#2", "title": "Vienna", "text": "", "is_gold": True}
    assert graph.documents[1].id == "Vienna#2"
    documents = [
        {**second, "title": graph.documents[1].title},
        {"id": "Vienna", "title": "Austria", "text": "", "is_gold": True},
        {"id": "x", "title": "Nowhere", "text": "", "is_gold": True},
        {"id": "y", "title": "Vienna", "text": "", "is_gold": False},
    ]
    record = {"id": 0, "question": "?", "answers": ["a"], "documents": documents}
    question = read_graph_questions(written(tmp_path / "q.json", record), graph).questions[0]
    assert question.supporting_documents == (1, 2, 3)
    assert question.missing_documents == 1


def test_ids_are_kept_as_they_stand(graph: KnowledgeGraph, tmp_path: Path) -> None:
    rows = ({"id": 0, "question": "a"}, {"id": None, "_id": "b", "question": "b"}, {"id": "", "question": "c"})
    ids = [question.id for question in read_graph_questions(written(tmp_path / "q.json", *rows), graph).questions]
    assert ids[:2] == ["0", "b"]
    assert len(ids[2]) == 16


@pytest.mark.parametrize(
    ("record", "hops"),
    [
        ({"id": "3hop2__1_2_3"}, 3),
        ({"id": "x", "type": "bridge"}, 2),
        ({"id": "x", "type": "bridge_comparison"}, 4),
        ({"id": "2hop__1_2", "hops": 5}, 5),
        ({"id": "about 2hop__1"}, 0),
    ],
)
def test_hops(graph: KnowledgeGraph, tmp_path: Path, record: dict[str, object], hops: int) -> None:
    read = read_graph_questions(written(tmp_path / "q.json", {"question": "?", **record}), graph)
    assert read.questions[0].hops == hops


def test_our_own_form_reads_back_as_it_was(graph: KnowledgeGraph, tmp_path: Path) -> None:
    questions = read_graph_questions(written(tmp_path / "q.json", FULL, {**FULL, "id": "é"}), graph).questions
    path = tmp_path / "questions" / "train.jsonl"
    assert write_graph_questions(path, questions, graph) == 2
    assert read_graph_questions(tmp_path, graph, "train").questions == questions
    # By name: an id that moves takes the question along.
    moved = dataclasses.replace(graph, entities=("new", "virginia", "vienna", "austria"))
    assert read_graph_questions(path, moved).questions[0].entities == (2,)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"question": ""}, "question"),
        ({"question_entities": "vienna"}, "question_entities"),
        ({"start_nodes": {"entity": [1]}, "question_entities": None}, "start_nodes.entity"),
        ({"supporting_facts": "Vienna"}, "supporting_facts"),
        ({"supporting_facts": [3]}, "supporting_facts"),
        ({"id": "first"}, "id"),
        ({"missing_documents": -1}, "missing_documents"),
    ],
)
def test_a_bad_record_is_named_or_counted(
    graph: KnowledgeGraph, tmp_path: Path, change: dict[str, object], field: str
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(f"{json.dumps({**FULL, 'id': 'first'})}\n{json.dumps({**FULL, **change})}\n")
    with pytest.raises(DataError) as error:
        read_graph_questions(path, graph)
    assert (error.value.path, error.value.line, error.value.field) == (path, 2, field)
    read = read_graph_questions(path, graph, skip_bad_lines=True)
    assert (len(read.questions), read.counts.skipped_lines) == (1, 1)


def test_the_file_of_a_split_is_found(graph: KnowledgeGraph, tmp_path: Path) -> None:
    raw = written(tmp_path / "raw" / "train.json", FULL)
    assert find_graph_questions(tmp_path, "train") == raw
    stage = written(tmp_path / "processed" / "stage1" / "train.json", FULL)
    assert find_graph_questions(tmp_path, "train") == stage
    dev = written(tmp_path / "dev.json", FULL)
    assert find_graph_questions(tmp_path, "valid") == dev
    with pytest.raises(DataError, match="no test questions"):
        read_graph_questions(tmp_path, graph, "test")


def questions_of(count: int) -> list[GraphQuestion]:
    return [GraphQuestion(str(i), f"question {i % 17}?", (), (), (), ()) for i in range(count)]


def test_folds_measure_each_question_once_and_never_train_on_its_wording() -> None:
    questions = questions_of(30)
    folds = fold_questions(questions, 5, seed=1)
    assert sorted(q.id for _, measured in folds for q in measured) == sorted(q.id for q in questions)
    for train, measured in folds:
        assert len(train) + len(measured) == 30
        assert not {q.question for q in train} & {q.question for q in measured}
    assert fold_questions(questions, 5, seed=1) == folds
    assert fold_questions(questions, 5, seed=2) != folds
    reordered = fold_questions(questions[::-1], 5, seed=1)
    assert [{q.id for q in part} for _, part in reordered] == [{q.id for q in part} for _, part in folds]
    with pytest.raises(DataError, match="18 folds"):
        fold_questions(questions, 18, seed=1)


def test_a_share_is_set_aside() -> None:
    train, aside = cut_questions(questions_of(17), 0.2, seed=0)
    assert (len(train), len(aside)) == (14, 3)
    with pytest.raises(DataError, match="cannot be cut"):
        cut_questions(questions_of(1), 0.2, seed=0)


def test_musique(real_data: Path) -> None:
    from ragtrain.index.graph.read import read_graph

    folder = real_data / "graph" / "musique_train_hipporag"
    graph = read_graph(folder)
    read = read_graph_questions(folder, graph, "train")
    counts = read.counts
    assert (counts.questions, counts.unlinked, counts.missing_documents, counts.unknown_entities) == (100, 1, 0, 0)
    assert sorted({q.hops for q in read.questions}) == [2, 3, 4]
    assert sum(q.hops == 2 for q in read.questions) == 68
    assert all(q.supporting_documents and q.supporting_entities for q in read.questions)
