"""Greedy generation in batches, against transformers' ``generate`` on one prompt at a time."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ragtrain.errors import ConfigError, OutOfMemoryError
from ragtrain.models import generate as room
from ragtrain.models.adapters import add_lora, merge_lora
from ragtrain.models.generate import end_tokens, generate

WORDS = 60
#: Every model here ends at one of these, so that rows of a batch end at different steps.
ENDS = [2, *range(40, 48)]
SPECIAL = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
SIZE = {"vocab_size": WORDS, "hidden_size": 16, "initializer_range": 0.4, **SPECIAL}
HEADS = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CHATML = (
    "{% for message in messages %}<|im_start|> {{ message.role }} {{ message.content }} <|im_end|> \n {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def network(kind: str) -> PreTrainedModel:
    torch.manual_seed(3)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.4,
                            **SPECIAL)  # fmt: skip
        return GPT2LMHeadModel(config)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS, max_position_embeddings=64))
    if kind == "gemma2":  # every other layer looks back a few tokens only
        return Gemma2ForCausalLM(Gemma2Config(**SIZE, **HEADS, num_key_value_heads=1, head_dim=8, sliding_window=5))
    if kind == "bloom":
        return BloomForCausalLM(BloomConfig(**SIZE, n_layer=2, n_head=2))
    if kind == "phi3":  # prepares its inputs itself
        return Phi3ForCausalLM(Phi3Config(**SIZE, **HEADS))
    # Convolutions: its cache is not made of keys and values alone.
    return Lfm2ForCausalLM(Lfm2Config(**SIZE, **HEADS, num_key_value_heads=2, layer_types=["conv", "full_attention"]))


def words(
    *more: str, template: str | None = None, special: tuple[str, ...] = (), **named: str
) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", *more, *(f"w{i}" for i in range(WORDS))])}
    backend = Tokenizer(models.WordLevel({w: i for w, i in vocabulary.items() if i < WORDS}, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    tokenizer.add_tokens(list(special), special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def prompts(count: int = 13, longest: int = 20) -> list[list[int]]:
    draw = random.Random(1)
    return [[draw.randrange(3, WORDS) for _ in range(draw.randrange(1, longest))] for _ in range(count)]


def reference(model: PreTrainedModel, ids: list[int], limit: int, ends: list[int]) -> list[int]:
    """What ``generate`` writes after one prompt by itself, end token included."""
    settings = GenerationConfig(do_sample=False, max_new_tokens=limit, eos_token_id=ends, pad_token_id=1)
    given = torch.tensor([ids])
    written = model.eval().generate(given, attention_mask=torch.ones_like(given), generation_config=settings)
    return written[0, len(ids) :].tolist()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "bloom", "phi3", "lfm2"])
def test_tokens_equal_those_of_generate_on_one_prompt_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = network(kind), words(eos_token="</s>", pad_token="<pad>")
    model.generation_config.eos_token_id = ENDS
    theirs = []
    by_transformers = room._by_transformers
    monkeypatch.setattr(room, "_by_transformers", lambda *given: theirs.append(1) or by_transformers(*given))
    given = prompts()
    found = generate(model, tokenizer, given, max_new_tokens=9, batch_size=5)
    for ids, one in zip(given, found, strict=True):
        expected = reference(model, ids, 9, ENDS)
        assert one.ended == (expected[-1] in ENDS)
        assert one.n_tokens == len(expected)
        assert one.text == tokenizer.decode(expected[: len(expected) - one.ended], skip_special_tokens=True).strip()
    assert len({one.n_tokens for one in found}) > 1, "the example is made so that rows end at different steps"
    assert {one.ended for one in found} == {True, False}
    assert bool(theirs) == (kind in ("phi3", "lfm2"))


def test_texts_do_not_depend_on_batches_and_come_in_order() -> None:
    model, tokenizer = network("llama"), words()
    model.generation_config.eos_token_id = ENDS
    given, advanced = prompts(), []
    texts = [
        [one.text for one in generate(model, tokenizer, given, max_new_tokens=6, batch_size=size)]
        for size in (1, 4, 99)
    ]
    assert texts[0] == texts[1] == texts[2]
    found = generate(model, tokenizer, given, max_new_tokens=2, batch_size=5, advance=advanced.append)
    assert [len(batch) for batch in advanced] == [5, 5, 3]
    assert [{**advanced[0], **advanced[1], **advanced[2]}[place] for place in range(13)] == found
    assert generate(model, tokenizer, [], max_new_tokens=2, batch_size=5) == []


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_the_model_is_left_as_it_was(kind: str) -> None:
    model = network(kind).train()
    model.model.layers[0].eval()  # a part that is frozen, say
    # The older name warns in newer versions.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model.generation_config.repetition_penalty = 1.7
    model.generation_config.do_sample = True
    before, own = {name: part.training for name, part in model.named_modules()}, model.generation_config
    cached = model.config.use_cache
    state = torch.get_rng_state()
    # Penalties and sampling are not greedy: what is written is what a model without them writes.
    plain = network(kind)
    expected = generate(plain, words(), prompts(), max_new_tokens=8, batch_size=4)
    found = generate(model, words(), prompts(), max_new_tokens=8, batch_size=4)
    assert [one.text for one in found] == [one.text for one in expected]
    assert {name: part.training for name, part in model.named_modules()} == before
    assert model.generation_config is own
    assert model.config.use_cache is cached
    assert any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    model(input_ids=torch.tensor([[3, 4]]), labels=torch.tensor([[3, 4]])).loss.backward()


def test_adapters_in_place_count() -> None:
    model = network("llama")
    add_lora(model, 4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    adapted = [one.text for one in generate(model, words(), prompts(), max_new_tokens=6, batch_size=4)]
    merge_lora(model)
    assert [one.text for one in generate(model, words(), prompts(), max_new_tokens=6, batch_size=4)] == adapted
    assert [
        one.text for one in generate(network("llama"), words(), prompts(), max_new_tokens=6, batch_size=4)
    ] != adapted


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_bases(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    torch.manual_seed(0)
    size = {**SIZE, "hidden_size": 64, "intermediate_size": 64}
    LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path)
    how = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=how, dtype=torch.float32)
    found = generate(model, words(), prompts(4), max_new_tokens=4, batch_size=1)
    for ids, one in zip(prompts(4), found, strict=True):
        assert one.text == words().decode(reference(model, ids, 4, [2])[: one.n_tokens - one.ended])


# --- ends --------------------------------------------------------------------------------------------------------


def test_end_tokens_are_those_of_settings_and_tokenizer() -> None:
    model = network("llama")
    assert end_tokens(model, words()) == {2}, "the configuration's"
    model.generation_config.eos_token_id = [5, 6]
    assert end_tokens(model, words()) == {5, 6}
    assert end_tokens(model, words(eos_token="w3")) == {5, 6}
    assert end_tokens(model, words(eos_token="w9")) == {5, 6, 12}
    model.generation_config.eos_token_id = None
    assert end_tokens(model, words()) == frozenset()
    (one,) = generate(model, words(), [[3, 4]], max_new_tokens=40, batch_size=1)
    assert (one.n_tokens, one.ended) == (40, False)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "<|im_end|>"),
        ("{% for m in messages %}{{ m.role }} \n\n {{ m.content }} <|eot|> {% endfor %}", "<|eot|>"),
        ("{% for m in messages %}{{ m.role }} : {{ m.content }} \n{% endfor %}", None),
        ("{% for m in messages %}{{ m.content }} w7 <|eot|> {% endfor %}", None),
        ("{{ raise_exception('no such conversation') }}", None),
        ("{{ messages[0].content }}", None),
        (None, None),
    ],
    ids=["chatml", "other", "newline", "word", "raises", "no-reply", "no-template"],
)
def test_the_token_that_a_chat_puts_after_a_reply(template: str | None, expected: str | None) -> None:
    tokenizer = words(template=template, special=("<|im_start|>", "<|im_end|>", "<|eot|>"))
    ends = end_tokens(network("llama"), tokenizer) - {2}
    assert ends == (frozenset() if expected is None else {tokenizer.convert_tokens_to_ids(expected)})


def test_a_tokenizer_without_padding_or_end_token_is_enough() -> None:
    with_pad = generate(network("gpt2"), words(pad_token="<pad>"), prompts(), max_new_tokens=5, batch_size=4)
    without = generate(network("gpt2"), words(), prompts(), max_new_tokens=5, batch_size=4)
    assert [(one.n_tokens, one.ended) for one in with_pad] == [(one.n_tokens, one.ended) for one in without]


# --- limits ------------------------------------------------------------------------------------------------------


def test_positions_limit_an_answer_and_a_prompt_that_fills_them_is_refused() -> None:
    model = network("gpt2")
    model.generation_config.eos_token_id = None
    long, short = [5] * 60, [5] * 10
    found = generate(model, words(), [short, long], max_new_tokens=30, batch_size=2)
    assert [one.n_tokens for one in found] == [30, 4]
    assert not any(one.ended for one in found)
    with pytest.raises(ConfigError, match="64 tokens leaves no room in the 64 positions"):
        generate(model, words(), [[5] * 64], max_new_tokens=1, batch_size=1)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_full_device_halves_the_batch(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer, sizes = network("llama"), words(), []
    expected = generate(model, tokenizer, prompts(), max_new_tokens=4, batch_size=8)
    greedy, room_for = room._greedy, 3

    def tight(model: PreTrainedModel, first: dict, mask: torch.Tensor, *more: object) -> object:
        sizes.append(len(mask))
        if len(mask) > room_for:
            raise error
        return greedy(model, first, mask, *more)

    monkeypatch.setattr(room, "_greedy", tight)
    with caplog.at_level(logging.WARNING, "ragtrain"):
        found = generate(model.train(), tokenizer, prompts(), max_new_tokens=4, batch_size=8)
    assert [one.text for one in found] == [one.text for one in expected]
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 1]
    assert "going on with 4" in caplog.text
    room_for = 0
    with pytest.raises(OutOfMemoryError, match="by itself"):
        generate(model, tokenizer, prompts(), max_new_tokens=4, batch_size=8)
    assert model.training


def test_other_errors_are_not_taken_for_a_full_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(room, "_greedy", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        generate(network("llama"), words(), prompts(), max_new_tokens=4, batch_size=8)
