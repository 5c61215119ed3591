from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtrain.data.formats import questions_from_rows, read_questions
from ragtrain.data.formats.shapes import SHAPES
from ragtrain.errors import DataError
from ragtrain.records import Document, Question, content_id, write_jsonl

if TYPE_CHECKING:
    from pathlib import Path

RECORDS: dict[str, dict[str, Any]] = {
    "ragtrain": {"id": "1", "dataset": "d", "split": "train", "group": "g", "question": "q?", "answers": ["a", "b"],
                 "documents": [{"id": "7", "title": "T", "text": "x a", "is_gold": True, "score": 1.5}]},
    "dpr-biencoder": {"dataset": "nq_train_psgs_w100", "question": "q?", "answers": ["a", "b"],
                      "positive_ctxs": [{"title": "T", "text": "x a", "score": 1000, "passage_id": "7"}],
                      "negative_ctxs": [], "hard_negative_ctxs": [{"title": "U", "text": "y", "passage_id": "8"}]},
    "fid": {"question": "q?", "answers": ["a", "b"], "target": "a",
            "ctxs": [{"id": "7", "title": "T", "text": "x a", "score": "1.5", "has_answer": True}]},
    "squad": {"id": "1", "title": "Some_Title", "context": "x a", "question": "q?",
              "answers": {"text": ["a", "b", "a"], "answer_start": [2, 0, 2]}},
    "musique": {"id": "2hop__1_2", "question": "q?", "answer": "a", "answer_aliases": ["b"], "answerable": True,
                "paragraphs": [{"idx": 0, "title": "T", "paragraph_text": "x a", "is_supporting": True},
                               {"idx": 1, "title": "U", "paragraph_text": "y", "is_supporting": False}]},
    "hotpot_qa": {"_id": "1", "question": "q?", "answer": "a", "type": "bridge", "level": "easy",
                  "supporting_facts": [["T", 0]], "context": [["T", ["x a"]], ["U", ["One.", " Two.", "Three."]]]},
    "hipporag": {"id": "1", "question": "q?", "answer": "a", "answer_aliases": ["b"], "supporting_facts": ["T"]},
    "trivia_qa": {"QuestionId": "tc_1", "Question": "q?", "Answer": {"Value": "a", "Aliases": ["a", "b"]}},
    "popqa": {"id": 1, "subj": "S", "question": "q?", "possible_answers": '["a", "b"]'},
    "flashrag": {"id": "1", "question": "q?", "golden_answers": ["a", "b"], "metadata": {}},
    "kilt": {"id": "1", "input": "q?", "output": [{"answer": "a", "provenance": [{"wikipedia_id": "9", "title": "T"}]},
                                                  {"provenance": [{"wikipedia_id": "9"}]}, {"answer": "b"}]},
    "ms_marco": {"query_id": 1, "query": "q?", "answers": ["a", "b"], "wellFormedAnswers": "[]", "query_type": "ENTITY",
                 "passages": [{"is_selected": 1, "passage_text": "x a", "url": "u"},
                              {"is_selected": 0, "passage_text": "y", "url": "u"}]},
    "flagembedding": {"query": "q?", "pos": ["x a"], "neg": ["y"], "pos_scores": [0.9], "neg_scores": [0.1], "type": "n"},
    "tevatron": {"query_id": "1", "query": "q?", "answers": ["a"],
                 "positive_passages": [{"docid": "7", "title": "T", "text": "x a"}],
                 "negative_passages": [{"docid": "8", "title": "U", "text": "y"}]},
    "scaledown": {"query": "q?", "documents": ["x a", "y"], "answer": "a", "reranking_scores": [2.0, 1.0]},
    "webquestions": {"url": "u", "utterance": "q?", "targetValue": '(list (description "a") (description b))'},
    "atlas": {"question": "q?", "answers": ["a", "b"], "target": "a"},
    "nq-open": {"question": "q?", "answer": ["a", "b"]},
    "chat": {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q?"},
                          {"role": "assistant", "content": "a"}]},
    "pairs": {"query": "q?", "response": "a"},
    "beir-queries": {"_id": "1", "text": "q?", "metadata": {}},
}  # fmt: skip
ONE_ANSWER = {"hotpot_qa", "tevatron", "scaledown", "chat", "pairs"}
WITHOUT = {"flagembedding", "beir-queries"}


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_every_shape_has_a_sample() -> None:
    assert RECORDS.keys() == {shape.name for shape in SHAPES}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("container", ["jsonl", "json", "gz", "rows"])
