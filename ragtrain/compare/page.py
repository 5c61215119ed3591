"""A comparison as one HTML file that needs nothing else: no network, no script but its own.

Everything that comes from a run reaches the page as text: tables through ``html.escape``, questions through a JSON block in which
``<`` cannot stand, put on the page by ``textContent``. Passages are left out, from the questions of least interest on, where the file
would grow beyond ``LARGEST``.
"""

from __future__ import annotations

import html
import json
import math
import os
from importlib import resources
from typing import TYPE_CHECKING, Any

from ragtrain.compare import questions, several
from ragtrain.compare.differences import label, sliced_by
from ragtrain.compare.show import number, p_text, points

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ragtrain.compare import CompareResult
    from ragtrain.compare.differences import Comparison
    from ragtrain.compare.reading import Answered, Run

#: Bytes of passages in a page.
LARGEST = 1_800_000
_PASSAGE, _PASSAGES = 600, 5
_ORDER = {"fixed": 0, "broken": 0, "both wrong": 1, "both right": 2}


def write(path: Path, result: CompareResult, runs: Sequence[Run]) -> None:
    """Write the page, aside and then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        aside.write_text(render(result, runs), encoding="utf-8", errors="replace")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def render(result: CompareResult, runs: Sequence[Run]) -> str:
    """Return the page."""
    style, script = (
        resources.files("ragtrain.compare").joinpath(name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js")
    )
    names = several.short_names([run.name for run in runs])
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; img-src data:\">",
        f"<title>{_text(', '.join(names))} compared</title><style>{style}</style></head><body><main>",
        f"<h1>{_text(f'{names[1]} against {names[0]}' if len(runs) == 2 else 'Runs compared')}</h1>",
    ]
    for comparison, name in zip(result.comparisons, names[1:], strict=True):
        parts.extend(_pair(comparison, f"{name} against {names[0]}", result))
    parts.extend(_several(result))
    writing = [run for run in runs if run.writes]
    ids = several.common(writing) if len(writing) > 1 else []
    if ids:
        parts.extend(_browser())
        named = [
            (name, chr(65 + place)) for place, (name, run) in enumerate(zip(names, runs, strict=True)) if run.writes
        ]
        said = {
            "runs": [name for name, _ in named],
            "letters": [letter for _, letter in named],
            **_document(writing, ids),
        }
        document = json.dumps(said, ensure_ascii=False, separators=(",", ":"))
        for character, escape in (
            ("<", "\\u003c"),
            (">", "\\u003e"),
            ("&", "\\u0026"),
            ("\u2028", "\\u2028"),
            ("\u2029", "\\u2029"),
        ):
            document = document.replace(character, escape)
        parts.append(f'<script type="application/json" id="data">{document}</script><script>{script}</script>')
    parts.append("</main></body></html>\n")
    return "".join(parts)


def _pair(comparison: Comparison, title: str, result: CompareResult) -> Iterator[str]:
    if len(result.comparisons) > 1:
        yield f"<h2>{_text(title)}</h2>"
    yield f'<p class="lead">{_text(summary(comparison))}</p>'
    yield f'<p class="dim">A is {_text(comparison.a)}; B is {_text(comparison.b)}; {comparison.n} {comparison.unit}'
    if comparison.only_a or comparison.only_b:
        yield f" ({comparison.only_a} only in A and {comparison.only_b} only in B are left out)"
    yield ".</p>"
    yield _intervals(comparison, result.confidence)
    columns = ("metric", "A", "B", f"B − A [{100 * result.confidence:g} %]", "p (Holm)", "effect", "shows from", "B wins",
               "A wins", "ties")  # fmt: skip
    rows = [
        (label(d.metric), f"{100 * d.a:.1f}", f"{100 * d.b:.1f}", _interval(d.delta, d.low, d.high), p_text(d.p_holm),
         number(d.effect), points(d.smallest), str(d.wins), str(d.losses), str(d.ties))
        for d in comparison.differences
    ]  # fmt: skip
    yield _table(columns, rows)
    yield (
        '<p class="dim">Percent. <em>Shows from</em>: the difference that so many '
        f"{comparison.unit} show four times in five. "
        "<em>Effect</em>: Cohen's h of rates, d of other scores.</p>"
    )
    if comparison.slices:
        yield f"<h2>Where, by {_text(label(sliced_by(comparison.differences) or ''))}</h2>"
        yield _table(
            ("kind of question", "n", "A", "B", "B − A"),
            [(f"{each.kind}: {each.value}", str(each.n), f"{100 * each.a:.1f}", f"{100 * each.b:.1f}",
              _interval(each.delta, each.low, each.high)) for each in comparison.slices],
        )  # fmt: skip
    if comparison.configuration or comparison.remarks:
        yield "<h2>What differs in the configuration</h2><ul>"
        yield from (f"<li>{_text(line)}</li>" for line in (*comparison.remarks, *comparison.configuration))
        yield "</ul>"


def summary(comparison: Comparison) -> str:
    """Return what the comparison says in a sentence or two."""
    if not comparison.differences:
        return "The runs have no metric in common."
    text = f"{comparison.differences[0].sentence}."
    if comparison.changed:
        found = questions.counts(comparison.changed)
        text += f" Of {comparison.n} questions {found['fixed']} are fixed and {found['broken']} are broken"
        known = {
            cause: found["fixed by"].get(cause, 0) + found["broken by"].get(cause, 0)
            for cause in ("retrieval", "reader")
        }
        if any(known.values()):
            text += f"; retrieval decided {known['retrieval']} of these changes, the reader {known['reader']}"
        text += "."
    return text


def _intervals(comparison: Comparison, confidence: float) -> str:
    """Return the differences with their intervals as a picture."""
    shown = comparison.differences
    ends = [abs(100 * value) for d in shown for value in (d.low, d.high, d.delta) if math.isfinite(value)]
    reach = _round_up(max([*ends, 1.0]))
    left, width, row = 164, 348, 30  # wide enough for a label, narrow enough for a phone
    height = row * len(shown) + 50

    def x(value: float) -> float:
        return left + width * (value + reach) / (2 * reach)

    parts = [
        f'<div class="scroll plain"><svg viewBox="0 0 {left + width + 24} {height}" role="img" aria-label="differences with intervals">'
    ]
    for tick in (-reach, -reach / 2, 0.0, reach / 2, reach):
        kind = "zero" if tick == 0 else "axis"
        parts.append(f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="6" y2="{height - 40}"/>')
        parts.append(
            f'<text class="small" x="{x(tick):.1f}" y="{height - 22}" text-anchor="middle">{_tick(tick)}</text>'
        )
    for place, d in enumerate(shown):
        y = 22 + row * place
        tone = "even" if d.low <= 0 <= d.high else "good" if d.delta > 0 else "bad"
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{_text(label(d.metric))}</text>')
        parts.append(
            f'<line class="{tone}" stroke-width="3" x1="{x(100 * d.low):.1f}" x2="{x(100 * d.high):.1f}" y1="{y}" y2="{y}"/>'
        )
        parts.append(f'<circle class="{tone}" r="5" cx="{x(100 * d.delta):.1f}" cy="{y}"/>')
    parts.append(
        f'<text class="small" x="{x(0):.1f}" y="{height - 4}" text-anchor="middle">B − A in percentage points, with '
        f"{100 * confidence:g} % intervals, n = {comparison.n}</text></svg></div>"
    )
    return "".join(parts)


def _tick(value: float) -> str:
    return f"{value:+g}" if value else "0"


def _round_up(value: float) -> float:
    scale = 10 ** math.floor(math.log10(value))
    return float(next(step * scale for step in (1, 2, 4, 5, 10) if step * scale >= value))


def _several(result: CompareResult) -> Iterator[str]:
    if result.wins is not None:
        letters = [chr(65 + place) for place in range(len(result.wins.names))]
        yield f"<h2>{result.comparisons[0].unit.capitalize()} won, by {_text(label(result.wins.metric))}</h2>"
        yield _table(
            ("of, over", *letters),
            [(f"{letter} {name}", *("" if i == j else str(count) for j, count in enumerate(counts)))
             for i, (letter, name, counts) in enumerate(zip(letters, result.wins.names, result.wins.counts, strict=True))],
        )  # fmt: skip
    if result.attribution:
        yield "<h2>Whose doing</h2><ul>"
        yield from (
            f"<li>{_text(label(each.metric))}: {_text(each.sentence)} ({each.n} questions)</li>"
            for each in result.attribution
        )
        yield "</ul>"
    for cost, found in result.pareto.items():
        named = several.cost_label(cost)
        yield f"<h2>Quality against {_text(named)}</h2>"
        yield _table(
            ("run", "quality", named, "none is better in both"),
            [
                (each.name, f"{100 * each.quality:.1f}", several.cost_text(cost, each.cost), "yes" if each.best else "")
                for each in found
            ],
        )
    if result.gates:
        yield "<h2>Gates</h2>"
        yield _table(
            ("condition", "run", "value", "met"),
            [(each.gate, each.run, f"{each.value:.4g}", "yes" if each.met else "no") for each in result.gates],
        )


def _browser() -> Iterator[str]:
    yield "<h2>Questions</h2>"
    yield '<div class="tools"><input id="search" type="search" placeholder="search questions and answers" aria-label="search">'
    options = "".join(f"<option>{outcome}</option>" for outcome in questions.OUTCOMES)
    yield f'<select id="outcome" aria-label="outcome"><option value="">all outcomes</option>{options}</select>'
    yield (
        '<select id="cause" aria-label="cause"><option value="">any cause</option><option value="retrieval">by retrieval</option>'
        '<option value="reader">by the reader</option></select>'
    )
    yield '<select id="pair" aria-label="runs"></select></div><p class="dim" id="count"></p><div id="list"></div>'
    yield '<p><button id="more" type="button">more</button></p><noscript><p>The questions need JavaScript.</p></noscript>'


def _document(runs: Sequence[Run], ids: Sequence[str]) -> dict[str, Any]:
    """Return questions, answers and as many passages as there is room for, those of changed questions first."""
    outcome = {each.id: _ORDER[each.outcome] for each in questions.outcomes(runs[0], runs[1], ids)}
    ordered = sorted(ids, key=lambda each: outcome.get(each, 2))
    passages: dict[tuple[str, str], int] = {}
    room = LARGEST
    places: dict[tuple[int, str], list[list[int]] | None] = {}
    for each in ordered:
        for number_of_run, run in enumerate(runs):
            found = [_passage(document) for document in run.answered[each].documents[:_PASSAGES]]
            new = {passage for passage in found if passage not in passages}
            size = sum(len(json.dumps(passage)) for passage in new) + 8 * len(found)
            if size > room:
                places[number_of_run, each] = None
                continue
            room -= size
            for passage in found:
                passages.setdefault(passage, len(passages))
            hits = [int(bool(document.get("has_answer"))) for document in run.answered[each].documents]
            places[number_of_run, each] = [[passages[passage], hit] for passage, hit in zip(found, hits, strict=False)]
    return {
        "questions": [
            [each, runs[0].answered[each].question, sorted(runs[0].answered[each].answers)] for each in ordered
        ],
        "answers": [[_answer(run.answered[each], places[i, each]) for each in ordered] for i, run in enumerate(runs)],
        "passages": list(passages),
    }


def _answer(answered: Answered, places: list[list[int]] | None) -> list[Any]:
    read = None if answered.read_answer is None else int(answered.read_answer)
    return [answered.prediction or "", int(answered.em or 0), read, places, len(answered.documents)]


def _passage(document: Mapping[str, Any]) -> tuple[str, str]:
    text = " ".join(str(document.get("text", "")).split())
    return str(document.get("title") or ""), text if len(text) <= _PASSAGE else f"{text[:_PASSAGE]}…"


def _interval(delta: float, low: float, high: float) -> str:
    return f"{100 * delta:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(value: str) -> str:
    return html.escape(value, quote=True)
