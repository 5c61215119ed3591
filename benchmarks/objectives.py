"""Every objective with the retriever frozen, its question side trained, and both sides trained, over several seeds.

Each seed orders the data differently; questions, index and starting weights are the same. A cell holds the mean over
seeds and questions, with a bootstrap interval over the questions of what each scored on average over the seeds. The
differences are paired with the frozen retriever under the same reader. ``emdr`` with passages read one by one has the
gradient of ``rag-sequence`` (a test holds that) and is run with FiD only.

    python benchmarks/objectives.py --data data/demo --index-path data/demo/index --output-dir results/objectives-demo
    python benchmarks/objectives.py --data data/squad --index-path data/squad/index --output-dir results/objectives-squad \
        --max-steps 120 --seeds 0 1 2

Runs that are done are not done again; ``--share 0/2`` and ``--share 1/2`` divide them over two processes, and the last
call, without it, makes the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ragtrain import evaluate, prepare, report
from ragtrain.config.commands import EvalConfig, FetchConfig, PrepareConfig, RagConfig
from ragtrain.config.load import load_config
from ragtrain.data import fetch
from ragtrain.metrics import bootstrap_mean, paired_bootstrap
from ragtrain.records import write_json
from ragtrain.train import rag

FID = {"reader": "fid"}
#: Name of the objective, flags.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "rag-sequence": {},
    "rag-token": {"objective": "rag-token"},
    "pdist": {"objective": "pdist"},
    "rag-sequence + InfoNCE": {"infonce_weight": 0.3},
    "FiD, pdist": {**FID, "objective": "pdist"},
    "FiD, emdr": {**FID, "objective": "emdr"},
}
SIDES: dict[str, dict[str, Any]] = {
    "frozen": {"train_question_encoder": False, "infonce_weight": 0.0},
    "query side": {},
    "both": {"train_context_encoder": True, "refresh_steps": 40, "over_retrieve": 2},
}
#: Without anything to teach, these are the same run as the first of their reader.
SAME_FROZEN = {"pdist": "rag-sequence", "rag-sequence + InfoNCE": "rag-sequence", "FiD, emdr": "FiD, pdist"}


def main() -> None:
    """Run what is missing and print the table (stderr) and one JSON document (stdout)."""
    given = parse()
    cells = [(o, s, seed) for seed in given.seeds for o in given.objectives for s in given.sides if not (
        s == "frozen" and o in SAME_FROZEN)]  # fmt: skip
    part, parts = map(int, (given.share or "0/1").split("/"))
    if not given.data.exists():
        fetch.run(FetchConfig(output_dir=given.data))
    if not given.index_path.exists():
        prepare.run(PrepareConfig(passages=given.data / "passages.jsonl", output_dir=given.index_path))
    for number, cell in enumerate(cells):
        if number % parts == part:
            run(given, *cell)
    if given.share is None:
        document = summarise(given)
        show(document)
        json.dump(document, sys.stdout, indent=2)
        sys.stdout.write("\n")


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="dataset folder")
    parser.add_argument("--index-path", type=Path, default=Path("data/demo/index"))
    parser.add_argument("--test-data", type=Path, default=None, help="without it test.jsonl or validation.jsonl")
    parser.add_argument("--output-dir", type=Path, default=Path("results/objectives"))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--max-steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--n-docs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--retriever-learning-rate", type=float, default=2e-4)
    parser.add_argument("--questions", type=int, default=300, help="answered in the end")
    parser.add_argument("--share", default=None, help="K/N: do every Nth run, from the Kth on")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return given


def folder_of(given: argparse.Namespace, objective: str, side: str, seed: int) -> Path:
    """Return where a run goes."""
    if side == "frozen":
        objective = SAME_FROZEN.get(objective, objective)
    out: Path = given.output_dir
    return out / f"{objective}-{side}-{seed}".replace(" ", "").replace(",", "-").replace("+", "-").lower()


def run(given: argparse.Namespace, objective: str, side: str, seed: int) -> None:
    """Train and evaluate a cell, unless that was done."""
    path = folder_of(given, objective, side, seed)
    if (path / "eval" / "metrics.json").is_file():
        return
    started = time.monotonic()
    flags = {
        "train_data": given.data, "index_path": given.index_path, "output_dir": path, "seed": seed,
        "max_steps": given.max_steps, "batch_size": given.batch_size, "gradient_accumulation_steps": 1,
        "n_docs": given.n_docs, "learning_rate": given.learning_rate,
        "retriever_learning_rate": given.retriever_learning_rate, "max_val_samples": 16, "save_steps": None,
        "logging_steps": 20, "trackers": (), "overwrite": path.exists(), **OBJECTIVES[objective], **SIDES[side],
    }  # fmt: skip
    rag.run(load_config(RagConfig, flags=flags).config)
    seconds = time.monotonic() - started
    answered = {"model_dir": str(path), "num_samples": given.questions, "num_beams": 1, "n_docs": given.n_docs}
    if given.test_data is not None:
        answered["test_data"] = given.test_data
    evaluate.run(load_config(EvalConfig, flags=answered).config)
    write_json(path / "seconds.json", {"train": seconds})


def scores(path: Path, n_docs: int) -> dict[str, dict[str, float]]:
    """Return id -> metric -> score of an evaluation."""
    rows = [json.loads(line) for line in (path / "eval" / "predictions.jsonl").read_text("utf-8").splitlines()]
    return {
        row["id"]: {
            "em": row["em"], "f1": row["f1"], "recall@1": float(row["first_hit"] == 1),
            f"recall@{n_docs}": float(row["first_hit"] is not None and row["first_hit"] <= n_docs),
        }
        for row in rows
    }  # fmt: skip


def summarise(given: argparse.Namespace) -> dict[str, Any]:
    """Return means, intervals and paired differences of every cell."""
    names = ("em", "f1", "recall@1", f"recall@{given.n_docs}")
    found = {
        (o, s): [scores(folder_of(given, o, s, seed), given.n_docs) for seed in given.seeds]
        for o in given.objectives
        for s in given.sides
    }
    cells = []
    for (objective, side), runs in found.items():
        cell: dict[str, Any] = {"objective": objective, "side": side}
        cell["train_s"] = statistics.fmean(
            json.loads((folder_of(given, objective, side, seed) / "seconds.json").read_text())["train"]
            for seed in given.seeds
        )
        for name in names:
            mine = averaged(runs, name)
            cell[name] = [statistics.fmean(mine), *bootstrap_mean(mine)]
            cell[f"{name} by seed"] = [statistics.fmean(row[name] for row in run.values()) for run in runs]
            if side != "frozen":
                cell[f"{name} - frozen"] = paired_bootstrap(averaged(found[objective, "frozen"], name), mine)
            if side == "both":
                cell[f"{name} - query side"] = paired_bootstrap(averaged(found[objective, "query side"], name), mine)
        cells.append(cell)
    return {"settings": {k: str(v) for k, v in vars(given).items()}, "questions": len(runs[0]), "cells": cells}


def averaged(runs: list[dict[str, dict[str, float]]], metric: str) -> list[float]:
    """Return each question's mean score over the seeds, in the order of ids."""
    return [statistics.fmean(run[key][metric] for run in runs) for key in sorted(runs[0])]


def show(document: dict[str, Any]) -> None:
    """Print the table on stderr."""
    names = [name for name in document["cells"][0] if name in ("em", "f1") or name.startswith("recall@")]
    names = [name for name in names if " " not in name]
    rows = []
    for cell in document["cells"]:
        row = [cell["objective"], cell["side"]]
        row += [report.format_interval(*cell[name]) for name in names]
        for other in ("frozen", "query side"):
            pairs = [cell.get(f"{name} - {other}") for name in ("em", "recall@1")]
            row += ["" if pair is None else report.format_interval(*pair) for pair in pairs]
        rows.append(row)
    differences = [f"{name} - {other}" for other in ("frozen", "query") for name in ("EM", "recall@1")]
    heads = ("objective", "retriever", *names, *differences)
    report.table(f"{document['questions']} questions, percent [95 %]", heads, rows)


if __name__ == "__main__":
    main()
