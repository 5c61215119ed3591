"""Passages inside a finished prompt: where they stand, and what goes with one that is taken out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ragtrain.records import Document

Span = tuple[int, int]

SHORTEST = 20
"""Characters of a passage that may be found within a line; a shorter one has to be a line by itself."""
HEAD = 64
"""Characters besides the title that may stand before a passage and belong to it."""
_NUMBER = r"(?:(?:doc(?:ument)?|passage|context|source|text|reference)s?\s*)?(?:\[\d+\]|\(\d+\)|#?\d+)\s*[.:)\-–—]?"
_BULLET = r"[-*•]"
_LABEL = r"(?:(?:text|content|passage|body)\s*:\s*)?"
_RULE = re.compile(r"\s*[-=*#_~]{3,}\s*")
_GAP = re.compile(r"[ \t]*\n(?:[ \t]*(?:[-=*#_~]{3,})?[ \t]*\n)*")
"""The end of a line, with the empty lines and rules below it."""


def find_passages(prompt: str, documents: Sequence[Document]) -> list[Span | None]:
    """Return where the text of each document stands in a prompt word for word, ``None`` where it does not.

    Spans do not overlap: of two documents with the same text the second one has the second place. The longest texts
    choose first, so that a passage is not looked for inside another.
    """
    taken: list[Span] = []
    found: list[Span | None] = [None] * len(documents)
    for i in sorted(range(len(documents)), key=lambda i: (-len(documents[i].text.strip()), i)):
        text = documents[i].text.strip()
        start = prompt.find(text) if text else -1
        while start >= 0:
            span = (start, start + len(text))
            free = all(span[1] <= begin or end <= span[0] for begin, end in taken)
            if free and (len(text) >= SHORTEST or _is_line(prompt, span)):
                taken.append(span)
                found[i] = span
                break
            start = prompt.find(text, start + 1)
    return found


def _is_line(prompt: str, span: Span) -> bool:
    before, after = prompt[: span[0]].rpartition("\n")[2], prompt[span[1] :].partition("\n")[0]
    return not before.strip() and not after.strip()


def cut_span(prompt: str, span: Span, title: str) -> Span:
    """Return a passage's span with what belongs to it: number and title before it, and one of the gaps around it.

    Of the empty lines above and below, the fewer ones go, so that what follows the last passage stays set off.

    Args:
        prompt: the finished prompt.
        span: of the passage's text.
        title: of the passage, may be empty.
    """
    start, end = span
    head = _head(title).search(prompt, max(start - len(title) - HEAD, 0), start)
    if head is not None:
        start = head.start()
    if not prompt[end:].strip():  # nothing follows
        return len(prompt[:start].rstrip()), len(prompt)
    after = _GAP.match(prompt, end)
    if after is None or not (start == 0 or prompt[start - 1] == "\n"):
        # Within a line: one space less, so that none is left double.
        return (start, end + 1) if prompt[end : end + 1] == " " else (start, end)
    gap = _gap_before(prompt, start)
    if start - gap > 0 and prompt.count("\n", gap, start) < prompt.count("\n", end, after.end()):
        return gap, end
    return start, after.end()


def _gap_before(prompt: str, start: int) -> int:
    """Return where the empty lines and rules end that stand above the line that begins at ``start``."""
    while start > 0:
        line_start = prompt.rfind("\n", 0, start - 1) + 1
        line = prompt[line_start : start - 1]
        if line.strip() and not _RULE.fullmatch(line):
            return start - 1
        start = line_start
    return 0


def without_spans(prompt: str, spans: Iterable[Span]) -> str:
    """Return a prompt without some spans, which may overlap."""
    pieces, at = [], 0
    for start, end in sorted(spans):
        pieces.append(prompt[at : max(start, at)])
        at = max(at, end)
    return "".join(pieces) + prompt[at:]


def _head(title: str) -> re.Pattern[str]:
    """Return what may stand right before a passage's text and belongs to it."""
    name = re.escape(title.strip())
    titled = rf"(?:(?:title\s*:\s*)?[\"'(\[]?{name}[\"')\]]?[\s:|/\-–—.]*)?" if name else ""
    number = rf"(?:(?:{_NUMBER}|{_BULLET})\s*)?"
    return re.compile(rf"(?:(?<=\n)|(?<=\s)|\A){number}\(?{titled}{_LABEL}[\"']?\Z", re.IGNORECASE)
