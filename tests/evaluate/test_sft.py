"""Evaluation of fine-tuned and plain causal language models: files, conditions, the base, reruns, refusals."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ragtrain import compare, metrics
from ragtrain.cli import main
from ragtrain.config.commands import CompareConfig, EvalConfig
from ragtrain.config.commands.sft import SftDataConfig
from ragtrain.data.sft.examples import read_examples
from ragtrain.data.sft.prompts import Prompter, PromptSettings
from ragtrain.data.sft.records import Sample
from ragtrain.errors import CheckpointError, ConfigError, DataError
from ragtrain.evaluate import ConditionsResult, EvalResult, prompted, run, sft
from ragtrain.evaluate.kept import Kept
from ragtrain.models.causal import load_causal
from ragtrain.models.causal_export import load_causal_run
from ragtrain.prepare.contexts import with_contexts
from ragtrain.records import Document, write_jsonl

ALL = ("closed-book", "gold", "retrieved", "gold+distractors", "distractors-only")


def config_of(path: Path | str, **changes: Any) -> EvalConfig:
    return EvalConfig(**{"model_dir": str(path), "device": "cpu", "recall_at": (1, 3), **changes})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def predictions(folder: Path) -> list[str]:
    return [row["prediction"] for row in lines(folder)]


def slowly(model, tokenizer, settings: dict[str, Any], question: str, documents=(), tokens: int = 6) -> str:
    """One question by itself through transformers' ``generate``."""
    prompter = Prompter(tokenizer, PromptSettings.from_json(settings))
    (encoded,) = prompter.encode_prompts([Sample("x", question, tuple(documents))], room=tokens)
    ids = torch.tensor([encoded.ids.tolist()])
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return prompter.extract(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip())


# --- one condition -----------------------------------------------------------------------------------------------


