"""What windows leave of passages: tokens and answers lost, and answers that a border splits.

    python benchmarks/compress_windows.py --data squad_v1.1_train44articles.json.gz
    python benchmarks/compress_windows.py --data small.json --tokenizer answerdotai/ModernBERT-base --window 8x16 8x4

Rows are read and cut as ``ragtrain train compress`` does it. Beside that: windows of a fixed length, and passages that end
where the first window does, as with a ``max_seq_length``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from transformers import AutoTokenizer

from ragtrain.config.commands.compress import CompressContextConfig, CompressDataConfig
from ragtrain.config.compression import CompressSettings
from ragtrain.data import demo
from ragtrain.data.compress.contexts import CompressContexts
from ragtrain.data.compress.coverage import coverage
from ragtrain.data.compress.records import Window
from ragtrain.data.compress.rows import read_rows
from ragtrain.data.compress.windows import Tokens, Windower
from ragtrain.report import table


class FixedWindower(Windower):
    """Windows of a fixed length, wherever that ends."""

    def cut(self, passage: Tokens, document: int = 0) -> list[Window]:
        """Return the windows of a passage."""
        ids, spans, most = passage.ids, passage.spans, self.settings.window_tokens
        if spans is None or not len(ids):
            return super().cut(passage, document)
        starts = range(0, len(ids), most)
        return [
            Window(ids[i : i + most], document, i, int(spans[i, 0]), int(spans[min(i + most, len(ids)) - 1, 1]))
            for i in starts
        ]


def main() -> int:
    """Count, print a table (stderr) and one JSON document (stdout)."""
    given = parse()
    rows, about = read_rows(CompressDataConfig(), given.data, split="train")
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    shown = CompressContexts(rows, CompressContextConfig(n_docs=given.n_docs), seed=0).contexts()
    counted = []
    for window in given.window:
        tokens, rate = map(int, window.split("x"))
        settings = CompressSettings(num_memory_tokens=tokens, compression_rate=rate)
        first = CompressSettings(num_memory_tokens=tokens, compression_rate=rate, max_windows=1)
        for name, windower in (
            ("ours", Windower(tokenizer, settings)),
            ("fixed length", FixedWindower(tokenizer, settings)),
            ("first window", Windower(tokenizer, first)),
        ):
            began = time.process_time()
            counts = coverage(shown, windower).to_json()
            counted.append({"window": tokens * rate, "borders": name, **counts, "seconds": time.process_time() - began})
    keys = ("share_of_tokens_cut", "share_of_answers_cut", "share_of_spans_split")
    table(
        f"{len(rows)} questions of {given.data.name}",
        ["window", "borders", "windows", "tokens lost, %", "answers lost, %", "spans split, %"],
        [[e["window"], e["borders"], e["windows"], *(f"{100 * e[key]:.2f}" for key in keys)] for e in counted],
    )
    print(json.dumps({"data": about, "tokenizer": str(given.tokenizer), "counts": counted}, indent=2))
    return 0


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="questions with passages, in any known format")
    parser.add_argument("--tokenizer", default=str(demo.CAUSAL), help="the compressor's; the built-in causal model's")
    parser.add_argument("--window", nargs="+", default=["8x16", "8x4"], help="memory tokens x compression rate")
    parser.add_argument("--n-docs", type=int, default=5, help="most passages of a question")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
