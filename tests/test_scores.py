"""The metrics as objects of evaluate: the same numbers, without a network, alone, combined, and by several processes."""

from __future__ import annotations

import math
import socket
import statistics
from typing import Any, NoReturn

import evaluate
import pytest

from ragtrain import metrics, scores
from ragtrain.errors import ConfigError

PREDICTIONS = ["the Eiffel tower", "in Oslo, perhaps", "", 'it says "the red cat"']
ANSWERS = [["Eiffel Tower", "La tour Eiffel"], ["Oslo"], ["Rome"], ["a red cat"]]
PASSAGES = [["The Eiffel Tower.", "Paris"], ["Oslo lies there, perhaps in fog"], ["Rome"], ["a Red Cat sat"]]
FOUND = [["Paris", "the Eiffel tower"], ["Bergen"], ["Rome is old"], ["cat", "red", "a red cat"]]
RANKINGS = [["b", "a", "c"], ["d"], [], ["x", "y"]]
GOLD = [["a", "z"], ["d"], ["e"], []]
BY_INPUT: dict[str, tuple[list[Any], list[Any]]] = {
    "answers": (PREDICTIONS, ANSWERS),
    "groups": (PREDICTIONS, [[own] for own in ANSWERS]),
    "context": (PREDICTIONS, PASSAGES),
    "passages": (FOUND, ANSWERS),
    "ranking": (RANKINGS, GOLD),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a metric asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def inputs(name: str) -> dict[str, list[Any]]:
    predictions, references = BY_INPUT[scores.SPECS[name].inputs]
    return {"predictions": predictions, "references": references}


@pytest.mark.parametrize("name", scores.SPECS)
def test_every_metric_describes_itself_and_computes(name: str, tmp_path: Any) -> None:
    metric = scores.load(name, cache_dir=str(tmp_path))
    assert isinstance(metric, evaluate.Metric)
    assert metric.name == name
    assert metric.description
    assert metric.citation
    assert "predictions" in metric.inputs_description
    result = metric.compute(**inputs(name), per_question=True)
    keys = [key for key in result if key.endswith("_scores")]
    assert keys
    for key in (key.removesuffix("_scores") for key in keys):
        values = [value for value in result[f"{key}_scores"] if value is not None]
        assert result["n"] + result["missing"] == 4
        assert result["n"] == len(values)
        assert result[key] == pytest.approx(statistics.fmean(values))
        assert 0 <= result[f"{key}_low"] <= result[key] <= result[f"{key}_high"] <= 1
    assert not list(tmp_path.rglob("*.arrow"))


def test_scores_are_those_of_the_functions(tmp_path: Any) -> None:
    def of(name: str, **options: Any) -> Any:
        result = scores.load(name, cache_dir=str(tmp_path)).compute(**inputs(name), per_question=True, **options)
        return next(value for key, value in result.items() if key.endswith("_scores"))

    pairs = list(zip(PREDICTIONS, ANSWERS, strict=True))
    assert of("em") == [metrics.exact_match(*pair) for pair in pairs] == [1, 0, 0, 0]
    assert of("f1") == [metrics.f1(*pair) for pair in pairs]
    assert of("contains") == [1, 1, 0, 1]
    assert of("recall_em") == [1, 1, 0, 1]
    assert of("rouge_l") == [metrics.rouge_l(*pair) for pair in pairs]
    assert of("bleu") == [metrics.bleu(*pair) for pair in pairs]
    assert of("chrf") == [metrics.chrf(*pair) for pair in pairs]
    assert of("k_precision") == [1, 1, None, 0.5]
    assert of("answer_in_context") == [1, 0, None, 0]
    assert of("quoted_support") == [None, None, None, 1]
    assert of("answer_recall", k=1) == [0, 0, 1, 0]
    assert of("answer_recall", k=[3]) == [1, 0, 1, 1]
    assert of("supporting_recall", k=2) == [0.5, 1, 0, None]
    assert of("hits", k=1) == [0, 1, 0, None]
    assert of("ndcg", k=1) == [0, 1, 0, None]
    assert of("mrr") == [0.5, 1, 0, None]


def test_depths_and_intervals(tmp_path: Any) -> None:
    result = scores.load("answer_recall", cache_dir=str(tmp_path)).compute(**inputs("answer_recall"), k=[1, 2])
    assert result["answer_recall@1"] == 0.25
    assert result["answer_recall@2"] == 0.5
    assert (result["answer_recall@2_low"], result["answer_recall@2_high"]) == metrics.wilson(2, 4)
    f1 = scores.load("f1", cache_dir=str(tmp_path)).compute(**inputs("f1"), seed=3)
    expected = metrics.bootstrap_mean([metrics.f1(*pair) for pair in zip(PREDICTIONS, ANSWERS, strict=True)], seed=3)
    assert (f1["f1_low"], f1["f1_high"]) == expected
    nothing = scores.load("quoted_support", cache_dir=str(tmp_path)).compute(predictions=["x"], references=[["x"]])
    assert math.isnan(nothing["quoted_support"])
    assert (nothing["n"], nothing["missing"]) == (0, 1)


def test_one_reference_may_be_a_text_and_one_group_a_list(tmp_path: Any) -> None:
    em = scores.load("em", cache_dir=str(tmp_path))
    em.add(prediction="Oslo", reference="oslo")
    em.add(prediction="Rome", reference="Paris")
    assert em.compute()["em"] == 0.5
    recall = scores.load("recall_em", cache_dir=str(tmp_path))
    assert recall.compute(predictions=["Oslo and Rome"], references=[["Rome", "Roma"]])["recall_em"] == 1
    assert recall.compute(predictions=["Oslo"], references=[[["Rome", "Roma"], ["Oslo"]]])["recall_em"] == 0.5


def test_rules_of_others(tmp_path: Any) -> None:
    both = {"predictions": [""], "references": [["the"]]}
    assert scores.load("f1", cache_dir=str(tmp_path)).compute(**both)["f1"] == 1
    assert scores.load("f1", "ragfit", cache_dir=str(tmp_path)).compute(**both)["f1"] == 0
    assert scores.load("em", "ragfit", cache_dir=str(tmp_path)).compute(**both)["em"] == 1
    assert scores.load("em", "kilt", cache_dir=str(tmp_path)).compute(**both)["em"] == 0


def test_metrics_combine(tmp_path: Any) -> None:
    together = evaluate.combine([scores.load(name, cache_dir=str(tmp_path)) for name in ("em", "f1")])
    result = together.compute(predictions=PREDICTIONS, references=ANSWERS)
    assert result["em"] == 0.25
    assert result["f1"] == pytest.approx(statistics.fmean(map(metrics.f1, PREDICTIONS, ANSWERS)))
    assert result["em_n"] == result["f1_n"] == 4


def test_unknown_metrics_are_refused() -> None:
    with pytest.raises(ConfigError, match="no metric is called 'exact'") as caught:
        scores.load("exact")
    assert "em, f1, contains" in str(caught.value.hint)
