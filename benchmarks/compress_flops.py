"""Operations of a question answered from memory: OSCAR's table again, and with the question charged to every passage.

    python benchmarks/compress_flops.py
    python benchmarks/compress_flops.py --documents 50

Mistral-7B reads a question of 128 tokens and ten passages of 128 (OSCAR, Louis et al. 2025, arXiv:2504.07109, Table 1), each
as eight vectors, and writes an answer of 32 tokens. Networks are made from their published sizes on torch's meta device, and
every product of matrices is counted; nothing is downloaded, and nothing depends on the machine.

paper    the compressor reads passage and memory tokens (136); the question is charged to the generator alone. This is what
         the published figures are; the length of the answer is what brings the generator's part nearest to them
honest   the compressor reads the question with every passage, as a query-dependent one does (264 tokens)

The command fails where a published figure is missed by more than a tenth.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

import torch
import transformers
from torch import nn
from transformers import LlamaConfig, MistralConfig, ModernBertConfig

from ragtrain.models.compress.connector import make_connector
from ragtrain.models.flops import StackFlops, cache_bytes, linear_flops
from ragtrain.report import table

TERA = 1e12
#: Mistral-7B-Instruct-v0.2.
GENERATOR: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 32768, "sliding_window": None,
}  # fmt: skip
#: Llama-3.2-1B, with the connector's hidden layer of the paper.
LLAMA = LlamaConfig(
    vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, max_position_embeddings=131072,
)  # fmt: skip
LLAMA_HIDDEN = 8096
BASE = ModernBertConfig()
LARGE = ModernBertConfig(hidden_size=1024, intermediate_size=2624, num_hidden_layers=28, num_attention_heads=16)
#: 10^12 operations in the paper's Table 1: the compressor's, the generator's.
PUBLISHED: dict[str, tuple[float, float]] = {
    "full passages": (0.0, 20.33), "5 layers": (3.04, 3.49), "8 layers": (4.87, 3.49), "Llama-1B": (2.66, 3.49),
}  # fmt: skip
SETTING = {"query": 128, "documents": 10, "document_tokens": 128, "memory_tokens": 8, "new_tokens": 32}
TOLERANCE = 0.10


def main() -> int:
    """Count, print tables (stderr) and one JSON document (stdout); return 1 where a published figure is missed."""
    given = parse()
    document = count(given)
    show(given, document)
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")
    worst = max((abs(row["off"]) for row in document["rows"] if row["off"] is not None), default=0.0)
    if worst > TOLERANCE:
        sys.stderr.write(f"a published figure is missed by {100 * worst:.1f} %\n")
    return int(worst > TOLERANCE)


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    help_of = {"query": "tokens of the question", "documents": "passages", "document_tokens": "tokens of a passage",
               "memory_tokens": "vectors of a passage", "new_tokens": "tokens of the answer"}  # fmt: skip
    for name, value in SETTING.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=help_of[name])
    return parser.parse_args()


def compressors() -> dict[str, tuple[Any, nn.Module | None]]:
    """Return the configuration of each compressor, and its connector."""
    with torch.device("meta"):
        found: dict[str, tuple[Any, nn.Module | None]] = {
            f"{layers} layers": (MistralConfig(**{**GENERATOR, "num_hidden_layers": layers}), None)
            for layers in (5, 8, 10, 16)
        }
        for name, config, hidden in (
            ("Llama-1B", LLAMA, LLAMA_HIDDEN), ("ModernBERT-base", BASE, None), ("ModernBERT-large", LARGE, None),
        ):  # fmt: skip
            found[name] = (
                config,
                make_connector(config.hidden_size, GENERATOR["hidden_size"], hidden, identity=False),
            )
    return found


def count(given: argparse.Namespace) -> dict[str, Any]:
    """Return the operations of every way of reading, in 10^12."""
    config = MistralConfig(**GENERATOR)
    generator = StackFlops(config, head=True)
    vectors = given.documents * given.memory_tokens
    lengths = {"full passages": given.query + given.documents * given.document_tokens, "memory": given.query + vectors}
    reading = {name: generator.forward(tokens) for name, tokens in lengths.items()}
    answered = {name: reading[name] + generator.decode(tokens, given.new_tokens) for name, tokens in lengths.items()}
    rows = [Line("full passages", 0, 0, answered["full passages"])]
    for name, (own, connector) in compressors().items():
        stack = StackFlops(own, head=False)
        joined = 0 if connector is None else vectors * linear_flops(connector)
        read = given.document_tokens + given.memory_tokens
        paper, honest = (stack.forward(tokens, given.documents) + joined for tokens in (read, read + given.query))
        rows.append(Line(name, paper, honest, answered["memory"]))
    setting = {name: getattr(given, name) for name in SETTING}
    return {
        "setting": setting,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "unit": "10^12 operations",
        "rows": [line.to_json(rows[0].generator, published=setting == SETTING) for line in rows],
        "reading_alone": {name: operations / TERA for name, operations in reading.items()},
        "cache_mib": {
            name: cache_bytes(config, tokens, bytes_per_value=2) / 2**20
            for name, tokens in {**lengths, "no passages": given.query}.items()
        },
        "stored_kib": given.memory_tokens * config.hidden_size * 2 / 2**10,
    }


@dataclasses.dataclass(frozen=True)
class Line:
    """A way of reading: operations of the compressor without and with the question, and of the generator."""

    name: str
    paper: int
    honest: int
    generator: int

    def to_json(self, full: int, *, published: bool) -> dict[str, Any]:
        """Return the JSON form, with how many times full passages cost as much, and what is published."""
        paper, honest = self.paper + self.generator, self.honest + self.generator
        parts = PUBLISHED.get(self.name) if published else None
        return {
            "name": self.name, "generator": self.generator / TERA,
            "compressor_paper": self.paper / TERA, "paper": paper / TERA, "paper_ratio": full / paper,
            "compressor_honest": self.honest / TERA, "honest": honest / TERA, "honest_ratio": full / honest,
            "published": parts and sum(parts), "published_compressor": parts and parts[0],
            "published_generator": parts and parts[1], "off": parts and paper / TERA / sum(parts) - 1,
        }  # fmt: skip


def show(given: argparse.Namespace, document: dict[str, Any]) -> None:
    """Print the tables."""

    def digits(value: float | None) -> str | None:
        return None if value is None else f"{value:.2f}"

    table(
        f"10^12 operations: a question of {given.query} tokens, {given.documents} passages of {given.document_tokens} as "
        f"{given.memory_tokens} vectors each, {given.new_tokens} tokens written",
        ["", "generator", "(published)", "compressor", "(published)", "paper", "full/this", "(published)", "off, %", "honest", "full/this"],
        [
            [each["name"], digits(each["generator"]), digits(each["published_generator"]), digits(each["compressor_paper"]),
             digits(each["published_compressor"]), digits(each["paper"]), digits(each["paper_ratio"]),
             digits(each["published"]), None if each["off"] is None else f"{100 * each['off']:+.1f}",
             digits(each["honest"]), digits(each["honest_ratio"])]
            for each in document["rows"]
        ],
    )  # fmt: skip
    reading = ", ".join(f"{name} {value:.2f}" for name, value in document["reading_alone"].items())
    cache = ", ".join(f"{name} {size:.0f} MiB" for name, size in document["cache_mib"].items())
    sys.stderr.write(f"the generator's reading alone: {reading}\n")
    sys.stderr.write(f"keys and values after reading, 16 bits: {cache}\n")
    sys.stderr.write(f"a stored passage: {document['stored_kib']:.0f} KiB of 16-bit vectors\n")


if __name__ == "__main__":
    sys.exit(main())
