from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtrain.data.formats import iter_passages
from ragtrain.data.formats.passages import SHAPES
from ragtrain.errors import DataError
from ragtrain.records import Passage, write_jsonl

if TYPE_CHECKING:
    from pathlib import Path

RECORDS: list[tuple[str, dict[str, Any]]] = [
    ("ragtrain", {"title": "T", "id": "7", "text": "x"}),
    ("flashrag", {"id": "7", "contents": '"T"\nx'}),
    ("flashrag", {"docid": "7", "contents": "T\nx", "title": "T"}),
    ("beir", {"_id": "7", "title": "T", "text": "x", "metadata": {}}),
    ("tevatron", {"docid": "7", "document_text": "x", "title": "T"}),
    ("tevatron", {"docid": "7", "title": "T", "text": "x"}),
    ("kilt-ks", {"wikipedia_id": "7", "wikipedia_title": "T", "text": ["T\n", "x\n", "Section::::History.\n"]}),
    ("musique-corpus", {"id": "7", "title": "T", "paragraph_text": "x"}),
    ("passage-text", {"pid": 7, "passage": "x", "title": "T"}),
    ("passage-text", {"pid": 7, "passage_text": "x", "title": "T"}),
    ("dpr-psgs", {"id": "7", "text": "x", "title": "T"}),
    ("text-only", {"id": "7", "text": "x"}),
]


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_every_shape_has_a_sample() -> None:
    assert {name for name, _ in RECORDS} == {shape.name for shape in SHAPES}


@pytest.mark.parametrize(("name", "record"), RECORDS)
def test_a_record_is_recognised(name: str, record: dict[str, Any], tmp_path: Path) -> None:
    key = next(key for key in ("id", "_id", "docid", "pid", "wikipedia_id") if key in record)
    path = lines(tmp_path / "x.jsonl", record, {**record, key: "8"})
    array = tmp_path / "x.json.gz"
    array.write_bytes(gzip.compress(json.dumps([record, {**record, key: "8"}]).encode()))
    for source in (path, array):
        reader = iter_passages(source)
        passages = list(reader)
        assert reader.format == name
        assert [passage.id for passage in passages] == ["7", "8"]
        assert (passages[0].title, passages[0].text) == ("" if name == "text-only" else "T", "x")
        assert list(reader) == passages


def test_the_rest_is_kept_and_sections_join_the_title(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", {"id": "1", "title": "T", "text": "x", "section": "History", "url": "u"})
    (passage,) = iter_passages(path)
    assert passage == Passage("1", "T: History", "x", {"section": "History", "url": "u"})
    copy = lines(tmp_path / "y.jsonl", passage.to_json())
    assert list(iter_passages(copy)) == [passage]


def test_tables(tmp_path: Path) -> None:
    psgs = tmp_path / "psgs_w100.tsv.gz"
    psgs.write_bytes(gzip.compress(b'id\ttext\ttitle\n1\t"Said ""so"", he"\t"A ""B"""\n2\tplain "quoted" end\tC\n'))
    assert [(p.id, p.title, p.text) for p in iter_passages(psgs)] == [
        ("1", 'A "B"', 'Said "so", he'),
        ("2", "C", 'plain "quoted" end'),
    ]
    own = tmp_path / "my_knowledge_dataset.csv"
    own.write_text('Aaron\tProphet of\told\nMoses\t"two\nlines"\nNoah\tark\n'.replace("of\told", "old"))
    reader = iter_passages(own)
    assert [(p.id, p.title, p.text) for p in reader] == [
        ("my_knowledge_dataset-0", "Aaron", "Prophet old"),
        ("my_knowledge_dataset-1", "Moses", "two\nlines"),
        ("my_knowledge_dataset-2", "Noah", "ark"),
    ]
    assert reader.format == "hf-research"
    collection = tmp_path / "collection.tsv"
    collection.write_text('0\t"Unclosed start of a text\n1\t"Another" one\n2\tthird\n')
    reader = iter_passages(collection)
    assert [(p.id, p.text) for p in reader] == [
        ("0", '"Unclosed start of a text'),
        ("1", '"Another" one'),
        ("2", "third"),
    ]
    assert reader.format == "ms-marco-collection"
    docs = tmp_path / "msmarco-docs.tsv"
    docs.write_text("D1\thttps://x\tT\tbody\n")
    assert next(iter(iter_passages(docs))) == Passage("D1", "T", "body")
    bad = tmp_path / "bad.tsv"
    bad.write_text("id\ttext\ttitle\n1\tx\tT\n2\tx\n3\ty\tT\n")
    with pytest.raises(DataError, match=r"bad\.tsv:3: expected 3 columns, found 2"):
        list(iter_passages(bad))
    reader = iter_passages(bad, skip_bad_lines=True)
    assert ([p.id for p in reader], reader.skipped) == (["1", "3"], 1)


def test_a_mapping_of_titles(tmp_path: Path) -> None:
    path = tmp_path / "dataset_corpus.json"
    path.write_text(json.dumps({"Ohio": "a", "Ohio#2": "b", "C#4": ["One.", "Two."]}))
    assert [(p.id, p.title, p.text) for p in iter_passages(path)] == [
        ("Ohio", "Ohio", "a"),
        ("Ohio#2", "Ohio", "b"),
        ("C#4", "C#4", "One. Two."),
    ]


def test_folders(tmp_path: Path) -> None:
    import datasets

    beir = tmp_path / "beir"
    beir.mkdir()
    lines(beir / "corpus.jsonl", {"_id": "1", "title": "T", "text": "x"})
    lines(beir / "queries.jsonl", {"_id": "1", "text": "q"})
    assert iter_passages(beir).format == "beir"
    notes = tmp_path / "notes"
    (notes / "sub").mkdir(parents=True)
    (notes / "b.txt").write_text("plain text\n")
    (notes / "sub" / "a.md").write_text("# A heading #\n\nThe text.\n")
    assert list(iter_passages(notes)) == [
        Passage("b.txt", "b", "plain text"),
        Passage("sub/a.md", "A heading", "The text."),
    ]
    rows = [{"title": "T", "text": str(i), "embeddings": [0.5, i]} for i in range(3)]
    made = datasets.Dataset.from_list(rows)
    made.save_to_disk(tmp_path / "disk", num_shards=2)
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "dict")
    shards = tmp_path / "shards"
    shards.mkdir()
    made.to_parquet(shards / "a.parquet")
    for folder in ("disk", "dict", "shards"):
        passages = list(iter_passages(tmp_path / folder))
        assert [(p.title, p.text, p.meta) for p in passages] == [("T", str(i), {}) for i in range(3)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="it holds nothing"):
        iter_passages(tmp_path / "empty")


