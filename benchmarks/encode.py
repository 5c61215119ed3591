"""Encoding passages, ours against sentence-transformers' ``SentenceTransformer.encode``: same encoder, same passages.

Both load one sentence-transformers folder, read the same texts (title and text joined by a space), compute in the same
precision on the same device, and take turns. sentence-transformers is run at its default batch size (32) and at each
of ``--their-batch-sizes``; the fastest of these is its best. The vectors are compared first: every cosine must be at
least 0.99999 (0.9999 in half precision). Wall time and, since other work on a machine disturbs it, processor time of
the process are reported; on a CPU with one thread the second hardly depends on the neighbours.

The floor on a CPU is the linear layers alone: each one of the network on as many rows as there are tokens, weights
packed, nothing else. ``--share`` measures it in turn with the others.

    python benchmarks/encode.py --encoder FOLDER --passages passages.jsonl --limit 512 --threads 1
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sentence_transformers
import torch
import transformers

from ragtrain import report
from ragtrain.config.commands import EncoderConfig
from ragtrain.data import demo, formats
from ragtrain.models.encoder import TextEncoder, load_encoder
from ragtrain.models.encoding import CPU_TOKENS
from ragtrain.models.packed import packed

if TYPE_CHECKING:
    from collections.abc import Callable

THEIR_DEFAULT = 32
COSINE = {"float32": 0.99999, "float16": 0.9999, "bfloat16": 0.999}


def main() -> None:
    """Measure, print a table to stderr and one JSON document to stdout."""
    arguments = parse()
    pairs = passages(arguments)
    # sentence-transformers knows texts, not pairs of them: both read title and text joined.
    config = EncoderConfig(encoder=str(arguments.encoder), passage_format="joined")
    encoder = load_encoder(arguments.encoder, config=config).to(arguments.device)
    theirs = sentence_transformers.SentenceTransformer(
        str(arguments.encoder), device=arguments.device, model_kwargs={"dtype": torch.float32}
    )
    theirs.max_seq_length = encoder.max_tokens("passage")
    if arguments.precision != "float32":
        theirs.to(getattr(torch, arguments.precision))  # as its documentation has it: the whole model
    texts = [f"{title} {text}".strip() for title, text in pairs]

    def ours() -> np.ndarray:
        return encoder.encode_passages(pairs, arguments.batch_size, precision=arguments.precision)

    def other(batch_size: int) -> Callable[[], np.ndarray]:
        return lambda: np.asarray(theirs.encode(texts, batch_size=batch_size, show_progress_bar=False), np.float32)

    cosine = least_cosine(ours(), other(THEIR_DEFAULT)())
    if cosine < COSINE[arguments.precision]:
        sys.exit(f"the vectors differ: the least cosine is {cosine}")
    runs: dict[str, Callable[[], object]] = {"ragtrain": ours}
    for size in sorted({THEIR_DEFAULT, *arguments.their_batch_sizes}):
        runs[f"sentence-transformers, {size}"] = other(size)
    tokens = tokens_of(encoder, pairs)
    if arguments.share:
        runs["floor: linear layers"] = floor(encoder, tokens)
    wall, processor = alternate(runs, arguments.repeats)
    summary = summarise(wall, processor, len(pairs))
    document: dict[str, Any] = {
        "encoder": Path(arguments.encoder).parent.name, "passages": len(pairs), "tokens": tokens,
        "precision": arguments.precision, "batch_size": arguments.batch_size, "least_cosine": cosine,
        "device": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.machine(),
        "threads": torch.get_num_threads(), "repeats": arguments.repeats,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                     "sentence-transformers": sentence_transformers.__version__, "python": platform.python_version()},
        "runs": summary,
    }  # fmt: skip
    show(document)
    if arguments.profile:
        with torch.profiler.profile() as profile:
            ours()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=14), file=sys.stderr)
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default=str(demo.ENCODER), help="sentence-transformers folder; else the demo's")
    parser.add_argument("--passages", type=Path, help="passages in any known format; without it the built-in demo set")
    parser.add_argument("--limit", type=int, default=512, help="passages to encode")
    parser.add_argument("--batch-size", type=int, default=64, help="our batch size")
    parser.add_argument("--their-batch-sizes", type=int, nargs="*", default=[4, 8, 16, 64], help="besides 32")
    parser.add_argument("--precision", choices=list(COSINE), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="threads for both; 0 leaves the default")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, in each of which every run has one turn")
    parser.add_argument("--share", action="store_true", help="measure the floor as well (CPU)")
    parser.add_argument("--profile", action="store_true", help="print where our time goes")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return arguments


def passages(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Return (title, text) pairs: those of the file, or of the demo set."""
    found = demo.build().passages if arguments.passages is None else formats.iter_passages(arguments.passages)
    return [(passage.title, passage.text) for passage in islice(found, arguments.limit)]


