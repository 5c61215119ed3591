"""The demo over several seeds: untrained, trained with a frozen retriever, trained jointly.

Each seed orders the data differently; questions, index and starting weights are the same. Intervals are paired
bootstraps over the questions of what each question scored on average over the seeds; the spread over seeds stands
beside them.

    python benchmarks/demo.py --output-dir results/demo --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ragtrain.metrics import paired_bootstrap
from ragtrain.records import write_json

ANSWER = ("--num-samples", "500", "--num-beams", "1", "--n-docs", "4", "--batch-size", "32")  # as scripts/demo.sh
METRICS = {"em": "em", "f1": "f1", "recall@1": "answer_recall@1"}


def ragtrain(*arguments: str) -> float:
    """Run a command and return its seconds."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "ragtrain", *arguments], check=True)
    return time.monotonic() - started


def scores(folder: Path) -> dict[str, dict[str, float]]:
    """Return id -> metric -> score of an evaluation."""
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["id"]: {"em": row["em"], "f1": row["f1"], "recall@1": float(row["first_hit"] == 1)} for row in rows}


def averaged(runs: list[dict[str, dict[str, float]]], metric: str) -> list[float]:
    """Return each question's mean score over the seeds, in the order of ids."""
    return [statistics.fmean(run[key][metric] for run in runs) for key in sorted(runs[0])]


def main() -> None:
    """Train, evaluate and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("results/demo"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--config", default=str(Path(__file__).parents[1] / "scripts" / "demo.yaml"))
    parser.add_argument("--max-steps", type=int, default=None, help="shorter runs, for a look")
    given = parser.parse_args()
    out = given.output_dir
    ragtrain("data", "fetch", "demo", "--output-dir", f"{out}/data")
    ragtrain("index", "prepare", "--passages", f"{out}/data/passages.jsonl", "--output-dir", f"{out}/index")
    ragtrain("eval", "--test-data", f"{out}/data/test.jsonl", "--index-path", f"{out}/index", "--output-dir",
             f"{out}/untrained", *ANSWER)  # fmt: skip
    arms: dict[str, list[dict[str, dict[str, float]]]] = {"untrained": [scores(out / "untrained")]}
    seconds: dict[str, list[float]] = {}
    for seed in given.seeds:
        for arm, flags in {"frozen": ["--no-train-question-encoder"], "joint": []}.items():
            run = out / f"{arm}-{seed}"
            short = [] if given.max_steps is None else ["--max-steps", str(given.max_steps)]
            seconds.setdefault(arm, []).append(
                ragtrain(
                    "train",
                    "rag",
                    "--train-data",
                    f"{out}/data",
                    "--index-path",
                    f"{out}/index",
                    "--config",
                    given.config,
                    "--seed",
                    str(seed),
                    "--output-dir",
                    str(run),
                    *flags,
                    *short,
                )
            )
            ragtrain("eval", "--model-dir", str(run), *ANSWER)
            arms.setdefault(arm, []).append(scores(run / "eval"))
    report: dict[str, Any] = {"questions": len(arms["joint"][0]), "seeds": given.seeds, "train_seconds": seconds}
    for metric in METRICS:
        means = {arm: averaged(runs, metric) for arm, runs in arms.items()}
        report[metric] = {
            arm: {
                "mean": statistics.fmean(values),
                "by_seed": [statistics.fmean(row[metric] for row in run.values()) for run in arms[arm]],
            }
            for arm, values in means.items()
        }
        for one, other in (("untrained", "joint"), ("frozen", "joint")):
            delta, low, high = paired_bootstrap(means[one], means[other])
            report[metric][f"{other} - {one}"] = {"delta": delta, "low": low, "high": high}
    write_json(out / "benchmark.json", report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