def test_a_record_is_recognised_in_every_container(name: str, container: str, tmp_path: Path) -> None:
    record = RECORDS[name]
    second = {**record, **{k: "2" for k in ("id", "_id", "query_id", "QuestionId") if k in record}}
    if container == "rows":
        read = questions_from_rows([record, second], "hub")
    elif container == "json":
        path = tmp_path / "file.json"
        path.write_text(json.dumps([record, second], indent=1))
        read = read_questions(path)
    elif container == "jsonl":
        read = read_questions(lines(tmp_path / "file.json", record, second))
    else:
        path = tmp_path / "file.jsonl.gz"
        path.write_bytes(gzip.compress(f"\ufeff{json.dumps(record)}\n\n{json.dumps(second)}\n".encode()))
        read = read_questions(path)
    assert read.format == name
    first, other = read.questions
    assert first.question == other.question == "q?"
    assert first.answers == (() if name in WITHOUT else ("a",) if name in ONE_ANSWER else ("a", "b"))
    assert first.id != other.id
    assert read.unanswered == (2 if name in WITHOUT else 0)
    for each in first.documents:
        assert each.is_gold is None or each.is_gold == (each.text == "x a")
    assert json.loads(json.dumps(first.to_json())) == first.to_json()


def test_documents_keep_title_id_score_and_gold() -> None:
    def documents(name: str) -> tuple[Document, ...]:
        return questions_from_rows([RECORDS[name]], "x").questions[0].documents

    assert documents("fid") == (Document("7", "T", "x a", None, 1.5),)
    assert documents("dpr-biencoder")[0] == Document("7", "T", "x a", True, 1000.0)
    assert [d.is_gold for d in documents("dpr-biencoder")] == [True, False]
    assert documents("squad") == (Document(content_id("Some Title", "x a"), "Some Title", "x a", True),)
    assert documents("hotpot_qa")[1].text == "One. Two. Three."
    assert [d.is_gold for d in documents("ms_marco")] == [True, False]
    assert [d.score for d in documents("flagembedding")] == [0.9, 0.1]
    assert [d.score for d in documents("scaledown")] == [2.0, 1.0]
    assert [(d.title, d.is_gold) for d in documents("musique")] == [("T", True), ("U", False)]


def test_the_columns_of_the_hub_are_the_same_records() -> None:
    hotpot = {**RECORDS["hotpot_qa"], "id": "1",
              "supporting_facts": {"title": ["T"], "sent_id": [0]},
              "context": {"title": ["T", "U"], "sentences": [["x a"], ["One.", " Two.", "Three."]]}}  # fmt: skip
    marco = {**RECORDS["ms_marco"],
             "passages": {"passage_text": ["x a", "y"], "is_selected": [1, 0], "url": ["u", "u"]}}  # fmt: skip
    trivia = {"question": "q?", "question_id": "tc_1", "answer": {"value": "a", "aliases": ["b"], "normalized_aliases": ["z"]},
              "entity_pages": {"title": ["T"], "wiki_context": ["x a"], "filename": ["f"], "doc_source": ["d"]},
              "search_results": {"title": [], "search_context": [], "rank": []}}  # fmt: skip
    for raw, hub in (("hotpot_qa", hotpot), ("ms_marco", marco)):
        (a,), (b,) = (questions_from_rows([record], "x").questions for record in (RECORDS[raw], hub))
        assert a.documents == b.documents
        assert a.group == b.group
    (question,) = questions_from_rows([trivia], "x").questions
    assert question.answers == ("a", "b")
    assert [d.text for d in question.documents] == ["x a"]


