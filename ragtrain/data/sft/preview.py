"""A look at rows before training: what a model reads, which tokens it learns from, how long rows are and what was lost."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain import report
from ragtrain.data.sft.layouts import passage_text, query_text, question_text
from ragtrain.data.sft.records import IGNORED
from ragtrain.data.sft.spans import find_passages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ragtrain.data.sft.prompts import Prompter, PromptSettings
    from ragtrain.data.sft.records import Encoded, Sample

TEMPLATE = "template"
"""The role of what belongs to no part: marks of the chat template, words between the parts."""
BINS = 8
BAR = 40
"""Characters of the longest bar."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """A row for people.

    Attributes:
        title: its id, its length, and the tokens of each part.
        pieces: its text in order: (text, role, whether it is trained).
    """

    title: str
    pieces: tuple[tuple[str, str, bool], ...]


def preview(prompter: Prompter, samples: Sequence[Sample], encoded: Sequence[Encoded]) -> list[Shown]:
    """Show samples as the model reads them, and return what was shown.

    Roles are colours on a terminal and labels elsewhere; what is trained is underlined, or stands in double brackets.
    """
    shown = [show(prompter, sample, row) for sample, row in zip(samples, encoded, strict=True)]
    for each in shown:
        report.marked(each.title, each.pieces)
    return shown


def show(prompter: Prompter, sample: Sample, encoded: Encoded) -> Shown:
    """Return a row for people.

    Args:
        prompter: that encoded it.
        sample: before anything was taken from it.
        encoded: what the prompter made of it.
    """
    if encoded.lost == "row":
        return Shown(f"row {sample.id}: left out, too long even without passages", ())
    fitted = prompter.fitted([sample])[0].sample
    text, ends = prompter.text_and_ends(fitted)
    trained = encoded.labels != IGNORED
    if ends is None or len(ends) != len(encoded.ids):
        pieces, counts = _decoded(prompter.tokenizer, encoded, trained)
    else:
        pieces, counts = _by_token(text, ends, roles(fitted, text, prompter), trained)
    n_docs, n_left = len(sample.documents), len(fitted.documents)
    lost = f"; {n_docs - n_left} of {n_docs} passages left out" if n_left < n_docs else ""
    lost += "; passages cut" if encoded.lost == "text" else ""
    parts = ", ".join(f"{role} {count}" for role, count in counts.items())
    title = f"row {sample.id}: {len(encoded.ids)} tokens ({parts}), {int(trained.sum())} trained{lost}"
    return Shown(title, tuple(pieces))


def roles(sample: Sample, text: str, prompter: Prompter) -> list[str]:
    """Return the role of every character of a sample's text."""
    of = [TEMPLATE] * len(text)
    start = 0
    for role, forms in _parts(sample, prompter.settings.instruction):
        found = [(at, form) for form in forms if form and (at := _place(text, form, start, last=role == "answer")) >= 0]
        if found:
            at, form = found[0]
            of[at : at + len(form)] = [role] * len(form)
            start = max(start, at + len(form))
    return of


def _place(text: str, form: str, start: int, *, last: bool) -> int:
    """Return where a part stands: behind the part before it, or elsewhere in a template with another order."""
    at = text.rfind(form, start) if last else text.find(form, start)
    return text.find(form) if at < 0 else at


