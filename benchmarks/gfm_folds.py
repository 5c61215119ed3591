"""A fine-tuned graph model beside BM25 and PageRank, each question measured once (folds).

For each of five folds a small network is fine-tuned on the other questions and ranks the documents of its own; true recall of
all questions, with bootstrap intervals, and paired differences.

    python benchmarks/gfm_folds.py --graph musique_train --text-encoder FOLDER --pretrain-steps 300 --steps 150
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ragtrain import evaluate, metrics
from ragtrain.config.commands import EvalConfig, GfmConfig
from ragtrain.config.load import load_config
from ragtrain.data.graph_questions import (
    find_graph_questions,
    fold_questions,
    read_graph_questions,
    write_graph_questions,
)
from ragtrain.index.graph.read import read_graph
from ragtrain.report import format_interval, table
from ragtrain.train import gfm

DEPTHS = (2, 5, 10)


def main() -> None:
    """Train, rank, and print a table (stderr) and one JSON document (stdout)."""
    given = parse()
    torch.set_num_threads(given.threads)
    began = time.perf_counter()
    graph = read_graph(given.graph)
    file = find_graph_questions(given.graph, "train")
    if file is None:
        raise SystemExit(f"{given.graph} has no training questions")
    questions = read_graph_questions(file, graph).questions
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        start = pretrained(given, Path(scratch))
        for number, (train, test) in enumerate(fold_questions(questions, given.folds, given.seed)):
            folder = Path(scratch) / str(number)
            write_graph_questions(folder / "train.jsonl", train, graph)
            write_graph_questions(folder / "test.jsonl", test, graph)
            gfm.run(load_config(GfmConfig, flags=settings_of(given, folder, start)).config)
            asked = {"model_dir": str(folder / "run"), "test_data": folder / "test.jsonl", "fusion": "bm25"}
            evaluate.run(load_config(EvalConfig, flags=asked).config)
            predictions = (folder / "run" / "eval" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
            rows += [json.loads(line) for line in predictions]
        document = summary(rows, given)
        document |= {"seconds": time.perf_counter() - began, "threads": given.threads, "settings": vars(given)}
        show(document)  # before the last run's log file goes
    json.dump(document, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--graph", type=Path, required=True, help="a folder that can be written to, with training questions"
    )
    parser.add_argument("--text-encoder", help="without it, the demo's")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--pretrain-steps", type=int, default=0)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--hidden-dim", type=int, default=32)
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def settings_of(given: argparse.Namespace, folder: Path, start: Path | None) -> dict[str, Any]:
    """Return the configuration of a fold."""
    found: dict[str, Any] = {
        "stage": "finetune", "graphs": (given.graph,), "train_data": folder / "train.jsonl", "dev_split": 0,
        "hidden_dim": given.hidden_dim, "num_layers": given.num_layers, "batch_size": 8, "max_steps": given.steps,
        "learning_rate": given.learning_rate, "save_steps": None, "logging_steps": 50, "trackers": (),
        "output_dir": folder / "run", "seed": given.seed,
    }  # fmt: skip
    if given.text_encoder:
        found["text_encoder"] = given.text_encoder
    return found | ({"model_dir": str(start)} if start is not None else {})


def pretrained(given: argparse.Namespace, scratch: Path) -> Path | None:
    """Pre-train on the graph's triples, which tell nothing of any question."""
    if not given.pretrain_steps:
        return None
    found = settings_of(given, scratch, None) | {
        "stage": "pretrain", "max_steps": given.pretrain_steps, "batch_size": 16, "num_negatives": 64, "dev_split": 0.05,
        "max_val_samples": 100, "output_dir": scratch / "pretrained",
    }  # fmt: skip
    found.pop("train_data")
    gfm.run(load_config(GfmConfig, flags=found).config)
    return scratch / "pretrained"


def summary(rows: list[dict[str, Any]], given: argparse.Namespace) -> dict[str, Any]:
    """Return true recall of each ranking, and what the model and BM25 together have over the others."""
    systems = list(rows[0]["ranks"])
    recalls = {
        name: {k: [recall(row, name, k) for row in rows] for k in DEPTHS} for name in systems
    }  # fmt: skip
    best = "model+bm25"
    return {
        "questions": len(rows),
        "recall": {
            name: {
                k: [sum(values) / len(values), *metrics.bootstrap_mean(values, 10_000, given.seed, 0.95)]
                for k, values in found.items()
            }
            for name, found in recalls.items()
        },
        "over": {
            name: {k: list(metrics.paired_bootstrap(recalls[name][k], recalls[best][k], 10_000, given.seed, 0.95))
                   for k in DEPTHS}
            for name in systems if name != best
        },
    }  # fmt: skip


def recall(row: dict[str, Any], system: str, k: int) -> float:
    """Return the share of a question's supporting documents among the first k."""
    gold = row["gold"] + row["missing_documents"]
    return sum(rank <= k for rank in row["ranks"][system]) / gold if gold else 0.0


def show(document: dict[str, Any]) -> None:
    """Print the tables on stderr."""
    rows = [
        [name, *(format_interval(*found[k]) for k in DEPTHS)] for name, found in document["recall"].items()
    ]  # fmt: skip
    title = f"{document['questions']} questions, true recall, percent [95 %], {document['seconds']:.0f} s"
    table(title, ("ranking", *(f"recall@{k}" for k in DEPTHS)), rows)
    over = [[name, *(f"{100 * v[0]:+.1f} [{100 * v[1]:+.1f}, {100 * v[2]:+.1f}]" for v in found.values())]
            for name, found in document["over"].items()]  # fmt: skip
    table("model+bm25 minus the others, points", ("minus", *(f"recall@{k}" for k in DEPTHS)), over)


if __name__ == "__main__":
    main()
