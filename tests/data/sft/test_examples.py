from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ragtrain.config.commands.sft import SftDataConfig
from ragtrain.data.sft.examples import ExampleFile, hold_out, read_examples, read_sft
from ragtrain.data.sft.records import Example
from ragtrain.errors import ConfigError, DataError
from ragtrain.records import write_jsonl

DOCS = [{"title": "Oslo", "text": "Oslo is the capital of Norway."}, {"title": "Bergen", "content": "Bergen has rain."}]
#: A row as RAG-FiT's processing writes it.
ROW: dict[str, Any] = {
    "query": "What is the capital of Norway?",
    "prompt": "Context: Oslo is the capital of Norway.\nBergen has rain.\n\nQuestion: What is the capital of Norway?\n",
    "answers": ["Oslo", "the city of Oslo"],
    "generated_answer": " ##Reason: it says so. <ANSWER>: Oslo",
    "positive_passages": DOCS,
}


def read(tmp_path: Path, rows: list[Any], name: str = "train.jsonl", **settings: Any) -> ExampleFile:
    write_jsonl(tmp_path / name, rows)
    split = settings.pop("split", "train")
    drawn = {key: settings.pop(key) for key in ("most", "seed") if key in settings}
    return read_examples(SftDataConfig(**settings), tmp_path / name, split=split, **drawn)


def test_a_finished_prompt_stays_to_the_letter(tmp_path: Path) -> None:
    found = read(tmp_path, [ROW], input_key="prompt", output_key="generated_answer")
    (example,) = found.examples
    assert example.finished == ROW["prompt"]
    assert example.question == ROW["query"]
    assert example.targets == (ROW["generated_answer"],)
    assert example.answers == ("Oslo", "the city of Oslo")
    assert [document.text for document in example.documents] == ["Oslo is the capital of Norway.", "Bergen has rain."]
    assert example.gold == frozenset()
    assert found.about["format"] == "finished-prompts"
    assert found.about["finished_prompts"] == found.about["with_passages"] == found.about["rows"] == 1


@pytest.mark.parametrize(
    ("output", "targets"),
    [("Oslo", ("Oslo",)), (["Oslo", "Kristiania"], ("Oslo", "Kristiania")), ([["Oslo"], ["x", "Oslo"]], ("Oslo", "x")),
     (7, ("7",)), ({"text": ["Oslo"], "answer_start": [0]}, ("Oslo",))],
)  # fmt: skip
def test_what_is_learnt_is_a_text_or_the_first_of_a_list(
    tmp_path: Path, output: object, targets: tuple[str, ...]
) -> None:
    (example,) = read(tmp_path, [{"prompt": "p", "label": output}], input_key="prompt", output_key="label").examples
    assert example.targets == targets
    assert example.answers == targets  # for exact match, where the row says nothing else


def test_a_row_with_a_prompt_and_no_known_form_is_a_finished_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": "Say hello.", "label": "hello", "idx": 4}, {"prompt": "Say hello.", "label": "hi"}]
    found = read(tmp_path, rows, output_key="label")
    first = found.examples[0]
    assert (first.id, first.finished, first.question) == ("4", "Say hello.", "Say hello.")
    assert len({example.id for example in found.examples}) == 2
    # With a question and answers of its own it is a question, unless the prompt is named.
    assert read(tmp_path, [ROW]).examples[0].finished is None
    assert read(tmp_path, [ROW], input_key="prompt").examples[0].targets == ("Oslo", "the city of Oslo")


def test_passages_are_those_that_stand_in_the_prompt(tmp_path: Path) -> None:
    docs = ["title: A, text: first passage", "title: B, text: second passage", "never shown"]
    prompt = f"Context: {docs[0]}\n{docs[1]}\nQuestion: q?"
    row = {"prompt": prompt, "out": "a", "docs": docs, "positive_passages": [{"text": "never shown either"}]}
    (example,) = read(tmp_path, [row], input_key="prompt", output_key="out").examples
    assert [document.text for document in example.documents] == docs[:2]
    row["docs"] = "\n".join(docs[:2])  # RAG-FiT's joined passages
    (example,) = read(tmp_path, [row], input_key="prompt", output_key="out").examples
    assert [document.text for document in example.documents] == [row["docs"]]


