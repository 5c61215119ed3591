"""Rows as tensors: the same tokens predicted from the same ones, whatever the form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtrain.data.sft.batches import SftBatch, collate_packed, collate_rows, collate_shared
from ragtrain.data.sft.records import IGNORED, Encoded

PAD = 0


def row(ids: list[int], first_trained: int) -> Encoded:
    array = np.array(ids, dtype=np.int32)
    return Encoded(array, np.where(np.arange(len(ids)) >= first_trained, array, IGNORED).astype(np.int32))


def contexts(batch: SftBatch) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Each trained token with what it is predicted from: the tokens that are seen, by position, and itself."""
    rows, tokens = batch.input_ids.shape
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    positions = batch.position_ids
    if positions is None:
        positions = torch.arange(tokens).expand(rows, tokens)
    found = []
    for place, target in zip(batch.predictors.tolist(), batch.targets.tolist(), strict=True):
        i, t = divmod(place, tokens)
        if batch.attention_mask is not None:
            seen = batch.attention_mask[i, 0, t]
        else:
            # Without a mask, a sample begins where the position is not the one after the last (transformers' rule).
            begins = torch.cat([torch.ones(1, dtype=torch.bool), positions[i].diff() != 1]).cumsum(0)
            seen = causal[t] & (begins == begins[t])
        order = positions[i][seen].argsort()
        found.append((
            tuple(batch.input_ids[i][seen][order].tolist()), tuple(positions[i][seen][order].tolist()), target,
        ))  # fmt: skip
    return sorted(found)


def by_hand(rows: list[Encoded]) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
    return sorted(
        (tuple(each.ids[:t].tolist()), tuple(range(t)), int(each.labels[t]))
        for each in rows
        for t in range(1, len(each.ids))
        if each.labels[t] != IGNORED
    )


@st.composite
def some_rows(draw: st.DrawFn) -> list[Encoded]:
    """Rows of few different tokens, so that beginnings are often the same; some empty, some with nothing to learn."""
    ids = st.lists(st.integers(1, 2), min_size=0, max_size=9)
    rows = []
    for tokens in draw(st.lists(ids, min_size=1, max_size=6)):
        first = draw(st.integers(0, len(tokens)))
        rows.append(row(tokens, first))
    return rows


@settings(max_examples=150, deadline=None)
@given(rows=some_rows(), capacity=st.integers(9, 30))
def test_every_form_predicts_the_same_tokens_from_the_same_ones(rows: list[Encoded], capacity: int) -> None:
    ids = [str(i) for i in range(len(rows))]
    expected = by_hand(rows)
    for batch in (
        collate_rows(rows, ids, PAD), collate_packed(rows, ids, capacity, PAD), collate_shared(rows, ids, PAD),
        collate_shared(rows, ids, PAD, capacity=capacity),
    ):  # fmt: skip
        assert contexts(batch) == expected
        assert batch.weight == len(expected) == int((batch.labels != IGNORED).sum()) == sum(r.trained for r in rows)
        assert batch.tokens <= sum(len(each.ids) for each in rows)
        assert batch.ids == tuple(ids)
        shifted = batch.labels[:, 1:]
        assert batch.targets.tolist() == shifted[shifted != IGNORED].tolist()


def test_rows_are_padded_on_the_right() -> None:
    batch = collate_rows([row([5, 6, 7], 2), row([8, 9], 0)], ["a", "b"], PAD)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, PAD]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 7], [IGNORED, 9, IGNORED]]
    assert batch.attention_mask is batch.position_ids is None
    assert (batch.weight, batch.tokens, batch.ids) == (2.0, 5, ("a", "b"))
    assert batch.predictors.tolist() == [1, 3]
    assert {t.dtype for t in (batch.input_ids, batch.labels, batch.predictors, batch.targets)} == {torch.int64}


def test_a_token_that_is_the_padding_token_is_still_trained() -> None:
    batch = collate_rows([row([5, 6, PAD], 1), row([8, PAD], 1)], ["a", "b"], PAD)
    assert batch.targets.tolist() == [6, PAD, PAD]


def test_packed_rows_have_positions_and_no_mask() -> None:
    batch = collate_packed([row([1, 2], 1), row([3, 4, 5], 1), row([6, 7, 8, 9], 1)], ["a", "b", "c"], 6, PAD)
    assert batch.input_ids.tolist() == [[6, 7, 8, 9, 1, 2], [3, 4, 5, PAD, PAD, PAD]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 1, 2]]
    assert batch.labels.tolist() == [[IGNORED, 7, 8, 9, IGNORED, 2], [IGNORED, 4, 5, IGNORED, IGNORED, IGNORED]]
    assert batch.attention_mask is None
    assert batch.tokens == 9


def test_a_shared_row() -> None:
    batch = collate_shared([row([1, 2, 3, 7, 8], 4), row([1, 2, 3, 9], 3), row([4, 5], 1)], ["a", "b", "c"], PAD)
    assert batch.input_ids.tolist() == [[1, 2, 3, 7, 8, 3, 9], [4, 5, PAD, PAD, PAD, PAD, PAD]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3], [0, 1, 0, 0, 0, 0, 0]]
    assert batch.labels[0].tolist() == [IGNORED, IGNORED, IGNORED, IGNORED, 8, IGNORED, 9]
    assert batch.attention_mask.dtype == torch.bool
    assert batch.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1, 1],
    ]
    assert batch.attention_mask.diagonal(dim1=2, dim2=3).all()  # padding sees itself: attention over nothing is NaN


def test_nothing_shared_is_rows() -> None:
    batch = collate_shared([row([1, 2, 3], 1), row([4, 5], 1)], ["a", "b"], PAD)
    assert batch.attention_mask is batch.position_ids is None
    assert collate_shared([row([1, 2, 3], 1), row([4, 5], 1)], ["a", "b"], PAD, capacity=5).attention_mask is not None


@pytest.mark.parametrize("rows", [[], [row([], 0), row([], 0)]], ids=["none", "empty"])
def test_nothing_is_one_token_without_label(rows: list[Encoded]) -> None:
    ids = ["a"] * len(rows)
    for batch in (collate_rows(rows, ids, 3), collate_packed(rows, ids, 8, 3), collate_shared(rows, ids, 3)):
        assert batch.input_ids.tolist() == [[3]]
        assert (batch.weight, batch.tokens) == (0.0, 0)
        assert len(batch.targets) == len(batch.predictors) == 0


def test_a_batch_moves_with_all_its_tensors() -> None:
    batch = collate_shared([row([1, 2, 3], 2), row([1, 2, 4], 2)], ["a", "b"], PAD).to("meta")
    tensors = (batch.input_ids, batch.labels, batch.attention_mask, batch.position_ids, batch.predictors, batch.targets)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (batch.weight, batch.ids) == (2.0, ("a", "b"))
