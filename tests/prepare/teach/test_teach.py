"""From questions to rows with scores and answers: what is written, what is kept, and going on after a stop."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from ragtrain import metrics, prepare
from ragtrain.cli.app import main
from ragtrain.config.commands import PrepareConfig
from ragtrain.config.commands.teach import RerankConfig, TeachConfig, TeacherConfig
from ragtrain.data.formats import read_questions
from ragtrain.errors import ConfigError, DataError, Interrupted
from ragtrain.index.bm25 import BM25Index
from ragtrain.index.search import DenseIndex
from ragtrain.models.causal import bits
from ragtrain.models.cross_encoder import load_cross_encoder
from ragtrain.prepare import teach
from ragtrain.prepare.journal import Journal
from ragtrain.prepare.teach import answers as answers_module
from ragtrain.prepare.teach import rerank as rerank_module
from ragtrain.prepare.teach.models import load_teacher
from ragtrain.prepare.teach.rerank import passage_of
from ragtrain.records import Passage

N_DOCS, KEEP = 6, 3


@pytest.fixture
def config(corpus: Path, reranker: Path, teacher: Path, tmp_path: Path) -> TeachConfig:
    return TeachConfig(
        questions=corpus / "questions.jsonl", passages=corpus / "passages.jsonl", n_docs=N_DOCS, keep_docs=KEEP,
        rerank=RerankConfig(reranker_model=str(reranker), rerank_batch_size=4),
        teacher=TeacherConfig(teacher_model=str(teacher), max_new_tokens=4, batch_size=1),
        output_file=tmp_path / "taught.json", device="cpu",
    )  # fmt: skip


def change(config: TeachConfig, **fields: object) -> TeachConfig:
    """Return a configuration with other values, wherever their fields stand."""
    inner = {name: getattr(config, name) for name in ("rerank", "teacher")}
    for name, value in fields.items():
        section = next((key for key, each in inner.items() if name in type(each).model_fields), None)
        if section is None:
            config = config.model_copy(update={name: value})
        else:
            inner[section] = inner[section].model_copy(update={name: value})
    return config.model_copy(update=inner)


def rows_of(config: TeachConfig) -> list[dict]:
    return json.loads(config.output_file.read_text())


def test_rows_are_what_a_slow_twin_makes_of_them(config: TeachConfig, corpus: Path, reranker: Path):
    result = teach.run(config)
    rows = rows_of(config)
    asked = read_questions(corpus / "questions.jsonl").questions
    passages = [Passage(**json.loads(line)) for line in (corpus / "passages.jsonl").read_text().splitlines()]
    words, encoder = BM25Index.of(passages), load_cross_encoder(reranker)
    assert [row["id"] for row in rows] == [question.id for question in asked]
    assert result.rows == len(rows) == len(asked)
    for row, question in zip(rows, asked, strict=True):
        found = [passages[place] for place in words.search([question.question], N_DOCS)[0] if place >= 0]
        gold = next(document for document in question.documents if document.is_gold)
        if gold.id not in [passage.id for passage in found]:
            found.append(Passage(gold.id, gold.title, gold.text))
        scores = [encoder.scores([(question.question, [f"{p.title} {p.text}"])], 1)[0][0] for p in found]
        order = sorted(range(len(found)), key=lambda place: -scores[place])
        kept = order[:KEEP]
        if gold.id not in [found[place].id for place in kept]:
            kept[-1] = next(place for place in order if found[place].id == gold.id)
        assert [document["id"] for document in row["documents"]] == [found[place].id for place in kept]
        assert row["reranking_scores"] == pytest.approx([scores[place] for place in kept], abs=1e-4)
        assert [document["score"] for document in row["documents"]] == row["reranking_scores"]
        assert [document["id"] for document in row["documents"] if document["is_gold"]] == [gold.id]
        assert row["reranker_model"] == str(reranker)
        assert isinstance(row["teacher_answer"], str)
        assert row["answers"] == list(question.answers)


def test_answers_are_those_of_the_teacher_to_its_prompt(config: TeachConfig, teacher: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ragtrain.data.sft.prompts import Prompter, PromptSettings
    from ragtrain.data.sft.records import Sample
    from ragtrain.data.sft.templates import read_instruction
    from ragtrain.records import Document

    teach.run(config)
    model = AutoModelForCausalLM.from_pretrained(teacher).eval()
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    prompter = Prompter(tokenizer, PromptSettings(instruction=read_instruction("qa-short"), max_length=512))
    for row in rows_of(config)[:5]:
        documents = tuple(Document(**document) for document in row["documents"])
        (prompt,) = prompter.fitted_prompts([Sample(row["id"], row["question"], documents)], room=4)
        ids = torch.tensor([prompt.ids])
        with torch.no_grad():
            written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False,
                                     pad_token_id=0)  # fmt: skip
        assert row["teacher_answer"] == tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("stage", ["scores", "answers"])
def test_a_stopped_command_goes_on_without_losing_or_doubling_a_row(
    config: TeachConfig, stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(rerank_module, "BATCHES", 1)
    monkeypatch.setattr(answers_module, "BATCHES", 1)
    whole = change(config, output_file=tmp_path / "whole.json")
    teach.run(whole)
    written: list[int] = []
    add = Journal.add

    def stopping(self: Journal, found: dict) -> None:
        add(self, found)
        written.append(len(found))
        if self.path.name == f"{stage}.jsonl" and len(self) >= 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", stopping)
        with pytest.raises(Interrupted) as stopped:
            teach.run(config)
    assert stopped.value.exit_code == 128 + signal.SIGINT
    assert not config.output_file.exists()
    file = tmp_path / "taught.teach" / f"{stage}.jsonl"
    with file.open("a") as journal:
        journal.write('{"key": "of a line in whose mid')  # as kill -9 leaves it
    known = len(Journal(file))
    calls: list[int] = []
    monkeypatch.setattr(Journal, "add", lambda self, found: (calls.append(len(found)), add(self, found))[1])
    teach.run(config)
    assert rows_of(config) == rows_of(whole)
    total = len(rows_of(whole))
    assert sum(calls) == (total - known) + (total if stage == "scores" else 0)
    keys = [json.loads(line)["key"] for line in file.read_text().splitlines() if line.endswith("}")]
    assert len(keys) == len(set(keys)) == total


def test_the_same_request_has_nothing_to_do_and_another_one_asks_only_what_is_new(
    config: TeachConfig, monkeypatch: pytest.MonkeyPatch
):
    first = teach.run(config)
    assert not first.up_to_date
    assert teach.run(config).up_to_date
    with pytest.raises(ConfigError, match="not made by this request"):
        teach.run(change(config, agreement="contains"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded although everything is known")

    monkeypatch.setattr(answers_module, "load_teacher", refuse)
    monkeypatch.setattr(rerank_module, "load_cross_encoder", refuse)
    again = teach.run(change(config, agreement="f1", min_f1=0.3, overwrite=True))
    assert again.info["teacher"]["answered_now"] == 0


@pytest.mark.parametrize("rule", ["contains", "f1"])
@pytest.mark.parametrize("disagreeing", ["drop", "gold"])
def test_the_agreement_filter_keeps_what_it_says(
    config: TeachConfig, rule: str, disagreeing: str, monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path
):
    asked = {question.id: question for question in read_questions(corpus / "questions.jsonl").questions}
    said = {}
    for number, question in enumerate(asked.values()):
        answer = question.answers[0]
        said[question.question] = (answer, f"it is {answer} of course, dear me", "nothing of the kind", "")[number % 4]

    def answered(fitted, *_: object) -> list[answers_module.Taught]:
        return [answers_module.Taught(said[row.sample.question], True, 1, "", 3) for row in fitted]

    monkeypatch.setattr(answers_module, "_answers", answered)
    result = teach.run(change(config, agreement=rule, disagreeing=disagreeing))
    rows = {row["id"]: row for row in rows_of(config)}
    for question in asked.values():
        answer = said[question.question]
        holds = metrics.has_answer(question.answers, answer)
        good = bool(answer) and (holds if rule == "contains" else metrics.f1(answer, question.answers) >= 0.5)
        assert ("teacher_answer" in rows.get(question.id, {})) == good
        assert (question.id in rows) == (good or disagreeing == "gold")
    rejected = [json.loads(line) for line in (tmp_path / "taught.teach" / "rejected.jsonl").read_text().splitlines()]
    about = result.info["agreement"]
    assert len(rejected) == about["disagrees"] + about["empty"]
    assert about["kept"] + len(rejected) == len(asked)
    assert about["contains"][0] == pytest.approx(
        sum(metrics.has_answer(q.answers, said[q.question]) for q in asked.values()) / len(asked)
    )


@pytest.mark.parametrize("retrieval", ["dense", "bm25"])
def test_passages_from_an_index(config: TeachConfig, corpus: Path, tmp_path: Path, retrieval: str):
    path = tmp_path / "index"
    prepare.run(PrepareConfig(passages=corpus / "passages.jsonl", output_dir=path, bm25=True, device="cpu"))
    by_index = change(config, passages=None, index=path, retrieval=retrieval, reranker_model=None, keep_gold=False)
    result = teach.run(by_index)
    index = DenseIndex.open(path)
    held = {passage.id for passage in index.passages}
    for row in rows_of(config):
        assert len(row["documents"]) == KEEP
        assert {document["id"] for document in row["documents"]} <= held
        scores = [document["score"] for document in row["documents"]]
        assert retrieval == "bm25" or scores == sorted(scores, reverse=True)
    assert result.info["passages"]["retrieval"] == retrieval
    assert result.info["passages"]["gold_added"] == 0
    assert teach.run(change(by_index, output_file=tmp_path / "b.json")).info["passages"]["cached"]


def test_own_passages_stay_in_their_order_without_a_reranker(
    config: TeachConfig, corpus: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level("WARNING", logger="ragtrain"):
        teach.run(change(config, passages=None, reranker_model=None))
    assert f"--keep-docs {KEEP} has no effect" in caplog.text
    row = rows_of(config)[0]
    asked = read_questions(corpus / "questions.jsonl").questions[0]
    assert [document["id"] for document in row["documents"]] == [document.id for document in asked.documents]
    assert "reranking_scores" not in row


def test_a_long_prompt_loses_its_lowest_ranked_passages_and_says_so(config: TeachConfig):
    result = teach.run(change(config, max_length=150))
    assert result.info["teacher"]["prompts_without_all_passages"] > 0
    assert all(len(row["documents"]) == KEEP for row in rows_of(config))


def test_a_teacher_in_eight_bits(config: TeachConfig):
    pytest.importorskip("bitsandbytes", reason="the extra [quant] is not installed")
    teacher = load_teacher(change(config, load_in_8bit=True))
    assert bits(teacher.model) == 8
    result = teach.run(change(config, load_in_8bit=True, max_questions=2, reranker_model=None))
    assert result.info["teacher"]["load_in_8bit"]
    assert result.rows == 2 - result.info["agreement"]["empty"]


def test_questions_alone_are_lines_of_text_or_of_ms_marco(config: TeachConfig, tmp_path: Path):
    plain, table = tmp_path / "queries.txt", tmp_path / "queries.dev.small.tsv"
    plain.write_text("What is the symbol of gold?\n\nWhich river flows through Paris?\nWhat is the symbol of gold?\n")
    table.write_text("1048585\tsymbol of gold\n2\triver of paris\n")
    alone = tmp_path / "alone.jsonl"
    alone.write_text('{"query": "symbol of gold"}\n{"query": "river of paris"}\n')
    for file, ids in ((plain, None), (table, ["1048585", "2"]), (alone, None)):
        made = change(config, questions=file, output_file=tmp_path / f"{file.stem}-out.jsonl")
        assert teach.run(made).rows == 2
        rows = [json.loads(line) for line in made.output_file.read_text().splitlines()]
        assert ids is None or [row["id"] for row in rows] == ids
        assert all(row["answers"] == [] and "teacher_answer" in row for row in rows if row.get("teacher_answer"))


def test_scaledowns_flags_mean_the_same(
    config: TeachConfig, reranker: Path, teacher: Path, tmp_path: Path, corpus: Path
):
    queries = tmp_path / "queries.txt"
    queries.write_text("What is the symbol of gold?\n")
    output = tmp_path / "theirs.json"
    code = main([
        "data", "teach", "--queries_file", str(queries), "--corpus_path", str(corpus / "passages.jsonl"),
        "--max_corpus_size", "50", "--top_k_retrieval", "4", "--enable_reranking", "--top_k_reranking", "2",
        "--reranker_model", str(reranker), "--teacher_model", str(teacher), "--output_file", str(output),
        "--device", "cpu", "--max-new-tokens", "3",
    ])  # fmt: skip
    assert code == 0
    (row,) = json.loads(output.read_text())
    assert len(row["documents"]) == len(row["reranking_scores"]) == 2
    info = json.loads((tmp_path / "theirs.dataset.json").read_text())
    assert info["passages"]["count"] == 50


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"index": Path("x")}, ConfigError, "both given"),
        ({"passages": None, "reranker_model": None, "teach": False}, ConfigError, "neither"),
        ({"output_file": Path("x.csv")}, ConfigError, "ends in .json"),
        ({"reranker_model": "/nowhere"}, ConfigError, "no folder"),
        ({"max_length": 4}, ConfigError, "no room"),
    ],
)
def test_what_cannot_be_is_refused(config: TeachConfig, fields: dict, error: type, match: str):
    with pytest.raises(error, match=match):
        teach.run(change(config, **fields))


def test_questions_without_any_passage_are_refused(config: TeachConfig, tmp_path: Path):
    file = tmp_path / "bare.jsonl"
    file.write_text('{"question": "q", "answer": ["a"]}\n')
    with pytest.raises(DataError, match="no question has a passage"):
        teach.run(change(config, questions=file, passages=None))


def test_a_passage_as_the_reranker_reads_it():
    from ragtrain.records import Document

    assert passage_of(Document("1", "T", "text")) == "T text"
    assert passage_of(Document("1", "", "text")) == "text"