@pytest.mark.parametrize("empty", [None, "", "  ", []])
def test_rows_without_a_text_to_learn_are_left_out_and_counted(tmp_path: Path, empty: object, caplog) -> None:
    rows = [{"id": "a", "prompt": "p", "out": "x"}, {"id": "b", "prompt": "q", "out": empty}]
    found = read(tmp_path, rows, input_key="prompt", output_key="out")
    assert [example.id for example in found.examples] == ["a"]
    assert found.about["without_target"] == 1
    assert "1 of 2 rows have nothing to learn and are left out (b)" in caplog.text
    kept = read(tmp_path, rows, input_key="prompt", output_key="out", split="test").examples
    assert [example.targets for example in kept] == [("x",), ()]
    with pytest.raises(DataError, match="nothing to learn: the field 'out' is empty in all of them"):
        read(tmp_path, rows[1:], input_key="prompt", output_key="out")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"prompt": "q"}, r"rows.jsonl:2: field 'out': missing; found the fields prompt"),
        ({"out": "y"}, r"rows.jsonl:2: field 'prompt': missing; found the fields out"),
        ({"prompt": ["q"], "out": "y"}, r":2: field 'prompt': expected a prompt \(a text\), found an array"),
        ({"prompt": " ", "out": "y"}, r":2: field 'prompt': .*found an empty one"),
        ({"prompt": "q", "out": {"a": 1}}, r":2: field 'out': expected a text to learn"),
        ({"prompt": "q", "out": True}, r":2: field 'out': .*found a boolean"),
        ({"id": "1", "prompt": "q", "out": "y"}, r":2: field 'id': '1' is also the id on line 1"),
    ],
)
def test_a_bad_row_is_located_or_left_out(tmp_path: Path, second: object, message: str) -> None:
    rows = [{"id": "1", "prompt": "p", "out": "x"}, second]
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, rows, "rows.jsonl", input_key="prompt", output_key="out")
    assert "--skip-bad-lines" in caught.value.hint
    found = read(tmp_path, rows, "rows.jsonl", input_key="prompt", skip_bad_lines=True, output_key="out")
    assert (len(found.examples), found.about["skipped_lines"]) == (1, 1)


def test_questions_in_a_known_form_bring_their_passages_gold_first(tmp_path: Path) -> None:
    row = {
        "question": "q?", "answer": "a", "supporting_facts": [["T", 0]],
        "context": [["U", ["One."]], ["T", ["x a"]], ["V", ["Two."]]],
    }  # fmt: skip
    (example,) = read(tmp_path, [row]).examples
    assert [document.title for document in example.documents] == ["T", "U", "V"]
    assert example.gold == {example.documents[0].id}
    assert example.targets == example.answers == ("a",)


def test_a_chain_of_thought_is_learnt_and_the_answer_scored(tmp_path: Path) -> None:
    row = {"question": "q?", "answers": ["a"], "dataset": "d", "cot": {"text": "because a"}}
    (example,) = read(tmp_path, [row], output_key="cot.text").examples
    assert (example.targets, example.answers) == (("because a",), ("a",))
    # A field that the form itself uses may be learnt from as well.
    (example,) = read(tmp_path, [row], output_key="answers").examples
    assert example.targets == ("a",)


def test_named_fields(tmp_path: Path) -> None:
    row = {"ask": "q?", "gold": ["a", "b"], "why": "so"}
    found = read(tmp_path, [row], question_key="ask", answer_key="gold", output_key="why")
    assert (found.examples[0].question, found.examples[0].answers, found.examples[0].targets) == (
        "q?",
        ("a", "b"),
        ("so",),
    )
    row = {"text": "p", "ask": "q?", "gold": ["a", "b"]}
    (example,) = read(tmp_path, [row], input_key="text", question_key="ask", answer_key="gold").examples
    assert (example.finished, example.question, example.targets) == ("p", "q?", ("a", "b"))


def test_containers(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"p": "one\ttwo", "o": "x"}, {"p": "three", "o": "y"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["p", "o"], *([row["p"], row["o"]] for row in rows)])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    config = SftDataConfig(input_key="p", output_key="o")
    for name in ("rows.json", "rows.jsonl.gz", "rows.csv", "rows.parquet"):
        found = read_examples(config, tmp_path / name)
        assert [(e.finished, e.targets) for e in found.examples] == [("one\ttwo", ("x",)), ("three", ("y",))], name
    (tmp_path / "bare.tsv").write_text("q?\ta\n")
    with pytest.raises(ConfigError, match="the fields p, o were named, and this table has no head with them"):
        read_examples(config, tmp_path / "bare.tsv")
    (tmp_path / "train.source").write_text("q?\n")
    (tmp_path / "train.target").write_text("a\n")
    with pytest.raises(DataError, match="source-target has no fields, and --output-key names one: 'o'"):
        read_examples(SftDataConfig(output_key="o"), tmp_path / "train.source")