def test_a_run_needs_no_other_flag_and_its_files_say_everything(
    run_of: Callable[..., Path], corner: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_of()
    result = run(config_of(folder))
    assert isinstance(result, EvalResult)
    assert result.path == folder / "eval"
    assert not result.reused
    summary = json.loads((result.path / "metrics.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    model, tokenizer, sidecar = load_causal_run(folder)
    examples = read_examples(SftDataConfig(), corner / "test.jsonl", split="test").examples
    examples, _ = with_contexts(examples, index=corner / "index", depth=3)
    rows = lines(result.path)
    assert [row["id"] for row in rows] == [example.id for example in examples]
    for example, row in zip(examples, rows, strict=True):
        best = example.documents[:2]
        assert row["prediction"] == slowly(model, tokenizer, sidecar["prompt"], example.question, best)
        assert row["answers"] == list(example.answers)
        assert [(doc["id"], doc["rank"]) for doc in row["documents"]] == [(doc.id, i) for i, doc in enumerate(best)]
        held = [metrics.has_answer(example.answers, doc.text) for doc in best]
        assert [doc["has_answer"] for doc in row["documents"]] == held
        assert row["answer_in_prompt"] == any(held)
        found = [document.text for document in example.documents if document.score != float("-inf")]
        assert row["first_hit"] == metrics.first_hit(example.answers, found[:3])
        assert row["depth"] == 3
    assert summary["n"] == 10
    assert summary["em"] == sum(metrics.exact_match(row["prediction"], row["answers"]) for row in rows) / 10
    assert summary["f1"] == pytest.approx(sum(metrics.f1(row["prediction"], row["answers"]) for row in rows) / 10)
    assert summary["em"] + summary["reader_error"] + summary["retrieval_error"] == pytest.approx(1)
    assert summary["settings"] | {"n_docs": 2, "max_new_tokens": 6, "condition": "retrieved"} == summary["settings"]
    assert (summary["kind"], summary["role"], summary["model"]["checkpoint"]) == ("sft", "tuned", "final")
    for name, (low, high) in summary["intervals"].items():
        assert 0 <= low <= summary[name] <= high <= 1
    assert summary["counts"]["em"] == {"n": 10, "missing": 0}
    assert summary["counts"].keys() == summary["intervals"].keys()
    assert summary["contains"] == sum(metrics.contains(row["prediction"], row["answers"]) for row in rows) / 10
    assert summary["tokens_per_s"] / summary["questions_per_s"] == pytest.approx(summary["new_tokens"])
    assert summary["latency_p50_s"] <= summary["latency_p95_s"]
    assert summary["peak_memory_bytes"] > 1 << 26
    assert {each["kind"] for each in summary["slices"]} >= {"first word", "an answer was read"}
    # The index holds every gold passage, and a row's are found by their text.
    gold = {example.id: example.gold for example in examples if example.gold}
    for k in (1, 3):
        found = {each.id: [doc.id for doc in each.documents if doc.score != float("-inf")][:k] for each in examples}
        shares = [len(gold[name] & set(found[name])) / len(gold[name]) for name in gold]
        assert summary[f"supporting_recall@{k}"] == pytest.approx(sum(shares) / len(shares))
        assert summary[f"hits@{k}"] == sum(share > 0 for share in shares) / len(shares)
    assert summary["counts"]["mrr"] == {"n": len(gold), "missing": 10 - len(gold)}
    assert 0 < summary["ndcg@3"] <= 1
    seen = {each["value"]: each["n"] for each in summary["slices"] if each["kind"] == "seen in training"}
    train = read_examples(SftDataConfig(), corner / "train.jsonl", split="train").examples
    known = {metrics.normalize_answer(answer) for example in train for answer in example.answers}
    told = [{metrics.normalize_answer(answer) for answer in example.answers} for example in examples]
    assert seen.get("neither", 0) == sum(not known & each for each in told)
    assert sum(seen.values()) == 10
    out, err = capsys.readouterr()
    assert out == ""
    assert "exact match" in err
    assert "a reference in the answer" in err
    assert "an answer in the prompt's passages" in err


def test_the_same_evaluation_again_loads_nothing(
    run_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_of()
    first = run(config_of(folder, batch_size=3))
    written = (folder / "eval" / "predictions.jsonl").stat().st_mtime_ns

    def forbidden(*_: object) -> None:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(sft, "load", forbidden)
    with caplog.at_level(logging.INFO, "ragtrain"):
        second = run(config_of(folder, output_file=folder / "out.json"))
    assert second.reused
    assert second.summary == json.loads(json.dumps(first.summary))
    assert (folder / "eval" / "predictions.jsonl").stat().st_mtime_ns == written
    assert "nothing was done" in caplog.text
    assert len(json.loads((folder / "out.json").read_text())["predictions"]) == 10
    with pytest.raises(AssertionError, match="loaded again"):
        run(config_of(folder, overwrite=True))


@pytest.mark.parametrize(
    "change",
    [{"max_new_tokens": 3}, {"n_docs": 1}, {"num_samples": 5}, {"recall_at": (1,)}, {"conditions": ("closed-book",)},
     {"checkpoint": "step-000001"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_another_evaluation_is_refused_in_the_same_folder(run_of: Callable[..., Path], change: dict[str, Any]) -> None:
    folder = run_of()
    run(config_of(folder))
    before = (folder / "eval" / "metrics.json").read_text()
    with pytest.raises(ConfigError, match="holds another evaluation"):
        run(config_of(folder, **change))
    assert (folder / "eval" / "metrics.json").read_text() == before


def test_changed_weights_and_questions_are_another_evaluation(run_of: Callable[..., Path], corner: Path) -> None:
    folder = run_of()
    data = folder / "questions.jsonl"
    shutil.copy(corner / "test.jsonl", data)
    run(config_of(folder, test_data=data))
    text = data.read_text()
    data.write_text(text.replace('"answers": ["', '"answers": ["un'))
    with pytest.raises(ConfigError, match="another evaluation"):
        run(config_of(folder, test_data=data))
    data.write_text(text)
    assert run(config_of(folder, test_data=data)).reused
    file = folder / "final_model" / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ConfigError, match="another evaluation"):
        run(config_of(folder, test_data=data))


# --- conditions and the base -------------------------------------------------------------------------------------


@pytest.fixture
def everything(run_of: Callable[..., Path]) -> tuple[Path, ConditionsResult]:
    folder = run_of()
    result = run(config_of(folder, conditions=ALL, also_base=True))
    assert isinstance(result, ConditionsResult)
    return folder, result


def test_every_condition_has_a_folder_of_its_own(
    everything: tuple[Path, ConditionsResult], base: Path, corner: Path
) -> None:
    folder, result = everything
    assert list(result.evaluations) == [*ALL, *(f"base/{name}" for name in ALL)]
    for name, each in result.evaluations.items():
        assert each.path == folder / "eval" / name
        assert json.loads((each.path / "metrics.json").read_text())["condition"] == name.split("/")[-1]
    gold = {
        example.id: example.gold
        for example in read_examples(SftDataConfig(), corner / "test.jsonl", split="test").examples
    }
    for row in lines(folder / "eval" / "closed-book"):
        assert (row["documents"], row["answer_in_prompt"], row["depth"]) == ([], False, 0)
    for row in lines(folder / "eval" / "gold"):
        assert {document["id"] for document in row["documents"]} <= gold[row["id"]]
        assert row["documents"]
    for row in lines(folder / "eval" / "gold+distractors"):
        assert len(row["documents"]) == 2
        assert any(document["is_gold"] for document in row["documents"])
    for row in lines(folder / "eval" / "distractors-only"):
        assert len(row["documents"]) == 2
        assert not gold[row["id"]] & {document["id"] for document in row["documents"]}
        assert not row["answer_in_prompt"]
    assert {row["depth"] for row in lines(folder / "eval" / "retrieved")} == {3}
    # The base under switched-off adapters is the base by itself.
    model, tokenizer = load_causal(base)
    settings = json.loads((folder / "final_model" / "ragtrain.json").read_text())["prompt"]
    for row in lines(folder / "eval" / "base" / "closed-book"):
        assert row["prediction"] == slowly(model, tokenizer, settings, row["question"])
    assert predictions(folder / "eval" / "base" / "closed-book") != predictions(folder / "eval" / "closed-book")


def test_the_summary_is_that_of_the_lines(
    everything: tuple[Path, ConditionsResult], corner: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Right answers are made of what is written under one condition or another, so that conditions differ.
    folder, _ = everything
    written = {
        name: {row["id"]: row["prediction"] for row in lines(folder / "eval" / name)} for name in ("gold", ALL[0])
    }
    rows = [json.loads(line) for line in (corner / "test.jsonl").read_text().splitlines()]
    for place, row in enumerate(rows):
        row["answers"] = [written["gold" if place % 3 else ALL[0]][row["id"]]]
    data, output = tmp_path / "test.jsonl", tmp_path / "out"
    write_jsonl(data, rows)
    result = run(config_of(folder, conditions=ALL, also_base=True, test_data=data, output_dir=output))
    summary = json.loads((output / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    assert result.to_json()["path"] == str(output)
    for name, each in summary["evaluations"].items():
        found = lines(output / name)
        assert each["em"] == pytest.approx(sum(row["em"] for row in found) / len(found))
        assert each["n"] == len(found)
    assert summary["evaluations"]["gold"]["em"] > summary["evaluations"]["closed-book"]["em"] > 0
    differences = {each["name"]: each for each in summary["differences"]}
    assert {"robustness to distractors", "retrieved passages over closed-book", "fine-tuning, gold",
            "robustness to distractors (base)"} <= differences.keys()  # fmt: skip
    for each in differences.values():
        a, b = ({row["id"]: row["em"] for row in lines(output / each[side])} for side in ("a", "b"))
        both = a.keys() & b.keys()
        assert each["n"] == len(both)
        assert each["delta"] == pytest.approx(sum(b[i] - a[i] for i in both) / len(both))
        assert each["low"] <= each["delta"] <= each["high"]
    assert differences["gold passages over closed-book"]["delta"] > 0
    assert differences["fine-tuning, gold"]["delta"] > 0
    conflicts = {each["name"]: each for each in summary["conflicts"]}
    assert {"gold", "retrieved", "gold+distractors"} <= conflicts.keys()
    assert "closed-book" not in conflicts
    for name, each in conflicts.items():
        role = "base/" if name.startswith("base/") else ""
        alone = {row["id"] for row in lines(output / f"{role}closed-book") if row["em"]}
        read = [row["em"] for row in lines(output / name) if row["id"] in alone]
        assert (each["n"], each["rate"]) == (len(read), pytest.approx(1 - sum(read) / len(read)))
        assert each["low"] <= each["rate"] <= each["high"]
    err = capsys.readouterr().err
    assert "gold+distractors  base" in err
    assert "robustness to distractors" in err


def test_what_a_condition_is_does_not_depend_on_the_others(everything: tuple[Path, ConditionsResult]) -> None:
    folder, result = everything
    for name in ALL:
        alone = run(config_of(folder, conditions=(name,), output_dir=folder / "alone" / name))
        assert alone.summary["fingerprint"] == result.evaluations[name].summary["fingerprint"]
        assert predictions(alone.path) == predictions(folder / "eval" / name)


def test_a_run_that_was_stopped_goes_on_with_the_condition_it_was_at(
    run_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, calls = run_of(), []
    evaluate = sft.evaluate_samples

    def killed(*given: Any) -> Any:
        calls.append(given[5].progress)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(*given)

    monkeypatch.setattr(sft, "evaluate_samples", killed)
    asked = config_of(folder, conditions=ALL[:3], also_base=True)
    with pytest.raises(KeyboardInterrupt):
        run(asked)
    assert sorted(path.name for path in (folder / "eval").iterdir()) == ["closed-book", "gold"]
    with caplog.at_level(logging.INFO, "ragtrain"):
        result = run(asked)
    assert calls[3:] == [f"Answering ({name})" for name in ("retrieved", *(f"base/{name}" for name in ALL[:3]))]
    assert "going on with retrieved, base/closed-book" in caplog.text
    assert [each.reused for each in result.evaluations.values()] == [True, True, False, False, False, False]
    assert run(asked).reused
    assert len(calls) == 7


def test_an_evaluation_that_was_interrupted_goes_on_with_the_questions_left(
    run_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_of()
    whole = run(config_of(folder, batch_size=4, output_dir=folder / "whole"))
    add = Kept.add

    def killed(kept: Kept, written: dict[str, Any], seconds: float) -> None:
        add(kept, written, seconds)
        raise KeyboardInterrupt

    asked = config_of(folder, conditions=("closed-book", "retrieved"), batch_size=4)
    run(config_of(folder, conditions=("closed-book",), batch_size=4, output_dir=folder / "eval" / "closed-book"))
    monkeypatch.setattr(Kept, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        run(asked)
    monkeypatch.setattr(Kept, "add", add)
    (file,) = (folder / "eval").glob(".*")
    assert len(file.read_text().splitlines()) == 1 + 4
    numbers, generate = [], prompted.generate

    def counted(model: Any, tokenizer: Any, prompts: Any, **given: Any) -> Any:
        numbers.append(len(prompts))
        return generate(model, tokenizer, prompts, **given)

    monkeypatch.setattr(prompted, "generate", counted)
    with caplog.at_level(logging.INFO, "ragtrain"):
        result = run(asked)
    assert numbers == [6]
    assert "4 questions were answered before" in caplog.text
    assert predictions(folder / "eval" / "retrieved") == predictions(whole.path)
    assert result.evaluations["retrieved"].summary["intervals"] == whole.summary["intervals"]
    assert not list((folder / "eval").glob(".*"))


def test_one_evaluation_and_those_of_conditions_leave_each_other_alone(run_of: Callable[..., Path]) -> None:
    folder = run_of()
    run(config_of(folder, conditions=("closed-book", "gold")))
    single = run(config_of(folder, also_base=True))
    assert list(single.evaluations) == ["retrieved", "base/retrieved"]
    assert (folder / "eval" / "base" / "metrics.json").is_file()
    assert run(config_of(folder)).reused
    run(config_of(folder, n_docs=1, overwrite=True))
    assert json.loads((folder / "eval" / "metrics.json").read_text())["settings"]["n_docs"] == 1
    assert run(config_of(folder, conditions=("closed-book", "gold"))).reused
    assert not list(folder.glob(".eval*"))
    (folder / "eval" / "thesis.txt").write_text("ten years of work")
    shutil.rmtree(folder / "eval" / "gold")
    (folder / "eval" / "gold").mkdir()
    (folder / "eval" / "gold" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ConfigError, match="holds no evaluation"):
        run(config_of(folder, conditions=("closed-book", "gold"), overwrite=True))


def test_one_json_file_holds_all_of_it(run_of: Callable[..., Path]) -> None:
    folder, output = run_of(), Path("results.json")
    run(config_of(folder, conditions=ALL[:2], output_file=output))
    document = json.loads(output.read_text())
    assert set(document["evaluations"]) == set(ALL[:2])
    assert document["evaluations"]["gold"]["predictions"] == lines(folder / "eval" / "gold")
    run(config_of(folder, conditions=ALL[:2], output_file=output))
    with pytest.raises(ConfigError, match="not of this evaluation"):
        run(config_of(folder, output_file=output))


def test_a_sweep_moves_the_gold_passage_and_nothing_else(run_of: Callable[..., Path], corner: Path) -> None:
    folder = run_of()
    result = run(config_of(folder, n_docs=4, gold_position_sweep=(1, 3)))
    assert list(result.evaluations) == ["gold-at-1", "gold-at-3"]
    gold = {
        example.id: example.gold
        for example in read_examples(SftDataConfig(), corner / "test.jsonl", split="test").examples
    }
    first, third = (lines(folder / "eval" / name) for name in result.evaluations)
    for one, other in zip(first, third, strict=True):
        places = [[doc["id"] in gold[row["id"]] for doc in row["documents"]].index(True) for row in (one, other)]
        wrong = [[doc["id"] for doc in row["documents"] if doc["id"] not in gold[row["id"]]] for row in (one, other)]
        assert places == [0, min(2, len(wrong[0]))]
        assert wrong[0] == wrong[1]
        assert len(one["documents"]) == 4
    (sweep,) = result.summary["sweeps"]
    assert (sweep["over"], [point["value"] for point in sweep["points"]]) == ("place of the gold passage", [1, 3])
    assert sweep["differences"][0]["delta"] == pytest.approx(sweep["points"][1]["em"] - sweep["points"][0]["em"])
    assert run(config_of(folder, n_docs=4, gold_position_sweep=(1, 3))).reused
    assert run(config_of(folder)).summary["condition"] == "retrieved", "it lies beside them"
    with pytest.raises(ConfigError, match="cannot be passage 5 of 4"):
        run(config_of(folder, n_docs=4, gold_position_sweep=(5,)))


def test_a_sweep_over_passages_is_what_each_number_is_alone(
    run_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_of()
    asked = config_of(folder, conditions=ALL[:3], n_docs_sweep=(3, 1))
    result = run(asked)
    assert list(result.evaluations) == ["closed-book", "gold@1", "gold@3", "retrieved@1", "retrieved@3"]
    assert [(sweep["of"], sweep["over"]) for sweep in result.summary["sweeps"]] == [
        ("gold", "passages"), ("retrieved", "passages"),
    ]  # fmt: skip
    alone = run(config_of(folder, n_docs=3, output_dir=folder / "alone"))
    assert alone.summary["fingerprint"] == result.evaluations["retrieved@3"].summary["fingerprint"]
    assert predictions(alone.path) == predictions(folder / "eval" / "retrieved@3")
    assert {len(row["documents"]) for row in lines(folder / "eval" / "retrieved@1")} == {1}
    assert "retrieved, by passages" in capsys.readouterr().err
    assert run(asked).reused


def test_other_scripts_read_answers_in_the_form_of_dpr(run_of: Callable[..., Path]) -> None:
    folder, output = run_of(), Path("dpr.json")
    run(config_of(folder, conditions=ALL[:2], dpr_file=output))
    for name in ALL[:2]:
        file = Path(f"dpr.{name}.json")
        rows = json.loads(file.read_text())
        for row, kept in zip(rows, lines(folder / "eval" / name), strict=True):
            assert (row["question"], row["answers"], row["prediction"]) == (
                kept["question"], kept["answers"], kept["prediction"],
            )  # fmt: skip
            assert [each["score"] for each in row["ctxs"]] == [-each["rank"] for each in kept["documents"]]
            assert {key for each in row["ctxs"] for key in each} <= {"id", "title", "text", "score", "has_answer"}
        # As retriever output, it is data again.
        again = read_examples(SftDataConfig(), file, split="test").examples
        assert [example.answers for example in again] == [tuple(row["answers"]) for row in rows]
    assert run(config_of(folder, conditions=ALL[:2], dpr_file=output)).reused
    file.write_text("[]")
    with pytest.raises(ConfigError, match=r"dpr\.gold\.json exists and is not of this"):
        run(config_of(folder, conditions=ALL[:2], dpr_file=output))


def test_compare_reads_every_condition_and_asks_which(everything: tuple[Path, ConditionsResult]) -> None:
    folder, result = everything
    a, b = (folder / "eval" / name for name in ("closed-book", "retrieved"))
    (comparison,) = compare.run(CompareConfig(runs=(a, b), bootstrap_samples=100)).comparisons
    assert [difference.metric for difference in comparison.differences] == ["em", "f1", "contains"]
    assert comparison.differences[1].b == pytest.approx(result.evaluations["retrieved"].metrics["f1"])
    assert comparison.remarks == (
        "condition is closed-book in A and retrieved in B", "n_docs is 0 in A and 2 in B",
    )  # fmt: skip
    with pytest.raises(DataError, match="10 evaluations, under several conditions") as caught:
        compare.run(CompareConfig(runs=(folder, b)))
    assert str(folder / "eval" / "base" / "gold") in str(caught.value.hint)
    run(config_of(folder))
    other = run(config_of(folder, checkpoint="step-000001", output_dir=folder / "first"))
    (comparison,) = compare.run(CompareConfig(runs=(other.path, folder), bootstrap_samples=100)).comparisons
    assert [difference.metric for difference in comparison.differences] == [
        "em", "f1", "contains", "answer_recall@1", "answer_recall@3",
    ]  # fmt: skip


def test_the_base_of_a_model_that_was_trained_whole_is_not_in_it(run_of: Callable[..., Path], base: Path) -> None:
    folder = run_of(lora_rank=0)
    assert run(config_of(folder)).summary["n"] == 10
    with pytest.raises(ConfigError, match=r"all weights of .* were trained") as caught:
        run(config_of(folder, also_base=True))
    assert f"--model-dir {base}" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="it is a base itself"):
        run(config_of(base, also_base=True, conditions=("closed-book",)))


# --- what is evaluated -------------------------------------------------------------------------------------------


def test_a_checkpoint_is_evaluated_with_its_own_weights(run_of: Callable[..., Path]) -> None:
    folder = run_of()
    final = run(config_of(folder, output_dir=folder / "final"))
    first = run(config_of(folder, checkpoint="step-000001", output_dir=folder / "first"))
    again = run(config_of(folder / "checkpoints" / "step-000001", output_dir=folder / "again"))
    assert final.summary["model"]["fingerprint"] != first.summary["model"]["fingerprint"]
    assert again.summary["fingerprint"] == first.summary["fingerprint"]
    model, tokenizer, sidecar = load_causal_run(folder, checkpoint=folder / "checkpoints" / "step-000001")
    for row in lines(first.path)[:3]:
        documents = [document_of(each) for each in row["documents"]]
        assert row["prediction"] == slowly(model, tokenizer, sidecar["prompt"], row["question"], documents)
    with pytest.raises(CheckpointError, match="no checkpoint 'step-7'") as caught:
        run(config_of(folder, checkpoint="step-7"))
    assert "step-000001" in str(caught.value.hint)
    # A run that was stopped before its final model is built from its configuration.
    (folder / "final_model").rename(folder / "gone")
    with pytest.raises(CheckpointError, match="has not ended"):
        run(config_of(folder))
    stopped = run(config_of(folder, checkpoint="step-000001", also_base=True, output_dir=folder / "stopped"))
    assert predictions(folder / "stopped") == predictions(first.path)
    assert predictions(folder / "stopped" / "base") != predictions(first.path)
    assert stopped.evaluations["retrieved"].summary["settings"] == first.summary["settings"]


def document_of(row: dict[str, Any]) -> Document:
    return Document(row["id"], row["title"], row["text"])


def test_a_model_that_was_copied_out_of_its_run_needs_questions_only(
    run_of: Callable[..., Path], corner: Path, tmp_path: Path
) -> None:
    folder = run_of(merge=True)
    inside = run(config_of(folder / "final_model"))
    assert inside.path == folder / "eval"
    merged = run(config_of(folder / "merged_model"))
    assert predictions(merged.path) == predictions(inside.path)
    outside = tmp_path / "elsewhere"
    shutil.copytree(folder / "final_model", outside)
    with pytest.raises(ConfigError, match="no test questions") as caught:
        run(config_of(outside))
    assert caught.value.hint == "give --test-data"
    copied = run(config_of(outside, test_data=corner))
    assert predictions(copied.path) == predictions(inside.path)
    sidecar = json.loads((outside / "ragtrain.json").read_text())
    sidecar["context"]["index"]["path"] = str(tmp_path / "nowhere")
    (outside / "ragtrain.json").write_text(json.dumps(sidecar))
    with pytest.raises(ConfigError, match=r"not at .*nowhere any more"):
        run(config_of(outside, test_data=corner))
    run(config_of(outside, test_data=corner, conditions=("closed-book",), output_dir=tmp_path / "closed"))
    given = run(config_of(outside, test_data=corner, index_path=corner / "index", output_dir=tmp_path / "given"))
    assert predictions(given.path) == predictions(inside.path)


def test_a_plain_model_is_asked_with_the_usual_prompt(base: Path, corner: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="nothing says what its prompts hold") as caught:
        run(config_of(base, test_data=corner))
    assert "--conditions" in str(caught.value.hint)
    result = run(config_of(base, test_data=corner, conditions=("closed-book", "gold"), max_new_tokens=4))
    assert result.path.parent.parent == Path("runs")
    assert result.evaluations["gold"].summary["role"] == "plain"
    model, tokenizer = load_causal(base)
    settings = json.loads((result.path / "closed-book" / "metrics.json").read_text())["prompt"]
    assert settings["max_length"] == 1024, "no longer than the model's positions"
    for row in lines(result.path / "closed-book"):
        assert row["prediction"] == slowly(model, tokenizer, settings, row["question"], tokens=4)


def test_options_that_mean_nothing_are_refused_by_name(run_of: Callable[..., Path]) -> None:
    folder = run_of()
    for changes in ({"num_beams": 4}, {"decoding": "fast"}, {"search_index": "flat"}, {"passages_path": Path("p")}):
        name = next(iter(changes)).replace("_", "-")
        with pytest.raises(ConfigError, match=f"^--{name} means nothing to a causal language model"):
            run(config_of(folder, **changes))
    with pytest.raises(ConfigError, match="--retrieval says how an index is searched"):
        run(config_of(folder, retrieval="bm25", conditions=("closed-book",)))
    assert not (folder / "eval").exists()


# --- what is asked -----------------------------------------------------------------------------------------------


def test_without_test_rows_the_validation_rows_of_the_run_are_answered(
    run_of: Callable[..., Path], corner: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = [json.loads(line) for line in (corner / "train.jsonl").read_text().splitlines()]
    write_jsonl(data / "train.jsonl", rows)
    folder = run_of(train_data=data, dev_split=0.2, n_docs=0, index=None)
    with caplog.at_level(logging.INFO, "ragtrain"):
        result = run(config_of(folder))
    assert "the validation rows are answered" in caplog.text
    assert result.summary["condition"] == "closed-book"
    held = json.loads((folder / "data.json").read_text())["validation"]["held_out"]
    assert 0 < result.summary["n"] == held < len(rows)
    few = run(config_of(folder, num_samples=2, output_dir=tmp_path / "few"))
    assert {row["id"] for row in lines(few.path)} < {row["id"] for row in lines(result.path)}


def test_rows_with_finished_prompts_are_asked_as_they_stand(
    run_of: Callable[..., Path], corner: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (corner / "test.jsonl").read_text().splitlines()]
    data = tmp_path / "prompts.jsonl"
    write_jsonl(
        data, ({"id": row["id"], "prompt": f"Say: {row['question']}", "answers": row["answers"]} for row in rows)
    )
    folder = run_of()
    result = run(config_of(folder, test_data=data))
    assert result.summary["condition"] == "as given"
    _, tokenizer, sidecar = load_causal_run(folder)
    prompter = Prompter(tokenizer, PromptSettings.from_json(sidecar["prompt"]))
    for row, given in zip(lines(result.path), rows, strict=True):
        sample = Sample("x", "", finished=f"Say: {given['question']}")
        (encoded,) = prompter.encode_prompts([sample], room=6)
        assert row["prompt_tokens"] == len(encoded.ids)
        assert row["answers"] == given["answers"]
    with pytest.raises(ConfigError, match="no conditions to them"):
        run(config_of(folder, test_data=data, conditions=("closed-book",)))


def test_a_run_on_one_passage_a_prompt_and_solved_examples_is_asked_so(
    run_of: Callable[..., Path], corner: Path, tmp_path: Path
) -> None:
    folder = run_of(context_mode="separate", n_shots=1)
    result = run(config_of(folder))
    assert {row["n_docs"] for row in lines(result.path)} == {1}
    without = run_of()
    plain = run(config_of(without, n_docs=1))
    assert result.summary["prompt_tokens"] > plain.summary["prompt_tokens"] + 10, "a solved example stands before it"
    outside = tmp_path / "elsewhere"
    shutil.copytree(folder / "final_model", outside)
    with pytest.raises(ConfigError, match="1 solved examples, which its run draws") as caught:
        run(config_of(outside, test_data=corner))
    assert caught.value.hint == "give the run folder as --model-dir"


def test_abstentions_are_counted_and_questions_that_do_not_fit_are_told_of(
    run_of: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_of(raft=True, abstain_target="unknown", on_overflow="drop-row")
    sidecar = json.loads((folder / "final_model" / "ragtrain.json").read_text())
    result = run(config_of(folder))
    assert result.summary["abstained"] == sum(row["prediction"] == "unknown" for row in lines(result.path)) / 10
    # Training left long rows out; every question is answered.
    assert result.summary["prompt"]["on_overflow"] == "drop-docs"
    lengths = [row["prompt_tokens"] for row in lines(result.path)]
    sidecar["prompt"]["max_length"] = sorted(lengths)[4] + 6
    (folder / "final_model" / "ragtrain.json").write_text(json.dumps(sidecar))
    shorter = run(config_of(folder, output_dir=folder / "shorter"))
    assert shorter.summary["lost"]["docs"] == sum(length > sorted(lengths)[4] for length in lengths)
    assert {row["n_docs"] for row in lines(shorter.path)} == {1, 2}
    sidecar["prompt"]["max_length"] = 20
    (folder / "final_model" / "ragtrain.json").write_text(json.dumps(sidecar))
    with caplog.at_level(logging.WARNING, "ragtrain"):
        none = run(config_of(folder, output_dir=folder / "none"))
    assert none.summary["lost"]["row"] == 10
    assert none.summary["em"] == 0
    assert "10 questions do not fit into a prompt" in caplog.text


def test_the_command_line_end_to_end(run_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of()
    asked = ["eval", "--model-dir", str(folder), "--conditions", "closed-book,gold,retrieved,gold+distractors",
             "--also-base", "--device", "cpu", "--num-samples", "4"]  # fmt: skip
    assert main([*asked, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["evaluations"]) == 8
    assert not document["reused"]
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reused"]
    assert main(["compare", str(folder / "eval" / "base" / "gold"), str(folder / "eval" / "gold")]) == 0
    assert main(["eval", "--model-dir", str(folder), "--num-beams", "2"]) == 2
    assert "--num-beams means nothing" in capsys.readouterr().err


# --- passages of another run -------------------------------------------------------------------------------------


def given_config(path: Path, contexts: Path, **changes: Any) -> EvalConfig:
    return EvalConfig(model_dir=str(path), device="cpu", contexts_from=contexts, **changes)


def test_prompts_hold_what_another_run_read_in_its_order(run_of: Callable[..., Path], corner: Path) -> None:
    folder, other = run_of(), run_of(learning_rate=0.05)
    examples = read_examples(SftDataConfig(), corner / "test.jsonl", split="test").examples
    rows = []
    for place, example in enumerate(examples):
        texts = [f"passage {place} {letter}" for letter in "abc"[: place % 4]]
        read = [
            {"id": text, "title": "" if i else "T", "text": text, "rank": len(texts) - 1 - i}
            for i, text in enumerate(texts)
        ]
        rows.append({"id": example.id, "answers": list(example.answers), "prediction": "x", "documents": read})
    write_jsonl(other / "eval" / "predictions.jsonl", rows)
    result = run(given_config(folder, other))
    assert isinstance(result, EvalResult)
    assert result.path == folder / f"eval-contexts-of-{other.name}"
    assert result.summary["condition"] == "contexts of another run"
    assert (result.summary["settings"]["n_docs"], result.summary["index"]) == (3, None)
    model, tokenizer, sidecar = load_causal_run(folder)
    for example, row, line in zip(examples, rows, lines(result.path), strict=True):
        documents = [Document(each["id"], each["title"], each["text"]) for each in row["documents"]]
        assert line["prediction"] == slowly(model, tokenizer, sidecar["prompt"], example.question, documents)
        read = [{name: each[name] for name in ("id", "title", "text", "rank")} for each in line["documents"]]
        assert read == row["documents"]
    assert run(given_config(folder, other)).reused
    rows[1]["documents"][0]["text"] += " changed"
    write_jsonl(other / "eval" / "predictions.jsonl", rows)
    with pytest.raises(ConfigError, match="holds another evaluation"):
        run(given_config(folder, other))
    with pytest.raises(ConfigError, match="--conditions beside --contexts-from"):
        run(given_config(folder, other, conditions=("gold",)))
    del rows[1]["documents"][0]["text"]
    write_jsonl(other / "eval" / "predictions.jsonl", rows)
    with pytest.raises(DataError, match="does not say what stands in the passage 'passage 1 a'"):
        run(given_config(folder, other))


def test_one_condition_of_several_can_be_given(run_of: Callable[..., Path]) -> None:
    folder, other = run_of(), run_of(learning_rate=0.05)
    run(config_of(other, conditions=("closed-book", "gold")))
    with pytest.raises(DataError, match="holds 2 evaluations") as caught:
        run(given_config(folder, other))
    assert str(other / "eval" / "gold") in str(caught.value.hint)
    result = run(given_config(folder, other / "eval" / "gold", also_base=True))
    assert isinstance(result, ConditionsResult)
    assert result.path == folder / f"eval-contexts-of-{other.name}-gold"
    gold = [[each["id"] for each in row["documents"]] for row in lines(other / "eval" / "gold")]
    for each in result.evaluations.values():
        assert [[document["id"] for document in row["documents"]] for row in lines(each.path)] == gold
    with pytest.raises(DataError, match="read no passage for any"):
        run(given_config(folder, other / "eval" / "closed-book"))
