"""Micro-batches: the same for the same seed and epoch, every question once, padded to their own longest."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtrain.data import demo
from ragtrain.data.batches import BUCKET_BATCHES, BatchSettings, QuestionSource, target_tokens
from ragtrain.records import Question


@pytest.fixture(scope="module")
def tokenizers():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo.ENCODER), AutoTokenizer.from_pretrained(demo.GENERATOR)


def questions(count: int) -> list[Question]:
    return [
        Question(f"q{i}", "Where is " + "the old " * (i % 7) + f"town {i}?", (f"Answer {i}", "Other place"))
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def source(tokenizers) -> QuestionSource:
    return QuestionSource(questions(101), *tokenizers, BatchSettings(batch_size=4, seed=3))


def test_an_epoch_visits_every_question_once(source: QuestionSource) -> None:
    for epoch in range(3):
        plan = source.plan(epoch)
        assert Counter(i for batch in plan for i in batch) == Counter(range(101))
        assert [len(batch) for batch in plan].count(4) == 25
    assert Counter(i for batch in source.ordered() for i in batch) == Counter(range(101))


def test_the_plan_is_a_function_of_seed_and_epoch(tokenizers, source: QuestionSource) -> None:
    again = QuestionSource(questions(101), *tokenizers, BatchSettings(batch_size=4, seed=3))
    other = QuestionSource(questions(101), *tokenizers, BatchSettings(batch_size=4, seed=4))
    assert source.plan(5) == again.plan(5)
    assert source.plan(5) != source.plan(6)
    assert source.plan(5) != other.plan(5)


def test_neighbours_have_similar_lengths(tokenizers) -> None:
    many = QuestionSource(questions(4 * BUCKET_BATCHES), *tokenizers, BatchSettings(batch_size=4, seed=0))
    spread = [np.ptp([len(many._question_ids[i]) for i in batch]) for batch in many.plan(0)]
    assert np.mean(spread) < 1.0 < np.ptp([len(ids) for ids in many._question_ids])


def test_a_batch_is_padded_to_its_own_longest_and_says_what_is_real(source: QuestionSource) -> None:
    batch = source.collate([0, 6, 13], 0)
    lengths = batch.question_mask.sum(1)
    assert batch.question_ids.shape[1] == int(lengths.max())
    assert (batch.question_ids[batch.question_mask == 0] == source._pad).all()
    real = batch.targets != -100
    assert batch.weight == float(real.sum())
    assert real.sum(1).max() == batch.targets.shape[1]
    assert batch.ids == ("q0", "q6", "q13")


def test_an_answer_is_drawn_anew_each_epoch_and_the_same_each_time(source: QuestionSource) -> None:
    drawn = [tuple(source.collate([7], epoch).targets[0].tolist()) for epoch in range(30)]
    assert drawn == [tuple(source.collate([7], epoch).targets[0].tolist()) for epoch in range(30)]
    assert len(set(drawn)) == 2


def test_the_weight_may_count_answers(tokenizers) -> None:
    counted = QuestionSource(questions(5), *tokenizers, BatchSettings(normalize_by="answer", answer_choice="first"))
    batch = counted.collate([0, 1, 2], 9)
    assert batch.weight == 3.0
    assert torch.equal(batch.targets, counted.collate([0, 1, 2], 0).targets)


def test_the_first_target_token_is_not_weighed_in_style_hf(tokenizers) -> None:
    plain = QuestionSource(questions(3), *tokenizers, BatchSettings(answer_choice="first"))
    unshifted = QuestionSource(questions(3), *tokenizers, BatchSettings(answer_choice="first", unscored_tokens=1))
    assert plain.collate([0, 1], 0).weight - unshifted.collate([0, 1], 0).weight == 2.0


@given(st.text(alphabet="abcdefgh ", min_size=1, max_size=60).filter(str.strip), st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_long_answers_are_cut_and_still_end(text: str, limit: int) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo.GENERATOR)
    ((ids,),) = target_tokens(tokenizer, [[text]], limit)
    whole = tokenizer(f" {text.strip()}")["input_ids"]
    assert len(ids) <= limit
    assert ids[-1] == tokenizer.eos_token_id
    assert ids[: len(ids) - 1] == whole[: len(ids) - 1]


def test_an_answer_has_the_tokens_that_it_has_in_a_passage(tokenizers) -> None:
    ((ids,),) = target_tokens(tokenizers[1], [["Oslo"]], 16)
    passage = tokenizers[1]("The capital is Oslo today", add_special_tokens=False)["input_ids"]
    inner = ids[1:-1]
    assert any(passage[i : i + len(inner)] == inner for i in range(len(passage)))
