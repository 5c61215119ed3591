"""Adoption of ``index.faiss`` + ``passages.jsonl``, and four damages that it must call by their names.

    python benchmarks/adopt.py --output-dir /tmp/adopt                  2,000 passages, half a minute
    python benchmarks/adopt.py --output-dir /tmp/adopt --count 200000   as in docs/benchmarks.md, 5 GB of disk

Passages are 100 random words; the encoder is a random BERT of one layer, 768 dimensions and mean pooling that reads 16
tokens, so that every vector is an honest encoding and one core makes 200,000 of them in minutes. Each adoption is the
command as a user types it, in a process of its own; its peak of memory is watched from outside: ``private`` is what it
holds itself, ``resident`` counts pages of the mapped files, which the system may take back, as well.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from ragtrain.models.encoder import TextEncoder, load_encoder
from ragtrain.models.folders import EncoderSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

DIM, WORDS, READ = 768, 100, 16
VOCABULARY = [f"word{number}" for number in range(20_000)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
DAMAGES = ("swapped order", "wrong encoder", "L2 for inner product", "truncated file")


def make_encoder(folder: Path, seed: int) -> None:
    """Write a random encoder."""
    torch.manual_seed(seed)
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + VOCABULARY)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=READ,
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(SPECIAL + VOCABULARY), hidden_size=DIM, num_hidden_layers=1, num_attention_heads=12,
        intermediate_size=64, max_position_embeddings=READ, initializer_range=0.1,
    )  # fmt: skip
    spec = EncoderSpec(name=str(folder), pooling="mean", passage_format="pair", max_tokens=READ)
    TextEncoder(BertModel(config), tokenizer, spec).save_pretrained(folder)


def make_passages(path: Path, count: int) -> None:
    """Write passages of random words."""
    generator = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            chosen = [VOCABULARY[i] for i in generator.integers(0, len(VOCABULARY), WORDS + 2).tolist()]
            row = {"id": str(number + 1), "title": " ".join(chosen[:2]), "text": " ".join(chosen[2:])}
            file.write(json.dumps(row) + "\n")


def encode(folder: Path, passages: Path, count: int) -> np.ndarray:
    """Return (count, DIM) float32 vectors."""
    encoder, vectors, done = load_encoder(folder), np.empty((count, DIM), np.float32), 0
    for pairs in chunks(passages, 4096):
        vectors[done : done + len(pairs)] = encoder.encode_passages(pairs, batch_size=256)
        done += len(pairs)
        print(f"\rencoded {done} of {count}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return vectors


def chunks(passages: Path, size: int) -> Iterator[list[tuple[str, str]]]:
    """Yield (title, text) pairs of a file, some at a time."""
    pairs = []
    with passages.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            pairs.append((row["title"], row["text"]))
            if len(pairs) == size:
                yield pairs
                pairs = []
    if pairs:
        yield pairs


def write_index(path: Path, vectors: np.ndarray, metric: int = faiss.METRIC_INNER_PRODUCT) -> None:
    """Write a flat faiss index."""
    index = faiss.IndexFlat(DIM, metric)
    index.add(vectors)
    faiss.write_index(index, str(path))


def adopt(folder: Path, encoder: Path) -> dict[str, Any]:
    """Run the command of a user and return what it said, its seconds and its peaks of memory in MB."""
    command = [
        sys.executable, "-m", "ragtrain", "index", "prepare", "--index-path", str(folder / "index.faiss"), "--passages",
        str(folder / "passages.jsonl"), "--encoder", str(encoder),
    ]  # fmt: skip
    said, peaks = folder / "said.txt", {"private": 0, "resident": 0}
    started = time.perf_counter()
    with said.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        while process.poll() is None:
            for name, size in memory(process.pid).items():
                peaks[name] = max(peaks[name], size)
            time.sleep(0.02)
    seconds = time.perf_counter() - started
    return {
        "exit": process.returncode, "seconds": round(seconds, 1), **{f"{k}_mb": v // 1000 for k, v in peaks.items()},
        "said": said.read_text(),
    }  # fmt: skip


def memory(pid: int) -> dict[str, int]:
    """Return what a process holds, in kB; nothing once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    values = {line.split(":")[0]: line.split() for line in lines}
    names = {"private": "RssAnon", "resident": "VmRSS"}
    return {name: int(values[key][1]) for name, key in names.items() if key in values}


def sound(folder: Path, encoder: Path) -> dict[str, Any]:
    """Adopt the undamaged index, and check that its files were left as they were."""
    before = {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir()}
    result = adopt(folder, encoder)
    changed = [name for name, mark in before.items()
               if (folder / name).stat().st_size != mark[0] or (folder / name).stat().st_mtime_ns != mark[1]]  # fmt: skip
    written = sum(file.stat().st_size for file in folder.iterdir() if file.name not in {*before, "said.txt"})
    return {"case": "sound", **result, "changed": changed, "written_mb": round(written / 1e6, 1)}


def damaged(folder: Path, vectors: np.ndarray, root: Path) -> Iterator[dict[str, Any]]:
    """Adopt each damaged copy."""
    for name in DAMAGES:
        place = root / name.replace(" ", "-")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / "passages.jsonl").symlink_to((folder / "passages.jsonl").resolve())
        encoder = root / ("other-encoder" if name == "wrong encoder" else "encoder")
        if name == "swapped order":
            write_index(place / "index.faiss", vectors[np.random.default_rng(1).permutation(len(vectors))])
        elif name == "L2 for inner product":
            write_index(place / "index.faiss", vectors, faiss.METRIC_L2)
        else:
            shutil.copy(folder / "index.faiss", place / "index.faiss")
        if name == "truncated file":
            with (place / "index.faiss").open("r+b") as file:
                file.truncate((folder / "index.faiss").stat().st_size * 9 // 10)
        result = adopt(place, encoder)
        caught = result["exit"] == 3 and f": {name}: " in result["said"] and not (place / "manifest.json").exists()
        yield {"case": name, **result, "caught": caught}
        shutil.rmtree(place)


def main() -> int:
    """Make the data, run the command, print a table and write ``adopt.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("adopt-bench"))
    parser.add_argument("--count", type=int, default=2000)
    arguments = parser.parse_args()
    root, count = arguments.output_dir, arguments.count
    folder = root / f"data-{count}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make_encoder(root / "encoder", seed=0)
    make_encoder(root / "other-encoder", seed=1)
    make_passages(folder / "passages.jsonl", count)
    started = time.perf_counter()
    vectors = encode(root / "encoder", folder / "passages.jsonl", count)
    print(f"encoding took {time.perf_counter() - started:.0f} s", file=sys.stderr)
    write_index(folder / "index.faiss", vectors)
    results = [sound(folder, root / "encoder"), *damaged(folder, vectors, root)]
    print(f"{'case':22} {'exit':>4} {'seconds':>8} {'private MB':>11} {'resident MB':>12}  result")
    for row in results:
        good = row["exit"] == 0 and not row["changed"] if row["case"] == "sound" else row["caught"]
        verdict = ("adopted" if row["case"] == "sound" else "caught by name") if good else "FAILED"
        print(
            f"{row['case']:22} {row['exit']:4} {row['seconds']:8} {row['private_mb']:11} {row['resident_mb']:12}  {verdict}"
        )
        row["good"] = good
    (root / "adopt.json").write_text(json.dumps({"count": count, "dim": DIM, "results": results}, indent=2) + "\n")
    return 0 if all(row["good"] for row in results) else 1


if __name__ == "__main__":
    sys.exit(main())