def _parts(sample: Sample, instruction: str | None) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the parts of a sample in the usual order, each as it may stand in a text, the longest form first."""
    yield "instruction", (instruction or "",)
    for shot in sample.shots:
        yield "shots", (query_text(shot), shot.question.strip())
        yield "shots", (shot.target.strip(),)
    if sample.finished is None:
        for i, document in enumerate(sample.documents, start=1):
            whole = passage_text(i, document)
            yield "passages", (f"{whole}\n\n", whole, document.text.strip())
        yield "question", (question_text(sample.question), sample.question.strip())
    else:
        at = 0
        spans = [span for span in find_passages(sample.finished, sample.documents) if span is not None]
        for start, end in sorted(spans):
            yield "question", (sample.finished[at:start].strip(),)
            yield "passages", (sample.finished[start:end],)
            at = end
        yield "question", (sample.finished[at:].strip(),)
    yield "answer", (sample.target.strip(),)


def _by_token(
    text: str, ends: Sequence[int], of: Sequence[str], trained: np.ndarray
) -> tuple[list[tuple[str, str, bool]], dict[str, int]]:
    """Return the text in pieces of one role, trained or not, and the tokens of each role."""
    pieces: list[tuple[str, str, bool]] = []
    counts: collections.Counter[str] = collections.Counter()
    at = 0
    for end, learnt in zip(ends, trained.tolist(), strict=True):
        token = text[at:end]
        first = at + len(token) - len(token.lstrip())  # a space belongs to the word after it
        role = of[min(first, end - 1)] if token else (pieces[-1][1] if pieces else TEMPLATE)
        counts[role] += 1
        if pieces and pieces[-1][1:] == (role, learnt):
            pieces[-1] = (pieces[-1][0] + token, role, learnt)
        else:
            pieces.append((token, role, learnt))
        at = max(at, end)
    return pieces, dict(counts)


def _decoded(
    tokenizer: Any,  # noqa: ANN401 - no common type
    encoded: Encoded,
    trained: np.ndarray,
) -> tuple[list[tuple[str, str, bool]], dict[str, int]]:
    """Return prompt and answer of a tokenizer that does not say where its tokens stand in the text."""
    start = int(np.flatnonzero(trained)[0]) if trained.any() else len(encoded.ids)
    pieces = [
        (tokenizer.decode(encoded.ids[:start]), "prompt", False),
        (tokenizer.decode(encoded.ids[start:]), "answer", True),
    ]
    return pieces, {"prompt": start, "answer": len(encoded.ids) - start}


def length_report(encoded: Sequence[Encoded], settings: PromptSettings) -> list[tuple[str, str]]:
    """Show how long rows are, how many of their tokens are trained, and what became of those that were too long.

    Returns:
        Names and values, as they are shown.
    """
    kept = [row for row in encoded if row.lost != "row"]
    lengths = np.array([len(row.ids) for row in kept], dtype=np.int64)
    trained = np.array([row.trained for row in kept], dtype=np.int64)
    pairs = [("rows", f"{len(encoded)}, {int((trained > 0).sum())} of them with something to learn")]
    if len(kept):
        pairs += [(f"{low:,}–{high:,} tokens", f"{'#' * bar} {count}") for low, high, count, bar in _histogram(lengths)]
        pairs += [("tokens a row", _spread(lengths)), ("trained tokens a row", _spread(trained))]
        pairs.append(("trained share", f"{100 * trained.sum() / lengths.sum():.1f} % of {int(lengths.sum()):,} tokens"))
    pairs.append((f"over {settings.max_length:,} tokens", _losses(encoded)))
    report.panel("Lengths", pairs)
    return pairs


def _histogram(lengths: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Return (from, to, rows, characters of the bar) of equal bins from the shortest to the longest."""
    least = int(lengths.min())
    width = -(-(int(lengths.max()) - least + 1) // BINS)
    counts = np.bincount((lengths - least) // width)
    bars = np.ceil(BAR * counts / counts.max()).astype(int)
    return [
        (least + i * width, least + (i + 1) * width - 1, int(count), int(bar))
        for i, (count, bar) in enumerate(zip(counts, bars, strict=True))
    ]


def _spread(values: np.ndarray) -> str:
    half, most = (int(value) for value in np.percentile(values, (50, 95), method="higher"))
    return f"{values.mean():.1f} on average, half at most {half}, 95 % at most {most}, longest {int(values.max())}"


def _losses(encoded: Sequence[Encoded]) -> str:
    counts = collections.Counter(row.lost for row in encoded)
    over = len(encoded) - counts[""]
    if not over:
        return "none"
    what = {"docs": "lost passages", "text": "lost the ends of passages", "row": "left out"}
    lost = ", ".join(f"{counts[key]} {words}" for key, words in what.items() if counts[key])  # type: ignore[index]
    return f"{over} ({100 * over / len(encoded):.1f} %): {lost}"