def test_squad_files(tmp_path: Path) -> None:
    paragraph = {"context": "c", "qas": [
        {"id": "1", "question": "q1", "answers": [{"text": "c", "answer_start": 0}], "is_impossible": False},
        {"id": "2", "question": "q2", "answers": [], "plausible_answers": [{"text": "c"}], "is_impossible": True},
    ]}  # fmt: skip
    path = tmp_path / "train-v2.0.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "A_B", "paragraphs": [paragraph]}]}))
    read = read_questions(path)
    assert read.format == "squad"
    assert read.unanswered == 1
    assert [(q.group, q.documents[0].title) for q in read.questions] == [("A_B", "A B")] * 2
    paragraph["qas"][1] = {"id": "2", "question": "q2", "answers": [], "is_impossible": False}
    path.write_text(json.dumps({"data": [{"title": "A_B", "paragraphs": [paragraph]}]}))
    with pytest.raises(DataError, match=r"data\[0\]\.paragraphs\[0\]\.qas\[1\]\.answers.*at least one answer"):
        read_questions(path)
    assert read_questions(path, skip_bad_lines=True).skipped == 1


def test_trivia_and_ms_marco_files(tmp_path: Path) -> None:
    trivia = tmp_path / "wikipedia-train.json"
    trivia.write_text(json.dumps({"Data": [RECORDS["trivia_qa"]], "Domain": "Wikipedia", "Version": 1.0}, indent=2))
    assert read_questions(trivia).questions[0].id == "tc_1"
    marco = tmp_path / "train_v2.1.json"
    columns = {k: {"12": v, "14": v} for k, v in RECORDS["ms_marco"].items()}
    columns["query_id"]["14"] = 2
    columns["answers"]["14"] = ["No Answer Present."]
    marco.write_text(json.dumps(columns))
    read = read_questions(marco)
    assert read.format == "ms_marco"
    assert [q.answers for q in read.questions] == [("a", "b"), ()]


def test_tables(tmp_path: Path) -> None:
    dpr = tmp_path / "nq-dev.qa.csv"
    dpr.write_text("who's?\t['a', \"it's\"]\nq2\t\"['x \"\"y\"\"', 'b']\"\nq3\tbare text\n")
    read = read_questions(dpr)
    assert read.format == "dpr-qas"
    assert [q.answers for q in read.questions] == [("a", "it's"), ('x "y"', "b"), ("bare text",)]
    comma = tmp_path / "own.csv"
    comma.write_text('question,answer\n"q1, really?","several\nlines"\nq2,b\n')
    assert [q.answers for q in read_questions(comma).questions] == [("several\nlines",), ("b",)]
    popqa = tmp_path / "popqa.tsv"
    popqa.write_text('id\tsubj\tprop\tobj\tquestion\tpossible_answers\n1\tS\tp\to\tq?\t"[""a"", ""b""]"\n')
    read = read_questions(popqa)
    assert (read.format, read.questions[0].answers) == ("popqa", ("a", "b"))
    bad = tmp_path / "bad.tsv"
    bad.write_text("q1\t['a']\nq2\t['a' 'b']\nq3\n")
    with pytest.raises(DataError, match=r"bad\.tsv:2: field 'answers': expected commas"):
        read_questions(bad)
    assert read_questions(bad, skip_bad_lines=True).skipped == 2


