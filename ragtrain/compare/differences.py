"""Two runs on the same questions: the difference of each metric, and how sure it is."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from ragtrain import metrics, significance
from ragtrain.compare import judged, links, questions
from ragtrain.errors import DataError
from ragtrain.runs import RunFolder, config_difference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.compare.questions import Changed, Slice
    from ragtrain.compare.reading import Run
    from ragtrain.config.commands import CompareConfig

#: Depths of answer-recall where no evaluation says which ones it reported.
RECALL_AT = (1, 5, 20)
#: Settings of an evaluation whose difference is worth a remark.
SETTINGS = ("condition", "n_docs", "num_beams", "max_new_tokens", "max_question_tokens", "max_input_tokens")


@dataclasses.dataclass(frozen=True)
class Difference:
    """One metric of two runs over the same questions.

    Attributes:
        metric: its name.
        a: mean of the first run.
        b: mean of the second.
        delta: ``b - a``, with the ends of its paired bootstrap interval:
        low: the lower,
        high: the upper.
        wins: questions that the second run answers better.
        losses: those that the first does.
        ties: the others.
        sentence: all of it, in words.
        p: of the paired permutation test; of rates that is McNemar's exact test.
        p_holm: corrected for the metrics that are looked at together.
        effect: Cohen's h of rates, d_z of other scores; nan where nothing varies.
        smallest: difference that this many questions would show in four cases of five.
    """

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
    p: float = math.nan
    p_holm: float = math.nan
    effect: float = math.nan
    smallest: float = math.nan


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two runs.

    Attributes:
        a: name of the first.
        b: of the second.
        n: questions compared.
        only_a: questions that only the first answered.
        only_b: likewise.
        differences: of each metric.
        remarks: settings of the evaluations that differ.
        changed: what became of each question; empty where a run writes no answers.
        slices: the difference by kinds of questions.
        configuration: ``field: value there, value here`` of every setting in which the training differed.
        unit: what is compared: questions, or of runs that complete a graph triples.
    """

    a: str
    b: str
    n: int
    only_a: int
    only_b: int
    differences: tuple[Difference, ...]
    remarks: tuple[str, ...]
    changed: tuple[Changed, ...] = ()
    slices: tuple[Slice, ...] = ()
    configuration: tuple[str, ...] = ()
    unit: str = "questions"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: the differences by metric, questions by what became of them."""
        differences = {d.metric: {k: v for k, v in dataclasses.asdict(d).items() if k != "metric"}
                       for d in self.differences}  # fmt: skip
        changed = {
            name: [each.id for each in self.changed if each.outcome == name]
            for name in ("fixed", "broken", "both wrong")
        }
        return {
            **dataclasses.asdict(self), "differences": differences, "remarks": list(self.remarks), "changed": changed,
            "outcomes": questions.counts(self.changed) if self.changed else {},
        }  # fmt: skip


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
    names = ["em", "f1", "contains"] if a.writes and b.writes else []
    names += [f"answer_recall@{k}" for k in depths(a, b)]
    if all(each.answered[i].link_ranks for each in (a, b) for i in both):
        names += links.METRICS
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
    if apart := judged.remark(a, b, both):
        remarks = (*remarks, apart)
    for name in judged.METRICS if not apart else ():
        if known := judged.both_judged(a, b, both, name):
            left, right = ([each.answered[i].score(name) for i in known] for each in (a, b))
            differences.append(difference(name, left, right, config))
    corrected = significance.holm({each.metric: each.p for each in differences})
    differences = [_corrected(each, corrected[each.metric], config.confidence) for each in differences]
    first = sliced_by(tuple(differences))
    return Comparison(
        a.name, b.name, len(both), only_a, only_b, tuple(differences), remarks,
        changed=tuple(questions.outcomes(a, b, both)),
        slices=tuple(questions.slices(a, b, both, first, config)) if first else (),
        configuration=configuration(a, b), unit="triples" if a.links and b.links else "questions",
    )  # fmt: skip


def sliced_by(differences: Sequence[Difference]) -> str | None:
    """Return the metric that slices are of; None where there is none."""
    if not differences:
        return None
    names = [each.metric for each in differences]
    # Of runs that only retrieve: the greatest depth finds nearly everything, and tells kinds of questions apart least.
    return "recall@5" if names[0] not in ("em", "mrr") and "recall@5" in names else names[0]


def _corrected(each: Difference, p: float, confidence: float) -> Difference:
    """Return a difference with its corrected p; where that takes back what the interval says, the sentence says so."""
    doubtful = (each.low > 0 or each.high < 0) and p > 1 - confidence
    more = f", but beside the other metrics p is {p:.2f}, this may be chance" if doubtful else ""
    return dataclasses.replace(each, p_holm=p, sentence=each.sentence + more)


def configuration(a: Run, b: Run) -> tuple[str, ...]:
    """Return the settings of training in which two runs differ; nothing where one is no run folder.

    Of runs of different kinds they are those that both have.
    """
    if a.folder is None or b.folder is None or a.folder == b.folder:
        return ()
    there, here = (RunFolder.open(folder) for folder in (a.folder, b.folder))
    other = there.kind != here.kind
    kinds = (f"kind: {there.kind} in A, {here.kind} in B",) if other else ()
    return (*kinds, *config_difference(there.config, here.config, where=("in A", "in B"), shared=other))


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
    unit = "triple" if metric in links.METRICS else "question"
    sentence = describe(metric, delta, low, high) if wins or losses else f"{label(metric)}: no {unit} changed"
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    rate = all(value in (0.0, 1.0) for value in (*a, *b))
    return Difference(
        metric, mean_a, mean_b, delta, low, high, wins, losses, len(deltas) - wins - losses, sentence,
        p=significance.permutation_p(a, b, config.bootstrap_samples, config.seed),
        effect=significance.cohens_h(mean_a, mean_b) if rate else significance.cohens_dz(a, b),
        smallest=significance.smallest_difference(a, b, config.confidence),
    )  # fmt: skip


def label(metric: str) -> str:
    """Return a metric's name as tables show it."""
    return {
        "em": "exact match", "f1": "F1", "contains": "contains a reference", "mrr": "MRR",
        "judge_correct": "correct (judge)", "judge_faithful": "faithful (judge)",
    }.get(metric, metric.replace("_", "-"))  # fmt: skip


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
    elif metric == "contains":
        what = f"B's answers contain a reference for {points} {'more' if more else 'fewer'} questions"
    elif metric in judged.METRICS:
        what = judged.describe(metric, points, more=more)
    elif metric in links.METRICS:
        what = links.describe(metric, points, more=more)
    elif metric.startswith("recall@"):
        what = f"B's recall of gold passages within {metric.split('@')[1]} is {points} {'higher' if more else 'lower'}"
    else:
        k = metric.split("@")[1]
        where = "with its first passage" if k == "1" else f"within {k} passages"
        what = f"B finds an answer {where} for {points} {'more' if more else 'fewer'} questions"
    real = low > 0 or high < 0
    return f"{what} {interval}: the interval {'excludes 0' if real else 'includes 0, this may be chance'}"
