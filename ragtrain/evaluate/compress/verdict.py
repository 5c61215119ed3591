"""Whether memory is worth more than the text that costs as much.

Memory is only worth its name where answers from it are better, by more than chance, than answers from text that takes as many
positions of the generator (its first tokens, its best sentences, whichever adapters read them) and than answers from the
memory of another question, which has the same form and none of the content. Anything less is called by its name.
"""

from __future__ import annotations

import collections
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain import metrics, report, significance
from ragtrain.data.compress.records import passage_text
from ragtrain.evaluate.answers import BOOTSTRAP_SAMPLES
from ragtrain.evaluate.compress.arms import TABLE, TEXT_ARMS
from ragtrain.evaluate.compress.measure import RATES, SHARES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ragtrain.data.compress.records import CompressExample
    from ragtrain.evaluate.compress.measure import ArmResult

#: What the verdict is on; the same comparisons are made of every other score too.
METRIC = "f1"
SCORES = (*RATES, *SHARES)
#: Fewer questions than this are said to be few.
FEW = 100
#: Commonest references that are tried as the one answer to all questions.
_CANDIDATES = 200
_LABELS = {"em": "exact match", "f1": "F1", "contains": "contains", "rouge_l": "ROUGE-L"}


def verdict(
    results: Mapping[str, ArmResult],
    rows: Sequence[CompressExample],
    *,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Return what arms say together, and one sentence.

    Keys: ``outcome`` (``adds``, ``adds nothing`` or ``not measured``), ``sentence``, ``metric``, ``comparisons`` (of each other
    arm, and each score: ``compressed`` less that arm as ``delta``, ``low``, ``high``, and ``p`` of a paired permutation test),
    ``retention`` and ``boost`` (share of questions right from memory among those that full passages get right, and wrong),
    ``gap_closed`` (of the way from no passages to full ones), ``constant_answer`` (best score of one answer to all questions),
    ``caveats``.

    Args:
        results: by the names of arms, before and after training.
        rows: the questions.
        seed: of the bootstrap.
        confidence: level of the intervals.
    """
    named: dict[str, Any] = {"metric": METRIC, "confidence": confidence}
    memory = results.get("compressed")
    comparisons = {} if memory is None else _comparisons(results, memory, seed, confidence)
    outcome, sentence = _judged(results, comparisons)
    for name in ("retention", "boost"):
        named[name] = {} if memory is None else _retention(results, memory, name == "retention", confidence)
    named["gap_closed"] = {} if memory is None else _gaps(results, memory, seed, confidence)
    named["constant_answer"] = constant_answer([row.answers for row in rows])
    named["caveats"] = _caveats(results, comparisons, _sharing(results, rows))
    return {"outcome": outcome, "sentence": sentence, **named, "comparisons": comparisons}


def _comparisons(
    results: Mapping[str, ArmResult], memory: ArmResult, seed: int, confidence: float
) -> dict[str, dict[str, Any]]:
    """Return memory less each other arm, over the same questions."""
    found: dict[str, dict[str, Any]] = {}
    for name in TABLE:
        if name == "compressed" or name not in results or not memory.records:
            continue
        other = results[name]
        if [record.id for record in other.records] != [record.id for record in memory.records]:
            raise ValueError(f"{name} answered other questions than the compressed arm")
        found[name] = {"n": memory.n}
        for metric in SCORES:
            theirs, own = other.scores(metric), memory.scores(metric)
            delta, low, high = metrics.paired_bootstrap(theirs, own, BOOTSTRAP_SAMPLES, seed, confidence)
            p = significance.permutation_p(theirs, own, BOOTSTRAP_SAMPLES, seed)
            found[name][metric] = {"delta": delta, "low": low, "high": high, "p": p}
    return found


def _judged(results: Mapping[str, ArmResult], comparisons: Mapping[str, dict[str, Any]]) -> tuple[str, str]:
    """Return the outcome and its sentence."""
    lacking = [
        name
        for name in ("compressed", "truncated", "best-sentences", "shuffled")
        if name not in results and f"{name}-base" not in results
    ]
    if lacking or not comparisons:
        what = ", ".join(lacking) or "any question"
        return (
            "not measured",
            f"Whether compression adds anything was not measured: without {what}, nothing can be said.",
        )
    memory = results["compressed"]
    rivals = [name for name in (*TEXT_ARMS, "shuffled") if name in comparisons]
    unbeaten = [name for name in rivals if not comparisons[name][METRIC]["low"] > 0]
    best = max((name for name in rivals if name != "shuffled"), key=lambda name: results[name].metrics[METRIC])
    own = f"{_LABELS[METRIC]} {100 * memory.metrics[METRIC]:.1f} from {memory.metrics['context_tokens']:.0f} positions"
    if not unbeaten:
        return "adds", (
            f"Compression adds something: {own}, {_margin(results, comparisons, best)}, the best text of that length, "
            f"and {_margin(results, comparisons, 'shuffled')}, {TABLE['shuffled'].what} (n = {memory.n})."
        )
    # The hardest to beat, and whoever else is not beaten, by name.
    hardest = min(unbeaten, key=lambda name: comparisons[name][METRIC]["delta"])
    others = ", ".join(name for name in unbeaten if name != hardest)
    return "adds nothing", (
        f"Compression adds nothing that these {memory.n} questions show: {own}, {_margin(results, comparisons, hardest)} "
        f"({TABLE[hardest].what}){f', and not more than {others} either' if others else ''}."
    )


def _margin(results: Mapping[str, ArmResult], comparisons: Mapping[str, dict[str, Any]], name: str) -> str:
    each = comparisons[name][METRIC]
    points = f"{100 * each['delta']:+.1f} [{100 * each['low']:+.1f}, {100 * each['high']:+.1f}]"
    return f"{points} against {100 * results[name].metrics[METRIC]:.1f} of {name}"


def _retention(
    results: Mapping[str, ArmResult], memory: ArmResult, right: bool, confidence: float
) -> dict[str, dict[str, Any]]:
    """Return the share of questions right from memory among those that full passages get right, or wrong."""
    found: dict[str, dict[str, Any]] = {}
    for name in ("full", "full-base"):
        if name not in results:
            continue
        found[name] = {}
        for metric in RATES:
            pairs = zip(results[name].scores(metric), memory.scores(metric), strict=True)
            kept = [own for reference, own in pairs if bool(reference) == right]
            low, high = metrics.wilson(sum(kept), len(kept), confidence)
            share = sum(kept) / len(kept) if kept else None
            found[name][metric] = {"share": share, "low": low, "high": high, "n": len(kept)}
    return found


def _gaps(
    results: Mapping[str, ArmResult], memory: ArmResult, seed: int, confidence: float
) -> dict[str, dict[str, Any]]:
    """Return what part of the way from no passages to full ones memory goes, of every score.

    There is none where full passages are not better than none by more than chance.
    """
    found: dict[str, dict[str, Any]] = {}
    for floor, ceiling in (("none", "full"), ("none-base", "full-base")):
        if floor not in results or ceiling not in results or not memory.records:
            continue
        name = f"{floor} to {ceiling}"
        found[name] = {}
        for metric in SCORES:
            triples = np.array(
                [results[floor].scores(metric), memory.scores(metric), results[ceiling].scores(metric)]
            ).T
            found[name][metric] = gap_closed(triples, seed, confidence)
    return found


def gap_closed(triples: np.ndarray, seed: int, confidence: float = 0.95) -> dict[str, float] | None:
    """Return (b - a) / (c - a) of means with its percentile bootstrap interval, or None where c - a may be 0.

    Args:
        triples: (questions, 3) scores without passages, from memory, and with full passages; a question is drawn with all
            three.
        seed: of the bootstrap.
        confidence: level of the interval.
    """
    _, low, _ = metrics.paired_bootstrap(
        triples[:, 0].tolist(), triples[:, 2].tolist(), BOOTSTRAP_SAMPLES, seed, confidence
    )
    if not low > 0:
        return None
    distinct, counts = np.unique(triples, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    shares = []
    for _ in range(20):
        drawn = generator.multinomial(len(triples), counts / len(triples), size=BOOTSTRAP_SAMPLES // 20)
        a, b, c = (drawn @ distinct).T
        # A draw without any gap says nothing of how much of it is closed; there are few where its interval is above 0.
        shares.append(((b - a)[c > a]) / (c - a)[c > a])
    ends = np.quantile(np.concatenate(shares), [(1 - confidence) / 2, (1 + confidence) / 2])
    a, b, c = triples.mean(0)
    return {"share": float((b - a) / (c - a)), "low": float(ends[0]), "high": float(ends[1])}


def constant_answer(references: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Return the best that one answer to all questions scores, chosen among the references with knowledge of them."""
    if not references:
        return {}
    counts = collections.Counter(
        answer for answers in references for answer in set(map(metrics.normalize_answer, answers))
    )
    candidates = [answer for answer, _ in counts.most_common(_CANDIDATES)]
    found = {}
    for name, rule in (("em", metrics.exact_match), ("f1", metrics.f1)):
        means = {
            answer: math.fsum(rule(answer, answers) for answers in references) / len(references)
            for answer in candidates
        }
        best = max(means, key=lambda answer: means[answer])
        found[name] = {"answer": best, "score": means[best]}
    return found


def _sharing(results: Mapping[str, ArmResult], rows: Sequence[CompressExample]) -> int:
    """Return how many questions were given the memory of a question on one of their own passages."""
    if "shuffled" not in results:
        return 0
    contents = {row.id: frozenset(map(passage_text, row.documents)) for row in rows}
    records = results["shuffled"].records
    return sum(not contents[each.id].isdisjoint(contents[str(each.memory_of)]) for each in records)


def _caveats(results: Mapping[str, ArmResult], comparisons: Mapping[str, dict[str, Any]], sharing: int) -> list[str]:
    """Return what else has to be said."""
    said = []
    memory = results.get("compressed")
    if memory is not None and memory.n < FEW:
        said.append(f"{memory.n} questions: only large differences can be told from chance")
    if memory is not None and "truncated" not in results and "truncated-base" in results:
        said.append("text arms were read by the untrained base only, which favours compression: no adapters were trained on full "
                    "passages (--full-context-steps)")  # fmt: skip
    if memory is not None and sharing and "shuffled" in results:
        said.append(
            f"{sharing} questions were given the memory of a question on one of their own passages: all others share them"
        )
    for name in ("full", "full-base"):
        cut = [record for record in results[name].records if record.cut_tokens] if name in results else []
        if cut:
            lost = sum(record.cut_tokens for record in cut)
            share = lost / (lost + sum(record.context_tokens for record in results[name].records))
            said.append(
                f"the passages of {len(cut)} questions do not fit into the generator: {100 * share:.0f} % of the tokens of "
                f"{name} were cut, which favours compression"
            )
            break
    for name, what in (
        ("none", "answers from memory are not better than those without any passage"),
        ("before", "answers from memory are not better than before training"),
        ("random", "answers from memory are not better than those from random vectors"),
    ):
        if name in comparisons and not comparisons[name][METRIC]["low"] > 0:
            said.append(what)
    if {"none", "full"} <= results.keys() and results["full"].metrics:
        _, low, _ = metrics.paired_bootstrap(results["none"].scores(METRIC), results["full"].scores(METRIC))
        if not low > 0:
            said.append(
                "answers from full passages are not better than those without any: these questions do not tell what is read from what is known"
            )
    return said


def show(arms: Mapping[str, Mapping[str, Any]], judged: Mapping[str, Any], name: str = "Arms") -> None:
    """Show all arms as a table on stderr, in percent, and the verdict below.

    Args:
        arms: ``ArmResult.to_json`` by name.
        judged: of ``verdict``.
        name: what was measured.
    """
    rows = []
    for arm, each in arms.items():
        if not each["n"]:
            continue
        intervals = (report.format_interval(each[key], *each["intervals"][key]) for key in ("em", "f1"))
        others = (f"{100 * each[key]:.1f}" for key in ("rouge_l", "contains", "answer_given"))
        rows.append((arm, *intervals, *others, f"{each['context_tokens']:.1f}"))
    n = next((each["n"] for each in arms.values()), 0)
    columns = ("arm", "exact match", "F1", "ROUGE-L", "contains", "answer given", "positions")
    report.table(f"{name}: {n} questions, percent [{100 * judged['confidence']:g} %]", columns, rows)
    report.logger.info("%s", judged["sentence"])
    for caveat in judged["caveats"]:
        report.logger.warning("%s", caveat)