def test_source_and_target(tmp_path: Path) -> None:
    (tmp_path / "train.source").write_text("q1\nq2\n")
    with pytest.raises(DataError, match=r"train\.target: train\.source is one half of a pair"):
        read_questions(tmp_path)
    (tmp_path / "train.target").write_text("a1\na2\n")
    for path in (tmp_path, tmp_path / "train.source", tmp_path / "train.target"):
        read = read_questions(path)
        assert read.format == "source-target"
        assert [(q.question, q.answers) for q in read.questions] == [("q1", ("a1",)), ("q2", ("a2",))]
    (tmp_path / "train.target").write_text("a1\na2\na3\n")
    with pytest.raises(DataError, match=r"train\.target:3: train\.target goes on"):
        read_questions(tmp_path)


def test_parquet_and_save_to_disk(tmp_path: Path) -> None:
    import datasets

    rows = [RECORDS["nq-open"], {"question": "other?", "answer": ["c"]}]
    made = datasets.Dataset.from_list(rows)
    made.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "disk")
    for path in (tmp_path, tmp_path / "train-00000-of-00001.parquet", tmp_path / "disk"):
        read = read_questions(path)
        assert read.format == "nq-open"
        assert [q.question for q in read.questions] == ["q?", "other?"]
    with pytest.raises(DataError, match="no validation questions"):
        read_questions(tmp_path, split="validation")


def test_what_json_cannot_hold_is_made_plain(tmp_path: Path) -> None:
    import datetime

    row = {
        "question": "q \ud800?",
        "answer": ["a"],
        "when": datetime.date(2026, 1, 2),
        "score": float("nan"),
        "raw": b"x",
    }
    (question,) = questions_from_rows([row], "x").questions
    assert question.question == "q \ufffd?"
    assert question.extra == {"when": "2026-01-02", "raw": "x"}
    write_jsonl(tmp_path / "x.jsonl", [question.to_json()])
    with pytest.raises(DataError, match="expected at least one answer, found none"):
        questions_from_rows([{"question": "q", "answer": float("nan")}], "x")


def test_one_record_and_short_heads(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"question": "q", "answers": ["a"]}, indent=1))
    assert len(read_questions(path).questions) == 1
    path = tmp_path / "qa.csv"
    path.write_text("q,a\nwhat?,this\n")
    (question,) = read_questions(path).questions
    assert (question.question, question.answers) == ("what?", ("this",))


