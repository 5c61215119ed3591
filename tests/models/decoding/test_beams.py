"""Greedy and beam search over trees against transformers' ``generate`` on the same encoder states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from ragtrain.models.decoding.beams import Hypotheses, SearchSettings, best, search
from ragtrain.models.decoding.reading import Seq2SeqReading

TOKENS = 8


def ours(model, example, num_beams: int) -> Hypotheses:
    with torch.no_grad():
        reading = Seq2SeqReading(model, example.retrieved)
        settings = reading.settings(num_beams, TOKENS)
        return search(reading.stepper(settings), len(example.retrieved.input_ids), settings, torch.device("cpu"))


def theirs(model, example, num_beams: int) -> tuple[Tensor, Tensor | None]:
    found = example.retrieved
    output = model.generator.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=model.encode(found.input_ids, found.attention_mask)),
        attention_mask=found.attention_mask, num_beams=num_beams, num_return_sequences=num_beams, max_new_tokens=TOKENS,
        do_sample=False, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    return output.sequences, getattr(output, "sequences_scores", None)


def cut(row: list[int], ends: tuple[int, ...], pad: int) -> list[int]:
    """Tokens up to the end, or up to trailing padding."""
    row = row[1:]
    for place, token in enumerate(row):
        if token in ends:
            return row[: place + 1]
    while row and row[-1] == pad:
        row.pop()
    return row


def eager(generator: PreTrainedModel, strength: float) -> None:
    """Make ends likely, so that rows stop at different times."""
    generator.final_logits_bias[0, 2] = strength


@pytest.mark.reference
@pytest.mark.parametrize("kind", ["bart", "t5", "t5-gated"])
@pytest.mark.parametrize("num_beams", [1, 2, 4])
def test_hypotheses_are_those_of_generate(kind: str, num_beams: int, tiny) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        model, example = tiny.rag(kind).eval(), tiny.example(3)
        compare(model, example, num_beams)


def compare(model, example, num_beams: int) -> int:
    found = ours(model, example, num_beams)
    sequences, scores = theirs(model, example, num_beams)
    ends = model.generator.generation_config.eos_token_id
    ends = tuple(ends) if isinstance(ends, list) else (ends,)
    rows = [cut(row, ends, model.pad_token_id) for row in found.tokens.flatten(0, 1).tolist()]
    assert rows == [cut(row, ends, model.pad_token_id) for row in sequences.tolist()]
    if scores is not None:
        torch.testing.assert_close(found.scores.flatten(), scores, rtol=1e-4, atol=1e-4)
    return len({len(row) for row in rows})


@pytest.mark.reference
@pytest.mark.parametrize(
    "settings",
    [
        {"length_penalty": 2.0},
        {"length_penalty": -0.5},
        {"length_penalty": 0.0, "early_stopping": "never"},
        {"early_stopping": "never"},
        {"early_stopping": True},
        {"eos_token_id": [2, 11, 17, 30]},
        {"no_repeat_ngram_size": 2},
        {"min_length": 4},
        {"forced_eos_token_id": None},
        {"forced_bos_token_id": 0},
        {"repetition_penalty": 1.7},
    ],
    ids=str,
)
@pytest.mark.parametrize("strength", [0.0, 3.0])
def test_generation_settings_mean_what_they_mean_there(settings: dict[str, object], strength: float, tiny) -> None:
    lengths = 0
    for seed in range(3):
        torch.manual_seed(seed)
        model, example = tiny.rag("bart").eval(), tiny.example(4)
        eager(model.generator, strength)
        for name, value in settings.items():
            setattr(model.generator.generation_config, name, value)
        lengths = max(lengths, compare(model, example, 3))
    assert lengths > 1 or not strength


@pytest.mark.parametrize("strength", [0.0, 2.5])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_token_likelihoods_are_the_models(num_beams: int, strength: float, tiny) -> None:
    model, example = tiny.rag("bart").eval(), tiny.example(3)
    eager(model.generator, strength)
    found = ours(model, example, num_beams)
    pad = model.pad_token_id
    for row in range(12):
        for beam in range(num_beams):
            tokens = found.tokens[row, beam]
            with torch.no_grad():
                logits = model.generator(
                    input_ids=example.retrieved.input_ids[row : row + 1],
                    attention_mask=example.retrieved.attention_mask[row : row + 1],
                    decoder_input_ids=tokens[None, :-1],
                ).logits[0]
            expected = torch.log_softmax(logits, -1).gather(1, tokens[1:, None])[:, 0].masked_fill(tokens[1:] == pad, 0)
            torch.testing.assert_close(found.token_loglik[row, beam], expected, rtol=1e-4, atol=1e-4)


def test_rows_that_are_done_are_dropped(tiny) -> None:
    model, example = tiny.rag("bart").eval(), tiny.example(4)
    eager(model.generator, 5.0)
    reading = Seq2SeqReading(model, example.retrieved)
    settings = reading.settings(3, 30)
    stepper = reading.stepper(settings)
    seen = []

    class Spy:
        def __call__(self, tokens: Tensor, origin: Tensor | None) -> Tensor:
            seen.append(len(tokens))
            return stepper(tokens, origin)

        def select(self, rows: Tensor) -> None:
            stepper.select(rows)

    with torch.no_grad():
        search(Spy(), 16, settings, torch.device("cpu"))
    assert seen[0] == 16
    assert seen == sorted(seen, reverse=True)
    assert len(seen) < 30 or seen[-1] <= 8


@pytest.mark.parametrize(("vocab", "count"), [(60, 6), (4096, 8), (50265, 8), (50265, 1), (4100, 3)])
def test_best_is_topk(vocab: int, count: int) -> None:
    values = torch.randn(3, 2, vocab)
    values[0, 0, -1] = 9.0
    found, places = best(values, count)
    expected = values.topk(count)
    assert torch.equal(found, expected.values)
    assert torch.equal(places, expected.indices)


def test_a_forced_end_is_looked_at_in_the_last_step_only(tiny) -> None:
    """BART has one, and processing the scores of the whole vocabulary in every step would cost."""
    model, inputs = tiny.rag("bart"), torch.ones(1, 4, dtype=torch.long)
    settings = SearchSettings.of(model.generator, inputs, 2, 5)
    assert settings.processor_steps == {4}
    model.generator.generation_config.no_repeat_ngram_size = 2
    assert SearchSettings.of(model.generator, inputs, 2, 5).processor_steps is None
    assert SearchSettings.of(tiny.rag("t5").generator, inputs, 2, 5).processors is None
