"""Indexing many generated passages: memory of the command, and that a kill -9 in the middle costs nothing but time.

Passages are generated into a file, with a tiny random BERT (one layer) as encoder, so that reading, writing and
book-keeping are what is measured. ``ragtrain index prepare`` is started, killed (SIGKILL) when ``--kill-after`` of the
shards are finished, and started again. Peak resident memory is what the kernel reports of each of the two processes.
The finished index is then gone through: every passage must be there once and in order, and the vectors of a sample of
shards must equal, bit for bit, those of the encoder called directly on the same passages.

    python benchmarks/index_scale.py --count 500000
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from ragtrain.index.passages import PassageStore
from ragtrain.models.encoder import load_encoder
from ragtrain.records import sha256_file

if TYPE_CHECKING:
    import resource

WORDS = [f"word{i}" for i in range(5000)]


def main() -> None:
    """Measure, and print one JSON document."""
    arguments = parse()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        make_encoder(folder / "encoder", arguments)
        started = time.perf_counter()
        make_passages(folder / "passages.jsonl", arguments)
        generated_s = time.perf_counter() - started
        killed = prepare(folder, arguments, kill_after=arguments.kill_after)
        if killed["exit"] != -9:
            sys.exit("the first process ended before it could be killed: raise --count or lower --kill-after")
        resumed = prepare(folder, arguments)
        if resumed["exit"] != 0:
            sys.exit(f"the second process failed: {resumed['said']}")
        check = verify(folder, arguments)
        document: dict[str, Any] = {
            "passages": arguments.count, "words_per_passage": arguments.words, "hidden_size": arguments.hidden_size,
            "shard_size": arguments.shard_size, "machine": platform.machine(), "threads": torch.get_num_threads(),
            "passages_file_bytes": (folder / "passages.jsonl").stat().st_size, "generated_s": round(generated_s, 1),
            "killed": killed, "resumed": resumed, "check": check,
            "peak_rss_gb": max(killed["peak_rss_gb"], resumed["peak_rss_gb"]),
        }  # fmt: skip
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="passages")
    parser.add_argument("--words", type=int, default=100, help="words in the longest passage; the shortest has half")
    parser.add_argument("--hidden-size", type=int, default=32, help="width of the encoder, which is the dimension too")
    parser.add_argument("--shard-size", type=int, default=20_000)
    parser.add_argument("--kill-after", type=float, default=0.4, help="share of the shards after which it is killed")
    parser.add_argument("--check-shards", type=int, default=3, help="shards whose vectors are computed again")
    parser.add_argument("--folder", type=Path, help="where the files go; without it the system's temporary folder")
    arguments = parser.parse_args()
    arguments.shard_size = min(arguments.shard_size, max(1, arguments.count // 10))
    return arguments


def make_encoder(folder: Path, arguments: argparse.Namespace) -> None:
    """Write a random one-layer BERT with one token a word."""
    torch.manual_seed(0)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")  # type: ignore[no-untyped-call]
    size = arguments.hidden_size
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=size, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=2 * size)  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_passages(path: Path, arguments: argparse.Namespace) -> None:
    """Write the passages, one JSON line each."""
    generator = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(arguments.count):
            length = int(generator.integers(arguments.words // 2, arguments.words + 1))
            text = " ".join(WORDS[i] for i in generator.integers(0, len(WORDS), length))
            file.write(json.dumps({"id": f"passage-{number}", "title": f"Title {number % 997}", "text": text}) + "\n")


def prepare(folder: Path, arguments: argparse.Namespace, kill_after: float | None = None) -> dict[str, Any]:
    """Run the command, or kill it when that share of the shards is finished; tell how it went."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "ragtrain", "index", "prepare", "--passages", str(folder / "passages.jsonl"),
         "--output-dir", str(folder / "index"), "--encoder", str(folder / "encoder"), "--pooling", "mean",
         "--shard-size", str(arguments.shard_size), "--device", "cpu"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    enough = None if kill_after is None else kill_after * arguments.count / arguments.shard_size
    finished = 0
    while enough is not None and process.poll() is None:
        finished = len(list(folder.glob(".index.work-*/.journal/shards/*.json")))
        if finished >= enough:
            process.kill()
            break
        time.sleep(0.1)
    said = process.stderr.read() if process.stderr is not None else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    lines = [line for line in said.splitlines() if "Encoding" in line or "going on" in line or "error" in line]
    return {
        "exit": process.returncode, "seconds": round(time.perf_counter() - started, 1), "finished_shards": finished,
        "peak_rss_gb": round(peak_bytes(usage) / 1e9, 3), "said": lines[:1] + lines[1:][-1:],
    }  # fmt: skip


def peak_bytes(usage: resource.struct_rusage) -> int:
    """Return the most memory that a process held."""
    return usage.ru_maxrss if sys.platform == "darwin" else 1024 * usage.ru_maxrss


def verify(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Go through the index; end the process where a passage is lost, doubled or has another vector."""
    store = PassageStore(folder / "index")
    vectors = np.load(folder / "index" / "vectors.npy", mmap_mode="r")
    if len(store) != arguments.count or len(vectors) != arguments.count:
        sys.exit(f"{arguments.count} passages became {len(store)} with {len(vectors)} vectors")
    for start in range(0, arguments.count, 10_000):
        for number, passage in enumerate(store.lines(start, min(start + 10_000, arguments.count)), start):
            if passage.id != f"passage-{number}":
                sys.exit(f"passage {number} is {passage.id}")
        if not (vectors[start : start + 10_000] != 0).any(axis=1).all():
            sys.exit(f"a vector from {start} on was never written")
    from ragtrain.config.commands import EncoderConfig

    config = EncoderConfig(encoder=str(folder / "encoder"), pooling="mean")
    encoder = load_encoder(folder / "encoder", config=config)
    shards = -(-arguments.count // arguments.shard_size)
    checked = sorted(
        {round(i * (shards - 1) / max(1, arguments.check_shards - 1)) for i in range(arguments.check_shards)}
    )
    for shard in checked:
        start, stop = shard * arguments.shard_size, min((shard + 1) * arguments.shard_size, arguments.count)
        pairs = [(passage.title, passage.text) for passage in store.lines(start, stop)]
        if not np.array_equal(encoder.encode_passages(pairs).astype(np.float16), vectors[start:stop]):
            sys.exit(f"the vectors of shard {shard} differ")
    return {
        "passages": len(store), "in_order": True, "shards_bit_equal": checked,
        "vectors_sha256": sha256_file(folder / "index" / "vectors.npy"),
    }  # fmt: skip


if __name__ == "__main__":
    main()
