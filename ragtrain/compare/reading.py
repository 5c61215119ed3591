"""The predictions of a run, as ``ragtrain eval`` writes them and as others do."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from ragtrain import metrics
from ragtrain.compare import foreign, judged, links
from ragtrain.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        question: its text, where the run says it.
        prediction: what was written.
        documents: passages that were read, best first, as JSON objects.
        contains: whether a reference stands in the prediction, word by word; None without prediction.
        read_answer: whether a passage that was read holds an answer; None where that is not known.
        seconds: time of its answer.
        link_ranks: ranks of the tail and of the head of a triple; empty for questions.
        judged: verdicts of a judge by metric, without missing ones.
    """

    id: str
    answers: frozenset[str]
    em: float | None
    f1: float | None
    first_hit: int | None
    depth: int
    gold_ranks: tuple[int, ...] = ()
    n_gold: int = 0
    question: str = ""
    prediction: str | None = None
    documents: tuple[Mapping[str, Any], ...] = dataclasses.field(default=(), compare=False)
    contains: float | None = None
    read_answer: bool | None = None
    seconds: float | None = None
    link_ranks: tuple[int, ...] = ()
    judged: Mapping[str, bool] = dataclasses.field(default_factory=dict, compare=False)

    def score(self, metric: str) -> float:
        """Return the question's score, between 0 and 1, by the metric's name."""
        if metric in links.METRICS:
            return links.score(self.link_ranks, metric)
        if metric in judged.METRICS:
            return float(self.judged[metric])
        if metric.startswith("answer_recall@"):
            return float(self.first_hit is not None and self.first_hit <= int(metric.split("@")[1]))
        if metric.startswith("recall@"):
            return metrics.recall_at(self.gold_ranks, self.n_gold, int(metric.split("@")[1]))
        return {"em": self.em, "f1": self.f1, "contains": self.contains}[metric] or 0.0


@dataclasses.dataclass(frozen=True)
class Run:
    """The predictions of one run by question id, and what its evaluation says of itself."""

    name: str
    path: Path
    answered: Mapping[str, Answered]
    settings: Mapping[str, Any]
    summary: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Passages searched for every question; 0 where the predictions say nothing of passages."""
        return min(answered.depth for answered in self.answered.values())

    @property
    def writes(self) -> bool:
        """Whether it wrote answers, which can be compared."""
        return all(answered.em is not None for answered in self.answered.values())

    @property
    def links(self) -> bool:
        """Whether it completes a graph, so that triples are compared."""
        return all(answered.link_ranks for answered in self.answered.values())

    @property
    def folder(self) -> Path | None:
        """The run folder that the predictions lie in, where there is one."""
        return next((folder for folder in self.path.parents[:4] if (folder / "config.yaml").is_file()), None)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """What a file holds, not yet scored: (line, row) each."""

    name: str
    path: Path
    rows: list[tuple[int | None, Any]]
    summary: Mapping[str, Any]

    @property
    def without_references(self) -> bool:
        return any(isinstance(row, dict) and "answers" not in row and "prediction" in row for _, row in self.rows)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read several runs; tables without references take those of the runs beside them.

    Raises:
        DataError: as ``read_run``; a table answers a question that no run beside it has.
    """
    files = [_read(path) for path in paths]
    runs = {place: _scored(file) for place, file in enumerate(files) if not file.without_references}
    known = {identifier: each for run in runs.values() for identifier, each in run.answered.items()}
    for place, file in enumerate(files):
        if place in runs:
            continue
        rows: list[tuple[int | None, Any]] = []
        for line, row in file.rows:
            if str(row.get("id")) not in known:
                raise DataError(f"no run beside it has a question {row.get('id')!r}", path=file.path, line=line, field="id",
                                hint="a table has no references: give a run on the same questions beside it")  # fmt: skip
            other = known[str(row["id"])]
            rows.append((line, {**row, "answers": sorted(other.answers), "question": other.question}))
        runs[place] = _scored(dataclasses.replace(file, rows=rows))
    return [runs[place] for place in range(len(files))]


