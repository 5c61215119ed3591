"""Paths of an explanation as pictures: a tree of text for the console, and an SVG file.

Both show paths as triples are read: an arrow points from head to tail, whichever way the message went.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Sizes of the SVG, in its units.
_BOX, _HEIGHT, _GAP, _ROW, _MARGIN = 190, 34, 170, 62, 24
_LETTERS = 28


@dataclasses.dataclass(frozen=True)
class Hop:
    """One step by name.

    Attributes:
        source: entity that was there before.
        relation: name of the direct relation.
        forward: the source is the relation's head.
        target: entity that the step leads to.
        weight: of the step.
    """

    source: str
    relation: str
    forward: bool
    target: str
    weight: float

    def arrow(self) -> str:
        """Return the relation with its direction."""
        return f"—{self.relation}→" if self.forward else f"←{self.relation}—"


@dataclasses.dataclass(frozen=True)
class Path:
    """Hops from an entity of the question to the one that was found, and the mean weight of a hop."""

    hops: tuple[Hop, ...]
    mean: float


def tree(paths: Sequence[Path], scores: Mapping[str, float]) -> str:
    """Return paths as a tree of text: entities of the question, and under each what was reached from it.

    Args:
        paths: to draw; those with the same beginning share it.
        scores: of the entities that were found; shown where a path ends.
    """
    root: dict[tuple[str, str], dict] = {}  # type: ignore[type-arg]
    ends: dict[int, list[float]] = {}
    for path in paths:
        node = root.setdefault(("", path.hops[0].source), {})
        for hop in path.hops:
            node = node.setdefault((hop.arrow(), hop.target), {})
        ends.setdefault(id(node), []).append(path.mean)
    lines: list[str] = []

    def draw(node: dict, before: str) -> None:  # type: ignore[type-arg]
        for number, ((arrow, name), below) in enumerate(node.items(), 1):
            last = number == len(node)
            found = "".join(f"   {scores.get(name, 0.0):.3f}, path {mean:+.3g}" for mean in ends.get(id(below), ()))
            lines.append(f"{before}{'└─' if last else '├─'} {arrow} {name}{found}")
            draw(below, before + ("   " if last else "│  "))

    for (_, name), below in root.items():
        lines.append(f"{name}   (in the question)")
        draw(below, "")
    return "\n".join(lines)


def svg(
    question: str, paths: Sequence[Path], scores: Mapping[str, float], documents: Mapping[str, Sequence[str]]
) -> str:
    """Return paths as an SVG drawing: a column for each distance from the question, then documents.

    Args:
        question: stands above.
        paths: to draw.
        scores: of the entities that were found.
        documents: titles, best first, with the names of those of these entities that each holds.
    """
    columns = _columns(paths, documents)
    places = {
        key: (_MARGIN + column * (_BOX + _GAP), _MARGIN + 30 + row * _ROW)
        for column, keys in enumerate(columns)
        for row, key in enumerate(keys)
    }
    width = 2 * _MARGIN + len(columns) * _BOX + (len(columns) - 1) * _GAP
    height = 2 * _MARGIN + 30 + max((len(keys) for keys in columns), default=1) * _ROW
    seeds = {path.hops[0].source for path in paths}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{_MARGIN}" y="{_MARGIN}" font-size="14" font-weight="bold">{escape(question)}</text>',
    ]
    lines, labels = _lines(paths, documents, places)
    parts += lines
    for (kind, name), place in places.items():
        note = "" if kind == "document" or name not in scores else f"{scores[name]:.3f}"
        colour = "#eee" if kind == "document" else "#fde9b8" if name in seeds else "#d5e8d4" if note else "#e3ecf9"
        parts.append(_box(name, note, colour, place))
    return "\n".join([*parts, *labels, "</svg>", ""])


def _columns(paths: Sequence[Path], documents: Mapping[str, Sequence[str]]) -> list[list[tuple[str, str]]]:
    """Return entities by their least distance from the question's, and documents behind them."""
    distance: dict[str, int] = {}
    for path in paths:
        for step, name in enumerate([path.hops[0].source, *(hop.target for hop in path.hops)]):
            distance[name] = min(step, distance.get(name, step))
    columns: list[list[tuple[str, str]]] = [[] for _ in range(max(distance.values(), default=-1) + 1)]
    for name, step in distance.items():
        columns[step].append(("entity", name))
    held = [("document", title) for title, names in documents.items() if set(names) & set(distance)]
    return [*columns, held] if held else columns