def test_documents_beside_questions_are_passages(tmp_path: Path) -> None:
    record = {"question": "q?", "answers": ["a"], "ctxs": [{"id": "7", "title": "T", "text": "x"}]}
    reader = iter_passages(lines(tmp_path / "x.jsonl", record, {**record, "question": "r?"}))
    assert list(reader) == [Passage("7", "T", "x")]
    assert reader.format == "documents of fid"
    with pytest.raises(DataError, match=r"these are questions .* without documents"):
        iter_passages(lines(tmp_path / "y.jsonl", {"question": "q?", "answer": ["a"]}))


def test_bad_records(tmp_path: Path) -> None:
    good = {"id": "1", "title": "T", "text": "x"}
    for bad, message in [
        ({"id": "2", "title": "", "text": " "}, r":2: field 'text': expected a passage with a title or a text"),
        ({"id": "2", "title": "T", "text": 5}, r":2: field 'text': expected a text, found a number"),
        ({"id": "2", "title": "T"}, r":2: expected id, title, text.*, found id, title"),
        ({"id": 1, "title": "T", "text": "y"}, r":2: field 'id': '1' is the id of an earlier passage"),
        ([], r":2: expected id, title, text.*, found an array"),
    ]:
        path = lines(tmp_path / "x.jsonl", {"title": "T", **good}, bad, {**good, "id": "3"})
        with pytest.raises(DataError, match=message):
            list(iter_passages(path))
        reader = iter_passages(path, skip_bad_lines=True)
        assert [p.id for p in reader] == ["1", "3"]
        assert (reader.skipped, len(reader.problems)) == (1, 1)
    with pytest.raises(DataError, match="no known form of passage has the fields name, words") as caught:
        iter_passages(lines(tmp_path / "z.jsonl", {"name": "T", "words": "x"}))
    assert "kilt-ks" in str(caught.value.hint)
    pickled = tmp_path / "wikipedia_passages_0"
    pickled.write_bytes(b"\x80\x04\x95rest")
    with pytest.raises(DataError, match="pickle"):
        iter_passages(pickled)


@given(st.lists(st.integers(0, 12).map(str) | st.sampled_from(["a", "007", "-1", "5#0"]), max_size=20))
@settings(max_examples=150, deadline=None)
def test_repeated_ids_are_found(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    path = tmp_path_factory.mktemp("ids") / "x.jsonl"
    write_jsonl(path, ({"title": "T", "id": each, "text": "x"} for each in ["first", *ids]))
    reader = iter_passages(path, skip_bad_lines=True)
    assert [p.id for p in reader] == list(dict.fromkeys(["first", *ids]))
    write_jsonl(path, ({"title": "T", "id": each, "text": "x"} for each in [*ids, "last"]))
    assert [p.id for p in iter_passages(path, skip_bad_lines=True)] == list(dict.fromkeys([*ids, "last"]))


REAL = [
    ("squad/squad_v1.1_train44articles.json.gz", "documents of squad", 2429),
    ("squad/squad_v1.1_20articles.json.gz", "documents of squad", 920),
    ("hotpotqa/hotpot_train_mixed_100.json.gz", "documents of hotpot_qa", 994),
    ("hotpotqa/hotpot_dev_fullwiki_500.jsonl.gz", "documents of hotpot_qa", 4920),
    ("musique/musique_train_100.json.gz", "documents of musique", 1890),
    ("nq/flagembedding_nq_sample10.jsonl.gz", "documents of flagembedding", 986),
    ("ms_marco/flagembedding_msmarco_sample10.jsonl", "documents of flagembedding", 260),
    ("graph/hotpotqa_train_hipporag", "title-mapping", 994),
    ("graph/musique_train_hipporag/raw/dataset_corpus.json", "title-mapping", 1890),
]


@pytest.mark.parametrize(("name", "form", "count"), REAL)
def test_real_files(name: str, form: str, count: int, real_data: Path) -> None:
    reader = iter_passages(real_data / name)
    passages = list(reader)
    assert (reader.format, len(passages), reader.skipped) == (form, count, 0)
    assert len({passage.id for passage in passages}) == count


@pytest.mark.parametrize("name", ["nq/NQ-open.dev.jsonl", "nq/dpr_nq_dev_questions_answers.tsv.gz"])
def test_real_questions_are_no_passages(name: str, real_data: Path) -> None:
    with pytest.raises(DataError, match="these are questions"):
        iter_passages(real_data / name)
