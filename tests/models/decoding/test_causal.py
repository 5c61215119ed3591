"""Causal language models: answers against ``generate`` on one prompt at a time and loops over documents."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from ragtrain.models.decoding import Answer, causal, decode
from ragtrain.models.rag import RagModel, RagSettings

TOKENS = 6
SPECIAL = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
SIZE = {"vocab_size": 60, "hidden_size": 16, "initializer_range": 0.3, **SPECIAL}


def generator_of(kind: str) -> PreTrainedModel:
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3, **SPECIAL
        )
        return GPT2LMHeadModel(config)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZE, **heads))
    if kind == "gemma2":  # every other layer looks back a few tokens only
        return Gemma2ForCausalLM(Gemma2Config(**SIZE, **heads, num_key_value_heads=1, head_dim=8, sliding_window=5))
    return BloomForCausalLM(BloomConfig(**SIZE, n_layer=2, n_head=2, hidden_dropout=0.0, attention_dropout=0.0))


def causal_model(tiny, kind: str, likelihood: str = "sequence") -> RagModel:
    settings = RagSettings(likelihood=likelihood)
    return RagModel(tiny.encoder(tiny.dpr()), generator_of(kind), tiny.bart_tokenizer, settings).eval()


def left_padded(tiny, n_docs: int = 3):
    example = tiny.example(n_docs, (5, 3, 2))
    mask = example.retrieved.attention_mask
    order = mask.argsort(dim=1, stable=True)
    left = dataclasses.replace(
        example.retrieved, input_ids=example.retrieved.input_ids.gather(1, order), attention_mask=mask.gather(1, order)
    )
    return dataclasses.replace(example, retrieved=left)


def answers(model: RagModel, example, num_beams: int, **options: str) -> list[Answer]:
    return decode(
        model, example.question_ids, example.question_mask, example.retrieve, num_beams=num_beams,
        max_new_tokens=TOKENS, **options,
    )  # fmt: skip


def prompt(example, place: int) -> Tensor:
    found = example.retrieved
    return found.input_ids[place][found.attention_mask[place].bool()][None]


def proposals(model: RagModel, example, place: int, num_beams: int) -> list[tuple[int, ...]]:
    """What ``generate`` finds after one prompt, by itself and without padding."""
    ids = prompt(example, place)
    rows = model.generator.generate(
        ids, attention_mask=torch.ones_like(ids), num_beams=num_beams, num_return_sequences=num_beams,
        max_new_tokens=TOKENS, do_sample=False,
    )[:, ids.shape[1] :].tolist()  # fmt: skip
    found = []
    for row in rows:
        end = row.index(2) + 1 if 2 in row else len(row)
        found.append(tuple(row[:end]))
    return found


def loglik(model: RagModel, example, place: int, answer: tuple[int, ...]) -> Tensor:
    """log p of each token of an answer after a prompt, read whole."""
    ids = prompt(example, place)
    with torch.no_grad():
        logits = model.generator(torch.cat([ids, torch.tensor([answer])], 1)).logits[0, ids.shape[1] - 1 : -1]
    return torch.log_softmax(logits, -1)[torch.arange(len(answer)), list(answer)]


@pytest.mark.reference
@pytest.mark.parametrize("method", ["thorough", "fast"])
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "bloom"])
def test_answers_are_the_best_of_all_proposals(
    kind: str, num_beams: int, method: str, tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal, "COPIED_TOKENS", 30)  # several portions
    torch.manual_seed(3)
    model, example = causal_model(tiny, kind), left_padded(tiny)
    for row, answer in enumerate(answers(model, example, num_beams, method=method)):
        own = [proposals(model, example, row * 3 + doc, num_beams) for doc in range(3)]
        expected = {}
        for candidate in {one for some in own for one in some}:
            total = torch.stack([loglik(model, example, row * 3 + doc, candidate).sum() for doc in range(3)])
            if method == "fast":
                total[[candidate not in some for some in own]] = -torch.inf
            expected[candidate] = torch.logsumexp(total + torch.tensor(answer.prior).log(), 0).item()
        assert answer.candidates == len(expected)
        assert answer.token_ids == max(expected, key=lambda candidate: expected[candidate])
        assert answer.log_likelihood == pytest.approx(expected[answer.token_ids], rel=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_rag_token_is_searched_by_the_marginal(kind: str, tiny) -> None:
    model, example = causal_model(tiny, kind, "token"), left_padded(tiny)
    for row, answer in enumerate(answers(model, example, 1)):
        prior, tokens, total = torch.tensor(answer.prior), (), 0.0
        while len(tokens) < TOKENS and 2 not in tokens:  # greedy, one token at a time
            with torch.no_grad():
                logits = [
                    model.generator(
                        torch.cat([prompt(example, row * 3 + doc), torch.tensor([tokens]).long()], 1)
                    ).logits
                    for doc in range(3)
                ]
            mixed = sum(p * torch.softmax(part[0, -1], -1) for p, part in zip(prior, logits, strict=True))
            tokens = (*tokens, int(mixed.argmax()))
            total += mixed.max().log().item()
        assert answer.token_ids == tokens
        assert answer.log_likelihood == pytest.approx(total, rel=1e-4)


def test_an_end_token_that_also_pads_is_scored(tiny) -> None:
    model, example = causal_model(tiny, "gpt2"), left_padded(tiny)
    model.generator.generation_config.eos_token_id = model.pad_token_id
    model.generator.lm_head.weight.data[model.pad_token_id] *= 3  # the same matrix holds the embeddings
    found = answers(model, example, 3)
    assert any(answer.token_ids[-1] == model.pad_token_id for answer in found)
    for row, answer in enumerate(found):
        total = torch.stack([loglik(model, example, row * 3 + doc, answer.token_ids).sum() for doc in range(3)])
        expected = torch.logsumexp(total + torch.tensor(answer.prior).log(), 0).item()
        assert answer.log_likelihood == pytest.approx(expected, rel=1e-4)


def test_a_prompt_is_read_once(tiny) -> None:
    model, example = causal_model(tiny, "llama"), left_padded(tiny)
    widths: list[int] = []
    layer = model.generator.model.layers[0]
    layer.register_forward_hook(lambda _module, inputs, _output: widths.append(inputs[0].shape[1]))
    answers(model, example, 3)
    assert widths[0] == example.retrieved.input_ids.shape[1]
    assert all(width < TOKENS for width in widths[1:])
