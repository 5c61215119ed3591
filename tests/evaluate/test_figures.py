"""Figures beside exact match: known values, what is missing, slices against slow loops, speed and memory."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
import torch

from ragtrain import metrics
from ragtrain.data import kinds
from ragtrain.evaluate import figures
from ragtrain.evaluate.answers import Evaluation, FoundDocument, Record
from ragtrain.evaluate.memory import PeakMemory


def passage(text: str, *, held: bool) -> FoundDocument:
    return FoundDocument("p", "title", text, 1.0, 0.5, 0.5, held)


def record(prediction: str, answers: tuple[str, ...], *texts: str, question: str = "who was it", **changes) -> Record:
    documents = tuple(passage(text, held=metrics.has_answer(answers, text)) for text in texts)
    hit = metrics.first_hit(answers, texts)
    em, f1 = metrics.exact_match(prediction, answers), metrics.f1(prediction, answers)
    made = Record("q", question, answers, prediction, em, f1, hit, len(texts), -1.0, 0.1, documents, 3)
    return dataclasses.replace(made, **changes)


RECORDS = [
    record("Ada", ("Ada", "Lovelace"), "it was Ada", "nobody"),
    record("it was ada lovelace", ("Ada",), "Ada Lovelace", question="Where was she?"),
    record("us", ("Ada",), "a house", question="In what year?"),
    record("1843", ("1843",), question=""),
    record("the river Po", ("a very long river of Italy",), "a river", question="is it the Po"),
]


def test_known_values_and_what_is_missing() -> None:
    made = figures.figures(RECORDS, 0.95, 3)
    assert made.metrics["contains"] == 3 / 5
    # Nothing was read for one question, which does not count; of the house, "us" is a part and no word.
    assert made.metrics["answer_in_context"] == 1 / 4
    assert made.metrics["k_precision"] == pytest.approx((1 + 2 / 4 + 0 + 1 / 2) / 4)
    assert made.counts["k_precision"] == made.counts["answer_in_context"] == {"n": 4, "missing": 1}
    assert "quoted_support" not in made.metrics
    assert (made.metrics["answer_mrr"], made.counts["answer_mrr"]) == (2 / 4, {"n": 4, "missing": 1})
    late = [record("x", ("Ada",), "nobody", "Ada", "Ada"), record("x", ("Bob",), "Ada")]
    assert figures.figures(late, 0.95, 0).metrics["answer_mrr"] == 1 / 4
    assert made.counts["rouge_l"] == {"n": 5, "missing": 0}
    rouge = [metrics.rouge_l(each.prediction, each.answers) for each in RECORDS]
    assert made.metrics["rouge_l"] == pytest.approx(sum(rouge) / 5)
    assert made.intervals["rouge_l"] == metrics.bootstrap_mean(rouge, 10_000, 3)
    assert made.intervals["contains"] == metrics.wilson(3, 5)
    quoting = record('it says "was Ada" and "Bob"', ("Ada",), "it was Ada")
    empty = record("", ("Ada",), "it was Ada")
    told = figures.figures([quoting, empty], 0.95, 0)
    assert (told.metrics["quoted_support"], told.counts["quoted_support"]) == (0.5, {"n": 1, "missing": 1})
    assert told.counts["k_precision"] == {"n": 1, "missing": 1}, "an empty answer takes nothing"
    assert figures.figures([], 0.95, 0).metrics == {}
    assert "answer_in_context" not in figures.figures(RECORDS[3:4], 0.95, 0).metrics


def test_rules_of_others() -> None:
    asked = record("the theatre!", ("Theatre.", "--"), "a theatre")
    own, kilt, ragfit = (figures.scores_of(asked, compat) for compat in ("squad", "kilt", "ragfit"))
    assert own["rouge_l"] == 2 / 3
    assert kilt["rouge_l"] == 0, "words are as they stand"
    assert "recall_em" not in own.keys() | kilt.keys()
    assert ragfit["recall_em"] == 0, "the full stop is a token"
    assert {name: kilt[name] for name in ("contains", "bleu", "chrf")} == {
        name: own[name] for name in ("contains", "bleu", "chrf")
    }
    told = figures.figures([asked], 0.95, 0, "ragfit")
    assert told.metrics["recall_em"] == 0
    assert told.intervals["recall_em"] == metrics.wilson(0, 1)


def test_slices_are_those_of_slow_loops() -> None:
    generator = random.Random(0)
    words = ["who is Ada", "when was it", "How many are there", "tell me", "did she", "of which kind", ""]
    rows = [
        record(generator.choice(["Ada", "Bob Ada"]), generator.choice([("Ada",), ("Ada of Italy",), ("x", "a b c d e")]),
               *generator.choices(["Ada", "Bob", "x"], k=generator.randrange(3)), question=generator.choice(words))
        for _ in range(60)
    ]  # fmt: skip
    found = figures.slices(rows, 0.95, 0, {"place": ["odd" if place % 2 else None for place in range(60)]})
    by_kind = {kind: [each for each in found if each["kind"] == kind] for kind in {each["kind"] for each in found}}
    assert by_kind.keys() == {
        "first word", "words of the answer", "an answer was read", "rank of the first answer", "place"
    }  # fmt: skip
    (odd,) = by_kind["place"]
    assert odd["em"] == pytest.approx(sum(row.em for row in rows[1::2]) / 30)
    assert odd["intervals"]["em"] == list(metrics.wilson(sum(row.em for row in rows[1::2]), 30))
    for each in by_kind["first word"]:
        mine = [row for row in rows if kinds.question_type(row.question) == each["value"]]
        assert each["n"] == len(mine)
        assert each["f1"] == pytest.approx(math.fsum(row.f1 for row in mine) / len(mine))
        assert each["intervals"]["f1"][0] <= each["f1"] <= each["intervals"]["f1"][1]
    assert sum(each["n"] for each in by_kind["first word"]) == sum(bool(row.question) for row in rows)
    assert sum(each["n"] for each in by_kind["an answer was read"]) == sum(bool(row.documents) for row in rows)
    assert sum(each["n"] for each in by_kind["words of the answer"]) == 60
    sizes = [each["n"] for each in by_kind["first word"]]
    assert sizes == sorted(sizes, reverse=True)


def test_everything_that_is_told_has_an_interval_and_a_count() -> None:
    evaluation = Evaluation(
        {"em": 0.4, "em_given_hit": 0.5, "em_given_miss": 0.5, "questions_per_s": 10.0},
        {"em": (0.1, 0.8), "em_given_hit": (0.0, 1.0), "em_given_miss": (0.1, 0.9)},
        tuple(RECORDS),
    )
    told = figures.told(evaluation, 0.9, 0, 1234)
    assert told["counts"]["em"] == {"n": 5, "missing": 0}
    assert (told["counts"]["em_given_hit"]["n"], told["counts"]["em_given_miss"]["n"]) == (2, 3)
    assert told["intervals"].keys() == told["counts"].keys()
    assert told["tokens_per_s"] == pytest.approx(15 / 0.5)
    assert told["peak_memory_bytes"] == 1234
    assert figures.told(Evaluation({}, {}, ()), 0.9, 0, None)["slices"] == []


def test_speed_known_values() -> None:
    rows = [dataclasses.replace(RECORDS[0], seconds=seconds) for seconds in (0.1, 0.2, 0.3, 0.4, 1.0)]
    found = figures.speed(rows, 2.5, None, 0.95, 0)
    assert found["latency_mean_s"] == pytest.approx(0.4)
    assert found["latency_p50_s"] == 0.3
    assert found["latency_p95_s"] == pytest.approx(np.quantile([0.1, 0.2, 0.3, 0.4, 1.0], 0.95))
    assert (found["questions_per_s"], found["tokens_per_s"]) == (2.0, 6.0)
    assert found["speed_intervals"]["latency_p50_s"] == [0.1, 1.0], "five values say little"


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_the_interval_of_a_quantile_covers_it(share: float) -> None:
    generator = np.random.default_rng(0)
    true = -math.log(1 - share)  # of the exponential distribution
    covered = 0
    for _ in range(400):
        low, high = figures.quantile_interval(generator.exponential(size=300).tolist(), share, 0.95)
        covered += low <= true <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_the_peak_of_a_process_is_that_of_the_work() -> None:
    with PeakMemory(torch.device("cpu")) as before:
        pass
    with PeakMemory(torch.device("cpu")) as peak:
        torch.ones(1 << 24)  # 64 MiB
    assert before.bytes is not None
    assert peak.bytes is not None
    assert peak.bytes > (1 << 25)
