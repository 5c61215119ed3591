"""Tokenizers made on the spot, and chat templates written by hand after the ways of well-known families."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Oslo is the capital of Norway; it lies on a fjord, and about 700,000 people live in the city.",
    "The Glomma (621 km) is Norway's longest river. How long is the Glomma?",
    'Helium is a gas with symbol He and number 2, isn\'t it? Which "gas" has number 2?',
    "Answer the question. Numbered passages come before it: [1] [2] [3]\n\nQuestion: Which city?\nAnswer: Oslo\n",
    "user system assistant model think end_of_turn header Cutting Knowledge Date: December 2023 Today Date: 26 Jul 2024",
] * 10
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>", "<s>", "</s>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>"]  # fmt: skip
ADDED = ["<think>", "</think>"]  # as in Qwen 3: tokens of their own, but not special ones

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_start|>\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_start|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
"""Phi 3: a conversation without a turn to come ends in the end token."""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' + m['content'] | trim + "
    "'<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
"""Gemma 2: no system role, an error if there is one; content is trimmed."""
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Leaves a system message out without a word."""
QWEN3 = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{%- set content = m.content %}{%- set thought = '' %}"
    "{%- if '</think>' in content %}{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.last %}{{- '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' + content }}"
    "{%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}{{- '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
"""Qwen 3: the last answer opens with a block of thought, an empty one where there is none; earlier ones have none."""
LLAMA3 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|im_start|>system\\n\\nCutting Knowledge Date: December 2023\\nToday Date: ' + date_string + '\\n\\n' + system + "
    "'<|eot_id|>' }}"
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n\\n' + m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n\\n' }}{%- endif %}"
)
"""Llama 3.2: the day's date stands in a system message that is always there."""


@functools.cache
def _trained_bpe() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return backend.to_str()


def bpe(
    *, chat: str | None = None, pad: str | None = "<pad>", eos: str = "<|im_end|>", bos: str | None = "<s>",
    adds_bos: bool = False, adds_eos: bool = False,
) -> PreTrainedTokenizerFast:  # fmt: skip
    """Byte-level BPE of a few hundred tokens."""
    backend = Tokenizer.from_str(_trained_bpe())
    if adds_bos or adds_eos:
        single = f"{bos} " * adds_bos + "$A" + f" {eos}" * adds_eos
        backend.post_processor = processors.TemplateProcessing(
            single=single, pair=f"{single} $B", special_tokens=[(t, backend.token_to_id(t)) for t in (bos, eos)]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, pad_token=pad, bos_token=bos)
    tokenizer.add_tokens(ADDED)
    tokenizer.add_special_tokens({"additional_special_tokens": [t for t in SPECIAL if t not in (eos, pad, bos)]})
    tokenizer.chat_template = chat
    return tokenizer


def metaspace() -> PreTrainedTokenizerFast:
    """Unigram with a space before every word and a start token, as in Llama 2 and Mistral."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", bos_token="<s>")


@pytest.fixture(scope="session")
def chats() -> SimpleNamespace:
    """Makers of tokenizers (``bpe``, ``metaspace``) and chat templates by the names of the families."""
    return SimpleNamespace(
        bpe=bpe, metaspace=metaspace, chatml=CHATML, phi=PHI, gemma=GEMMA, drops_system=DROPS_SYSTEM, qwen3=QWEN3,
        llama3=LLAMA3,
    )  # fmt: skip
