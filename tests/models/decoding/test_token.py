"""RAG-Token's beam search against transformers' RagTokenForGeneration.generate, and against its definition."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from transformers import RagTokenForGeneration

from ragtrain.errors import DataError
from ragtrain.models.decoding import Answer, decode
from ragtrain.models.rag import RagModel

TOKENS = 8


def token_model(tiny, kind: str) -> RagModel:
    model = tiny.rag(kind).eval()
    model.settings = dataclasses.replace(model.settings, likelihood="token")
    return model


def answers(model: RagModel, example, num_beams: int = 3) -> list[Answer]:
    return decode(
        model, example.question_ids, example.question_mask, example.retrieve, num_beams=num_beams, max_new_tokens=TOKENS
    )


def transformers_answers(model: RagModel, example, num_beams: int) -> list[tuple[int, ...]]:
    encoder, generator = (copy.deepcopy(part) for part in (model.question_encoder.model, model.generator))
    hf = RagTokenForGeneration(question_encoder=encoder, generator=generator).eval()
    found, config = example.retrieved, generator.config
    with torch.no_grad():
        query = model.question_encoder(example.question_ids, example.question_mask)
        sequences = hf.generate(
            context_input_ids=found.input_ids,
            context_attention_mask=found.attention_mask,
            doc_scores=model.scores(query, found),
            n_docs=found.mask.shape[1],
            num_beams=num_beams,
            max_length=TOKENS + 1,
            decoder_start_token_id=model.decoder_start_token_id,
            pad_token_id=model.pad_token_id,
            eos_token_id=config.eos_token_id,
        )
    rows = []
    for row in sequences.tolist():
        tokens = row[1:]
        if config.eos_token_id in tokens:
            tokens = tokens[: tokens.index(config.eos_token_id) + 1]
        while tokens and tokens[-1] == model.pad_token_id:
            tokens.pop()
        rows.append(tuple(tokens))
    return rows


@pytest.mark.reference
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_answers_are_those_of_transformers(kind: str, num_beams: int, tiny) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        model, example = token_model(tiny, kind), tiny.example(3)
        ours = answers(model, example, num_beams)
        assert [answer.token_ids for answer in ours] == transformers_answers(model, example, num_beams)


def slow(model: RagModel, example, row: int, tokens: tuple[int, ...]) -> tuple[float, torch.Tensor]:
    """sum_t log sum_z p(z|q) p(y_t|q,z,y_<t) and the posterior after the whole answer."""
    n_docs = example.retrieved.mask.shape[1]
    part = slice(row * n_docs, row * n_docs + n_docs)
    with torch.no_grad():
        query = model.question_encoder(example.question_ids, example.question_mask)
        prior = torch.softmax(model.scores(query, example.retrieved)[row], 0)
        logits = model.generator(
            input_ids=example.retrieved.input_ids[part],
            attention_mask=example.retrieved.attention_mask[part],
            decoder_input_ids=torch.tensor([[model.decoder_start_token_id, *tokens[:-1]]] * n_docs),
        ).logits
    each = torch.softmax(logits, -1)[:, torch.arange(len(tokens)), list(tokens)]
    whole = prior * each.prod(1)
    return float((prior[:, None] * each).sum(0).log().sum()), whole / whole.sum()


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_likelihood_and_posterior_are_those_of_the_definition(kind: str, num_beams: int, tiny) -> None:
    model, example = token_model(tiny, kind), tiny.example(3)
    for row, answer in enumerate(answers(model, example, num_beams)):
        assert model.pad_token_id not in answer.token_ids
        loglik, posterior = slow(model, example, row, answer.token_ids)
        assert answer.log_likelihood == pytest.approx(loglik, rel=1e-4)
        assert answer.posterior == pytest.approx(posterior.tolist(), abs=1e-4)


def test_missing_passages_count_for_nothing(tiny) -> None:
    model, example = token_model(tiny, "bart"), tiny.example(3)
    before = answers(model, example)
    found = example.retrieved
    wider = [torch.cat([part, part[:, :1].clone()], 1) for part in (found.vectors, found.mask, found.ids)]
    wider[1][:, 3] = False
    rows = torch.cat([torch.arange(12).view(4, 3), torch.arange(0, 12, 3)[:, None]], 1).flatten()
    more = dataclasses.replace(
        found, vectors=wider[0], mask=wider[1], ids=wider[2], input_ids=found.input_ids[rows],
        attention_mask=found.attention_mask[rows],
    )  # fmt: skip
    for one, other in zip(answers(model, dataclasses.replace(example, retrieved=more)), before, strict=True):
        assert one.token_ids == other.token_ids
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-4)
        assert one.posterior[3] == 0


def test_a_question_without_passages_is_an_error(tiny) -> None:
    model, example = token_model(tiny, "bart"), tiny.example(2)
    example.retrieved.mask[1] = False
    with pytest.raises(DataError, match="question 1 of the batch"):
        answers(model, example)
