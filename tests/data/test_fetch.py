from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtrain import metrics
from ragtrain.config.commands import FetchConfig
from ragtrain.data import fetch, splits
from ragtrain.data.formats import iter_passages, read_questions
from ragtrain.errors import ConfigError, DataError
from ragtrain.records import Document, Passage, Question, content_id, sha256_file, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SQUAD = ("squad/squad_v1.1_train44articles.json.gz", "squad/squad_v1.1_20articles.json.gz")


def squad_file(path: Path, articles: dict[str, list[str]]) -> Path:
    """Write SQuAD JSON: titles and their contexts, two questions on each context."""
    data = [
        {"title": title, "paragraphs": [
            {"context": context, "qas": [
                {"id": f"{path.stem}-{context}-{i}", "question": f"{path.stem} asks {i} of {context}?",
                 "answers": [{"text": context.split()[0], "answer_start": 0}]} for i in range(2)]}
            for context in contexts]}
        for title, contexts in articles.items()
    ]  # fmt: skip
    path.write_text(json.dumps({"version": "1.1", "data": data}))
    return path


@pytest.fixture
def articles(tmp_path: Path) -> tuple[Path, Path]:
    train = {f"Article_{i}": [f"c{i}{j} holds words" for j in range(3)] for i in range(10)}
    evaluation = {"Article_3": ["c31 holds words", "c39 is new"], "Other": ["o1 holds", "o2 holds"]}
    return squad_file(tmp_path / "train.json", train), squad_file(tmp_path / "dev.json", evaluation)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_dataset_folder(articles: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = fetch.run(FetchConfig(dataset="squad", source=articles, output_dir=out))
    assert sorted(path.name for path in out.iterdir()) == [
        "dataset.json", "passages.jsonl", "train.jsonl", "validation.jsonl",
    ]  # fmt: skip
    info = json.loads((out / "dataset.json").read_text())
    assert info["counts"] == {"train": {"squad": 60}, "validation": {"squad": 6}}
    for name, entry in info["files"].items():
        assert entry == {"rows": len(rows(out / name)), "sha256": sha256_file(out / name)}
    assert [entry["sha256"] for entry in info["origin"]] == [sha256_file(path) for path in articles]
    assert info["licence"] == {"squad": "CC BY-SA 4.0"}
    first = rows(out / "train.jsonl")[0]
    assert list(first)[:7] == ["id", "dataset", "split", "group", "question", "answers", "documents"]
    assert (first["dataset"], first["split"], first["group"]) == ("squad", "train", "Article_0")
    passages = {row["id"]: row for row in rows(out / "passages.jsonl")}
    assert len(passages) == 33
    for name in ("train", "validation"):
        for row in rows(out / f"{name}.jsonl"):
            for document in row["documents"]:
                passage = passages[document["id"]]
                assert (document["title"], document["text"]) == (passage["title"], passage["text"])
    assert json.loads(json.dumps(result.to_json()))["path"] == str(out)
    assert len(list(iter_passages(out))) == 33
    assert [q.to_json() for q in read_questions(out, split="validation").questions] == rows(out / "validation.jsonl")


def test_evaluation_questions_on_training_contexts_are_dropped(articles: tuple[Path, Path], tmp_path: Path) -> None:
    result = fetch.run(FetchConfig(dataset="squad", source=articles, output_dir=tmp_path / "out"))
    (overlap,) = result.overlap
    assert overlap == {
        "split": "validation", "checked": 8, "same_question": 0, "same_context": 2, "shared_contexts": 1, "dropped": 2,
        "kept_with_shared_context": 0, "kept_with_shared_group": 2,
    }  # fmt: skip
    texts = {d["text"] for row in rows(tmp_path / "out/validation.jsonl") for d in row["documents"]}
    assert texts == {"c39 is new", "o1 holds", "o2 holds"}


def test_the_same_question_is_dropped_whatever_its_spelling(tmp_path: Path) -> None:
    train, evaluation = tmp_path / "train.jsonl", tmp_path / "dev.jsonl"
    write_jsonl(train, [{"question": "who played victoria 's  king ?", "answer": ["a"]}])
    write_jsonl(
        evaluation, [{"question": "Who played Victoria's king", "answer": ["a"]}, {"question": "new", "answer": ["b"]}]
    )
    result = fetch.run(FetchConfig(dataset="nq", source=(train, evaluation), output_dir=tmp_path / "out"))
    assert result.counts == {"train": {"nq": 1}, "validation": {"nq": 1}}
    assert result.overlap[0]["same_question"] == 1
    assert not (tmp_path / "out/passages.jsonl").exists()


def test_one_file_is_cut_by_article(articles: tuple[Path, Path], tmp_path: Path) -> None:
    def cut(seed: int) -> set[str]:
        out = tmp_path / f"out{seed}"
        fetch.run(FetchConfig(dataset="squad", source=articles[:1], output_dir=out, eval_fraction=0.2, seed=seed))
        train, validation = ({row["group"] for row in rows(out / f"{name}.jsonl")} for name in ("train", "validation"))
        assert not train & validation
        assert (len(train), len(validation)) == (8, 2)
        assert {row["split"] for row in rows(out / "validation.jsonl")} == {"validation"}
        return validation

    assert len({frozenset(cut(seed)) for seed in range(5)}) > 1
    lonely = squad_file(tmp_path / "one.json", {"Only": ["a b"]})
    with pytest.raises(DataError, match="one group"):
        fetch.run(FetchConfig(dataset="squad", source=(lonely,), output_dir=tmp_path / "lonely"))


def test_a_named_split_is_kept_alone(articles: tuple[Path, Path], tmp_path: Path) -> None:
    kept = fetch.run(FetchConfig(dataset="squad", source=articles, split="validation", output_dir=tmp_path / "a"))
    assert kept.counts == {"validation": {"squad": 8}}
    file = fetch.run(FetchConfig(dataset="squad", source=articles[1:], split="test", output_dir=tmp_path / "b"))
    assert file.counts == {"test": {"squad": 8}}
    cut = fetch.run(FetchConfig(dataset="squad", source=articles, split="train", output_dir=tmp_path / "c"))
    assert set(cut.counts) == {"train", "validation"}
    assert sum(cut.counts[name]["squad"] for name in cut.counts) == 60
    with pytest.raises(ConfigError, match="the first is train and the second validation"):
        fetch.run(FetchConfig(dataset="squad", source=articles, split="test", output_dir=tmp_path / "d"))


def test_a_second_run_does_nothing(
    articles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FetchConfig(dataset="squad", source=articles, output_dir=tmp_path / "out")
    first = fetch.run(config)
    before = content(tmp_path / "out")
    monkeypatch.setattr(fetch.sources, "load", lambda config: pytest.fail("read again"))
    again = fetch.run(config)
    assert not first.up_to_date
    assert again.up_to_date
    assert content(tmp_path / "out") == before


def test_what_exists_is_replaced_only_when_asked(articles: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = FetchConfig(dataset="squad", source=articles, output_dir=out)
    fetch.run(config)
    (out / "index").mkdir()
    (out / "index" / "vectors.npy").write_bytes(b"mine")
    other = config.model_copy(update={"seed": 1, "num_examples": 20})
    with pytest.raises(ConfigError, match="another request"):
        fetch.run(other)
    before = sha256_file(out / "train.jsonl")
    (out / "train.jsonl").write_text("damaged")
    with pytest.raises(ConfigError, match="changed since"):
        fetch.run(config)
    fetch.run(config.model_copy(update={"overwrite": True}))
    assert sha256_file(out / "train.jsonl") == before
    fetch.run(other.model_copy(update={"overwrite": True}))
    assert len(rows(out / "train.jsonl")) == 18
    assert (out / "index" / "vectors.npy").read_bytes() == b"mine"
    assert {path.name for path in tmp_path.iterdir()} == {"train.json", "dev.json", "out"}
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="no dataset folder"):
        fetch.run(config.model_copy(update={"output_dir": foreign, "overwrite": True}))
    assert (foreign / "thesis.tex").exists()


def test_a_failed_fetch_leaves_what_stood_there(
    articles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    config = FetchConfig(dataset="squad", source=articles, output_dir=out)
    fetch.run(config)
    before = content(out)

    def fail(path: Path, value: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(fetch, "write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        fetch.run(config.model_copy(update={"overwrite": True, "seed": 3, "num_examples": 5}))
    assert content(out) == before
    assert {path.name for path in tmp_path.iterdir()} == {"train.json", "dev.json", "out"}


def test_the_number_of_examples_is_drawn_from_every_article(articles: tuple[Path, Path], tmp_path: Path) -> None:
    result = fetch.run(FetchConfig(dataset="squad", source=articles, num_examples=20, output_dir=tmp_path / "out"))
    assert result.counts == {"train": {"squad": 18}, "validation": {"squad": 2}}
    train = rows(tmp_path / "out/train.jsonl")
    assert len({row["group"] for row in train}) == 10
    assert {row["id"] for row in rows(tmp_path / "out/passages.jsonl")} == {
        document["id"] for name in ("train", "validation") for row in rows(tmp_path / f"out/{name}.jsonl")
        for document in row["documents"]
    }  # fmt: skip


def test_the_pair_of_json_files(articles: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "pair" / "small.json"
    config = FetchConfig(dataset="squad", source=articles[:1], num_examples=30, output_file=target)
    fetch.run(config)
    train, evaluation = (json.loads((target.parent / name).read_text()) for name in ("small.json", "small_eval.json"))
    assert (len(train), len(evaluation)) == (27, 3)
    record = train[0]
    # What ScaleDown's scripts read: a text, a list of texts, a text.
    assert record["query"] == record["question"]
    assert record["answer"] == record["answers"][0]
    assert "Article 0: c00 holds words" in record["documents"]
    assert len(record["documents"]) == len(set(record["documents"])) == 5
    back = read_questions(target).questions
    gold = Document(content_id("Article 0", "c00 holds words"), "Article 0", "c00 holds words", True)
    assert [document for document in back[0].documents if document.is_gold] == [gold]
    assert not {"query", "answer", "document_info"} & back[0].extra.keys()
    before = content(target.parent)
    assert fetch.run(config).up_to_date
    assert content(target.parent) == before
    with pytest.raises(ConfigError, match=r"small\.json exists"):
        fetch.run(config.model_copy(update={"seed": 9}))
    with pytest.raises(ConfigError, match=r"ends in \.json"):
        fetch.run(config.model_copy(update={"output_file": tmp_path / "small.txt"}))
    with pytest.raises(ConfigError, match="both given"):
        fetch.run(config.model_copy(update={"output_dir": tmp_path / "x"}))


def test_questions_of_a_pair_have_documents_to_choose_from(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "squad/squad_v1.1_20articles.json.gz"
    config = FetchConfig(dataset="squad", source=(source,), num_examples=100, output_file=tmp_path / "s.json")
    fetch.run(config)
    documents: dict[str, set[str]] = {}
    for name in ("s.json", "s_eval.json"):
        questions = read_questions(tmp_path / name).questions
        documents[name] = {document.text for question in questions for document in question.documents}
        for question in questions:
            assert len(question.documents) == len({document.text for document in question.documents}) == 5
            (gold,) = (document for document in question.documents if document.is_gold)
            others = [document for document in question.documents if not document.is_gold]
            assert not any(metrics.has_answer(question.answers, document.text) for document in others)
            # Paragraphs of the same article are the hardest to tell apart, and there are enough of them.
            assert sum(document.title == gold.title for document in others) >= 3
    assert not documents["s.json"] & documents["s_eval.json"]
    one = config.model_copy(update={"num_documents": 1, "output_file": tmp_path / "one.json"})
    fetch.run(one)
    assert all(len(question.documents) == 1 for question in read_questions(tmp_path / "one.json").questions)


def test_a_folder_has_the_documents_of_the_set_unless_more_are_asked_for(
    articles: tuple[Path, Path], tmp_path: Path
) -> None:
    config = FetchConfig(dataset="squad", source=articles[:1], output_dir=tmp_path / "as-given")
    fetch.run(config)
    assert {len(row["documents"]) for row in rows(tmp_path / "as-given/train.jsonl")} == {1}
    fetch.run(config.model_copy(update={"output_dir": tmp_path / "more", "num_documents": 3}))
    assert {len(row["documents"]) for row in rows(tmp_path / "more/train.jsonl")} == {3}
    listed = {row["id"] for row in rows(tmp_path / "more/passages.jsonl")}
    assert {d["id"] for row in rows(tmp_path / "more/train.jsonl") for d in row["documents"]} <= listed
    assert not (tmp_path / "as-given/dataset.json").read_text().count("num_documents")


def test_the_pair_of_the_demo_has_the_evaluation_questions_it_should(tmp_path: Path) -> None:
    result = fetch.run(FetchConfig(num_examples=100, output_file=tmp_path / "small.json"))
    assert result.counts == {"train": {"demo": 90}, "validation": {"demo": 10}}
    train, evaluation = (read_questions(tmp_path / name).questions for name in ("small.json", "small_eval.json"))
    assert (len(train), len(evaluation)) == (90, 10)
    assert not {question.group for question in train} & {question.group for question in evaluation}
    assert all(len(question.documents) == 5 for question in (*train, *evaluation))


def test_the_first_documents_hold_the_gold_ones(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "hotpotqa/hotpot_train_mixed_100.json.gz"
    fetch.run(FetchConfig(dataset="hotpot_qa", source=(source,), output_file=tmp_path / "h.json"))
    places: list[int] = []
    for name, count in (("h.json", 90), ("h_eval.json", 10)):
        questions = read_questions(tmp_path / name).questions
        assert len(questions) == count
        for question in questions:
            gold = [place for place, document in enumerate(question.documents) if document.is_gold]
            assert len(gold) == 2
            assert max(gold) < 5
            places += gold
            assert all(document.id == content_id(document.title, document.text) for document in question.documents)
    # No place gives them away: each of the five holds about a fifth.
    assert all(20 <= places.count(place) <= 60 for place in range(5))


def test_the_mix(articles: tuple[Path, Path], tmp_path: Path) -> None:
    nq = tmp_path / "nq.jsonl"
    write_jsonl(nq, ({"id": i, "question": f"q{i}", "answer": ["a"]} for i in range(12)))
    twin = tmp_path / "twin.tsv"
    twin.write_text("question\tanswer\tid\n" + "".join(f"t{i}\ta\t{i}\n" for i in range(40)))
    config = FetchConfig(dataset="all", source=(articles[0], nq, twin), output_dir=tmp_path / "out")
    result = fetch.run(config)
    assert result.counts["train"] == {"squad": 11, "nq": 11, "twin": 11}
    assert result.counts["validation"] == {"squad": 1, "nq": 1, "twin": 1}
    assert result.info["without_documents"] == 24
    ids = [row["id"] for name in result.counts for row in rows(tmp_path / f"out/{name}.jsonl")]
    assert len(set(ids)) == len(ids)
    few = fetch.run(config.model_copy(update={"num_examples": 50, "output_dir": tmp_path / "few"}))
    # nq has 11 of its 15 or 16; the others make up for it.
    assert few.counts["train"] == {"squad": 17, "nq": 11, "twin": 17}


def test_names_of_other_tools_and_files(tmp_path: Path) -> None:
    assert FetchConfig.model_validate({"dataset": "natural_questions"}).dataset == "nq"
    for name in ("NQ-open.dev.jsonl", "trivia-dev.jsonl", "twin.jsonl"):
        write_jsonl(tmp_path / name, ({"question": f"{name} {i}", "answer": ["a"]} for i in range(10)))
    sources = tuple(tmp_path / name for name in ("NQ-open.dev.jsonl", "trivia-dev.jsonl", "twin.jsonl"))
    result = fetch.run(FetchConfig(dataset="all", source=sources, output_file=tmp_path / "mix.json"))
    assert set(result.counts["train"]) == {"nq", "trivia_qa", "twin"}
    assert "without_documents" not in result.info  # there is no passage at all, which is said instead


def test_wrong_sources(articles: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="built in"):
        fetch.run(FetchConfig(source=articles, output_dir=tmp_path / "x"))
    with pytest.raises(ConfigError, match="holds squad records"):
        fetch.run(FetchConfig(dataset="hotpot_qa", source=articles, output_dir=tmp_path / "x"))
    with pytest.raises(ConfigError, match="names 3 files"):
        fetch.run(FetchConfig(dataset="squad", source=(*articles, articles[0]), output_dir=tmp_path / "x"))
    with pytest.raises(DataError, match="no such file"):
        fetch.run(FetchConfig(dataset="squad", source=(tmp_path / "none.json",), output_dir=tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_questions_without_an_answer(tmp_path: Path) -> None:
    passages = [{"is_selected": 1, "passage_text": "x a"}]
    source = tmp_path / "marco.jsonl"
    write_jsonl(source, (
        {"query_id": i, "query": f"q{i}", "answers": ["a"] if i % 3 else ["No Answer Present."], "passages": passages}
        for i in range(9)
    ))  # fmt: skip
    result = fetch.run(FetchConfig(dataset="ms_marco", source=(source,), split="validation", output_dir=tmp_path / "a"))
    assert result.counts == {"validation": {"ms_marco": 6}}
    assert result.info["unanswered_left_out"] == {"ms_marco": {"validation": 3}}
    write_jsonl(source, ({"query": f"q{i}", "pos": ["x"], "neg": ["y"]} for i in range(3)))
    result = fetch.run(FetchConfig(dataset="ms_marco", source=(source,), split="validation", output_dir=tmp_path / "b"))
    assert (result.counts, result.info["unanswered"]) == ({"validation": {"ms_marco": 3}}, 3)


def test_bad_lines_are_counted(tmp_path: Path) -> None:
    source = tmp_path / "nq.jsonl"
    source.write_text('{"question": "a", "answer": ["1"]}\n{"question": "b"}\n{"question": "c", "answer": ["2"]}\n')
    config = FetchConfig(dataset="nq", source=(source,), output_dir=tmp_path / "out")
    with pytest.raises(DataError, match=r"nq\.jsonl:2"):
        fetch.run(config)
    assert fetch.run(config.model_copy(update={"skip_bad_lines": True})).info["bad_lines_left_out"] == 1


def test_pages_of_trivia_qa_become_windows(tmp_path: Path) -> None:
    page = " ".join(f"w{i}" for i in range(3000)) + " the Answer stands last"
    row = {"question": "q?", "question_id": "1", "answer": {"value": "answer", "aliases": []},
           "entity_pages": {"title": ["Page"], "wiki_context": [page]}, "search_results": {}}  # fmt: skip
    source = tmp_path / "trivia.jsonl"
    write_jsonl(source, [row])
    fetch.run(FetchConfig(dataset="trivia_qa", source=(source,), split="validation", output_dir=tmp_path / "out"))
    (question,) = rows(tmp_path / "out/validation.jsonl")
    assert len(question["documents"]) == 10
    assert max(len(document["text"].split()) for document in question["documents"]) == 100
    gold = [document["text"] for document in question["documents"] if document["is_gold"]]
    assert gold == ["the Answer stands last"]


def test_raw_trivia_qa_reads_its_evidence(tmp_path: Path) -> None:
    source = tmp_path / "qa" / "wikipedia-dev.json"
    source.parent.mkdir()
    pages = [{"DocSource": "TagMe", "Filename": "Page.txt", "Title": "Page"},
             {"DocSource": "TagMe", "Filename": "../../secret.txt", "Title": "No"},
             {"DocSource": "TagMe", "Filename": "Missing.txt", "Title": "Missing"}]  # fmt: skip
    answer = {"Value": "a", "Aliases": ["b"], "NormalizedAliases": ["b"]}
    source.write_text(
        json.dumps({"Data": [{"QuestionId": "1", "Question": "q?", "Answer": answer, "EntityPages": pages}]})
    )
    (tmp_path / "secret.txt").write_text("secret")
    config = FetchConfig(dataset="trivia_qa", source=(source,), split="validation", output_dir=tmp_path / "bare")
    assert fetch.run(config).info["passages"] == 0
    (tmp_path / "evidence" / "wikipedia").mkdir(parents=True)
    (tmp_path / "evidence" / "wikipedia" / "Page.txt").write_text("here stands b, and more")
    fetch.run(config.model_copy(update={"output_dir": tmp_path / "out"}))
    (row,) = rows(tmp_path / "out/validation.jsonl")
    assert [(d["title"], d["text"], d["is_gold"]) for d in row["documents"]] == [
        ("Page", "here stands b, and more", True)
    ]
    assert "pages" not in row


def test_two_processes_may_fetch_the_same(
    articles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FetchConfig(dataset="squad", source=articles, output_dir=tmp_path / "out")
    swap = fetch._swap

    def late(aside: Path, target: Path, replace: bool) -> None:
        monkeypatch.setattr(fetch, "_swap", swap)
        monkeypatch.setattr("os.getpid", lambda: 1)
        assert not fetch.run(config).up_to_date  # the other process gets there first
        swap(aside, target, replace)
        pytest.fail("a folder with files in it was overwritten")

    monkeypatch.setattr(fetch, "_swap", late)
    assert fetch.run(config).up_to_date


def test_the_demo(tmp_path: Path) -> None:
    demo = pytest.importorskip("ragtrain.data.demo", reason="the demo set is not there yet")
    out = tmp_path / "demo"
    result = fetch.run(FetchConfig(output_dir=out))
    built = demo.build(0)
    assert rows(out / "test.jsonl") == [question.to_json() for question in built.test]
    assert rows(out / "passages.jsonl") == [passage.to_json() for passage in built.passages]
    assert all(entry["dropped"] == 0 for entry in result.overlap)
    assert fetch.run(FetchConfig(output_dir=out)).up_to_date
    small = fetch.run(FetchConfig(output_dir=tmp_path / "small", num_examples=100))
    assert {name: sum(part.values()) for name, part in small.counts.items()} == {
        "train": 90,
        "validation": 5,
        "test": 5,
    }
    assert small.info["passages"] == len(built.passages)


class Hub:
    """Stands in for datasets.load_dataset: the hub's records, and what was asked for."""

    def __init__(self, records: dict[str, list[dict[str, Any]]]) -> None:
        self.records, self.asked = records, []

    def __call__(self, id: str, config: str, *, split: str, revision: str | None, streaming: bool) -> Any:
        self.asked.append((id, config, split, revision, streaming))
        return Stream(self.records[split])


class Stream:
    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.records = records

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)

    def shuffle(self, *, seed: int, buffer_size: int) -> Stream:
        return self

    def take(self, count: int) -> Stream:
        return Stream(self.records[:count])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, list[dict[str, Any]]]], Hub]:
    def make(records: dict[str, list[dict[str, Any]]]) -> Hub:
        made = Hub(records)
        monkeypatch.setattr("datasets.load_dataset", made)
        monkeypatch.setattr("ragtrain.data.sources._revision", lambda hub_id: "abc123")
        return made

    return make


def test_the_hub(hub: Callable[[dict[str, list[dict[str, Any]]]], Hub], tmp_path: Path) -> None:
    def squad(name: str, count: int) -> list[dict[str, Any]]:
        return [{"id": f"{name}{i}", "title": f"{name}_{i % 4}", "context": f"{name} {i}", "question": f"{name} {i}?",
                 "answers": {"text": ["x"], "answer_start": [0]}} for i in range(count)]  # fmt: skip

    stand_in = hub({"train": squad("t", 40), "validation": squad("v", 8)})
    result = fetch.run(FetchConfig(dataset="squad", output_dir=tmp_path / "squad"))
    assert result.counts == {"train": {"squad": 40}, "validation": {"squad": 8}}
    assert stand_in.asked == [
        ("rajpurkar/squad", "plain_text", "train", "abc123", False),
        ("rajpurkar/squad", "plain_text", "validation", "abc123", False),
    ]
    assert {entry["revision"] for entry in result.info["origin"]} == {"abc123"}
    with pytest.raises(ConfigError, match="no test split"):
        fetch.run(FetchConfig(dataset="squad", split="test", output_dir=tmp_path / "x"))


def test_large_sets_are_streamed(hub: Callable[[dict[str, list[dict[str, Any]]]], Hub], tmp_path: Path) -> None:
    def marco(name: str) -> list[dict[str, Any]]:
        return [{"query": f"{name} {i}", "query_id": i, "query_type": "X", "answers": ["a"], "wellFormedAnswers": [],
                 "passages": {"passage_text": [f"{name} {i} a", "y"], "is_selected": [1, 0], "url": ["u", "u"]}}
                for i in range(1000)]  # fmt: skip

    stand_in = hub({"train": marco("t"), "validation": marco("v")})
    result = fetch.run(FetchConfig(dataset="ms_marco", num_examples=50, output_dir=tmp_path / "out"))
    assert {asked[-1] for asked in stand_in.asked} == {True}
    assert result.counts == {"train": {"ms_marco": 45}, "validation": {"ms_marco": 5}}
    assert result.overlap[0]["checked"] == 200


@pytest.mark.parametrize("name", ["squad", "trivia_qa", "all"])
def test_an_unreachable_hub_says_what_to_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read") as caught:
        fetch.run(FetchConfig(dataset=name, output_dir=tmp_path / "out"))  # type: ignore[arg-type]
    assert caught.value.exit_code == 3
    assert "--source" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_real_squad(real_data: Path, tmp_path: Path) -> None:
    config = FetchConfig(dataset="squad", source=tuple(real_data / name for name in SQUAD), output_dir=tmp_path / "out")
    result = fetch.run(config)
    assert result.counts == {"train": {"squad": 11877}, "validation": {"squad": 3171}}
    (overlap,) = result.overlap
    assert (overlap["checked"], overlap["same_context"], overlap["shared_contexts"]) == (4639, 1468, 243)
    assert overlap["kept_with_shared_group"] == 0
    assert result.info["groups"] == {"train": 44, "validation": 17}
    train, validation = (
        {d.id for q in read_questions(tmp_path / "out", split=split).questions for d in q.documents}
        for split in ("train", "validation")
    )
    assert not train & validation
    assert len(train | validation) == result.info["passages"] == 3106


@pytest.mark.parametrize(("name", "source", "counts"), [
    ("nq", ("nq/dpr_nq_dev_questions_answers.tsv.gz", "nq/NQ-open.dev.jsonl"), (8757, 3610)),
    ("trivia_qa", ("trivia_qa/dpr_trivia_dev_questions_answers.tsv.gz",), (7953, 884)),
    ("hotpot_qa", ("hotpotqa/hotpot_train_mixed_100.json.gz", "hotpotqa/hotpot_dev_fullwiki_500.jsonl.gz"), (100, 500)),
    ("ms_marco", ("ms_marco/flagembedding_msmarco_sample10.jsonl",), (9, 1)),
])  # fmt: skip
def test_real_sets(
    name: str, source: tuple[str, ...], counts: tuple[int, int], real_data: Path, tmp_path: Path
) -> None:
    config = {"dataset": name, "source": tuple(real_data / each for each in source), "output_dir": tmp_path / "out"}
    result = fetch.run(FetchConfig(**config))
    found = tuple(sum(result.counts[split].values()) for split in ("train", "validation"))
    dropped = sum(entry["dropped"] for entry in result.overlap)
    assert (found[0], found[1] + dropped) == counts


def question(number: int, group: str = "", gold: tuple[str, ...] = ()) -> Question:
    documents = tuple(Document(text, "", text, is_gold=True) for text in gold)
    return Question(str(number), f"question {number}", ("a",), group=group, documents=documents)


def test_two_hop_questions_share_one_document_without_leaking() -> None:
    train = [question(1, gold=("a", "b")), question(2, gold=("c",))]
    evaluation = [
        question(3, gold=("b", "c")),
        question(4, gold=("b", "a")),
        question(5, gold=("b",)),
        question(6, gold=("d",)),
    ]
    kept, overlap = splits.keep_apart(train, evaluation, "validation")
    assert [q.id for q in kept] == ["3", "6"]
    assert (overlap.same_context, overlap.shared_contexts, overlap.kept_with_shared_context) == (2, 2, 1)


def test_passages_are_one_per_content_and_ids_one_per_passage() -> None:
    documents = (
        Document("1", "T", "x y"),
        Document("1", "T", "other", is_gold=True),
        Document("2", "t", "X  y", is_gold=True),
    )
    asked = Question("q", "q", ("a",), documents=documents)
    changed, passages = splits.collect_passages({"train": [asked]}, [Passage("p", "T", "x y", {"kept": 1})])
    assert [passage.id for passage in passages] == ["p", "1"]
    assert passages[0].meta == {"kept": 1}
    (question,) = changed["train"]
    assert [(d.id, d.text, d.is_gold) for d in question.documents] == [("p", "x y", True), ("1", "other", True)]
    clash = Question("r", "r", ("a",), documents=(Document("p", "T", "new"),))
    changed, passages = splits.collect_passages({"train": [clash]}, [Passage("p", "T", "x y")])
    assert [passage.id for passage in passages] == ["p", content_id("T", "new")]


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30), st.integers(0, 40), st.integers(0, 3))
def test_draws_are_even_over_groups_and_independent_of_order(groups: list[str], count: int, seed: int) -> None:
    questions = [question(i, group) for i, group in enumerate(groups)]
    drawn = splits.draw(questions, count, seed)
    assert len(drawn) == min(count, len(questions))
    assert {q.id for q in splits.draw(questions[::-1], count, seed)} == {q.id for q in drawn}
    taken = {group: sum(q.group == group for q in drawn) for group in groups}
    full = {group for group in taken if taken[group] == groups.count(group)}
    rest = [taken[group] for group in taken if group not in full]
    assert not rest or max(taken.values()) - min(rest) <= 1


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.none() | st.integers(0, 30))
def test_the_mix_is_balanced(sizes: list[int], count: int | None) -> None:
    members = [[question(i * 100 + n) for n in range(size)] for i, size in enumerate(sizes)]
    mixed = splits.balance(members, count, 0)
    assert len(mixed) == (min(sizes) * len(sizes) if count is None else min(count, sum(sizes)))
    shares = [sum(int(q.id) // 100 == i for q in mixed) for i in range(len(sizes))]
    for i, share in enumerate(shares):
        assert share == sizes[i] or share >= max(shares) - 1
