from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ragtrain.config.commands import FetchConfig
from ragtrain.config.commands.compress import CompressDataConfig
from ragtrain.data import fetch
from ragtrain.data.compress.records import CompressExample
from ragtrain.data.compress.rows import CompressRows, evaluation_beside, read_compress, read_rows, with_passages
from ragtrain.errors import DataError
from ragtrain.records import Document


def config(**given: Any) -> CompressDataConfig:
    return CompressDataConfig(**given)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def plain(i: int, **given: Any) -> dict[str, Any]:
    return {"query": f"question {i}?", "documents": [f"a{i} b{i}", "c", "d"], "answer": f"a{i}", **given}


def test_the_pair_of_a_fetch_is_read(tmp_path: Path) -> None:
    fetch.run(FetchConfig(num_examples=60, output_file=tmp_path / "small.json"))
    rows = read_compress(config(), tmp_path / "small.json", 0)
    assert (len(rows.train), len(rows.validation)) == (54, 6)
    assert rows.folder == tmp_path
    assert not {example.group for example in rows.train} & {example.group for example in rows.validation}
    for example in (*rows.train, *rows.validation):
        assert len(example.documents) == 5
        assert len(example.gold) == 1
        assert example.targets == example.answers
        assert all(document.title for document in example.documents)
        assert example.scores == {}
    # The gold passage has no place of its own, and passages keep the order of the file.
    assert len({[d.id in example.gold for d in example.documents].index(True) for example in rows.train}) == 5
    assert rows.sources["train"]["with_gold"] == rows.sources["train"]["rows"] == 54
    assert rows.sources["validation"]["path"].endswith("small_eval.json")
    assert rows.sources["overlap"] == {"same_question": 0, "validation": 6}
    few = read_compress(config(max_train_samples=7, max_eval_samples=2), tmp_path / "small.json", 0)
    assert (len(few.train), len(few.validation)) == (7, 2)
    assert few.sources["train"]["rows"] == 7
    again = read_compress(config(max_train_samples=7), tmp_path / "small.json", 0)
    assert [each.id for each in again.train] == [each.id for each in few.train]


def test_a_dataset_folder_is_read(tmp_path: Path) -> None:
    fetch.run(FetchConfig(num_examples=60, output_dir=tmp_path / "demo"))
    rows = read_compress(config(), tmp_path / "demo", 0)
    assert rows.sources["validation"]["path"].endswith("validation.jsonl")
    assert rows.train
    assert rows.validation
    assert evaluation_beside(tmp_path / "demo" / "train.jsonl") == tmp_path / "demo" / "validation.jsonl"
    assert evaluation_beside(tmp_path / "demo" / "validation.jsonl") is None


def test_rows_of_scaledown_with_scores(tmp_path: Path) -> None:
    path = write(tmp_path / "s.json", [plain(i, reranking_scores=[2.5, -1, None]) for i in range(20)])
    rows = read_compress(config(), path, 0)
    assert (len(rows.train), len(rows.validation)) == (18, 2)  # a tenth is held out
    example = rows.train[0]
    assert [example.scores.get(document.id) for document in example.documents] == [2.5, -1.0, None]
    assert len(read_compress(config(dev_split=0.3), path, 0).validation) == 6
    assert read_compress(config(dev_split=0), path, 0).validation == []
    assert example == read_compress(config(), path, 0).train[0]


