"""Arms against one question at a time through transformers' ``generate``; what is kept, and what is left as it was."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ragtrain import metrics
from ragtrain.data.compress.prompts import CompressPrompter
from ragtrain.data.compress.records import CompressExample, passage_text
from ragtrain.errors import ConfigError
from ragtrain.evaluate.compress import measure
from ragtrain.evaluate.compress.arms import TABLE, arms_of, derangement
from ragtrain.evaluate.compress.asked import random_like
from ragtrain.evaluate.compress.budgets import SentenceRanker, count_tokens, first_tokens
from ragtrain.evaluate.compress.cuts import cuts
from ragtrain.evaluate.compress.files import (
    AFTER_FILE,
    REPORT_FILE,
    arms_json,
    question_rows,
    write_report,
    write_results,
)
from ragtrain.evaluate.compress.kinds import answer_kind
from ragtrain.evaluate.compress.measure import ArmSettings, answer_memory, measure_arms, measure_rates
from ragtrain.evaluate.compress.subject import Subject
from ragtrain.evaluate.compress.swap import adapters_swapped

SETTINGS = ArmSettings(max_new_tokens=5, batch_size=3, seed=3)
ALL = tuple(TABLE.values())


def written(subject: Subject, embeds: torch.Tensor) -> str:
    ids = subject.model.generator.generate(
        inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long), max_new_tokens=5,
        do_sample=False, pad_token_id=1,
    )  # fmt: skip
    return subject.tokenizer.decode(ids[0], skip_special_tokens=True).strip()


def slowly(subject: Subject, rows: list[CompressExample], name: str, place: int, rate: int | None = None) -> str:
    """One question in one arm, from the definitions."""
    arm, row, model = TABLE[name], rows[place], subject.model
    embed = model.generator.get_input_embeddings()

    def memory(of: CompressExample) -> torch.Tensor:
        windowed = subject.windower.windows([(of.question, of.documents)])
        return model.compress(subject.windower.collate(windowed, rate)).vectors

    weights = contextlib.nullcontext()
    if arm.weights == "base":
        weights = model.untrained()
    elif arm.weights == "full-context":
        weights = adapters_swapped(model.generator, subject.full_adapters)
    donor = derangement([frozenset(map(passage_text, each.documents)) for each in rows], 3)[place]
    source = rows[donor] if name == "shuffled" else row
    with torch.no_grad(), weights:
        if not arm.of_memory:
            budget = len(memory(row))
            ranker = SentenceRanker([each.documents for each in rows], subject.tokenizer)
            texts = {
                "nothing": [],
                "passages": [passage_text(document) for document in row.documents],
                "first tokens": first_tokens(row.documents, budget, subject.tokenizer),
                "best sentences": ranker.best(row.question, row.documents, budget),
            }[arm.reads]
            prompted = subject.prompter.passages(row.question, texts)
            return written(subject, embed(torch.from_numpy(prompted.ids).long()[None]))
        vectors = memory(source)
        if name == "random":
            vectors = random_like(vectors, f"3\0{row.id}")
        windowed = subject.windower.windows([(source.question, source.documents)])[0]
        prompted = subject.prompter.memory(row.question, subject.windower.counts(windowed, rate))
        parts, slots = embed(torch.from_numpy(prompted.ids).long()), torch.from_numpy(prompted.slots)
        parts[slots >= 0] = vectors
        return written(subject, parts[None])


def test_every_arm_answers_as_one_question_at_a_time_does(subject: Subject, rows: list[CompressExample]) -> None:
    subject.model.eval()
    rows = rows[:4]
    found = measure_arms(subject, rows, ALL, SETTINGS)
    assert list(found) == list(TABLE)
    for name, result in found.items():
        assert [record.id for record in result.records] == [row.id for row in rows]
        expected = [slowly(subject, rows, name, place) for place in range(len(rows))]
        assert [record.prediction for record in result.records] == expected, name
    # Arms differ, or the comparison would compare nothing.
    answers = {name: tuple(record.prediction for record in result.records) for name, result in found.items()}
    assert len(set(answers.values())) >= 10
    assert answers["before"] == answers["compressed"]  # the same weights here


def test_scores_budgets_and_intervals(subject: Subject, rows: list[CompressExample]) -> None:
    found = measure_arms(subject, rows, ALL, SETTINGS)
    budgets = [
        sum(subject.windower.counts(each))
        for each in subject.windower.windows([(r.question, r.documents) for r in rows])
    ]
    for name, result in found.items():
        for row, record in zip(rows, result.records, strict=True):
            assert record.em == metrics.exact_match(record.prediction, row.answers)
            assert record.f1 == metrics.f1(record.prediction, row.answers)
            assert record.rouge_l == metrics.rouge_l(record.prediction, row.answers)
            assert record.contains == float(metrics.has_answer(row.answers, record.prediction))
            assert (record.memory_of is not None) == (name == "shuffled")
        spent = [record.context_tokens for record in result.records]
        if name in ("before", "compressed", "random"):
            assert spent == budgets
        if name.startswith(("truncated", "best-sentences")):
            assert all(0 < tokens <= budget for tokens, budget in zip(spent, budgets, strict=True))
        if name.startswith("none"):
            assert set(spent) == {0}
        assert result.metrics["f1"] == pytest.approx(sum(result.scores("f1")) / len(rows))
        assert result.intervals["em"] == metrics.wilson(sum(result.scores("em")), len(rows))
        assert result.intervals["f1"] == metrics.bootstrap_mean(result.scores("f1"), seed=3)
    shuffled = found["shuffled"].records
    assert sorted(str(record.memory_of) for record in shuffled) == sorted(row.id for row in rows)
    # The demo's passages hold their answers; nothing holds none.
    assert found["full"].metrics["answer_given"] == found["compressed"].metrics["answer_given"] == 1.0
    assert found["none"].metrics["answer_given"] == found["random"].metrics["answer_given"] == 0.0
    assert found["truncated"].metrics["answer_given"] < 1


def test_passages_that_do_not_fit_into_the_generator_are_counted(subject: Subject, rows: list[CompressExample]) -> None:
    limited = CompressPrompter(subject.tokenizer, limit=170)
    found = measure_arms(dataclasses.replace(subject, prompter=limited), rows, [TABLE["full"]], SETTINGS)["full"]
    assert found.metrics["cut_tokens"] > 0
    for row, record in zip(rows, found.records, strict=True):
        whole = count_tokens(map(passage_text, row.documents), subject.tokenizer)
        assert record.context_tokens + record.cut_tokens == whole
        assert record.prompt_tokens <= 165


def test_another_rate_spends_less(subject: Subject, rows: list[CompressExample], tmp_path: Path) -> None:
    settings = ArmSettings(max_new_tokens=5, batch_size=7, rate=9, seed=3)
    found = measure_arms(subject, rows, [TABLE["truncated"], TABLE["compressed"]], settings)
    nominal = answer_memory(subject, rows, SETTINGS)
    assert found["compressed"].metrics["context_tokens"] == pytest.approx(nominal.metrics["context_tokens"] * 2 / 3)
    assert [r.prediction for r in found["compressed"].records] == [
        slowly(subject, rows, "compressed", place, rate=9) for place in range(len(rows))
    ]
    rates = measure_rates(subject, rows, SETTINGS, store=tmp_path / "store")
    assert list(rates) == ["compressed@9"]
    both = {**found, **rates, "none": answer_memory(subject, rows, SETTINGS)}
    assert list(arms_json(both)) == ["none", "truncated", "compressed", "compressed@9"]
    assert "compressed@9" in question_rows(both, rows)[0]["arms"]
    assert [r.prediction for r in rates["compressed@9"].records] == [r.prediction for r in found["compressed"].records]
    assert measure_rates(subject, rows, SETTINGS, store=tmp_path / "store") == rates


def test_the_network_is_left_as_it_was(subject: Subject, rows: list[CompressExample]) -> None:
    subject.model.train()
    before = copy.deepcopy(subject.model.state_dict())
    trainable = {name: p.requires_grad for name, p in subject.model.named_parameters()}
    measure_arms(subject, rows[:3], ALL, SETTINGS)
    after = subject.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name: p.requires_grad for name, p in subject.model.named_parameters()} == trainable
    assert all(module.training for module in subject.model.modules())


def test_an_arm_that_is_answered_is_not_answered_again(
    subject: Subject, rows: list[CompressExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = measure.generate

    def counted(model, tokenizer, prompts, **how):
        asked.append(len(prompts))
        if len(asked) == stop:
            raise KeyboardInterrupt
        return real(model, tokenizer, prompts, **how)

    monkeypatch.setattr(measure, "generate", counted)
    store, arms = tmp_path / "store", [TABLE[name] for name in ("none-base", "full", "compressed", "random")]
    stop = 3
    with pytest.raises(KeyboardInterrupt):
        measure_arms(subject, rows, arms, SETTINGS, store=store, weights="a")
    assert sorted(file.name for file in store.iterdir()) == ["full.json", "none-base.json"]
    asked.clear()
    stop = 0
    whole = measure_arms(subject, rows, arms, SETTINGS, store=store, weights="a")
    assert len(asked) == 2
    asked.clear()
    again = measure_arms(
        subject, rows, arms, ArmSettings(max_new_tokens=5, batch_size=1, seed=3), store=store, weights="a"
    )
    assert asked == []
    assert again == whole
    # Other weights, other answers' length, another order of passages, other adapters: each is another measurement.
    measure_arms(subject, rows, arms, SETTINGS, store=store, weights="b")
    assert len(asked) == 4
    measure_arms(subject, rows, arms, ArmSettings(max_new_tokens=4, seed=3), store=store, weights="b")
    assert len(asked) == 8
    measure_arms(subject, rows[::-1], arms, ArmSettings(max_new_tokens=4, seed=3), store=store, weights="b")
    assert len(asked) == 12
    (store / "full.json").write_text("{")
    measure_arms(subject, rows[::-1], arms, ArmSettings(max_new_tokens=4, seed=3), store=store, weights="b")
    assert len(asked) == 13


def test_one_question_has_no_other_memory(subject: Subject, rows: list[CompressExample]) -> None:
    found = measure_arms(subject, rows[:1], ALL, SETTINGS)
    assert set(found) == set(TABLE) - {"shuffled"}
    assert measure_arms(subject, [], ALL, SETTINGS)["compressed"].n == 0


def test_a_generator_trained_as_a_whole_is_its_own_base_until_it_is_trained(
    build: Callable[..., tuple], subject: Subject, rows: list[CompressExample]
) -> None:
    model, tokenizer, own = build(lora_rank=0)
    whole = Subject(model, tokenizer, subject.windower.__class__(own, model.settings), CompressPrompter(tokenizer))
    found = measure_arms(whole, rows[:3], arms_of(TABLE, "before"), SETTINGS)
    with_adapters = measure_arms(subject, rows[:3], [TABLE["full-base"]], SETTINGS)["full-base"]
    assert [r.prediction for r in found["full-base"].records] == [r.prediction for r in with_adapters.records]
    with pytest.raises(ConfigError, match="no adapters that could be exchanged"):
        measure_arms(dataclasses.replace(whole, full_adapters=subject.full_adapters), rows, [TABLE["full"]], SETTINGS)


def test_what_is_cut_is_counted(build: Callable[..., tuple], subject: Subject, rows: list[CompressExample]) -> None:
    found = cuts(subject, rows)
    assert found["fed"] == 1.0
    assert found["answers_cut"] == 0.0
    assert found["answers_in_passages"] == len(rows)
    assert found["answers_split"] == 0.0  # windows end where sentences do
    assert found["rate"] == pytest.approx(found["passage_tokens"] / found["vectors"])
    words = rows[0].documents[0].text.split()
    long = CompressExample("long", "What?", (" ".join(words[:25]),), (), rows[0].documents)
    assert cuts(subject, [long])["answers_split"] == 1.0  # a window is 18 tokens long
    model, tokenizer, own = build(max_windows=1, max_query_tokens=2)
    short = Subject(model, tokenizer, subject.windower.__class__(own, model.settings), subject.prompter)
    found = cuts(short, rows)
    assert found["fed"] < 1
    assert found["questions_cut"] == len(rows)
    assert found["answers_cut"] > 0
    given = answer_memory(short, rows, SETTINGS).metrics["answer_given"]
    assert given == pytest.approx(1 - found["answers_cut"])


def test_files_hold_every_answer_of_every_arm(subject: Subject, rows: list[CompressExample], tmp_path: Path) -> None:
    found = measure_arms(subject, rows, ALL, SETTINGS)
    about = {"seed": 3, "cut": cuts(subject, rows)}
    write_results(tmp_path / AFTER_FILE, found, rows, about)
    kept = json.loads((tmp_path / AFTER_FILE).read_text())
    assert kept["n"] == len(rows)
    for row, line in zip(rows, kept["questions"], strict=True):
        assert (line["id"], line["answers"]) == (row.id, list(row.answers))
        assert set(line["arms"]) == set(TABLE)
    assert kept["questions"] == question_rows(found, rows)
    report = write_report(tmp_path, found, rows, about, costs={"speed": {"p50": 1.0}})
    assert report == json.loads((tmp_path / REPORT_FILE).read_text())
    assert list(report["arms"]) == list(TABLE)
    for each in report["arms"].values():
        assert each["n"] == len(rows)
        assert set(each["intervals"]) >= {"em", "f1", "rouge_l", "contains"}
    # Random weights: nothing is learnt, and the report says so.
    assert report["verdict"]["outcome"] == "adds nothing"
    assert report["speed"] == {"p50": 1.0}
    for group in report["kinds"].values():
        assert sum(kind["n"] for kind in group.values()) == len(rows)
    several = [place for place, row in enumerate(rows) if len(row.documents) > 1]
    expected = sum(found["full"].scores("f1")[place] for place in several) / len(several)
    assert report["kinds"]["passages"]["several"]["arms"]["full"]["f1"] == pytest.approx(expected)
    assert report["versions"]["torch"]


def test_kinds_of_answers() -> None:
    kinds = [answer_kind(answers) for answers in (["Yes."], ["in 1969"], ["the red car"], ["a b c d e f"], [])]
    assert kinds == ["yes or no", "number", "short", "long", "short"]
