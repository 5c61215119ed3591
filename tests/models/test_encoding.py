from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from ragtrain.models import encoding
from ragtrain.models.encoder import evaluating
from ragtrain.models.encoding import RaggedTokens, ragged_tokens, token_batches, token_budget
from ragtrain.models.packed import packed

if TYPE_CHECKING:
    from types import SimpleNamespace


def texts(count: int, longest: int = 12) -> list[str]:
    draw = random.Random(1)
    return [" ".join(f"w{draw.randrange(50)}" for _ in range(draw.randint(1, longest))) for _ in range(count)]


def ragged(lengths: list[int]) -> RaggedTokens:
    """Text i is made of tokens 1000 i, 1000 i + 1, …; its segments are those tokens' parity."""
    ids = np.concatenate([np.arange(length) + 1000 * i for i, length in enumerate(lengths)]).astype(np.int32)
    return RaggedTokens(ids, ids % 2, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


@pytest.mark.parametrize("budget", [1, 7, 16, 64, 10**6])
@pytest.mark.parametrize("kinds", [1, 3, 12])
def test_batches_hold_every_text_once_and_keep_to_the_budget(budget: int, kinds: int) -> None:
    draw = random.Random(budget)
    lengths = [draw.randint(1, kinds) for _ in range(97)]
    batches = token_batches(ragged(lengths), budget, pad_token_id=-5)
    assert sorted(batches.order.tolist()) == list(range(97))
    assert (np.diff(batches.lengths) <= 0).all(), "longest first"
    total = 0
    for batch in batches.batches:
        assert batch.rows * batch.longest <= max(budget, batch.longest)
        block = batches.ids[batch.offset :][: batch.rows * batch.longest].reshape(batch.rows, batch.longest)
        segments = batches.segments[batch.offset :][: batch.rows * batch.longest].reshape(block.shape)
        assert batch.padded == bool((block == -5).any())
        for row, text in zip(range(batch.rows), batches.order[batch.first :], strict=False):
            length = lengths[text]
            assert block[row].tolist() == [1000 * text + j for j in range(length)] + [-5] * (batch.longest - length)
            assert (segments[row, :length] == block[row, :length] % 2).all()
            assert (segments[row, length:] == 0).all()
        total += batch.rows
    assert total == 97
    assert batches.padding == int((batches.ids == -5).sum())


def test_with_enough_texts_hardly_any_is_padded() -> None:
    batches = token_batches(ragged([1 + i % 9 for i in range(900)]), 200, pad_token_id=0)
    assert batches.padding < 0.01 * len(batches.ids), "only where the rest of a length is too small for a batch"
    assert max(batch.rows * batch.longest for batch in batches.batches) > 100


def test_no_text_at_all() -> None:
    batches = token_batches(RaggedTokens(np.empty(0, np.int32), None, np.zeros(1, np.int64)), 10, pad_token_id=0)
    assert len(batches) == 0
    assert batches.batches == []


def test_budget_is_bounded_on_a_cpu_only() -> None:
    assert token_budget(10**6, torch.device("cpu")) == encoding.CPU_TOKENS
    assert token_budget(100, torch.device("cpu")) == 100
    assert token_budget(10**6, torch.device("cuda")) == 10**6


def test_tokens_are_those_of_the_tokenizer(tiny: SimpleNamespace) -> None:
    first, second = texts(9), texts(18, 40)[9:]
    for pairs in (None, second):
        tokens = ragged_tokens(tiny.bert_tokenizer, first, pairs, max_tokens=20)
        for i in range(9):
            one = tiny.bert_tokenizer(
                first[i], None if pairs is None else pairs[i], truncation="longest_first", max_length=20,
                return_token_type_ids=True,
            )  # fmt: skip
            assert tokens.ids[tokens.bounds[i] : tokens.bounds[i + 1]].tolist() == one["input_ids"]
            if tokens.segments is not None:
                found = tokens.segments[tokens.bounds[i] : tokens.bounds[i + 1]].tolist()
                assert found == one["token_type_ids"]
        assert (tokens.segments is None) == (pairs is None)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "pooler"])
@pytest.mark.parametrize("worth_packing", [1, 10**9])
def test_vectors_equal_those_of_one_text_at_a_time(
    tiny: SimpleNamespace, pooling: str, worth_packing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "WORTH_PACKING", worth_packing)
    encoder = tiny.encoder(tiny.dpr("passage") if pooling == "pooler" else tiny.bert(dropout=0.1), pooling)
    encoder.train()
    pairs = list(zip(texts(40), reversed(texts(40)), strict=True))
    done: list[int] = []
    vectors = encoder.encode_passages(pairs, batch_size=3, progress=done.append)
    assert sum(done) == 40
    assert encoder.training
    assert vectors.dtype == np.float32
    with evaluating(encoder):
        slow = torch.cat([encoder(**encoder.tokenize_passages([pair])) for pair in pairs]).numpy()
    assert np.abs(vectors - slow).max() <= 1e-5 * np.abs(slow).max()
    again = encoder.encode_passages(encoder.passage_batches(pairs, 3))
    assert (again == vectors).all(), "batches made ahead are the same batches"
    questions = [text for text, _ in pairs]
    with evaluating(encoder):
        slow = torch.cat([encoder(**encoder.tokenize_questions([text])) for text in questions]).numpy()
    assert np.abs(encoder.encode_questions(questions, batch_size=7) - slow).max() <= 1e-5 * np.abs(slow).max()


@pytest.mark.parametrize(("activation", "inside"), [("gelu", 1), ("relu", 0), ("gelu_new", 0)])
def test_packed_layers_compute_the_same(activation: str, inside: int) -> None:
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                        hidden_act=activation)  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # biases are zero otherwise
    ids = torch.randint(0, 50, (5, 9))
    with torch.no_grad():
        plain = model(ids).last_hidden_state
        with packed(model) as layers:
            assert layers == 2 * 6, "four of attention, two behind it"
            fused = sum("forward" in vars(layer.intermediate) for layer in model.encoder.layer)
            assert fused == 2 * inside
            fast = model(ids).last_hidden_state
        assert torch.equal(model(ids).last_hidden_state, plain), "as before"
    assert (fast - plain).abs().max() <= 1e-5 * plain.abs().max()
    assert not any("forward" in vars(module) for module in model.modules())


def test_packing_leaves_alone_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return super().forward(states) + 1

    model = nn.Sequential(Own(4, 4), nn.Linear(4, 4).double(), nn.LayerNorm(4))
    with packed(model) as layers:
        assert layers == 0
    monkeypatch.setattr("ragtrain.models.packed._checked", False)
    with packed(nn.Sequential(nn.Linear(4, 4))) as layers:
        assert layers == 0, "the operators were missing, or wrong"
