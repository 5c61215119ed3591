"""A comparison as Markdown: for an issue, a pull request, a notebook."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ragtrain.compare import questions, several
from ragtrain.compare.differences import label, sliced_by
from ragtrain.compare.show import number, p_text, points

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from ragtrain.compare import CompareResult
    from ragtrain.compare.differences import Comparison
    from ragtrain.compare.reading import Run

#: Questions of each outcome that are listed.
_LISTED = 10


def write(path: Path, result: CompareResult, runs: Sequence[Run]) -> None:
    """Write a comparison, aside and then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        aside.write_text("\n".join(_lines(result, runs)) + "\n", encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _lines(result: CompareResult, runs: Sequence[Run]) -> Iterator[str]:
    yield "# Comparison of runs"
    for comparison, other in zip(result.comparisons, runs[1:], strict=True):
        yield ""
        yield from _pair(comparison, runs[0], other, result.confidence)
    if result.wins is not None:
        yield from ("", f"## {result.comparisons[0].unit.capitalize()} won, by {label(result.wins.metric)}", "")
        letters = [chr(65 + place) for place in range(len(result.wins.names))]
        rows = [
            (f"{letter} {name}", *(str(count) if i != j else "" for j, count in enumerate(counts)))
            for i, (letter, name, counts) in enumerate(zip(letters, result.wins.names, result.wins.counts, strict=True))
        ]
        yield from _table(("of, over", *letters), rows)
    if result.attribution:
        yield from ("", "## Whose doing", "")
        yield from (
            f"- {label(each.metric)}: {_escaped(each.sentence)} ({each.n} questions)." for each in result.attribution
        )
    for cost, found in result.pareto.items():
        named = several.cost_label(cost)
        yield from ("", f"## Quality against {named}", "")
        yield from _table(
            ("run", "quality", named, "none is better in both"),
            [
                (each.name, f"{100 * each.quality:.1f}", several.cost_text(cost, each.cost), "yes" if each.best else "")
                for each in found
            ],
        )
    if result.gates:
        yield from ("", "## Gates", "")
        yield from _table(
            ("condition", "run", "value", "met"),
            [(each.gate, each.run, f"{each.value:.4g}", "yes" if each.met else "**no**") for each in result.gates],
        )


def _pair(comparison: Comparison, a: Run, b: Run, confidence: float) -> Iterator[str]:
    yield f"## A = {_escaped(comparison.a)}, B = {_escaped(comparison.b)}"
    yield from ("", *(f"- {_escaped(d.sentence)}." for d in comparison.differences))
    yield ""
    columns = ("metric", "A", "B", f"B - A [{100 * confidence:g} %]", "p (Holm)", "effect", "shows from", "B wins", "A wins",
               "ties")  # fmt: skip
    rows = [
        (label(d.metric), f"{100 * d.a:.1f}", f"{100 * d.b:.1f}",
         f"{100 * d.delta:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]", p_text(d.p_holm), number(d.effect),
         points(d.smallest), str(d.wins), str(d.losses), str(d.ties))
        for d in comparison.differences
    ]  # fmt: skip
    yield from _table(columns, rows)
    yield ""
    yield f"{comparison.n} {comparison.unit}; percent. *Shows from*: the difference that so many {comparison.unit} show four times in five."
    if comparison.slices:
        yield from ("", f"### Kinds of questions, by {label(sliced_by(comparison.differences) or '')}", "")
        yield from _table(
            ("kind", "value", "n", "A", "B", "B - A"),
            [(each.kind, each.value, str(each.n), f"{100 * each.a:.1f}", f"{100 * each.b:.1f}",
              f"{100 * each.delta:+.1f} [{100 * each.low:+.1f}, {100 * each.high:+.1f}]") for each in comparison.slices],
        )  # fmt: skip
    if comparison.configuration or comparison.remarks:
        yield from ("", "### What differs in the configuration", "")
        yield from (f"- {_escaped(line)}" for line in (*comparison.remarks, *comparison.configuration))
    if comparison.changed:
        yield from _changed(comparison, a, b)


def _changed(comparison: Comparison, a: Run, b: Run) -> Iterator[str]:
    found = questions.counts(comparison.changed)
    yield from ("", "### Questions", "")
    yield ", ".join(f"{found[outcome]} {outcome}" for outcome in questions.OUTCOMES) + "."
    for outcome in ("fixed", "broken"):
        members = [each for each in comparison.changed if each.outcome == outcome]
        if not members:
            continue
        yield from ("", f"**{outcome}**", "")
        yield from _table(
            ("question", "references", "A", "B", "by"),
            [(a.answered[each.id].question or each.id, "; ".join(sorted(a.answered[each.id].answers)),
              a.answered[each.id].prediction or "", b.answered[each.id].prediction or "", each.cause or "")
             for each in members[:_LISTED]],
        )  # fmt: skip
        if len(members) > _LISTED:
            yield from ("", f"and {len(members) - _LISTED} more.")


def _table(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    columns = list(columns)
    yield "| " + " | ".join(columns) + " |"
    yield "|" + " --- |" * len(columns)
    for row in rows:
        yield "| " + " | ".join(map(_escaped, row)) + " |"


def _escaped(text: str) -> str:
    """Return a text that stays one cell and starts no markup of its own."""
    flat = " ".join(text.split())
    for character in "\\|<>*_`[]#":
        flat = flat.replace(character, "\\" + character)
    return flat
