"""What changed between evaluated runs, question by question, and whether it is more than chance.

Every run is compared with the first. Runs are aligned by question id; scores are computed anew from predictions and
references, by one rule for all; each difference has a paired bootstrap interval (``metrics.paired_bootstrap``).
"""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import TYPE_CHECKING, Any

from ragtrain import metrics, report
from ragtrain.errors import ConfigError, DataError
from ragtrain.records import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ragtrain.config.commands import CompareConfig

log = logging.getLogger("ragtrain")

#: Depths of answer-recall where no evaluation says which ones it reported.
RECALL_AT = (1, 5, 20)
#: Settings of an evaluation whose difference is worth a remark.
SETTINGS = ("condition", "n_docs", "num_beams", "max_new_tokens", "max_question_tokens", "max_input_tokens")


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


@dataclasses.dataclass(frozen=True)
class Difference:
    """One metric of two runs over the same questions: means, ``b - a`` with its interval, and who won how often."""

    metric: str
    a: float
    b: float
    delta: float
    low: float
    high: float
    wins: int
    losses: int
    ties: int
    sentence: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two runs: ``n`` questions compared, and those that only one of the two answered."""

    a: str
    b: str
    n: int
    only_a: int
    only_b: int
    differences: tuple[Difference, ...]
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: the differences by metric."""
        differences = {d.metric: {k: v for k, v in dataclasses.asdict(d).items() if k != "metric"}
                       for d in self.differences}  # fmt: skip
        return {**dataclasses.asdict(self), "differences": differences, "remarks": list(self.remarks)}


