"""Rows to tokens and labels: how fast, beside TRL's preparation of the same rows, and what long rows cost.

Each question has the passages of five neighbouring questions. A byte-level BPE of 8,000 tokens is trained on the passages first; it
is that of no model, so tokens are shorter than with the usual 32,000 to 150,000. Times are of one process on one thread;
labels are compared with TRL's before anything is reported.

    python benchmarks/sft_prompts.py
    python benchmarks/sft_prompts.py --questions squad.json.gz --rows 10000 --trl-rows 1000
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ragtrain.data import demo
from ragtrain.data.formats import read_questions
from ragtrain.data.sft.layouts import ChatLayout
from ragtrain.data.sft.prompts import Prompter, PromptSettings
from ragtrain.data.sft.records import Sample
from ragtrain.data.sft.templates import read_instruction

if TYPE_CHECKING:
    from ragtrain.data.sft.overflow import Policy

CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def main() -> None:
    """Measure and print one JSON document; lines go to stderr."""
    given = parse()
    samples = make_samples(given)
    tokenizer = train_tokenizer(samples)
    found: dict[str, Any] = {}
    cases: list[tuple[str, Policy, int]] = [
        ("chat", "drop-docs", 10**6),
        ("plain", "drop-docs", 10**6),
        ("chat", "drop-docs", given.short),
        ("chat", "truncate-docs", given.short),
    ]
    for kind, policy, limit in cases:
        tokenizer.chat_template = CHAT if kind == "chat" else None
        settings = PromptSettings(read_instruction("qa-short"), max_length=limit, on_overflow=policy)
        prompter = Prompter(tokenizer, settings)
        started = time.process_time()
        encoded = prompter.encode(samples)
        seconds = time.process_time() - started
        tokens = sum(len(row.ids) for row in encoded)
        name = kind if limit == 10**6 else f"{kind}, {policy} at {limit}"
        found[name] = {
            "rows": len(encoded), "tokens": tokens, "cpu_s": round(seconds, 2), "rows_per_s": round(len(encoded) / seconds),
            "tokens_per_s": round(tokens / seconds), **prompter.report.to_json(),
        }  # fmt: skip
        print(f"{name}: {len(encoded)} rows of {tokens / len(encoded):.0f} tokens in {seconds:.1f} s; "
              f"{prompter.report.summary()}", file=sys.stderr)  # fmt: skip
    if given.trl_rows:
        tokenizer.chat_template = CHAT
        found["against trl"] = against_trl(tokenizer, samples[: given.trl_rows])
    print(json.dumps(found, indent=2))


def make_samples(given: argparse.Namespace) -> list[Sample]:
    """Return questions, each with the passages of five questions with different ones, its own among them."""
    asked = list(demo.build(0).train if given.questions is None else read_questions(given.questions).questions)
    passages = list({question.documents[0].text: question.documents[0] for question in asked}.values())
    place = {passage.text: i for i, passage in enumerate(passages)}
    return [
        Sample(
            question.id, question.question, target=question.answers[0],
            documents=tuple(passages[(place[question.documents[0].text] + j) % len(passages)] for j in range(5)),
        )
        for question in asked[: given.rows]
    ]  # fmt: skip


def train_tokenizer(samples: list[Sample]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of the passages."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    texts = {sample.documents[0].text for sample in samples}
    backend.train_from_iterator(
        sorted(texts),
        trainers.BpeTrainer(
            vocab_size=8000, special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<pad>")
    return tokenizer


def against_trl(tokenizer: PreTrainedTokenizerFast, samples: list[Sample]) -> dict[str, Any]:
    """Return the processor time of both preparations of the same rows, after their ids and labels were found equal."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    prompter = Prompter(tokenizer, PromptSettings(read_instruction("qa-short"), max_length=10**6))
    assert isinstance(prompter.layout, ChatLayout)  # noqa: S101 - what CHAT gives
    rows = [
        {
            "prompt": prompter.layout.messages(sample),
            "completion": [{"role": "assistant", "content": sample.target}],
        }
        for sample in samples
    ]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            max_length=None,
            disable_tqdm=True,
        )
        started = time.process_time()
        trainer = SFTTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        theirs = time.process_time() - started
        prepared = list(trainer.train_dataset)
    started = time.process_time()
    encoded = prompter.encode(samples)
    ours = time.process_time() - started
    equal = all(
        np.array_equal(row.ids, other["input_ids"]) and np.array_equal(row.labels, other["labels"])
        for row, other in zip(encoded, prepared, strict=True)
    )
    if not equal:
        sys.exit("the labels are not TRL's")
    print(f"{len(rows)} rows, equal labels: TRL {theirs:.1f} s, ours {ours:.1f} s", file=sys.stderr)
    return {"rows": len(rows), "trl_cpu_s": round(theirs, 2), "cpu_s": round(ours, 2), "equal": equal}


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, help="questions with a passage each; without it, the demo set")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--short", type=int, default=None, help="the max_length that makes most rows too long")
    parser.add_argument("--trl-rows", type=int, default=0, help="rows to compare with TRL's preparation")
    given = parser.parse_args()
    given.short = given.short or (200 if given.questions is None else 700)
    return given


if __name__ == "__main__":
    main()