def read_run(path: Path) -> Run:
    """Read the predictions of a run folder, an evaluation folder or a file (.jsonl, .json, or a table), ours or others'.

    Raises:
        DataError: there are none, a line cannot be used, or references are missing.
    """
    return _scored(_read(path))


def _read(path: Path) -> _Rows:
    source = path
    if path.is_dir():
        found = [folder for folder in (path, path / "eval") if (folder / "predictions.jsonl").is_file()]
        if found:
            source = found[0] / "predictions.jsonl"
        elif (path / "intermediate_data.json").is_file():
            source = path / "intermediate_data.json"
        else:
            _refuse_several(path)
            what = "a run that was not evaluated" if (path / "config.yaml").is_file() else "no run and no evaluation"
            raise DataError(f"{what}: no predictions.jsonl in it or in its eval/", path=path,
                            hint=f"ragtrain eval --model-dir {path}")  # fmt: skip
    elif not path.is_file():
        raise DataError("no such file or folder", path=path, hint="give run folders or predictions files")
    summary: Mapping[str, Any] = {}
    if source.suffix in (".csv", ".tsv"):
        rows: list[tuple[int | None, Any]] = list(foreign.read_table(source))
    elif source.suffix == ".json":
        rows, summary = _read_document(source)
    else:
        rows = list(_read_lines(source))
        beside = source.with_name("metrics.json")
        if beside.is_file():
            summary = _parse(beside.read_text(encoding="utf-8"), beside)
    rows = [(line, foreign.as_ours(row) if isinstance(row, dict) else row) for line, row in rows]
    rows = links.by_triple(rows, source)
    return _Rows(str(path), source, rows, summary if isinstance(summary, dict) else {})


def _scored(file: _Rows) -> Run:
    answered: dict[str, Answered] = {}
    for line, row in file.rows:
        record = _answered(row, file.path, line)
        if record.id in answered:
            raise DataError(f"question {record.id!r} is answered twice", path=file.path, line=line, field="id")
        answered[record.id] = record
    if not answered:
        raise DataError("no predictions", path=file.path)
    settings = file.summary.get("settings")
    summary = {**_latencies(answered.values()), **file.summary}
    return Run(file.name, file.path, answered, settings if isinstance(settings, dict) else {}, summary)


def _latencies(answered: Iterable[Answered]) -> dict[str, float]:
    """Return mean and quantiles of the times of answers; nothing where one has none."""
    seconds = [each.seconds for each in answered]
    times = sorted(each for each in seconds if each is not None)
    if not times or len(times) < len(seconds):
        return {}

    def quantile(share: float) -> float:
        place = share * (len(times) - 1)
        low = int(place)
        return times[low] + (place - low) * (times[min(low + 1, len(times) - 1)] - times[low])

    return {
        "latency_mean_s": sum(times) / len(times), "latency_p50_s": quantile(0.5), "latency_p95_s": quantile(0.95)
    }  # fmt: skip


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
    completes = isinstance(row.get("link_ranks"), list)
    for name, kind in (("id", (str, int)), ("prediction", str), ("answers", list)):
        if not isinstance(row.get(name), kind) and not (
            (retrieves or completes) and name == "prediction" and name not in row
        ):
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
        question=str(row.get("question", "")),
        prediction=written,
        documents=(documents := tuple(each for each in row.get("documents") or () if isinstance(each, dict))),
        contains=None if written is None else metrics.contains(written, answers),
        read_answer=_read_answer(row, answers, documents),
        seconds=row["seconds"] if isinstance(row.get("seconds"), int | float) else None,
        link_ranks=tuple(row["link_ranks"]) if completes else (),
        judged=judged.verdicts(row),
    )


def _read_answer(row: Mapping[str, Any], answers: list[str], documents: tuple[Mapping[str, Any], ...]) -> bool | None:
    """Return whether a passage that was read holds an answer: as the run says, else by DPR's rule on its passages."""
    if isinstance(row.get("answer_in_prompt"), bool):
        return bool(row["answer_in_prompt"]) if documents else None
    if not documents:
        return None
    said = [each.get("has_answer") for each in documents]
    if all(isinstance(each, bool) for each in said):
        return any(said)
    return any(metrics.has_answer(answers, str(each.get("text", ""))) for each in documents)
