"""Answers from stored vectors beside answers from vectors computed for the question: what float16 and int8 cost in quality.

    ragtrain train compress --train-data taught.json --no-query-dependent --output-dir run
    ragtrain index compress --model-dir run --passages passages.jsonl --storage int8 --output-dir memory-int8
    python benchmarks/compress_store.py --model-dir run --data taught_eval.json --store memory-float16 --store memory-int8
    python benchmarks/compress_store.py --published        # bytes and operations of networks of published sizes

Every question is answered with the passages of its row, in their order. Vectors are computed in float32, or taken from each
store by the passages' ids; prompts, decoding and questions are the same. ``--published`` counts operations on the meta device:
passages of 128 tokens and 600 bytes of text, eight vectors each, read by Mistral-7B.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import MistralConfig, ModernBertConfig

from ragtrain import metrics
from ragtrain.config.commands.compress import CompressDataConfig
from ragtrain.data.compress.prompts import CompressPrompter
from ragtrain.data.compress.rows import read_rows
from ragtrain.data.compress.windows import Windower
from ragtrain.data.sft.prompts import PromptSettings
from ragtrain.models.causal import positions_of
from ragtrain.models.compress.export import load_compress
from ragtrain.models.compress.generate import CompressPrompt, generate, vectors_of
from ragtrain.prepare.memory import MemoryStore
from ragtrain.prepare.memory.cost import Sizes, Stacks, costs
from ragtrain.report import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.data.compress.records import CompressExample

#: Mistral-7B-Instruct-v0.2.
MISTRAL: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 32768, "sliding_window": None,
}  # fmt: skip
#: A passage: tokens, vectors, bytes of text.
TOKENS, VECTORS, TEXT_BYTES = 128, 8, 600


def main() -> int:
    """Answer, print a table (stderr) and one JSON document (stdout)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--store", type=Path, action="append")
    parser.add_argument("--n-docs", type=int, default=5)
    parser.add_argument("--max-questions", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    given = parser.parse_args()
    if given.published:
        return published()
    if not (given.model_dir and given.data and given.store):
        parser.error("--model-dir, --data and --store are needed, or --published")
    torch.set_num_threads(1)
    answering = Answering(given.model_dir, given.n_docs, given.max_new_tokens)
    rows, _ = read_rows(CompressDataConfig(), given.data, split="validation")
    rows = [row for row in rows[: given.max_questions] if row.documents]
    computed = answering.computed(rows)
    answers = {"computed": answering.answers(rows, computed)}
    sizes: dict[str, float | None] = {"computed": None}
    for path in given.store:
        store = MemoryStore(path)
        store.check_model(given.model_dir)
        stored = [
            [torch.from_numpy(each) for each in store.vectors([d.id for d in row.documents[: given.n_docs]])]
            for row in rows
        ]
        answers[str(path)] = answering.answers(rows, stored)
        sizes[str(path)] = store.manifest["cost"]["vector_bytes"]
    document = {name: figures(rows, found, answers["computed"]) for name, found in answers.items()}
    for name, entry in document.items():
        entry["bytes_a_passage"] = sizes[name]
    columns = ["vectors", "bytes a passage", "exact match %", "F1 %", "same answer as computed %"]
    table(f"{len(rows)} questions from {given.data}", columns, [
        [name, entry["bytes_a_passage"], 100 * entry["em"], 100 * entry["f1"], 100 * entry["same"]]
        for name, entry in document.items()
    ])  # fmt: skip
    print(json.dumps(document, indent=2))
    return 0


def published() -> int:
    """Print when vectors of passages have paid, for networks of published sizes."""
    layers = {f"first {n} layers": MistralConfig(**{**MISTRAL, "num_hidden_layers": n}) for n in (5, 8, 10)}
    encoder = ModernBertConfig()
    hidden = 4 * encoder.hidden_size
    connector = 2 * hidden * (encoder.hidden_size + MISTRAL["hidden_size"])
    rows, document = [], {}
    for name, config in {**layers, "ModernBERT-base": encoder}.items():
        for storage, size in (("float16", 2), ("int8", 1)):
            stored = VECTORS * (MISTRAL["hidden_size"] * size + 4 * (size == 1)) + 12
            sizes = Sizes(1, [TOKENS + VECTORS], VECTORS, TOKENS, TEXT_BYTES, stored)
            per_vector = connector if config is encoder else 0
            found = costs(Stacks(config, MistralConfig(**MISTRAL), per_vector), sizes)
            document[f"{name}, {storage}"] = found
            rows.append([name, storage, stored, found["times_text"], found["compress_flops"] / 1e12,
                         found["saved_flops"] / 1e12, found["break_even_uses"], found["flops_per_stored_byte"] / 1e6])  # fmt: skip
    columns = ["compressor", "storage", "bytes", "times text", "once, 10^12", "saved each use, 10^12", "paid after uses",
               "10^6 operations a byte"]  # fmt: skip
    table(f"a passage of {TOKENS} tokens as {VECTORS} vectors, Mistral-7B", columns, rows)
    print(json.dumps(document, indent=2))
    return 0


def figures(rows: Sequence[CompressExample], found: Sequence[str], computed: Sequence[str]) -> dict[str, Any]:
    """Return mean exact match and F1, and how many answers are those of computed vectors."""
    return {
        "n": len(rows),
        "em": float(np.mean([metrics.exact_match(a, row.answers) for a, row in zip(found, rows, strict=True)])),
        "f1": float(np.mean([metrics.f1(a, row.answers) for a, row in zip(found, rows, strict=True)])),
        "same": float(np.mean([a == b for a, b in zip(found, computed, strict=True)])),
    }


class Answering:
    """A run that answers from vectors, wherever these come from."""

    def __init__(self, model_dir: Path, n_docs: int, max_new_tokens: int) -> None:
        self.model, tokenizers, sidecar = load_compress(model_dir)
        self.tokenizer, self.n_docs, self.max_new_tokens = tokenizers.generator, n_docs, max_new_tokens
        self.windower = Windower(tokenizers.compressor, self.model.settings)
        settings = PromptSettings.from_json(sidecar.get("prompt") or {})
        self.prompter = CompressPrompter(self.tokenizer, limit=positions_of(self.model.generator), settings=settings)

    def computed(self, rows: Sequence[CompressExample]) -> list[list[torch.Tensor]]:
        """Return the vectors of each passage of each row."""
        found = []
        for row in rows:
            (windowed,) = self.windower.windows([(row.question, row.documents[: self.n_docs])])
            vectors = vectors_of(self.model, [self.windower.collate([windowed])])
            found.append(list(torch.split(vectors, self.windower.counts(windowed))))
        return found

    def answers(self, rows: Sequence[CompressExample], vectors: Sequence[Sequence[torch.Tensor]]) -> list[str]:
        """Return what the generator writes."""
        prompts = []
        for row, parts in zip(rows, vectors, strict=True):
            prompted = self.prompter.memory(row.question, [len(part) for part in parts])
            prompts.append(CompressPrompt(prompted.ids.tolist(), prompted.slots.tolist(), torch.cat(list(parts))))
        written = generate(
            self.model, self.tokenizer, prompts, max_new_tokens=self.max_new_tokens, batch_size=16
        )  # fmt: skip
        return [each.text for each in written]


if __name__ == "__main__":
    sys.exit(main())