def _lines(
    paths: Sequence[Path], documents: Mapping[str, Sequence[str]], places: Mapping[tuple[str, str], tuple[float, float]]
) -> tuple[list[str], list[str]]:
    """Return the lines between boxes, the heavier a step, the broader, and what stands at them."""
    hops: dict[tuple[str, str, str], float] = {}
    for path in paths:
        for hop in path.hops:
            head, tail = (hop.source, hop.target) if hop.forward else (hop.target, hop.source)
            key = (head, tail, hop.relation)
            hops[key] = max(hop.weight, hops.get(key, 0.0))
    most = max(hops.values(), default=0.0) or 1.0
    drawn: dict[tuple[str, str], int] = {}
    parts: list[str] = []
    labels: list[str] = []
    for (head, tail, relation), weight in hops.items():
        pair = (min(head, tail), max(head, tail))
        shift = 13 * drawn.get(pair, 0)
        drawn[pair] = drawn.get(pair, 0) + 1
        style = f'stroke="#555" stroke-width="{1 + 2.5 * max(0.0, weight) / most:.2f}" marker-end="url(#tip)"'
        line, (x, y) = _line(places["entity", head], places["entity", tail], shift, style)
        parts.append(line)
        halo = 'stroke="#fff" stroke-width="3" paint-order="stroke"'
        labels.append(
            f'<text x="{x:.0f}" y="{y - 5:.0f}" text-anchor="middle" fill="#333" {halo}>{_text(relation)}</text>'
        )
    for title, names in documents.items():
        for name in names:
            if ("entity", name) in places and ("document", title) in places:
                style = 'stroke="#aaa" stroke-dasharray="4 3"'
                parts.append(_line(places["entity", name], places["document", title], 0, style)[0])
    return parts, labels


def _line(
    source: tuple[float, float], target: tuple[float, float], shift: float, style: str
) -> tuple[str, tuple[float, float]]:
    """Return a line between two boxes, and where its name stands, nearer to the right end where lines fan out; a bow on the right between boxes of one column."""
    y1, y2 = source[1] + _HEIGHT / 2 + shift, target[1] + _HEIGHT / 2 + shift
    if source[0] == target[0]:
        x, bow = source[0] + _BOX, 45 + shift
        path, middle = (
            f"M{x:.0f} {y1:.0f}C{x + bow:.0f} {y1:.0f} {x + bow:.0f} {y2:.0f} {x:.0f} {y2:.0f}",
            x + 0.75 * bow,
        )
    else:
        right = source[0] < target[0]
        x1, x2 = source[0] + right * _BOX, target[0] + (not right) * _BOX
        share = 0.62 if right else 0.38
        path, middle = f"M{x1:.0f} {y1:.0f}L{x2:.0f} {y2:.0f}", (1 - share) * x1 + share * x2
        return f'<path d="{path}" fill="none" {style}/>', (middle, (1 - share) * y1 + share * y2)
    return f'<path d="{path}" fill="none" {style}/>', (middle, (y1 + y2) / 2)


def _box(name: str, note: str, colour: str, place: tuple[float, float]) -> str:
    x, y = place
    inside = f'<text x="{x + _BOX / 2:.0f}" y="{y + (15 if note else 21)}" text-anchor="middle">{_text(name)}</text>'
    if note:
        inside += f'<text x="{x + _BOX / 2:.0f}" y="{y + 29}" text-anchor="middle" font-size="10">{note}</text>'
    rect = f'<rect x="{x}" y="{y}" width="{_BOX}" height="{_HEIGHT}" rx="6" fill="{colour}" stroke="#888"/>'
    return f"<g><title>{_clean(name)}</title>{rect}{inside}</g>"


def _text(name: str) -> str:
    return _clean(name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…")


def _clean(name: str) -> str:
    """Return a text as XML may hold it."""
    return escape("".join(c for c in name if c.isprintable()))
