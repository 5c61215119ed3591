"""What is said of results: of memory that helps, of memory that does not, and of too little to say anything."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest

from ragtrain import metrics
from ragtrain.evaluate.compress.files import arms_json
from ragtrain.evaluate.compress.verdict import constant_answer, gap_closed, show, verdict

N = 200


def scores(rate: float, seed: int, n: int = N) -> list[float]:
    draw = random.Random(seed)
    return [float(draw.random() < rate) for _ in range(n)]


@pytest.fixture
def judged(results: SimpleNamespace):
    """Judge arms by their shares of right answers."""

    def make(n: int = N, **rates: float) -> dict:
        named = {name.replace("_", "-"): rate for name, rate in rates.items()}
        found = {name: results.of(name, scores(rate, seed, n)) for seed, (name, rate) in enumerate(named.items())}
        return verdict(found, results.rows(n))

    return make


GOOD = {"none_base": 0.05, "none": 0.1, "full_base": 0.6, "full": 0.8, "truncated_base": 0.1, "truncated": 0.2,
        "best_sentences_base": 0.2, "best_sentences": 0.35, "before": 0.02, "compressed": 0.6, "random": 0.05,
        "shuffled": 0.1}  # fmt: skip


def test_memory_that_beats_text_and_other_memory_adds_something(judged) -> None:
    found = judged(**GOOD)
    assert found["outcome"] == "adds"
    assert found["sentence"].startswith("Compression adds something: F1 ")
    assert "best-sentences" in found["sentence"]
    assert "shuffled" in found["sentence"]
    assert found["caveats"] == []
    each = found["comparisons"]["truncated"]["f1"]
    assert 0 < each["low"] < each["delta"] < each["high"]
    assert each["p"] < 0.001
    assert 0.5 < found["gap_closed"]["none to full"]["em"]["share"] < 0.95


@pytest.mark.parametrize("useless", [0.1, 0.2])
def test_useless_memory_is_called_so(judged, useless: float) -> None:
    found = judged(**{**GOOD, "compressed": useless, "shuffled": useless})
    assert found["outcome"] == "adds nothing"
    assert found["sentence"].startswith("Compression adds nothing")
    for name in ("best-sentences", "shuffled"):
        assert name in found["sentence"]


@pytest.mark.parametrize("rival", ["truncated", "truncated_base", "best_sentences", "best_sentences_base", "shuffled"])
def test_one_rival_that_is_not_beaten_is_enough(judged, rival: str) -> None:
    """Whichever adapters read it: the strongest baseline counts."""
    found = judged(**{**GOOD, rival: 0.7})
    assert found["outcome"] == "adds nothing"
    assert found["sentence"].count(" against ") == 1
    assert f" of {rival.replace('_', '-')} (" in found["sentence"]
    assert "either" not in found["sentence"]


def test_the_very_answers_of_another_arm_are_no_gain(results: SimpleNamespace) -> None:
    same = scores(0.5, 1)
    found = {name: results.of(name, same) for name in ("truncated", "best-sentences", "compressed", "shuffled")}
    told = verdict(found, results.rows(N))
    assert told["outcome"] == "adds nothing"
    assert told["comparisons"]["shuffled"]["em"] == {"delta": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


@pytest.mark.parametrize("lacking", ["compressed", "truncated", "best-sentences", "shuffled"])
def test_nothing_is_said_where_an_arm_lacks(results: SimpleNamespace, lacking: str) -> None:
    names = {"compressed", "truncated", "best-sentences", "shuffled"} - {lacking}
    told = verdict({name: results.of(name, scores(0.5, 1)) for name in names}, results.rows(N))
    assert told["outcome"] == "not measured"
    assert lacking in told["sentence"]
    assert verdict({}, [])["outcome"] == "not measured"


def test_text_that_only_the_base_read_is_a_caveat(judged) -> None:
    told = judged(**{name: rate for name, rate in GOOD.items() if name not in ("truncated", "best_sentences", "full")})
    assert told["outcome"] == "adds"
    assert any("favours compression" in each for each in told["caveats"])


def test_other_caveats(judged, results: SimpleNamespace) -> None:
    told = judged(n=20, **{**GOOD, "none": 0.9, "before": 0.9, "random": 0.9})
    said = " | ".join(told["caveats"])
    for part in ("20 questions", "not better than those without any passage", "not better than before training",
                 "not better than those from random", "full passages are not better than"):  # fmt: skip
        assert part in said
    cut = results.of("full", [1.0, 0.0])
    cut = dataclasses.replace(cut, records=(dataclasses.replace(cut.records[0], cut_tokens=16), cut.records[1]))
    said = verdict({"compressed": results.of("compressed", [1.0, 0.0]), "full": cut}, results.rows(2))["caveats"]
    assert any("passages of 1 questions do not fit into the generator: 50 %" in each for each in said)
    rows = results.rows(4)
    rows[1] = rows[0].__class__("q1", "?", ("a",), (), rows[0].documents)
    found = {name: results.of(name, [1.0, 0.0, 1.0, 0.0]) for name in ("compressed", "shuffled")}
    assert any(each.startswith("1 questions were given") for each in verdict(found, rows)["caveats"])


def test_retention_and_boost_against_counting(results: SimpleNamespace) -> None:
    full, own = scores(0.7, 3), scores(0.5, 4)
    told = verdict({"full": results.of("full", full), "compressed": results.of("compressed", own)}, results.rows(N))
    right = [b for a, b in zip(full, own, strict=True) if a]
    wrong = [b for a, b in zip(full, own, strict=True) if not a]
    for name, kept in (("retention", right), ("boost", wrong)):
        low, high = metrics.wilson(sum(kept), len(kept))
        assert told[name]["full"]["em"] == {"share": sum(kept) / len(kept), "low": low, "high": high, "n": len(kept)}


def test_the_gap_against_drawing_questions_one_by_one() -> None:
    draw = np.random.default_rng(0)
    triples = np.stack([draw.random(60) < rate for rate in (0.1, 0.5, 0.8)], axis=1).astype(float)
    found = gap_closed(triples, seed=1)
    means = triples[draw.integers(0, 60, (20000, 60))].mean(1)
    shares = (means[:, 1] - means[:, 0]) / (means[:, 2] - means[:, 0])
    low, high = np.quantile(shares, [0.025, 0.975])
    a, b, c = triples.mean(0)
    assert found["share"] == pytest.approx((b - a) / (c - a))
    assert found["low"] == pytest.approx(low, abs=0.02)
    assert found["high"] == pytest.approx(high, abs=0.02)
    assert gap_closed(triples[:, [2, 1, 0]], seed=1) is None


def test_the_constant_answer_against_trying_all() -> None:
    references = [["yes"], ["Yes."], ["no"], ["the red car", "car"], ["red"]]
    found = constant_answer(references)
    tried = set(itertools.chain.from_iterable(references))
    for name, rule in (("em", metrics.exact_match), ("f1", metrics.f1)):
        best = max(sum(rule(answer, answers) for answers in references) / 5 for answer in tried)
        assert found[name]["score"] == pytest.approx(best)
    assert found["em"]["answer"] == "yes"


def test_arms_of_other_questions_are_not_compared(results: SimpleNamespace) -> None:
    found = {"compressed": results.of("compressed", [1.0, 0.0]), "full": results.of("full", [1.0, 0.0, 1.0])}
    with pytest.raises(ValueError, match="other questions"):
        verdict(found, results.rows(3))


def test_the_table_holds_every_arm_and_the_sentence(judged, results: SimpleNamespace, capsys, caplog) -> None:
    found = {name: results.of(name, scores(0.5, seed)) for seed, name in enumerate(("none", "compressed", "shuffled"))}
    with caplog.at_level(logging.INFO, logger="ragtrain"):
        show(arms_json(found), verdict(found, results.rows(N)))
    err = capsys.readouterr().err
    for name in found:
        assert name in err
    assert "was not measured" in caplog.text
