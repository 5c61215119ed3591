"""Answers from stored vectors beside answers from vectors computed for the question: what float16 and int8 cost in quality.

    ragtrain train compress --train-data taught.json --no-query-dependent --output-dir run
    ragtrain index compress --model-dir run --passages passages.jsonl --storage int8 --output-dir memory-int8
    python benchmarks/compress_store.py --model-dir run --data taught_eval.json --store memory-float16 --store memory-int8

Every question is answered with the passages of its row, in their order. Vectors are computed in float32, or taken from each
store by the passages' ids; prompts, decoding and questions are the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

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
from ragtrain.report import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.data.compress.records import CompressExample


def main() -> int:
    """Answer, print a table (stderr) and one JSON document (stdout)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--store", type=Path, action="append", required=True)
    parser.add_argument("--n-docs", type=int, default=5)
    parser.add_argument("--max-questions", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    given = parser.parse_args()
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
            found.append(list(vectors.split(self.windower.counts(windowed))))
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
