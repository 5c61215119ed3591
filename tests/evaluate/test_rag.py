"""Evaluation of runs: answers against one-by-one decoding, metrics against slow loops, folders, reruns, refusals."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertModel, PreTrainedTokenizerFast

from ragtrain import compare, metrics
from ragtrain.config.commands import CompareConfig, EvalConfig, PrepareConfig, RagConfig
from ragtrain.data import demo
from ragtrain.errors import CheckpointError, ConfigError, DataError, IndexMismatchError, OutOfMemoryError
from ragtrain.evaluate import AnswerSettings, Record, answers, evaluate_questions, rag, results, run
from ragtrain.evaluate.answers import summarise
from ragtrain.evaluate.kept import Kept
from ragtrain.evaluate.resolve import precision_of, subject_of
from ragtrain.index.encode import IndexWriter
from ragtrain.index.search import DenseIndex
from ragtrain.models.decoding import decode
from ragtrain.models.encoder import TextEncoder
from ragtrain.models.export import load_rag, save_rag
from ragtrain.models.folders import EncoderSpec
from ragtrain.models.rag import RagModel, RagSettings, Retrieved
from ragtrain.models.weights import save_weights
from ragtrain.prepare.beside import complete
from ragtrain.records import Passage, Question, write_jsonl
from ragtrain.retrieve import Retriever
from ragtrain.runs import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
PASSAGES = [Passage(f"p{i}", f"w{i}", " ".join(f"w{(5 * i + j) % 40}" for j in range(i % 4 + 3))) for i in range(12)]
QUESTIONS = [
    Question(
        f"q{i}", " ".join(f"w{(7 * i + j) % 40}" for j in range(i % 5 + 1)), (f"w{3 * i} w{3 * i + 1}", f"w{2 * i}")
    )
    for i in range(10)
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, "/", "//", *(f"w{i}" for i in range(40))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[(token, vocabulary[token]) for token in SPECIAL],
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", model_max_length=64)
    tokenizer.add_special_tokens(
        {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    )
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def make_model(dim: int = 16, **settings: int) -> RagModel:
    """A random model with dropout, so that forgetting to switch it off would show."""
    tokenizer = make_tokenizer()
    bert = BertModel(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=dim, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=64, pad_token_id=1, initializer_range=0.5, hidden_dropout_prob=0.3,
        )
    )  # fmt: skip
    encoder = TextEncoder(bert, tokenizer, EncoderSpec(name="tiny", pooling="cls", max_tokens=32))
    bart = BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
            decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64,
            init_std=0.5, dropout=0.3, decoder_start_token_id=2, forced_eos_token_id=None,
        )
    )  # fmt: skip
    return RagModel(encoder, bart, tokenizer, RagSettings(n_docs=3, **settings))


def make_index(folder: Path, model: RagModel) -> DenseIndex:
    with IndexWriter(folder) as writer:
        writer.write_passages(PASSAGES)
        writer.write_vectors(model.question_encoder.encode_passages, dim=model.question_encoder.dim)
        writer.commit(encoder={"name": "tiny", "fingerprint": model.question_encoder.fingerprint()})
    return DenseIndex.open(folder)


@dataclasses.dataclass
class World:
    """A finished run on disk: data set, index, run folder with a final model."""

    root: Path
    run: Path
    model: RagModel

    def config(self, **changes: Any) -> EvalConfig:
        values = {"model_dir": str(self.run), "num_beams": 2, "max_new_tokens": 4, "recall_at": (1, 5), "device": "cpu"}
        return EvalConfig(**{**values, **changes})


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    for name in ("train", "validation", "test"):
        questions = QUESTIONS if name == "test" else QUESTIONS[:4]
        write_jsonl(data / f"{name}.jsonl", (question.to_json() for question in questions))
    torch.manual_seed(1)
    model = make_model()
    make_index(data / "index", model)
    config = RagConfig.model_validate({"data": {"train_data": data / "train.jsonl"}, "model": {"n_docs": 3}})
    folder = RunFolder.create(tmp_path / "runs" / "one", "rag", config.model_dump(mode="json"))
    folder.write_data({"train": {"path": str(data / "train.jsonl")}, "index": {"path": str(data / "index")}})
    save_rag(model, folder.final_model)
    return World(tmp_path, folder.path, model)


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


# --- answers -----------------------------------------------------------------------------------------------------


def test_answers_equal_those_of_one_question_at_a_time(world: World) -> None:
    model = load_rag(world.run / "final_model")
    index = DenseIndex.open(world.root / "data" / "index")
    retriever = Retriever.for_model(index, model)
    settings = AnswerSettings(n_docs=3, recall_at=(1, 5), num_beams=2, max_new_tokens=4, batch_size=4)
    found = evaluate_questions(model, retriever, QUESTIONS, settings).records
    assert [record.id for record in found] == [question.id for question in QUESTIONS]
    vectors = np.asarray(index.vectors, dtype=np.float64)
    tokenizer = make_tokenizer()
    for question, record in zip(QUESTIONS, found, strict=True):
        query = model.question_encoder.encode_questions([question.question])
        scores = (query.astype(np.float64) @ vectors.T)[0]
        order = np.argsort(-scores)
        texts = [PASSAGES[place].text for place in order[:5]]
        assert [document.id for document in record.documents] == [PASSAGES[place].id for place in order[:3]]
        assert [document.text for document in record.documents] == texts[:3]
        assert [document.score for document in record.documents] == pytest.approx(scores[order[:3]].tolist(), rel=1e-4)
        assert [document.has_answer for document in record.documents] == [
            any(f" {answer} " in f" {text} " for answer in question.answers) for text in texts[:3]
        ]
        hits = [r for r, text in enumerate(texts, 1) if any(f" {a} " in f" {text} " for a in question.answers)]
        assert record.first_hit == (hits[0] if hits else None)
        assert record.depth == 5

        # The generator's inputs as whole strings through the tokenizer, one question, no batch.
        strings = [f"{PASSAGES[place].title} / {PASSAGES[place].text} // {question.question}" for place in order[:3]]
        inputs = tokenizer(strings, padding=True, return_tensors="pt")
        retrieved = Retrieved(
            vectors=torch.from_numpy(vectors[order[:3]]).float()[None],
            mask=torch.ones(1, 3, dtype=torch.bool),
            ids=torch.from_numpy(order[:3])[None],
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
        )
        asked = tokenizer([question.question], return_tensors="pt")
        (answer,) = decode(
            model,
            asked["input_ids"],
            asked["attention_mask"],
            lambda _, found=retrieved: found,
            num_beams=2,
            max_new_tokens=4,
        )
        assert record.prediction == answer.text
        assert record.log_likelihood == pytest.approx(answer.log_likelihood, rel=1e-4, abs=1e-4)
        assert record.em == metrics.exact_match(answer.text, question.answers)
        assert record.f1 == metrics.f1(answer.text, question.answers)
        assert [document.posterior for document in record.documents] == pytest.approx(list(answer.posterior), rel=1e-3)
        assert sum(document.prior for document in record.documents) == pytest.approx(1, rel=1e-5)
    assert len({record.prediction for record in found}) > 1, "the example is made so that answers differ"
    assert 0 < sum(record.first_hit is not None for record in found) < len(found)


def test_results_do_not_depend_on_the_batch_size_and_the_mode_is_restored(world: World) -> None:
    model = load_rag(world.run / "final_model").train()
    retriever = Retriever.for_model(DenseIndex.open(world.root / "data" / "index"), model)
    settings = AnswerSettings(n_docs=3, recall_at=(5,), num_beams=2, max_new_tokens=4)
    results = [
        evaluate_questions(model, retriever, QUESTIONS, dataclasses.replace(settings, batch_size=size)).records
        for size in (1, 3, 10)
    ]
    for records in results[1:]:
        for one, other in zip(results[0], records, strict=True):
            assert (one.prediction, one.first_hit) == (other.prediction, other.first_hit)
            assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-4)
    assert model.training
    assert model.generator.training


def test_a_full_device_is_said_with_a_smaller_batch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("ragtrain.evaluate.answers.decode", full)
    with pytest.raises(OutOfMemoryError, match="10 questions at a time") as caught:
        run(world.config())
    assert "--batch-size 5" in str(caught.value.hint)
    assert not (world.run / "eval").exists()


# --- metrics -----------------------------------------------------------------------------------------------------


def record(em: float, f1: float, hit: int | None) -> Record:
    return Record("q", "question", ("a",), "p", em, f1, hit, 20, -1.0, 0.1, ())


def test_metrics_known_values() -> None:
    records = [record(1, 1, 1), record(0, 0.5, 2), record(1, 1, 4), record(0, 0, None), record(0, 0.25, 20)]
    values, intervals = summarise(records, AnswerSettings(n_docs=3, recall_at=(1, 5, 20), seed=7))
    assert values == pytest.approx(
        {
            "em": 0.4, "f1": 0.55, "answer_recall@1": 0.2, "answer_recall@3": 0.4, "answer_recall@5": 0.6,
            "answer_recall@20": 0.8, "ceiling": 0.4, "em_given_hit": 0.5, "em_given_miss": 1 / 3,
        }
    )  # fmt: skip
    assert intervals["em"] == metrics.wilson(2, 5)
    assert intervals["em_given_miss"] == metrics.wilson(1, 3)
    assert intervals["f1"] == metrics.bootstrap_mean([1, 0.5, 1, 0, 0.25], 10_000, 7)
    assert intervals.keys() == values.keys()


def test_metrics_without_questions_are_left_out() -> None:
    values, _ = summarise([record(1, 1, 1)], AnswerSettings())
    assert "em_given_miss" not in values
    assert values["em_given_hit"] == 1
    assert summarise([], AnswerSettings()) == ({}, {})


# --- runs --------------------------------------------------------------------------------------------------------


def test_a_run_needs_no_other_flag_and_its_files_say_everything(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(world.config())
    folder = world.run / "eval"
    assert result.path == folder
    assert not result.reused
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "predictions.jsonl"]
    summary = json.loads((folder / "metrics.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    rows = read_predictions(folder)
    assert [row["id"] for row in rows] == [question.id for question in QUESTIONS]
    assert summary["n"] == len(rows) == 10
    assert summary["skipped"] == 0
    # Every figure again, from the lines alone.
    assert summary["em"] == pytest.approx(sum(metrics.exact_match(r["prediction"], r["answers"]) for r in rows) / 10)
    assert summary["f1"] == pytest.approx(sum(metrics.f1(r["prediction"], r["answers"]) for r in rows) / 10)
    for k in (1, 3, 5):
        expected = sum(r["first_hit"] is not None and r["first_hit"] <= k for r in rows) / 10
        assert summary[f"answer_recall@{k}"] == pytest.approx(expected)
    held = sum(any(metrics.has_answer(r["answers"], d["text"]) for d in r["documents"]) for r in rows) / 10
    assert summary["ceiling"] == pytest.approx(held)
    assert all(len(row["documents"]) == 3 for row in rows)
    for name, (low, high) in summary["intervals"].items():
        assert 0 <= low <= summary[name] <= high <= 1
    assert summary["settings"]["n_docs"] == 3, "as in training, without a flag"
    assert summary["data"]["path"].endswith("test.jsonl")
    assert summary["questions_per_s"] > 0
    assert summary["kind"] == "rag"
    assert summary["model"]["checkpoint"] == "final"
    assert result.to_json()["path"] == str(folder)
    assert json.loads(json.dumps(result.to_json()))["em"] == summary["em"]
    assert summary["counts"].keys() == summary["intervals"].keys()
    assert sum(summary["counts"][name]["n"] for name in ("em_given_hit", "em_given_miss")) == 10
    assert summary["rouge_l"] == pytest.approx(sum(metrics.rouge_l(r["prediction"], r["answers"]) for r in rows) / 10)
    assert summary["latency_mean_s"] == pytest.approx(sum(row["seconds"] for row in rows) / 10)
    assert summary["tokens_per_s"] > 0
    assert summary["peak_memory_bytes"] > 1 << 26
    assert sum(each["n"] for each in summary["slices"] if each["kind"] == "an answer was read") == 10
    # The first four questions of the world are those of the training; the others share no answer with them.
    seen = {each["value"]: each["n"] for each in summary["slices"] if each["kind"] == "seen in training"}
    assert seen == {"the question": 4, "neither": 6}
    out, err = capsys.readouterr()
    assert out == ""
    assert "exact match" in err
    assert "ROUGE-L" in err
    assert "an answer in the 3 passages read (ceiling)" in err


@pytest.mark.parametrize("n_docs", [1, 2, 7, 20])
def test_more_or_fewer_passages_than_in_training(n_docs: int, world: World) -> None:
    """As many as are there: the index has twelve."""
    result = run(world.config(n_docs=n_docs))
    assert result.summary["settings"]["n_docs"] == n_docs
    rows = read_predictions(result.path)
    assert all(len(row["documents"]) == min(n_docs, 12) for row in rows)
    for row in rows:
        for share in ("prior", "posterior"):
            assert sum(document[share] for document in row["documents"]) == pytest.approx(1, abs=1e-5)
    assert result.summary["ceiling"] == result.summary[f"answer_recall@{n_docs}"]


def test_fast_decoding_is_asked_for_and_recorded(world: World) -> None:
    thorough = run(world.config())
    fast = run(world.config(decoding="fast", output_dir=world.root / "fast"))
    assert (thorough.summary["settings"]["decoding"], fast.summary["settings"]["decoding"]) == ("thorough", "fast")
    pairs = list(zip(read_predictions(thorough.path), read_predictions(fast.path), strict=True))
    assert all(b["log_likelihood"] <= a["log_likelihood"] + 1e-4 for a, b in pairs)
    assert any(b["log_likelihood"] < a["log_likelihood"] - 1e-4 for a, b in pairs)


def test_retrieval_is_as_in_training_or_as_asked_for(world: World) -> None:
    pytest.importorskip("faiss", reason="the extra [cpu] is not installed")
    complete(PrepareConfig(bm25=True, index_type="hnsw"), world.root / "data" / "index")
    found, file = {}, world.run / "config.yaml"
    content = yaml.safe_load(file.read_text())
    content["retriever"].update(retrieval="bm25", search_index="faiss")
    file.write_text(yaml.safe_dump(content))
    for name, changes in {
        "trained": {}, "dense": {"retrieval": "dense", "search_index": "flat"}, "hybrid": {"retrieval": "hybrid"}
    }.items():  # fmt: skip
        result = run(world.config(**changes, output_dir=world.root / name))
        found[name] = result.summary["settings"] | result.summary["index"] | {"at": result.summary["fingerprint"]}
    assert [found[name]["retrieval"] for name in found] == ["bm25", "dense", "hybrid"]
    assert [found[name]["search_index"] for name in found] == ["faiss", "flat", "faiss"]
    assert found["trained"]["faiss"]["type"] == "hnsw"
    assert "bm25" in found["trained"]
    assert not {"faiss", "bm25"} & found["dense"].keys()
    assert len({found[name]["at"] for name in found}) == 3
    # A passage is named after a word: where words choose, the first passage shares one with the question.
    for row in read_predictions(world.root / "trained"):
        first = row["documents"][0]
        assert set(row["question"].split()) & {first["title"], *first["text"].split()}


@pytest.mark.parametrize(("asked", "native", "expected"), [
    ("auto", True, "bf16"), ("auto", False, "fp16"), ("no", True, "no"), ("bf16", False, "bf16"), ("fp16", True, "fp16"),
])  # fmt: skip
def test_a_gpu_computes_as_in_training_and_a_cpu_in_float32(
    asked: str, native: bool, expected: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    subject = subject_of(world.config())
    subject.run.config["loop"]["mixed_precision"] = asked
    assert precision_of(subject, torch.device("cuda")) == expected
    assert precision_of(subject, torch.device("cpu")) == "no"
    assert run(world.config()).summary["settings"]["precision"] == "no"


def test_half_precision_answers_are_close(world: World) -> None:
    """A CPU can compute in bfloat16 as well; scores stay float32."""
    model = load_rag(world.run / "final_model")
    retriever = Retriever.for_model(DenseIndex.open(world.root / "data" / "index"), model)
    settings = AnswerSettings(n_docs=3, recall_at=(1,), num_beams=2, max_new_tokens=4)
    exact = evaluate_questions(model, retriever, QUESTIONS, settings).records
    half = evaluate_questions(model, retriever, QUESTIONS, dataclasses.replace(settings, precision="bf16")).records
    assert [row.log_likelihood for row in exact] != [row.log_likelihood for row in half]
    for one, other in zip(exact, half, strict=True):
        assert other.log_likelihood == pytest.approx(one.log_likelihood, abs=0.5)


def test_the_same_evaluation_again_does_no_work(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(world.config(batch_size=3))
    before = (world.run / "eval" / "predictions.jsonl").stat().st_mtime_ns

    def forbidden(*_: object) -> None:
        raise AssertionError("questions were answered again")

    monkeypatch.setattr(rag, "evaluate_questions", forbidden)
    with caplog.at_level(logging.INFO, "ragtrain"):
        second = run(world.config(batch_size=5, output_file=world.root / "out.json"))
    assert second.reused
    assert second.summary == json.loads(json.dumps(first.summary))
    assert (world.run / "eval" / "predictions.jsonl").stat().st_mtime_ns == before
    assert "nothing was done" in caplog.text
    assert len(json.loads((world.root / "out.json").read_text())["predictions"]) == 10
    with pytest.raises(AssertionError, match="answered again"):
        run(world.config(overwrite=True))


@pytest.mark.parametrize(
    "change",
    [
        {"num_beams": 1},
        {"max_new_tokens": 3},
        {"n_docs": 2},
        {"num_samples": 5},
        {"recall_at": (1,)},
        {"decoding": "fast"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_evaluation_is_refused_in_the_same_folder(world: World, change: dict[str, Any]) -> None:
    run(world.config())
    before = (world.run / "eval" / "metrics.json").read_text()
    with pytest.raises(ConfigError, match="holds another evaluation") as caught:
        run(world.config(**change))
    assert "--overwrite" in str(caught.value.hint)
    assert (world.run / "eval" / "metrics.json").read_text() == before
    run(world.config(**change, output_dir=world.root / "elsewhere"))
    replaced = run(world.config(**change, overwrite=True))
    assert json.loads((world.run / "eval" / "metrics.json").read_text()) == json.loads(json.dumps(replaced.summary))
    assert not list(world.run.glob(".eval*"))


def test_changed_weights_or_questions_are_another_evaluation(world: World) -> None:
    run(world.config())
    test = world.root / "data" / "test.jsonl"
    text = test.read_text()
    test.write_text(text.replace('"w0 w1"', '"w0 w9"'))
    with pytest.raises(ConfigError, match="another evaluation"):
        run(world.config())
    test.write_text(text)
    assert run(world.config()).reused
    with torch.no_grad():
        world.model.generator.final_logits_bias += torch.randn(1, 46)
    save_rag(world.model, world.run / "final_model")
    with pytest.raises(ConfigError, match="another evaluation"):
        run(world.config())


def test_a_folder_that_is_no_evaluation_is_never_replaced(world: World) -> None:
    (world.run / "eval").mkdir()
    (world.run / "eval" / "thesis.txt").write_text("ten years of work")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="holds no evaluation"):
            run(world.config(overwrite=overwrite))
    assert (world.run / "eval" / "thesis.txt").read_text() == "ten years of work"


def test_a_failure_midway_leaves_what_was_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run(world.config())
    before = {path.name: path.read_bytes() for path in (world.run / "eval").iterdir()}
    monkeypatch.setattr(results, "write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        run(world.config(num_beams=1, overwrite=True))
    assert {path.name: path.read_bytes() for path in (world.run / "eval").iterdir()} == before
    # The answers are kept for the next attempt.
    (kept,) = world.run.glob(".eval*")
    assert kept.name.endswith(".part.jsonl")


def test_an_evaluation_that_was_interrupted_goes_on_with_the_questions_left(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(world.config(batch_size=3, output_dir=world.root / "whole"))
    asked: list[str] = []
    answer = answers.answer_batch

    def killed(
        model: RagModel, retriever: Retriever, questions: list[Question], settings: AnswerSettings
    ) -> list[Record]:
        if len(asked) == 6:
            asked.append("killed")
            raise KeyboardInterrupt
        asked.extend(question.id for question in questions)
        return answer(model, retriever, questions, settings)

    monkeypatch.setattr(answers, "answer_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        run(world.config(batch_size=3))
    (file,) = world.run.glob(".eval*")
    with file.open("a") as part:
        part.write('{"id": "q9", "sec')  # a line that was being written
    # Other settings have nothing to do with it.
    run(world.config(num_beams=1, output_dir=world.root / "other"))
    del asked[7:]
    with caplog.at_level(logging.INFO, "ragtrain"):
        result = run(world.config(batch_size=3))
    asked.remove("killed")
    assert sorted(asked) == sorted(question.id for question in QUESTIONS), "each once"
    assert "6 questions were answered before" in caplog.text
    assert not list(world.run.glob(".eval*"))
    timeless = [
        [{name: value for name, value in row.items() if name != "seconds"} for row in read_predictions(folder)]
        for folder in (whole.path, result.path)
    ]
    assert timeless[0] == timeless[1]
    assert result.summary["fingerprint"] == whole.summary["fingerprint"]
    assert result.summary["intervals"] == whole.summary["intervals"]
    assert run(world.config()).reused


def test_answers_of_other_versions_or_of_a_finished_evaluation_are_not_taken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(world.config())
    fingerprint = result.summary["fingerprint"]
    kept = Kept(result.path, fingerprint)
    kept.add({"q0": "an answer"}, 2.0)
    assert not Kept(result.path, fingerprint).answers, "it is there and is made once more"
    other = world.root / "unfinished"
    Kept(other, fingerprint).add({"q0": 1, "q1": 2}, 2.0)
    again = Kept(other, fingerprint)
    assert (again.answers, again.seconds) == ({"q0": 1, "q1": 2}, 2.0)
    again.path.write_text(again.path.read_text()[:-1])
    assert Kept(other, fingerprint).answers == {"q0": 1}, "a line without an end may be a part of one"
    monkeypatch.setattr(results, "versions", lambda: {"torch": "1.0"})
    assert not Kept(other, fingerprint).answers


def test_one_json_file_holds_metrics_and_predictions(world: World) -> None:
    output = world.root / "results" / "eval.json"
    result = run(world.config(output_file=output))
    document = json.loads(output.read_text())
    assert document["em"] == result.metrics["em"]
    assert document["predictions"] == read_predictions(world.run / "eval")
    run(world.config(output_file=output))
    with pytest.raises(ConfigError, match="not of this evaluation"):
        run(world.config(output_file=output, num_beams=1, output_dir=world.root / "other"))
    assert not (world.root / "other").exists()
    run(world.config(output_file=output, num_beams=1, output_dir=world.root / "other", overwrite=True))


def test_samples_are_drawn_with_the_seed_and_keep_their_order(world: World) -> None:
    def ids(name: str, **changes: Any) -> list[str]:
        return [row["id"] for row in read_predictions(run(world.config(output_dir=world.root / name, **changes)).path)]

    everything = [question.id for question in QUESTIONS]
    one = ids("a", num_samples=5, seed=1)
    assert len(one) == 5
    assert one == [identifier for identifier in everything if identifier in one]
    assert ids("b", num_samples=5, seed=1) == one
    assert any(ids(f"c{seed}", num_samples=5, seed=seed) != one for seed in (2, 3))
    assert ids("d", num_samples=50) == everything


def test_a_sweep_over_passages_is_what_each_number_is_alone(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    run(world.config())
    output = world.root / "sweep.json"
    result = run(world.config(n_docs_sweep=(5, 1), output_file=output))
    assert list(result.evaluations) == ["n-docs@1", "n-docs@5"]
    alone = run(world.config(n_docs=5, output_dir=world.root / "alone"))
    assert (
        read_predictions(alone.path)[3]["prediction"]
        == read_predictions(world.run / "eval" / "n-docs@5")[3]["prediction"]
    )
    assert alone.summary["fingerprint"] == result.evaluations["n-docs@5"].summary["fingerprint"]
    (sweep,) = result.summary["sweeps"]
    assert [point["em"] for point in sweep["points"]] == [each.summary["em"] for each in result.evaluations.values()]
    assert json.loads((world.run / "eval" / "summary.json").read_text()) == json.loads(json.dumps(result.summary))
    assert len(json.loads(output.read_text())["evaluations"]["n-docs@1"]["predictions"]) == 10
    assert "exact match over the first" in capsys.readouterr().err
    assert run(world.config(n_docs_sweep=(1, 5), output_file=output)).reused
    assert run(world.config()).reused, "it is still there beside them"
    with pytest.raises(ConfigError, match="so does --n-docs"):
        run(world.config(n_docs_sweep=(1, 5), n_docs=3))
    with pytest.raises(ConfigError, match="--gold-position-sweep means nothing"):
        run(world.config(gold_position_sweep=(1,)))


def test_other_scripts_read_answers_in_the_form_of_dpr(world: World) -> None:
    output = world.root / "dpr.json"
    result = run(world.config(dpr_file=output))
    for row, kept in zip(json.loads(output.read_text()), read_predictions(result.path), strict=True):
        assert row["prediction"] == kept["prediction"]
        assert [(each["id"], each["score"], each["has_answer"]) for each in row["ctxs"]] == [
            (each["id"], each["score"], each["has_answer"]) for each in kept["documents"]
        ]
    assert run(world.config(dpr_file=output)).reused
    with pytest.raises(ConfigError, match="is not of this evaluation"):
        run(world.config(dpr_file=output, num_beams=1, output_dir=world.root / "other"))
    assert not (world.root / "other").exists()


def test_compare_reads_what_eval_wrote(world: World) -> None:
    run(world.config())
    other = run(world.config(n_docs=1, output_dir=world.root / "other"))
    (comparison,) = compare.run(CompareConfig(runs=(world.run, other.path), bootstrap_samples=100)).comparisons
    summary = json.loads((world.run / "eval" / "metrics.json").read_text())
    assert [difference.metric for difference in comparison.differences] == [
        "em", "f1", "contains", "answer_recall@1", "answer_recall@5",
    ]  # fmt: skip
    for difference in comparison.differences:
        assert difference.a == pytest.approx(summary[difference.metric])
        assert difference.b == pytest.approx(other.metrics[difference.metric])
    assert comparison.remarks == ("n_docs is 3 in A and 1 in B",)


# --- passages of another run -------------------------------------------------------------------------------------


def other_run(folder: Path, read: dict[str, list[dict[str, Any]]]) -> Path:
    """Predictions of another run that read these passages."""
    answers = {question.id: list(question.answers) for question in QUESTIONS}
    rows = [
        {"id": each, "question": "", "answers": answers.get(each, []), "prediction": "w0", "documents": documents}
        for each, documents in read.items()
    ]
    write_jsonl(folder / "eval" / "predictions.jsonl", rows)
    return folder


def drawn_passages(seed: int) -> dict[str, list[dict[str, Any]]]:
    """One to three passages of each question, in any order."""
    generator = np.random.default_rng(seed)
    return {
        question.id: [
            {"id": PASSAGES[place].id, "title": PASSAGES[place].title, "text": PASSAGES[place].text}
            for place in generator.permutation(len(PASSAGES))[: 1 + number % 3]
        ]
        for number, question in enumerate(QUESTIONS)
    }


def given_config(world: World, contexts: Path, **changes: Any) -> EvalConfig:
    values = {
        "model_dir": str(world.run),
        "num_beams": 2,
        "max_new_tokens": 4,
        "device": "cpu",
        "contexts_from": contexts,
    }
    return EvalConfig(**{**values, **changes})


def test_own_passages_given_back_change_nothing(world: World) -> None:
    own = run(world.config(recall_at=(1,)))
    again = run(given_config(world, world.run))
    assert again.path == world.run / "eval-contexts-of-one"
    for one, other in zip(read_predictions(own.path), read_predictions(again.path), strict=True):
        same = ("id", "prediction", "documents", "log_likelihood", "em", "f1")
        assert {name: one[name] for name in same} == {name: other[name] for name in same}


def test_given_passages_are_read_in_their_order_with_own_scores(world: World) -> None:
    read = drawn_passages(3)
    other = other_run(world.root / "runs" / "other", read)
    result = run(given_config(world, other, batch_size=4))
    assert result.path == world.run / "eval-contexts-of-other"
    index = DenseIndex.open(world.root / "data" / "index")
    vectors = np.asarray(index.vectors, dtype=np.float64)
    for question, row in zip(QUESTIONS, read_predictions(result.path), strict=True):
        given = [document["id"] for document in read[question.id]]
        assert [document["id"] for document in row["documents"]] == given
        query = world.model.eval().question_encoder.encode_questions([question.question]).astype(np.float64)[0]
        scores = np.array([vectors[int(each[1:])] @ query for each in given])
        assert [document["score"] for document in row["documents"]] == pytest.approx(scores.tolist(), rel=1e-4)
        prior = np.exp(scores - scores.max())
        assert [d["prior"] for d in row["documents"]] == pytest.approx((prior / prior.sum()).tolist(), rel=1e-3)
        texts = [PASSAGES[int(each[1:])].text for each in given]
        assert row["first_hit"] == metrics.first_hit(question.answers, texts)
    assert result.summary["settings"]["n_docs"] == 3
    assert result.summary["contexts"]["run"] == str(other)
    assert run(given_config(world, other)).reused
    other_run(other, drawn_passages(4))  # other passages are another evaluation
    with pytest.raises(ConfigError, match="holds another evaluation"):
        run(given_config(world, other))


def test_a_difference_falls_apart_into_the_parts_of_passages_and_of_the_reader(world: World) -> None:
    run(world.config())
    other = other_run(world.root / "runs" / "other", drawn_passages(5))
    swapped = run(given_config(world, other))
    result = compare.run(CompareConfig(runs=(world.run, other), swapped=swapped.path, bootstrap_samples=100))
    em, f1 = result.attribution
    assert (em.metric, f1.metric, em.same_passages) == ("em", "f1", 1.0)
    for part in (em, f1):
        assert part.retrieval.delta + part.reader.delta == pytest.approx(part.b - part.a)


def test_passages_that_the_index_lacks_and_questions_not_answered_are_named(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    read = drawn_passages(6)
    read["q4"][0] = {"id": "elsewhere", "title": "", "text": "w1"}
    read["q5"][0] |= {"text": "w1 w2 of another file"}
    other = other_run(world.root / "runs" / "other", read)
    with pytest.raises(DataError, match=r"has no passage 'elsewhere'.*question 'q4'"):
        run(given_config(world, other))
    del read["q4"][0]
    read["q4"] = read["q3"]
    with caplog.at_level(logging.WARNING, logger="ragtrain"):
        run(given_config(world, other_run(other, read)))
    assert "have another text" in caplog.text
    read["q4"] = []
    with pytest.raises(DataError, match="read no passage for question 'q4'"):
        run(given_config(world, other_run(other, read), overwrite=True))
    del read["q4"]
    with pytest.raises(DataError, match="does not answer 1 of the 10 questions, of which the first is 'q4'"):
        run(given_config(world, other_run(other, read)))
    with pytest.raises(DataError, match="answers none of the 10 questions"):
        run(given_config(world, other_run(other, {"another": read["q3"]})))
    with pytest.raises(ConfigError, match="--n-docs, --retrieval beside --contexts-from"):
        run(given_config(world, other, n_docs=2, retrieval="dense"))


# --- what is evaluated -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["", "final_model", "checkpoints/step-000010"])
def test_a_path_inside_a_run_stands_for_the_run(world: World, inner: str) -> None:
    write_checkpoint(world, "step-000010")
    result = run(world.config(model_dir=str(world.run / inner)))
    assert result.path == world.run / "eval"
    assert result.summary["model"]["checkpoint"] == ("step-000010" if "step" in inner else "final")


def write_checkpoint(world: World, name: str) -> RagModel:
    changed = load_rag(world.run / "final_model")
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    (world.run / "checkpoints" / name).mkdir(parents=True)
    save_model(changed, str(world.run / "checkpoints" / name / "model.safetensors"))
    return changed


def test_a_checkpoint_is_evaluated_with_its_own_weights(world: World) -> None:
    changed = write_checkpoint(world, "step-000010")
    (world.run / "checkpoints" / "latest").symlink_to("step-000010")
    final = run(world.config(output_dir=world.root / "final"))
    latest = run(world.config(checkpoint="latest", output_dir=world.root / "latest"))
    retriever = Retriever.for_model(DenseIndex.open(world.root / "data" / "index"), changed)
    settings = AnswerSettings(n_docs=3, recall_at=(1, 5), num_beams=2, max_new_tokens=4)
    expected = evaluate_questions(changed, retriever, QUESTIONS, settings).records
    assert [row["prediction"] for row in read_predictions(latest.path)] == [each.prediction for each in expected]
    assert final.summary["model"]["fingerprint"] != latest.summary["model"]["fingerprint"]


def test_a_run_stopped_before_its_final_model_is_built_from_its_configuration(world: World) -> None:
    expected = write_checkpoint(world, "step-000010")
    parts = world.root / "parts"
    (world.run / "final_model").rename(parts)
    with pytest.raises(CheckpointError, match="has not ended") as caught:
        run(world.config())
    assert "step-000010" in str(caught.value.hint)
    config = RagConfig.model_validate(
        {
            "data": {"train_data": world.root / "data" / "train.jsonl"},
            "model": {
                "n_docs": 3,
                "question_encoder": str(parts / "question_encoder"),
                "generator": str(parts / "generator"),
            },
        }
    )
    other = RunFolder.create(world.root / "runs" / "two", "rag", config.model_dump(mode="json"))
    (world.run / "checkpoints").rename(other.path / "checkpoints")
    result = run(world.config(model_dir=str(other.path), checkpoint="step-000010"))
    retriever = Retriever.for_model(DenseIndex.open(world.root / "data" / "index"), expected)
    settings = AnswerSettings(n_docs=3, recall_at=(1, 5), num_beams=2, max_new_tokens=4)
    records = evaluate_questions(expected, retriever, QUESTIONS, settings).records
    assert [row["prediction"] for row in read_predictions(result.path)] == [each.prediction for each in records]


def test_a_checkpoint_that_holds_only_what_was_trained_is_evaluated_on_its_base(world: World) -> None:
    changed = load_rag(world.run / "final_model")
    changed.question_encoder.requires_grad_(False)
    with torch.no_grad():
        for parameter in changed.generator.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    (world.run / "checkpoints" / "step-000010").mkdir(parents=True)
    save_weights(changed, world.run / "checkpoints" / "step-000010")
    result = run(world.config(checkpoint="step-000010"))
    retriever = Retriever.for_model(DenseIndex.open(world.root / "data" / "index"), changed)
    settings = AnswerSettings(n_docs=3, recall_at=(1, 5), num_beams=2, max_new_tokens=4)
    expected = evaluate_questions(changed, retriever, QUESTIONS, settings).records
    assert [row["prediction"] for row in read_predictions(result.path)] == [each.prediction for each in expected]


def test_checkpoints_that_are_not_there_or_do_not_fit_are_refused(world: World) -> None:
    write_checkpoint(world, "step-000010")
    with pytest.raises(CheckpointError, match="no checkpoint 'best'") as caught:
        run(world.config(checkpoint="best"))
    assert caught.value.hint == "known are: final, step-000010"
    (world.run / "checkpoints" / "step-000020").mkdir()
    save_model(make_model(dim=8), str(world.run / "checkpoints" / "step-000020" / "model.safetensors"))
    with pytest.raises(CheckpointError, match="do not fit"):
        run(world.config(checkpoint="step-000020"))
    (world.run / "checkpoints" / "step-000020" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="do not fit"):
        run(world.config(checkpoint="step-000020"))


def test_without_test_questions_the_validation_questions_are_answered_and_it_is_said(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    (world.root / "data" / "test.jsonl").unlink()
    with caplog.at_level(logging.INFO, "ragtrain"):
        assert run(world.config()).summary["n"] == 4
    assert "the validation questions are answered" in caplog.text
    (world.root / "data" / "validation.jsonl").unlink()
    with pytest.raises(DataError, match="neither") as caught:
        run(world.config())
    assert caught.value.hint == "give --test-data"


def test_a_model_that_is_no_run_needs_questions_and_an_index(world: World) -> None:
    outside = world.root / "model"
    (world.run / "final_model").rename(outside)
    data = world.root / "data"
    with pytest.raises(ConfigError, match="no test questions") as caught:
        run(world.config(model_dir=str(outside)))
    assert caught.value.hint == "give --test-data"
    with pytest.raises(ConfigError, match="no index"):
        run(world.config(model_dir=str(outside), test_data=data / "test.jsonl"))
    with pytest.raises(ConfigError, match="not a run"):
        run(world.config(model_dir=str(outside), checkpoint="best"))
    output = world.root / "results" / "baseline.json"
    asked = {"model_dir": str(outside), "index_path": data / "index", "output_file": output}
    whole = run(world.config(**asked, test_data=data))
    assert whole.path == world.root / "results" / "baseline"
    assert whole.summary["n"] == 10, "a data set folder means its test questions"
    assert json.loads(output.read_text())["n"] == 10


def test_an_index_of_another_encoder_is_refused_or_warned_of(world: World, caplog: pytest.LogCaptureFixture) -> None:
    make_index(world.root / "narrow", make_model(dim=8))
    with pytest.raises(IndexMismatchError, match="8 dimensions"):
        run(world.config(index_path=world.root / "narrow"))
    assert not (world.run / "eval").exists()
    make_index(world.root / "other", make_model())
    info = json.loads((world.run / "data.json").read_text())
    info["index"]["encoder"] = {"fingerprint": world.model.question_encoder.fingerprint()}
    (world.run / "data.json").write_text(json.dumps(info))
    run(world.config(output_dir=world.root / "same"))
    assert "another encoder" not in caplog.text
    run(world.config(index_path=world.root / "other", output_dir=world.root / "different"))
    assert "encoded by another encoder" in caplog.text


def test_runs_of_other_kinds_and_unknown_devices_are_refused(world: World) -> None:
    other = RunFolder.create(world.root / "runs" / "other", "index", {})
    with pytest.raises(ConfigError, match="kind 'index'; runs of kind"):
        run(world.config(model_dir=str(other.path)))
    with pytest.raises(ConfigError, match="toaster"):
        run(world.config(device="toaster"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"conditions": ("closed-book",)}, "--conditions"), ({"also_base": True}, "--also-base"),
     ({"conditions": ("gold",), "also_base": True}, "--conditions, --also-base")],
)  # fmt: skip
def test_options_of_other_models_are_refused_by_name(world: World, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named} means nothing to a RAG model"):
        run(world.config(**changes))
    outside = world.root / "model"
    (world.run / "final_model").rename(outside)
    with pytest.raises(ConfigError, match=f"^{named} means nothing to a RAG model"):
        run(world.config(model_dir=str(outside), **changes))
    assert not (world.run / "eval").exists()


@pytest.fixture
def tiny_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """The demo with tiny random models in place of the built-in ones."""

    def make() -> Path:
        monkeypatch.chdir(tmp_path)
        model = make_model()
        model.question_encoder.save_pretrained(tmp_path / "models" / "encoder")
        model.generator.save_pretrained(tmp_path / "models" / "generator")
        model.generator_tokenizer.save_pretrained(tmp_path / "models" / "generator")
        monkeypatch.setattr(demo, "ENCODER", tmp_path / "models" / "encoder")
        monkeypatch.setattr(demo, "GENERATOR", tmp_path / "models" / "generator")
        return tmp_path

    return make


def test_without_any_flag_the_untrained_demo_is_evaluated(tiny_demo: Callable[[], Path]) -> None:
    root = tiny_demo()
    result = run(EvalConfig(num_samples=4, num_beams=1, max_new_tokens=2, device="cpu"))
    assert result.path == Path("runs/untrained/eval")
    assert (root / "data" / "demo" / "index" / "manifest.json").is_file()
    assert result.summary["n"] == 4
    assert result.summary["data"]["path"] == "data/demo/test.jsonl"
    assert run(EvalConfig(num_samples=4, num_beams=1, max_new_tokens=2, device="cpu")).reused


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="no run or model folder 'runs/2024/nope'"):
        subject_of(EvalConfig(model_dir="runs/2024/nope"))
