"""What is written from memory does not depend on who else is in the batch."""

from __future__ import annotations

import itertools
import warnings
from types import SimpleNamespace

import pytest
import torch

from ragtrain.errors import DataError, OutOfMemoryError
from ragtrain.models import generate as plain
from ragtrain.models.compress.generate import CompressPrompt, generate, memories, padded, vectors_of

KINDS = ("llama", "qwen3", "gemma3", "gpt2", "opt")
ROWS = ((5, 30), (1,), (12, 7, 26), (4, 4))


def prompts_of(made, rows=ROWS) -> list[CompressPrompt]:
    batches = [made.windows(row, seed=i) for i, row in enumerate(rows)]
    prompts = []
    for i, memory in enumerate(memories(made.model, batches)):
        one = made.prompted(len(memory.vectors), answer=0, seed=i, words=3 + i)
        prompts.append(CompressPrompt(one.ids, one.slots, memory.vectors))
    return prompts


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_one_by_one(kind: str, make: SimpleNamespace) -> None:
    made = make.model(kind)
    made.model.generator.generation_config.eos_token_id = None
    prompts = prompts_of(made)
    settings = {"max_new_tokens": 12}
    together = generate(made.model, made.tokenizers.generator, prompts, batch_size=4, **settings)
    apart = [generate(made.model, made.tokenizers.generator, [one], batch_size=1, **settings)[0] for one in prompts]
    assert [one.text for one in together] == [one.text for one in apart]
    # Logits too, which say more than words.
    inputs, mask = padded(made.model, prompts)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = made.model.generator(**inputs, attention_mask=mask, position_ids=positions).logits[:, -1]
        assert not any(torch.allclose(one, other, atol=0.1) for one, other in itertools.combinations(logits, 2))
        for row, prompt in zip(logits, prompts, strict=True):
            alone, _ = padded(made.model, [prompt])
            torch.testing.assert_close(row, made.model.generator(**alone).logits[0, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.reference
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_writes_the_same(kind: str, make: SimpleNamespace) -> None:
    made = make.model(kind)
    tokenizer, prompts = made.tokenizers.generator, prompts_of(made)
    ours = generate(made.model, tokenizer, prompts, max_new_tokens=10, batch_size=4)
    inputs, mask = padded(made.model, prompts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = made.model.generator.generate(
            **inputs, attention_mask=mask, max_new_tokens=10, do_sample=False, pad_token_id=1,
        )  # fmt: skip
    assert [one.text for one in ours] == [
        text.strip() for text in tokenizer.batch_decode(theirs, skip_special_tokens=True)
    ]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_prompts_of_text_are_what_they_are_without_a_compressor(kind: str, make: SimpleNamespace) -> None:
    made = make.model(kind)
    ids = [list(range(8, 20)), [30, 31], list(range(40, 45))]
    expected = plain.generate(made.model.generator, made.tokenizers.generator, ids, max_new_tokens=9, batch_size=2)
    prompts = [CompressPrompt(one, [-1] * len(one)) for one in ids]
    found = generate(made.model, made.tokenizers.generator, prompts, max_new_tokens=9, batch_size=3)
    assert [one.text for one in found] == [one.text for one in expected]


def test_other_vectors_other_answers(make: SimpleNamespace) -> None:
    made = make.model()
    made.model.generator.generation_config.eos_token_id = None
    prompt, *_ = prompts_of(made)
    texts = {
        generate(made.model, made.tokenizers.generator, [CompressPrompt(prompt.ids, prompt.slots, vectors)],
                 max_new_tokens=12, batch_size=1)[0].text
        for vectors in (prompt.vectors, prompt.vectors.flip(0), torch.randn_like(prompt.vectors))
    }  # fmt: skip
    assert len(texts) == 3


def test_vectors_that_are_missing_are_noticed(make: SimpleNamespace) -> None:
    made = make.model()
    for prompt in (CompressPrompt([8, 9], [-1, 0]), CompressPrompt([8, 9], [-1]),
                   CompressPrompt([8, 9], [0, 2], torch.zeros(2, 32))):  # fmt: skip
        with pytest.raises(DataError, match="prompt 0 has"):
            generate(made.model, made.tokenizers.generator, [prompt], max_new_tokens=1, batch_size=1)


@pytest.mark.parametrize("compressor", ["n_layers", "modernbert"])
def test_a_full_device_halves_the_windows(
    compressor: str, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = make.model(compressor=compressor)
    batches = [made.windows(*ROWS), made.windows((40, 3), seed=4)]
    whole = memories(made.model, batches)
    sizes, room, compress = [], 3, made.model.compress

    def tight(windows):
        sizes.append(len(windows.input_ids))
        if len(windows.input_ids) > room:
            raise torch.OutOfMemoryError("full")
        return compress(windows)

    monkeypatch.setattr(made.model, "compress", tight)
    found = memories(made.model.train(), batches)
    assert max(sizes) > 4
    assert "going on with" in caplog.text
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one.vectors, other.vectors, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)
        assert not one.vectors.requires_grad
    assert made.model.training
    assert made.model.compressor.training
    assert torch.equal(vectors_of(made.model, batches), torch.cat([one.vectors for one in found]))
    assert vectors_of(made.model, []).shape == (0, 32)
    room = 0
    with pytest.raises(OutOfMemoryError, match="by itself"):
        memories(made.model, batches)
