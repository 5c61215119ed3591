from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ragtrain.config.compression import CompressSettings
from ragtrain.data.compress.batches import collate_prompts
from ragtrain.data.compress.prompts import CompressPrompter
from ragtrain.data.compress.windows import Windower
from ragtrain.records import Document

DOCUMENTS = [Document("1", "Oslo", "Oslo is the capital of Norway. " * 8), Document("2", "", "Helium is a gas.")]


@pytest.fixture(scope="module")
def parts(causal: Any) -> tuple[Windower, CompressPrompter]:
    return Windower(causal, CompressSettings(num_memory_tokens=4, compression_rate=8)), CompressPrompter(causal)


def test_vectors_are_numbered_through_the_batch(parts: tuple[Windower, CompressPrompter]) -> None:
    windower, prompter = parts
    rows = windower.windows([("a?", DOCUMENTS), ("b?", []), ("c?", DOCUMENTS[1:])])
    prompts = [prompter.memory("a?", windower.counts(row), "x y z"[: 2 * i + 1]) for i, row in enumerate(rows)]
    windows = windower.collate(rows)
    batch = collate_prompts(prompts, ["a", "b", "c"], windows, prompter.pad_id, scores=[1.5, None, -2.0])
    assert batch.ids == ("a", "b", "c")
    assert batch.slot[batch.slot >= 0].tolist() == list(range(int(windows.counts.sum())))
    assert not (batch.slot[1] >= 0).any()
    for i, prompt in enumerate(prompts):
        n = len(prompt.ids)
        assert batch.input_ids[i, :n].tolist() == prompt.ids.tolist()
        assert batch.attention_mask[i].tolist() == [1] * n + [0] * (batch.input_ids.shape[1] - n)
        assert batch.labels[i, :n].tolist() == prompt.labels.tolist()
        assert (batch.labels[i, n:] == -100).all()
        assert (batch.slot[i, n:] == -1).all()
    flat = batch.labels.reshape(-1)
    assert flat[batch.predictors + 1].tolist() == batch.targets.tolist()
    assert batch.weight == len(batch.targets) == sum(prompt.trained for prompt in prompts)
    assert batch.tokens == sum(len(prompt.ids) for prompt in prompts)
    assert batch.rank_targets.dtype == torch.float32
    np.testing.assert_equal(batch.rank_targets.numpy(), np.array([1.5, np.nan, -2.0], dtype=np.float32))
    moved = batch.to("cpu")
    assert moved.windows.counts.tolist() == windows.counts.tolist()
    assert (moved.weight, moved.ids, moved.full) == (batch.weight, batch.ids, None)


def test_without_scores_there_are_no_targets_of_the_rank_head(parts: tuple[Windower, CompressPrompter]) -> None:
    windower, prompter = parts
    rows = windower.windows([("a?", DOCUMENTS)])
    prompt = prompter.memory("a?", windower.counts(rows[0]))
    batch = collate_prompts([prompt], ["a"], windower.collate(rows), prompter.pad_id)
    assert batch.rank_targets.isnan().tolist() == [True, True]
    assert (batch.weight, len(batch.targets)) == (0, 0)


def test_prompts_and_windows_must_agree(parts: tuple[Windower, CompressPrompter]) -> None:
    windower, prompter = parts
    rows = windower.windows([("a?", DOCUMENTS)])
    with pytest.raises(ValueError, match="places for 3 vectors, the windows"):
        collate_prompts([prompter.memory("a?", [3])], ["a"], windower.collate(rows), prompter.pad_id)
