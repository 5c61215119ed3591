from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ragtrain import metrics
from ragtrain.config.commands.compress import CompressContextConfig
from ragtrain.data.compress.contexts import CompressContexts
from ragtrain.data.compress.records import CompressExample
from ragtrain.data.sft.distractors import NOT_FOUND
from ragtrain.records import Document


def make(rows: list[CompressExample], seed: int = 0, **given: Any) -> CompressContexts:
    return CompressContexts(rows, CompressContextConfig(**given), seed=seed)


def ids(context: Any) -> list[str]:
    return [document.id for document in context.documents]


def test_gold_passages_never_give_way(row: Any) -> None:
    rows = [row("q", 10, gold=(7, 9)), row("r", 8, gold=(0, 1, 2, 3))]
    contexts = make(rows, n_docs=3)
    for epoch in (None, 0, 1):
        assert set(ids(contexts.context(0, epoch))) == {"q-7", "q-9", "q-0"}
        assert set(ids(contexts.context(1, epoch))) == {"r-0", "r-1", "r-2", "r-3"}  # more than n_docs: all of them
    assert ids(make(rows, n_docs=3, shuffle_docs=False).context(0, 0)) == ["q-0", "q-7", "q-9"]


def test_the_best_by_a_reranker_come_before_others(row: Any) -> None:
    rows = [row("q", 6, gold=(), scores={"q-4": 2.0, "q-1": 1.0, "q-0": -3.0})]
    contexts = make(rows, n_docs=2, shuffle_docs=False)
    assert ids(contexts.context(0, 0)) == ["q-1", "q-4"]
    assert contexts.context(0, 0).scores == (1.0, 2.0)
    assert make(rows, n_docs=4, shuffle_docs=False).context(0, 0).scores == (-3.0, 1.0, None, 2.0)


def test_passages_of_an_index_keep_their_rank_in_evaluations() -> None:
    found = [Document(f"d{i}", "", f"text {i}", i == 4, 10.0 - i) for i in range(5)]
    behind = Document("gold", "", "text gold", True, NOT_FOUND)
    example = CompressExample("q", "q?", ("a",), ("a",), (*found, behind), frozenset({"gold", "d4"}))
    contexts = make([example], n_docs=3, index=Path("index"))
    assert ids(contexts.context(0)) == ["d0", "d1", "d2"]
    # In training the gold passage that was found stays; what no search found never stands for it.
    assert set(ids(contexts.context(0, 0))) == {"d0", "d1", "d4"}


def test_orders_are_new_each_epoch_and_the_same_each_time(row: Any) -> None:
    rows = [row(f"q{i}", 5) for i in range(12)]
    contexts, again, other = make(rows), make(rows), make(rows, seed=1)
    assert not contexts.static
    orders = [tuple(map(tuple, map(ids, contexts.contexts(epoch)))) for epoch in (None, 0, 1)]
    assert len(set(orders)) == 3
    assert [tuple(map(tuple, map(ids, again.contexts(epoch)))) for epoch in (None, 0, 1)] == orders
    assert tuple(map(tuple, map(ids, other.contexts(0)))) != orders[1]
    # Where the gold passage stands gives nothing away, in evaluations either.
    firsts = [ids(context).index(f"q{i}-0") for i, context in enumerate(contexts.contexts())]
    assert len(set(firsts)) > 2
    assert contexts.context(3, 1) == again.context(3, 1)
    fixed = make(rows, shuffle_docs=False)
    assert fixed.static
    assert ids(fixed.context(0, 5)) == [f"q0-{i}" for i in range(5)]


def test_distractors_answer_nothing(row: Any) -> None:
    rows = [row(f"q{i}", 2) for i in range(30)]
    contexts = make(rows, n_distractors=3)
    for epoch in (None, 0):
        for place, context in enumerate(contexts.contexts(epoch)):
            assert len(context.documents) == 5
            assert len({document.text for document in context.documents}) == 5
            others = [document for document in context.documents if not document.id.startswith(f"q{place}-")]
            assert len(others) == 3
            assert not any(metrics.has_answer(context.example.answers, document.text) for document in others)
    assert ids(contexts.context(0, 0)) != ids(contexts.context(0, 1))


def test_empty_passages_are_not_shown(row: Any) -> None:
    example = CompressExample("q", "q?", ("a",), ("a",), (Document("1", " ", "\n"), Document("2", "t", "")))
    assert ids(make([example]).context(0)) == ["2"]
    assert make([example]).lengths() == [1]


@pytest.mark.parametrize("choice", ["first", "random"])
def test_targets(row: Any, choice: Any) -> None:
    rows = [row(f"q{i}", 1, targets=("a", "b", "c")) for i in range(20)] + [row("none", 1, targets=())]
    contexts = CompressContexts(rows, CompressContextConfig(), seed=0, answer_choice=choice)
    drawn = {context.target for context in contexts.contexts(0)[:-1]}
    assert drawn == ({"a"} if choice == "first" else {"a", "b", "c"})
    assert contexts.context(20, 0).target == ""
