"""The predictions of a run, as ``ragtrain eval`` writes them and as others do."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from ragtrain import metrics
from ragtrain.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Answered:
    """One question as a run answered it.

    Attributes:
        id: of the question.
        answers: references.
        em: exact match; None where the run retrieves and writes no answers.
        f1: likewise.
        first_hit: rank of the first passage with an answer.
        depth: passages searched.
        gold_ranks: ranks of the gold passages that were found, where the run says them, in a ranking of all passages.
        n_gold: how many there are.
    """

    id: str
    answers: frozenset[str]
    em: float | None
    f1: float | None
    first_hit: int | None
    depth: int
    gold_ranks: tuple[int, ...] = ()
    n_gold: int = 0

    def score(self, metric: str) -> float:
        """Return the question's score, between 0 and 1, by the metric's name."""
        if metric.startswith("answer_recall@"):
            return float(self.first_hit is not None and self.first_hit <= int(metric.split("@")[1]))
        if metric.startswith("recall@"):
            return metrics.recall_at(self.gold_ranks, self.n_gold, int(metric.split("@")[1]))
        return (self.em if metric == "em" else self.f1) or 0.0


@dataclasses.dataclass(frozen=True)
class Run:
    """The predictions of one run by question id, and what its evaluation says of itself."""

    name: str
    path: Path
    answered: Mapping[str, Answered]
    settings: Mapping[str, Any]

    @property
    def depth(self) -> int:
        """Passages searched for every question; 0 where the predictions say nothing of passages."""
        return min(answered.depth for answered in self.answered.values())

    @property
    def writes(self) -> bool:
        """Whether it wrote answers, which can be compared."""
        return all(answered.em is not None for answered in self.answered.values())


def read_run(path: Path) -> Run:
    """Read the predictions of a run folder, an evaluation folder or a file (.jsonl, or the .json of --output-file).

    Raises:
        DataError: there are none, or a line cannot be used.
    """
    source = path
    if path.is_dir():
        found = [folder for folder in (path, path / "eval") if (folder / "predictions.jsonl").is_file()]
        if not found:
            _refuse_several(path)
            what = "a run that was not evaluated" if (path / "config.yaml").is_file() else "no run and no evaluation"
            raise DataError(f"{what}: no predictions.jsonl in it or in its eval/", path=path,
                            hint=f"ragtrain eval --model-dir {path}")  # fmt: skip
        source = found[0] / "predictions.jsonl"
    elif not path.is_file():
        raise DataError("no such file or folder", path=path, hint="give run folders or predictions files")
    summary: Mapping[str, Any] = {}
    if source.suffix == ".json":
        rows, summary = _read_document(source)
    else:
        rows = list(_read_lines(source))
        beside = source.with_name("metrics.json")
        if beside.is_file():
            summary = _parse(beside.read_text(encoding="utf-8"), beside)
    answered: dict[str, Answered] = {}
    for line, row in rows:
        record = _answered(row, source, line)
        if record.id in answered:
            raise DataError(f"question {record.id!r} is answered twice", path=source, line=line, field="id")
        answered[record.id] = record
    if not answered:
        raise DataError("no predictions", path=source)
    settings = summary.get("settings") if isinstance(summary, dict) else None
    return Run(str(path), source, answered, settings if isinstance(settings, dict) else {})


def _refuse_several(path: Path) -> None:
    """Name the evaluations under several conditions that a run or folder holds, of which one is to be chosen.

    Raises:
        DataError: there are any.
    """
    folders = (path / "eval", path, path / "eval" / "base", path / "base")
    inside = [file.parent for folder in folders for file in sorted(folder.glob("*/predictions.jsonl"))]
    if inside:
        raise DataError(f"holds {len(inside)} evaluations, under several conditions", path=path,
                        hint=f"give one of {', '.join(map(str, inside))}")  # fmt: skip


def _parse(text: str, path: Path, line: int | None = None) -> Any:  # noqa: ANN401 - any JSON
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", path=path, line=line) from error


def _read_lines(path: Path) -> Iterator[tuple[int | None, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _parse(line, path, number)


def _read_document(path: Path) -> tuple[list[tuple[int | None, Any]], Mapping[str, Any]]:
    """Return the predictions of one JSON file, a list or an object that holds them, and the object."""
    document = _parse(path.read_text(encoding="utf-8", errors="replace"), path)
    summary = document if isinstance(document, dict) else {}
    rows = summary.get("predictions") if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise DataError(
            "no predictions", path=path, field="predictions", hint="give the --output-file of ragtrain eval"
        )
    return [(None, row) for row in rows], summary


def _answered(row: object, path: Path, line: int | None) -> Answered:
    if not isinstance(row, dict):
        raise DataError("a prediction is a JSON object", path=path, line=line)
    ranks, n_gold = row.get("gold_ranks"), row.get("gold")
    retrieves = isinstance(ranks, list) and isinstance(n_gold, int)
    for name, kind in (("id", (str, int)), ("prediction", str), ("answers", list)):
        if not isinstance(row.get(name), kind) and not (retrieves and name == "prediction" and name not in row):
            raise DataError(f"missing or not usable: {row.get(name)!r}", path=path, line=line, field=name,
                            hint="a prediction needs id, prediction (text) and answers (list of texts)")  # fmt: skip
    answers = [str(answer) for answer in row["answers"]]
    hit, depth = row.get("first_hit"), row.get("depth", 0)
    if not (hit is None or isinstance(hit, int)) or not isinstance(depth, int):
        raise DataError(f"ranks are whole numbers: {hit!r} of {depth!r}", path=path, line=line, field="first_hit")
    written = row.get("prediction")
    return Answered(
        id=str(row["id"]),
        answers=frozenset(answers),
        em=None if written is None else metrics.exact_match(written, answers),
        f1=None if written is None else metrics.f1(written, answers),
        first_hit=hit,
        depth=depth,
        gold_ranks=tuple(ranks) if isinstance(ranks, list) and retrieves else (),
        n_gold=n_gold if isinstance(n_gold, int) and retrieves else 0,
    )