def least_cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the smallest cosine between the two vectors of a text."""
    product = (ours.astype(np.float64) * theirs).sum(1)
    return float((product / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)).min())


def tokens_of(encoder: TextEncoder, pairs: list[tuple[str, str]]) -> dict[str, int]:
    """Return how many tokens the texts have, and how many of padding we add."""
    batches = encoder.passage_batches(pairs)
    return {"texts": int(batches.lengths.sum()), "padding": batches.padding, "batches": len(batches.batches)}


def floor(encoder: TextEncoder, tokens: dict[str, int]) -> Callable[[], None]:
    """Return a call that does the linear layers' products of all tokens and nothing else."""
    layers = [module for module in encoder.modules() if type(module) is torch.nn.Linear]
    rows = [torch.randn(CPU_TOKENS, layer.in_features) for layer in layers]

    def run() -> None:
        with torch.no_grad(), packed(torch.nn.ModuleList(layers)):
            for _ in range(round(tokens["texts"] / CPU_TOKENS)):
                for layer, states in zip(layers, rows, strict=True):
                    layer(states)

    return run


def alternate(
    runs: dict[str, Callable[[], object]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return seconds of wall and of processor time of each run, taken in turns; every run is warm."""
    wall: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats):
        # Each round begins with another run, so that none always follows the same one.
        names = list(runs)[number % len(runs) :] + list(runs)[: number % len(runs)]
        for name in names:
            started, worked = time.perf_counter(), time.process_time()
            runs[name]()
            wall[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - worked)
    return wall, processor


def summarise(wall: dict[str, list[float]], processor: dict[str, list[float]], count: int) -> dict[str, Any]:
    """Return medians, and the ratio of each run's time to ours round by round: median, least and largest."""
    summary = {}
    for name in wall:
        row: dict[str, Any] = {"passages_per_s": count / statistics.median(wall[name])}
        for what, times in (("wall", wall), ("processor", processor)):
            ratios = [theirs / ours for theirs, ours in zip(times[name], times["ragtrain"], strict=True)]
            row[f"{what}_s"] = statistics.median(times[name])
            row[f"{what}_ratio"] = {"median": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)}
        summary[name] = row
    return summary


def show(document: dict[str, Any]) -> None:
    """Print the table."""
    rows = []
    for name, row in document["runs"].items():
        wall, processor = row["wall_ratio"], row["processor_ratio"]
        rows.append([
            name, f"{row['passages_per_s']:.1f}", f"{row['wall_s']:.2f}",
            f"{wall['median']:.2f} ({wall['least']:.2f}–{wall['largest']:.2f})",
            f"{processor['median']:.2f} ({processor['least']:.2f}–{processor['largest']:.2f})",
        ])  # fmt: skip
    title = f"{document['passages']} passages, {document['tokens']['texts']} tokens, {document['precision']}"
    report.table(title, ["run", "passages/s", "s", "time / ours (spread)", "processor time / ours"], rows)


if __name__ == "__main__":
    main()
