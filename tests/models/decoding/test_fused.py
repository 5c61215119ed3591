"""Fusion in the decoder: answers against ``generate`` over states laid end to end by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from ragtrain.models.decoding import decode, reading
from ragtrain.models.rag import RagModel


def fid_model(tiny, kind: str) -> RagModel:
    model = tiny.rag(kind).eval()
    model.settings = dataclasses.replace(model.settings, likelihood="fid")
    return model


@pytest.mark.reference
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_answers_are_those_of_generate_over_all_passages(
    kind: str, num_beams: int, tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "ENCODED_TOKENS", 20)  # several portions
    for seed in range(3):
        torch.manual_seed(seed)
        model, example = fid_model(tiny, kind), tiny.example(3)
        found = example.retrieved
        found.mask[0, 2] = False  # what stands in its place is not read
        ours = decode(
            model, example.question_ids, example.question_mask, example.retrieve, num_beams=num_beams, max_new_tokens=8
        )
        for row, answer in enumerate(ours):
            places = [row * 3 + doc for doc in range(3) if found.mask[row, doc]]
            ids = [found.input_ids[place][found.attention_mask[place].bool()] for place in places]
            with torch.no_grad():
                states = torch.cat([model.encode(part[None], torch.ones_like(part)[None]) for part in ids], 1)
                output = model.generator.generate(
                    encoder_outputs=BaseModelOutput(last_hidden_state=states), num_beams=num_beams, max_new_tokens=8,
                    attention_mask=torch.ones(1, states.shape[1]), do_sample=False,
                )[0].tolist()  # fmt: skip
                tokens = list(answer.token_ids)
                assert tokens == output[1 : 1 + len(tokens)]
                assert set(output[1 + len(tokens) :]) <= {model.pad_token_id, model.generator.config.eos_token_id}
                logits = model.generator(
                    encoder_outputs=BaseModelOutput(last_hidden_state=states),
                    decoder_input_ids=torch.tensor([[model.decoder_start_token_id, *tokens[:-1]]]),
                ).logits[0]
            loglik = torch.log_softmax(logits, -1)[torch.arange(len(tokens)), tokens].sum()
            assert answer.log_likelihood == pytest.approx(float(loglik), rel=1e-4)
            assert answer.posterior == answer.prior
            assert sum(answer.prior) == pytest.approx(1, abs=1e-5)