@dataclasses.dataclass(frozen=True)
class CompareResult:
    """Every run against the first."""

    runs: tuple[str, ...]
    confidence: float
    bootstrap_samples: int
    seed: int
    comparisons: tuple[Comparison, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        comparisons = [comparison.to_json() for comparison in self.comparisons]
        return {**dataclasses.asdict(self), "runs": list(self.runs), "comparisons": comparisons}


def run(config: CompareConfig) -> CompareResult:
    """Compare evaluated runs with the first of them, show a table for each and return the numbers.

    Raises:
        ConfigError: fewer than two runs.
        DataError: predictions are missing or cannot be read, the runs answered different questions (unless
            ``intersect``), or have different reference answers for a question.
    """
    if len(config.runs) < 2:
        raise ConfigError(f"a comparison needs two runs or more, and {len(config.runs)} given",
                          hint="ragtrain compare RUN_A RUN_B")  # fmt: skip
    runs = [read_run(path) for path in config.runs]
    comparisons = tuple(compare(runs[0], other, config) for other in runs[1:])
    result = CompareResult(
        tuple(each.name for each in runs), config.confidence, config.bootstrap_samples, config.seed, comparisons
    )
    for comparison in comparisons:
        show(comparison, config.confidence)
    if config.output_file is not None:
        write_json(config.output_file, result.to_json())
        log.info("comparison written to %s", config.output_file)
    return result


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


def compare(a: Run, b: Run, config: CompareConfig) -> Comparison:
    """Compare two runs over the questions that both answered.

    Raises:
        DataError: the runs answered different questions (unless ``intersect``), or have different references.
    """
    both = [identifier for identifier in a.answered if identifier in b.answered]
    only_a, only_b = len(a.answered) - len(both), len(b.answered) - len(both)
    if not both:
        raise DataError(f"{a.name} ({len(a.answered)} questions) and {b.name} ({len(b.answered)}) share no question id",
                        hint="evaluate both on the same questions")  # fmt: skip
    if (only_a or only_b) and not config.intersect:
        raise DataError(
            f"{a.name} and {b.name} answered different questions: {len(both)} in both, {only_a} only in the first, "
            f"{only_b} only in the second",
            hint=f"give --intersect to compare the {len(both)} in both, or evaluate both with the same --test-data, "
            "--num-samples and --seed",
        )
    for identifier in both:
        if a.answered[identifier].answers != b.answered[identifier].answers:
            raise DataError(
                f"question {identifier!r} has the reference answers {sorted(a.answered[identifier].answers)} in "
                f"{a.path} and {sorted(b.answered[identifier].answers)} in {b.path}",
                hint="evaluate both on the same test data",
            )
    names = ["em", "f1"] if a.writes and b.writes else []
    names += [f"answer_recall@{k}" for k in depths(a, b)]
    differences = [
        difference(name, [a.answered[i].score(name) for i in both], [b.answered[i].score(name) for i in both], config)
        for name in names
    ]
    scored = [i for i in both if a.answered[i].n_gold and a.answered[i].n_gold == b.answered[i].n_gold]
    for name in [f"recall@{k}" for k in depths(a, b)] if scored else []:
        left, right = ([each.answered[i].score(name) for i in scored] for each in (a, b))
        differences.append(difference(name, left, right, config))
    remarks = tuple(
        f"{name} is {a.settings[name]} in A and {b.settings[name]} in B"
        for name in SETTINGS
        if name in a.settings and name in b.settings and a.settings[name] != b.settings[name]
    )
    return Comparison(a.name, b.name, len(both), only_a, only_b, tuple(differences), remarks)


def depths(a: Run, b: Run) -> list[int]:
    """Return the depths k of answer-recall that both runs searched to, in order, 1 always among them if any is."""
    reported = {k for each in (a, b) for k in each.settings.get("recall_at", ()) if isinstance(k, int)}
    return [k for k in sorted({1, *(reported or RECALL_AT)}) if k <= min(a.depth, b.depth)]


def difference(metric: str, a: Sequence[float], b: Sequence[float], config: CompareConfig) -> Difference:
    """Return the difference of one metric over the same questions in the same order, with its interval."""
    delta, low, high = metrics.paired_bootstrap(a, b, config.bootstrap_samples, config.seed, config.confidence)
    deltas = [right - left for left, right in zip(a, b, strict=True)]
    wins = sum(value > config.tolerance for value in deltas)
    losses = sum(value < -config.tolerance for value in deltas)
    sentence = describe(metric, delta, low, high) if wins or losses else f"{label(metric)}: no question changed"
    return Difference(
        metric, sum(a) / len(a), sum(b) / len(b), delta, low, high, wins, losses, len(deltas) - wins - losses, sentence
    )


def label(metric: str) -> str:
    """Return a metric's name as tables show it."""
    return {"em": "exact match", "f1": "F1"}.get(metric, metric.replace("_", "-"))


def describe(metric: str, delta: float, low: float, high: float) -> str:
    """Return a difference and its interval as one sentence, in percentage points."""
    more = delta >= 0
    points = f"{100 * abs(delta):.1f} points"
    ends = (low, high) if more else (-high, -low)
    # Adding zero turns a rounded -0.0 into 0.0.
    interval = "[{:.1f}, {:.1f}]".format(*(round(100 * end, 1) + 0.0 for end in ends))
    if metric == "em":
        what = f"B answers {points} {'more' if more else 'fewer'} questions exactly"
    elif metric == "f1":
        what = f"B's F1 is {points} {'higher' if more else 'lower'}"
    elif metric.startswith("recall@"):
        what = f"B's recall of gold passages within {metric.split('@')[1]} is {points} {'higher' if more else 'lower'}"
    else:
        k = metric.split("@")[1]
        where = "with its first passage" if k == "1" else f"within {k} passages"
        what = f"B finds an answer {where} for {points} {'more' if more else 'fewer'} questions"
    real = low > 0 or high < 0
    return f"{what} {interval}: the interval {'excludes 0' if real else 'includes 0, this may be chance'}"


def show(comparison: Comparison, confidence: float) -> None:
    """Show one comparison as a table on stderr, and a sentence for each metric."""
    rows = [
        (label(d.metric), f"{100 * d.a:.1f}", f"{100 * d.b:.1f}", f"{100 * d.delta:+.1f} [{100 * d.low:+.1f}, "
         f"{100 * d.high:+.1f}]", d.wins, d.losses, d.ties)
        for d in comparison.differences
    ]  # fmt: skip
    title = f"A = {comparison.a}, B = {comparison.b}: {comparison.n} questions, percent"
    report.table(title, ("metric", "A", "B", f"B - A [{100 * confidence:g} %]", "B wins", "A wins", "ties"), rows)
    if comparison.only_a or comparison.only_b:
        log.info("left out: %d questions only in A, %d only in B", comparison.only_a, comparison.only_b)
    for remark in comparison.remarks:
        log.warning("%s", remark)
    for d in comparison.differences:
        log.info("%s", d.sentence)
