"""A comparison of two runs on as many questions as NQ-open's test set, with a page: time and size.

Predictions are invented: five passages of 100 words a question out of 20,000, which both runs share as two retrievers over
one corpus would. Time is user time of the whole command, with its start.

    python benchmarks/compare.py --output-dir compared
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

QUESTIONS, PASSAGES, RUNS = 3610, 20_000, 3


def main() -> None:
    """Write two runs, compare them, print times and the size of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("compared"))
    folder = parser.parse_args().output_dir
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choice(letters) for _ in range(rng.randint(2, 9))) for _ in range(30_000)]

    def text(n: int) -> str:
        return " ".join(rng.choice(words) for _ in range(n))

    corpus = [{"id": f"p{i}", "title": text(2).title(), "text": text(100)} for i in range(PASSAGES)]
    questions = [(f"q{i}", f"{rng.choice(['who', 'what', 'when'])} {text(8)}?", text(2)) for i in range(QUESTIONS)]
    runs = [_write(folder / name, questions, corpus, rng, share) for name, share in (("a", 0.42), ("b", 0.46))]
    page = folder / "page.html"
    times = []
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        command = [sys.executable, "-m", "ragtrain", "compare", *map(str, runs), "--html", str(page)]
        subprocess.run(command, check=True, capture_output=True)
        times.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    found = {"questions": QUESTIONS, "user_s": times, "page_bytes": page.stat().st_size}
    print(json.dumps(found, indent=1))


def _write(
    folder: Path, questions: list[tuple[str, str, str]], corpus: list[dict[str, str]], rng: random.Random, share: float
) -> Path:
    """Write the predictions of a run that answers a share of the questions."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for identifier, question, answer in questions:
            documents: list[dict[str, Any]] = [{**each, "has_answer": False} for each in rng.sample(corpus, 5)]
            hit = rng.choice([1, 2, 3, 4, 5, None, None, 12])
            if hit is not None and hit <= len(documents):
                read = documents[hit - 1]
                read.update(text=f"{answer} {read['text']}", has_answer=True)
            row = {
                "id": identifier, "question": question, "answers": [answer], "depth": 20, "first_hit": hit,
                "prediction": answer if rng.random() < share else "nothing", "documents": documents,
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
    return folder


if __name__ == "__main__":
    main()