def test_a_draw_depends_on_the_seed_and_first_rows_come_without_shuffle(tmp_path: Path) -> None:
    rows = [{"id": str(i), "question": f"q {i}?", "answer": ["a"]} for i in range(50)]
    drawn = [[e.id for e in read(tmp_path, rows, most=5, seed=seed).examples] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == sorted(drawn[0], key=int)
    assert [e.id for e in read(tmp_path, rows, most=5, seed=0, shuffle=False).examples] == ["0", "1", "2", "3", "4"]
    assert [e.id for e in read(tmp_path, rows, most=5, shuffle=False, split="validation").examples] != list("01234")


def test_a_dataset_folder(tmp_path: Path, caplog) -> None:
    write_jsonl(
        tmp_path / "train.jsonl", [{"question": "Who is A?", "answer": ["a"]}, {"question": "b?", "answer": ["b"]}]
    )
    write_jsonl(
        tmp_path / "validation.jsonl", [{"question": "who is a", "answer": ["a"]}, {"question": "c?", "answer": ["c"]}]
    )
    rows = read_sft(SftDataConfig(), tmp_path, 0)
    assert ([e.question for e in rows.train], len(rows.validation)) == (["Who is A?", "b?"], 2)
    assert rows.folder == tmp_path
    assert rows.sources["overlap"] == {"same_question": 1, "validation": 2}
    assert "1 of 2 validation questions are training questions too" in caplog.text
    assert rows.sources["test"] == {"path": str(tmp_path / "validation.jsonl")}
    assert rows.sources["validation"]["format"] == "nq-open"


def test_held_out_rows_share_no_group_with_training(tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "group": f"g{i % 40}", "dataset": "d", "question": f"q {i}?", "answers": ["a"]}
        for i in range(400)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    found = [
        read_sft(SftDataConfig(dev_split=0.1, max_val_samples=None), tmp_path / "rows.jsonl", seed)
        for seed in (0, 0, 1)
    ]
    groups = [{example.group for example in each.validation} for each in found]
    assert groups[0] == groups[1] != groups[2]
    for each in found:
        assert len(each.validation) == 40
        assert len(each.train) + len(each.validation) == 400
        assert not {e.group for e in each.train} & {e.group for e in each.validation}
    some = read_sft(SftDataConfig(dev_split=0.1, max_val_samples=7, max_train_samples=9), tmp_path / "rows.jsonl", 0)
    assert (len(some.train), len(some.validation)) == (9, 7)
    assert not {e.group for e in some.train} & {e.group for e in some.validation}


def test_a_group_larger_than_the_share_is_passed_over() -> None:
    examples = [Example(str(i), f"q {i}", ("a",), ("a",), group="large" if i < 60 else f"g{i}") for i in range(100)]
    for seed in range(5):
        train, held = hold_out(examples, 0.1, seed)
        assert len(held) == 10
        assert "large" not in {example.group for example in held}
    train, held = hold_out([e for i, e in enumerate(examples) if i < 61], 0.01, 0)
    assert (len(train), len(held)) == (60, 1)
    with pytest.raises(DataError, match="60 rows of one group cannot be cut in two"):
        hold_out(examples[:60], 0.1, 0)


def test_no_validation_rows_are_said_to_be_missing(tmp_path: Path, caplog) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"question": "q?", "answer": ["a"]}])
    rows = read_sft(SftDataConfig(), tmp_path / "rows.jsonl", 0)
    assert not rows.validation
    assert "give --val-data or --dev-split" in caplog.text


def test_conversations_lose_what_was_before_and_it_is_said(tmp_path: Path, caplog) -> None:
    turns = [("user", "hi"), ("assistant", "hello"), ("user", "q?"), ("assistant", "a")]
    rows = [{"messages": [{"role": role, "content": content} for role, content in turns]}]
    (example,) = read(tmp_path, rows).examples
    assert (example.question, example.targets) == ("q?", ("a",))
    assert "of 1 conversations only the last turn is used" in caplog.text


def test_real_data(real_data: Path) -> None:
    squad = read_sft(SftDataConfig(dev_split=0.1), real_data / "squad" / "squad_v1.1_20articles.json.gz", 0)
    assert all(len(e.documents) == len(e.gold) == 1 and e.group for e in (*squad.train, *squad.validation))
    assert not {e.group for e in squad.train} & {e.group for e in squad.validation}
    assert squad.sources["validation"]["held_out"] == pytest.approx(464, rel=0.25)
    hotpot = read_examples(SftDataConfig(), real_data / "hotpotqa" / "hotpot_train_mixed_100.json.gz")
    assert hotpot.about["with_gold"] == 100
    for example in hotpot.examples:
        held = [document.id in example.gold for document in example.documents]
        assert sum(held) == len(example.gold) == 2
        assert held == sorted(held, reverse=True)
    open_book = read_examples(SftDataConfig(), real_data / "nq" / "NQ-open.dev.jsonl", most=20)
    assert (open_book.about["rows"], open_book.about["read"], open_book.about["with_passages"]) == (20, 3610, 0)