def test_a_teachers_answers_and_scores(tmp_path: Path) -> None:
    def own(i: int, **given: Any) -> dict[str, Any]:
        documents = [{"id": f"{i}-{j}", "text": f"text {j} of {i}", "score": float(j)} for j in range(2)]
        return {
            "id": str(i),
            "dataset": "x",
            "question": f"q{i}",
            "answers": [f"gold {i}"],
            "documents": documents,
            **given,
        }

    taught = [own(i, teacher_answer=f"said {i}", reranker_model="m") for i in range(3)]
    path = write(
        tmp_path / "t.json", [*taught, own(3), own(4, reranking_scores=[1, math.inf]), own(5, teacher_answer=" ")]
    )
    both, about = read_rows(config(), path, split="train")
    assert [each.targets[0] for each in both] == ["said 0", "said 1", "said 2", "gold 3", "gold 4", "gold 5"]
    assert [each.answers[0] for each in both] == [f"gold {i}" for i in range(6)]
    # Scores of a search are not those of a reranker.
    assert [dict(each.scores) for each in both[2:5]] == [{"2-0": 0.0, "2-1": 1.0}, {}, {"4-0": 1.0}]
    assert (about["with_scores"], about["with_teacher_answer"], about["teacher_as_reference"]) == (4, 3, 0)
    gold, _ = read_rows(config(answers="gold"), path, split="train")
    assert [each.targets for each in gold] == [(f"gold {i}",) for i in range(6)]
    teacher, about = read_rows(config(answers="teacher"), path, split="train")
    assert [each.id for each in teacher] == ["0", "1", "2"]
    assert about["without_target"] == 3
    measured, _ = read_rows(config(answers="teacher"), path, split="validation")
    assert [each.targets for each in measured] == [(f"gold {i}",) for i in range(6)]
    only = write(tmp_path / "only.json", [own(i, teacher_answer=f"said {i}", answers=[]) for i in range(3)])
    measured, about = read_rows(config(), only, split="validation")
    assert measured[0].answers == measured[0].targets == ("said 0",)
    assert about["teacher_as_reference"] == 3


def test_rows_of_pisco(tmp_path: Path) -> None:
    rows = [{"query": f"q{i}", "docs": ["a", "b", "a"], "mistral_label": f" said {i} "} for i in range(10)]
    examples, about = read_rows(config(), write(tmp_path / "p.json", rows), split="train")
    assert about["format"] == "pisco"
    assert [document.text for document in examples[0].documents] == ["a", "b"]
    assert examples[3].targets == examples[3].answers == ("said 3",)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    documents = [{"id": "a", "text": "a"}, {"id": "b", "text": "b"}]
    bad = {"id": "7", "dataset": "x", "question": "q", "answers": ["a"], "documents": documents}
    with pytest.raises(DataError, match="row 7 has 2 documents and 1 scores"):
        read_rows(config(), write(tmp_path / "a.json", [{**bad, "reranking_scores": [1]}]), split="train")
    with pytest.raises(DataError, match="numbers, found 'high'"):
        read_rows(config(), write(tmp_path / "b.json", [{**bad, "reranking_scores": [1, "high"]}]), split="train")
    without = write(tmp_path / "c.json", [{"query": "q", "pos": ["x"], "neg": ["y"]}])
    with pytest.raises(DataError, match="1 rows and none with an answer") as error:
        read_rows(config(), without, split="train")
    assert "ragtrain data teach" in str(error.value.hint)
    one = write(tmp_path / "d.json", [{**bad, "group": "g", "id": str(i)} for i in range(3)])
    with pytest.raises(DataError, match="one group"):
        read_compress(config(), one, 0)


def test_rows_without_passages_are_left_out() -> None:
    def example(name: str, *texts: str) -> CompressExample:
        documents = tuple(Document(str(i), "", text) for i, text in enumerate(texts))
        return CompressExample(name, "q", ("a",), ("a",), documents)

    def rows(*train: CompressExample) -> CompressRows:
        sources: dict[str, Any] = {"train": {"path": "train.json"}, "validation": {"path": "eval.json"}}
        return CompressRows(list(train), [example("v", "text")], Path(), sources)

    kept = with_passages(rows(example("a", "text"), example("b"), example("c", " ")))
    assert [each.id for each in kept.train] == ["a"]
    assert kept.sources["train"]["without_passages"] == 2
    assert "without_passages" not in kept.sources["validation"]
    with pytest.raises(DataError, match="nothing to compress") as error:
        with_passages(rows(example("b")))
    assert "--index" in str(error.value.hint)