def test_chosen_fields(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", {"prompt_text": "q?", "meta": {"gold": ["a"]}, "ctxs": [{"text": "t"}]})
    with pytest.raises(DataError, match="no known form of question has the fields prompt_text, meta") as caught:
        read_questions(path)
    assert "--question-key" in str(caught.value.hint)
    assert all(name in str(caught.value.hint) for name in RECORDS)
    (question,) = read_questions(path, question_key="prompt_text", answer_key="meta.gold").questions
    assert (question.question, question.answers, question.documents[0].text) == ("q?", ("a",), "t")
    path = lines(tmp_path / "y.jsonl", {"question": "q?", "answers": ["a"], "short": "b"})
    assert read_questions(path, answer_key="short").questions[0].answers == ("b",)
    with pytest.raises(DataError, match=r"y\.jsonl:1: field 'long': missing"):
        read_questions(path, answer_key="long")
    table = tmp_path / "t.csv"
    table.write_text("frage,antwort\nq?,a\n")
    assert read_questions(table, question_key="frage", answer_key="antwort").questions[0].answers == ("a",)


BAD_LINES = [
    ('{"question": "q", "answer": ["a"]', r":2: expected a JSON object, found an error at column"),
    ('{"question": "q"}', r":2: field 'answer': missing; .*found the fields question"),
    ('{"question": "", "answer": ["a"]}', r":2: field 'question': expected a text, found an empty one"),
    ('{"question": 5.5, "answer": {"x": 1}}', r":2: field 'answer': expected an answer, found an object with x"),
    ('{"question": "q", "answer": ["  "]}', r":2: field 'answer': expected at least one answer, found none"),
    ('{"question": null, "answer": ["a"]}', r":2: field 'question': expected a text, found null"),
    ("[1, 2]", r":2: expected a JSON object, found an array"),
    ('{"question": "\udce9", "answer": ["a"]}', r":2: expected UTF-8 text, found byte 0xe9 at 14"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_located_and_can_be_skipped(line: str, message: str, tmp_path: Path) -> None:
    good = '{"question": "good", "answer": ["a"]}'
    path = tmp_path / "nq.jsonl"
    path.write_bytes(f"{good}\n{line}\n{good}\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message) as caught:
        read_questions(path)
    assert caught.value.line == 2
    assert "--skip-bad-lines" in str(caught.value.hint)
    read = read_questions(path, skip_bad_lines=True)
    assert (len(read.questions), read.skipped, len(read.problems)) == (2, 1, 1)


def test_a_bad_item_of_an_array_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[\n {"question": "q",\n  "answers": ["a"]},\n {"question": "q",\n  "answers": []}\n]')
    with pytest.raises(DataError, match=r"x\.json:4: field '\[1\]\.answers'"):
        read_questions(path)
    path.write_text('[\n {"question": "q", "answers": ["a"]},\n {"question": ]\n')
    with pytest.raises(DataError, match=r"x\.json:3: the JSON array breaks off in item 1"):
        read_questions(path)
    path.write_text('[\n {"question": "q", "answers": ["a"]}\n')
    with pytest.raises(DataError, match="not closed after 1 items"):
        read_questions(path)


def test_ids_are_kept_or_stable(tmp_path: Path) -> None:
    a, b = {"question": "one?", "answer": ["1"]}, {"question": "two?", "answer": ["2"]}
    first = read_questions(lines(tmp_path / "a.jsonl", a, b, a)).questions
    second = read_questions(lines(tmp_path / "b.jsonl", b, a)).questions
    assert [q.id for q in second] == [first[1].id, first[0].id]
    assert first[2].id == f"{first[0].id}-2"
    with pytest.raises(DataError, match=r"c\.jsonl:2: field 'id': '7' is also the id on line 1"):
        read_questions(lines(tmp_path / "c.jsonl", {**a, "id": 7}, {**b, "id": "7"}))


def test_what_is_refused(tmp_path: Path) -> None:
    for name in ("questions.jsonl", "wiki.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps({"question": "q"}))
        with pytest.raises(DataError, match="pickle"):
            read_questions(tmp_path / name)
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(b'{"question": "q", "answer": ["a"]}\n' * 2000)[:-40])
    with pytest.raises(DataError, match="cut short or damaged"):
        read_questions(tmp_path / "x.json.gz")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="the file is empty"):
        read_questions(tmp_path / "empty.jsonl")
    (tmp_path / "archive.jsonl").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(DataError, match="zip archive"):
        read_questions(tmp_path / "archive.jsonl")
    with pytest.raises(DataError, match="no such file"):
        read_questions(tmp_path / "nothing")
    mapping = tmp_path / "dataset_corpus.json"
    mapping.write_text(json.dumps({"T": "text", "U": "text"}))
    with pytest.raises(DataError, match="no questions") as caught:
        read_questions(mapping)
    assert "given as passages" in str(caught.value.hint)


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).map(str.strip).filter(bool)
ANSWER = TEXT.filter(lambda text: text not in ("[]", "No Answer Present."))


@given(st.lists(st.tuples(TEXT, st.lists(ANSWER, min_size=1, max_size=3), TEXT), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_our_own_records_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    questions = [
        Question(str(i), question, tuple(dict.fromkeys(answers)), "set", "train", "g",
                 (Document("d", "title", text, i % 2 == 0, 0.5),), {"kind": "x"})
        for i, (question, answers, text) in enumerate(rows)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("own") / "train.jsonl"
    write_jsonl(path, (question.to_json() for question in questions))
    assert read_questions(path).questions == questions
    assert read_questions(path.parent).questions == questions


@given(st.lists(st.tuples(TEXT, st.lists(ANSWER, min_size=1, max_size=3)), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_a_dpr_table_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows([q, repr(a)] for q, a in rows)
    path = tmp_path_factory.mktemp("dpr") / "x.tsv"
    path.write_text(buffer.getvalue())
    read = read_questions(path).questions
    assert [(q.question, q.answers) for q in read] == [(q, tuple(dict.fromkeys(a))) for q, a in rows]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(RECORDS)), st.data())
@settings(max_examples=400, deadline=None)
def test_any_field_of_any_type_is_an_error_of_ours_or_read(name: str, data: st.DataObject) -> None:
    record = json.loads(json.dumps(RECORDS[name]))
    broken = dict(record)
    key = data.draw(st.sampled_from(sorted(record)))
    if isinstance(record[key], list) and record[key] and data.draw(st.booleans()):
        broken[key] = [data.draw(VALUES), *record[key][1:]]
    elif isinstance(record[key], dict) and record[key] and data.draw(st.booleans()):
        broken[key] = {**record[key], data.draw(st.sampled_from(sorted(record[key]))): data.draw(VALUES)}
    elif data.draw(st.booleans()):
        broken[key] = data.draw(VALUES)
    else:
        del broken[key]
    first = {**record, **{k: "first" for k in ("id", "_id", "query_id", "QuestionId") if k in record}}
    with contextlib.suppress(DataError):
        read = questions_from_rows([first, broken], "memory")
        assert all(question.question and all(question.answers) for question in read.questions)
        json.dumps([question.to_json() for question in read.questions], ensure_ascii=False).encode()


REAL = [
    ("nq/NQ-open.dev.jsonl", "nq-open", 3610),
    ("nq/dpr_nq_dev_questions_answers.tsv.gz", "dpr-qas", 8757),
    ("trivia_qa/dpr_trivia_dev_questions_answers.tsv.gz", "dpr-qas", 8837),
    ("nq/flagembedding_nq_sample10.jsonl.gz", "flagembedding", 10),
    ("ms_marco/flagembedding_msmarco_sample10.jsonl", "flagembedding", 10),
    ("hotpotqa/hotpot_train_mixed_100.json.gz", "hotpot_qa", 100),
    ("hotpotqa/hotpot_dev_fullwiki_500.jsonl.gz", "hotpot_qa", 500),
    ("musique/musique_train_100.json.gz", "musique", 100),
    ("squad/squad_v1.1_train44articles.json.gz", "squad", 11877),
    ("squad/squad_v1.1_20articles.json.gz", "squad", 4639),
    ("graph/hotpotqa_train_hipporag/raw/train.json", "hipporag", 100),
    ("graph/musique_train_hipporag/processed/stage1/train.json", "hipporag", 100),
]


@pytest.mark.parametrize(("name", "form", "count"), REAL)
def test_real_files(name: str, form: str, count: int, real_data: Path) -> None:
    read = read_questions(real_data / name)
    assert (read.format, len(read.questions), read.skipped) == (form, count, 0)
    assert len({question.id for question in read.questions}) == count
    assert read.unanswered == (count if form == "flagembedding" else 0)


def test_real_answers_are_the_lists_they_were(real_data: Path) -> None:
    trivia = read_questions(real_data / "trivia_qa/dpr_trivia_dev_questions_answers.tsv.gz").questions
    (boxing,) = (q for q in trivia if q.question == "Ezzard Charles was a world champion in which sport?")
    assert "Gentleman's sport" in boxing.answers
    assert not any(a.startswith(("[", '"[')) and a.endswith(("]", ']"')) for q in trivia for a in q.answers)
    hotpot = read_questions(real_data / "hotpotqa/hotpot_dev_fullwiki_500.jsonl.gz").questions
    assert sorted({len(q.documents) for q in hotpot}) == [0, 2, 4, 10]
