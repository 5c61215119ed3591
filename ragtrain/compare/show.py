"""A comparison on the console: a table for each pair of runs, a sentence for each metric, and questions that were asked for."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from ragtrain import report
from ragtrain.compare import questions, several
from ragtrain.compare.differences import label, sliced_by

if TYPE_CHECKING:
    from ragtrain.compare import CompareResult
    from ragtrain.compare.differences import Comparison, Difference
    from ragtrain.compare.reading import Answered, Run
    from ragtrain.config.commands import CompareConfig

log = logging.getLogger("ragtrain")

#: Characters of a passage that are printed with a question.
_PASSAGE = 200
_BY = {"retrieval": "retrieval", "reader": "the reader", "unknown": "an unknown cause"}
#: Slices printed: the rest is in the files.
_SLICES = 12


def show(comparison: Comparison, a: Run, b: Run, config: CompareConfig) -> None:
    """Show one comparison as a table on stderr, and a sentence for each metric."""
    rows = [
        (label(d.metric), f"{100 * d.a:.1f}", f"{100 * d.b:.1f}", f"{100 * d.delta:+.1f} [{100 * d.low:+.1f}, "
         f"{100 * d.high:+.1f}]", p_text(d.p_holm), number(d.effect), points(d.smallest), d.wins, d.losses, d.ties)
        for d in comparison.differences
    ]  # fmt: skip
    title = f"A = {comparison.a}, B = {comparison.b}: {comparison.n} {comparison.unit}, percent"
    columns = ("metric", "A", "B", f"B - A [{100 * config.confidence:g} %]", "p (Holm)", "effect", "shows from", "B wins",
               "A wins", "ties")  # fmt: skip
    report.table(title, columns, rows)
    if comparison.only_a or comparison.only_b:
        log.info("left out: %d %s only in A, %d only in B", comparison.only_a, comparison.unit, comparison.only_b)
    for remark in comparison.remarks:
        log.warning("%s", remark)
    for d in comparison.differences:
        log.info("%s", d.sentence)
        if too_few(d):
            log.info("%s: so many %s show a difference of %s points four times in five, and no smaller one",
                     label(d.metric), comparison.unit, points(d.smallest))  # fmt: skip
    for line in comparison.configuration:
        log.info("configuration: %s", line)
    _show_questions(comparison, a, b, config)


def too_few(d: Difference) -> bool:
    """Return whether the questions could not have shown a difference as small as the one seen."""
    return d.low <= 0 <= d.high and bool(d.wins or d.losses) and d.smallest > abs(d.delta)


def _show_questions(comparison: Comparison, a: Run, b: Run, config: CompareConfig) -> None:
    if comparison.changed:
        found = questions.counts(comparison.changed)
        causes = {name: ", ".join(f"{count} by {_BY[cause]}" for cause, count in found[f"{name} by"].items()
                                  if cause != "unknown") for name in ("fixed", "broken")}  # fmt: skip
        log.info(
            "of %d questions B fixes %d%s and breaks %d%s; %d are right and %d wrong in both", comparison.n,
            found["fixed"], f" ({causes['fixed']})" if causes["fixed"] else "", found["broken"],
            f" ({causes['broken']})" if causes["broken"] else "", found["both right"], found["both wrong"],
        )  # fmt: skip
    sliced = [
        (each.kind, each.value, each.n, f"{100 * each.a:.1f}", f"{100 * each.b:.1f}",
         f"{100 * each.delta:+.1f} [{100 * each.low:+.1f}, {100 * each.high:+.1f}]")
        for each in comparison.slices[:_SLICES]
    ]  # fmt: skip
    if sliced:
        what = label(sliced_by(comparison.differences) or "")
        report.table(f"{what} by kinds of questions", ("kind", "", "n", "A", "B", "B - A"), sliced)
    if config.show == "none":
        return
    wanted = [each for each in comparison.changed if each.outcome == config.show.replace("-", " ")]
    for each in wanted[: config.show_limit]:
        cause = f" ({each.cause})" if each.cause not in (None, "unknown") else ""
        report.block(f"{each.outcome}{cause}: {each.id}", _both(a.answered[each.id], b.answered[each.id]))
    if len(wanted) > config.show_limit:
        log.info("%d more questions: --show-limit", len(wanted) - config.show_limit)


def _both(a: Answered, b: Answered) -> str:
    lines = [a.question or b.question, f"references: {'; '.join(sorted(a.answers))}"]
    for name, each in (("A", a), ("B", b)):
        lines.append(f"{name}: {each.prediction}")
        for place, document in enumerate(each.documents[:3], 1):
            mark = "+" if document.get("has_answer") else " "
            text = " ".join(str(document.get("text", "")).split())
            cut = text if len(text) <= _PASSAGE else f"{text[:_PASSAGE]}…"
            lines.append(f"   {mark}{place}. {document.get('title') or document.get('id', '')}: {cut}")
    return "\n".join(lines)


def show_several(result: CompareResult) -> None:
    """Show what concerns all runs together, and the gates."""
    if result.wins is not None:
        names = [f"{chr(65 + place)} {name}" for place, name in enumerate(several.short_names(result.wins.names))]
        columns = ("wins of, over", *(name.split(" ")[0] for name in names))
        rows = [
            (name, *("" if i == j else count for j, count in enumerate(counts)))
            for i, (name, counts) in enumerate(zip(names, result.wins.counts, strict=True))
        ]
        report.table(f"{result.comparisons[0].unit} won, by {label(result.wins.metric)}", columns, rows)
    for each in result.attribution:
        log.info("%s: %s (%d questions; retrieval fixes %d and breaks %d, the reader %d and %d)", label(each.metric),
                 each.sentence, each.n, each.retrieval.fixed, each.retrieval.broken, each.reader.fixed, each.reader.broken)  # fmt: skip
    for seed in result.seeds:
        log.info(
            "%s over seeds: B (%d, as %s) - A (%d, as %s) is %+.1f points, [%+.1f, %+.1f] over questions and seeds, [%+.1f, %+.1f] "
            "over questions alone; means of seeds vary by %s (A) and %s points (B)",
            label(seed["metric"]), seed["seeds_b"], seed["b"], seed["seeds_a"], seed["a"],
            *(100 * seed[name] for name in ("delta", "low", "high", "questions_low", "questions_high")),
            points(seed["seed_sd_a"]), points(seed["seed_sd_b"]),
        )  # fmt: skip
    for cost, found in result.pareto.items():
        rows = [
            (each.name, f"{100 * each.quality:.1f}", several.cost_text(cost, each.cost), "yes" if each.best else "")
            for each in found
        ]
        named = several.cost_label(cost)
        report.table(f"quality against {named}", ("run", "quality", named, "none is better in both"), rows)
    for gate in result.gates:
        of = f" of {gate.run}" if len(result.runs) > 2 else ""
        log.info("gate %s%s: %s, it is %.4g", gate.gate, of, "met" if gate.met else "NOT met", gate.value)


def p_text(value: float) -> str:
    """Return a p-value as it is read: three places, and what is smaller than that as such."""
    return "" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def number(value: float) -> str:
    """Return an effect size, signed; nothing where there is none."""
    return "" if math.isnan(value) else f"{value:+.2f}"


def points(value: float) -> str:
    """Return a fraction in percentage points; nothing where there is none."""
    return "" if math.isnan(value) else f"{100 * value:.1f}"
