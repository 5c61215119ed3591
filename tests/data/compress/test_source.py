from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from ragtrain.config.commands.compress import CompressContextConfig
from ragtrain.config.compression import CompressSettings
from ragtrain.data.compress.contexts import CompressContexts
from ragtrain.data.compress.prompts import CompressPrompter
from ragtrain.data.compress.source import CompressSource, FullSource, batch_rates, planned
from ragtrain.data.compress.windows import Windower
from ragtrain.errors import DataError


@pytest.fixture
def make(row: Any, causal: Any) -> Any:
    def source(n_rows: int = 10, *, limit: int | None = None, seed: int = 0, **given: Any) -> CompressSource:
        settings = CompressSettings(num_memory_tokens=2, compression_rate=8, rates=(4, 16), rank_head=True)
        rows = [row(f"q{i}", 1 + i % 4, scores={f"q{i}-0": float(i)}) for i in range(n_rows)]
        contexts = CompressContexts(rows, CompressContextConfig(n_distractors=1), seed=seed)
        prompter = CompressPrompter(causal, limit=limit)
        return CompressSource(contexts, Windower(causal, settings), prompter, batch_size=3, seed=seed, **given)

    return source


def test_every_row_is_met_once_an_epoch_in_an_order_of_its_own(make: Any) -> None:
    source, again, other = make(), make(), make(seed=1)
    plans = [source.plan(epoch) for epoch in range(3)]
    for plan in plans:
        assert sorted(i for batch in plan for i in batch) == list(range(10))
        assert [len(batch) for batch in plan].count(3) == 3
    assert len({str(plan) for plan in plans}) == 3
    assert [again.plan(epoch) for epoch in range(3)] == plans
    assert other.plan(0) != plans[0]
    visited = [i for batch in source.ordered() for i in batch]
    assert sorted(visited) == list(range(10))
    assert visited[0] % 4 == 3  # the longest first


def test_rows_of_similar_cost_share_a_micro_batch() -> None:
    costs = np.random.default_rng(0).permutation(64)
    batches = planned(costs, 8, 0, 0)
    assert max(int(np.ptp(costs[batch])) for batch in batches) == 7
    assert planned(costs, 8, 0, 0, shuffle=False)[0] == np.argsort(costs)[:8].tolist()


def test_rates_are_drawn_evenly() -> None:
    drawn = batch_rates(100, (8, 4, 16), 0, 0)
    counts = Counter(drawn)
    assert len(drawn) == 100
    assert max(counts.values()) - min(counts.values()) <= 1
    assert drawn == batch_rates(100, (8, 4, 16), 0, 0)
    assert drawn != batch_rates(100, (8, 4, 16), 0, 1)
    assert batch_rates(3, (8,), 0, 0) == [8, 8, 8]


def test_a_micro_batch_has_one_rate_and_keeps_it_in_halves(make: Any) -> None:
    source = make()
    rates = set()
    for epoch in range(3):
        for indices in source.plan(epoch):
            whole = source.collate(indices, epoch)
            rates.add(whole.windows.rate)
            halves = [source.collate([i], epoch) for i in indices]
            assert {half.windows.rate for half in halves} == {whole.windows.rate}
            assert sum(half.weight for half in halves) == whole.weight
            assert [i for half in halves for i in half.windows.counts.tolist()] == whole.windows.counts.tolist()
    assert rates == {8, 4, 16}
    # An epoch that is asked for late gives what it gave early.
    first = make().collate(source.plan(0)[0], 0)
    assert source.collate(source.plan(0)[0], 0).input_ids.tolist() == first.input_ids.tolist()


def test_the_full_text_trains_the_same_tokens(make: Any) -> None:
    source = make(full=True)
    for indices in source.plan(0):
        batch = source.collate(indices, 0)
        assert batch.full is not None
        assert batch.full.targets.tolist() == batch.targets.tolist()
        assert batch.full.ids == batch.ids
    full = FullSource(source.contexts, source.prompter, batch_size=3, seed=0)
    assert full.plan(0) == source.plan(0)
    indices = full.plan(1)[0]
    assert full.collate(indices, 1).input_ids.tolist() == source.collate(indices, 1).full.input_ids.tolist()


def test_scores_follow_their_documents(make: Any) -> None:
    source = make()
    for indices in source.plan(0):
        batch, shown = source.collate(indices, 0), [source.contexts.context(i, 0) for i in indices]
        expected = [score for each in shown for score in each.scores]
        assert batch.windows.n_documents == len(expected) == sum(len(each.documents) for each in shown)
        np.testing.assert_equal(
            batch.rank_targets.numpy(), np.array([np.nan if score is None else score for score in expected], np.float32)
        )
        assert np.isfinite(batch.rank_targets.numpy()).sum() == len(indices)


def test_an_evaluation_is_the_same_each_time(make: Any) -> None:
    source = make()
    batch = source.evaluation([0, 3])
    assert batch.windows.rate == 8
    assert batch.input_ids.tolist() == source.evaluation([0, 3]).input_ids.tolist()
    assert source.evaluation([0, 3], 4).windows.counts.sum() > batch.windows.counts.sum()


def test_too_much_memory_is_refused_before_training(make: Any) -> None:
    make(limit=2048).check()
    with pytest.raises(DataError, match="memory vectors needs"):
        make(limit=100).check()
