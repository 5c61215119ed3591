"""What of passages and questions the compressor does not read, or reads in two pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ragtrain import metrics
from ragtrain.data.compress.records import passage_text
from ragtrain.evaluate.compress.asked import fed_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.data.compress.records import CompressExample, Windowed
    from ragtrain.evaluate.compress.subject import Subject


def cuts(subject: Subject, rows: Sequence[CompressExample], rate: int | None = None) -> dict[str, Any]:
    """Return what is lost before anything is compressed, and the rate as it came out.

    Args:
        subject: whose windows.
        rows: questions with their passages, as they are read.
        rate: compression rate; None for the nominal one.

    Returns:
        ``passage_tokens`` of all passages, and the share of them that is ``fed``; ``questions_cut``, longer than the compressor
        reads; of the ``answers_in_passages`` (questions whose passages hold an answer) the shares ``answers_cut``, in what is left
        out, and ``answers_split``, in no window as a whole; ``windows`` and ``vectors`` in all, and ``rate``: tokens fed for each
        vector.
    """
    windower = subject.windower
    made = windower.windows([(row.question, row.documents) for row in rows])
    read = windower.settings.max_query_tokens if windower.settings.query_dependent else None
    lengths = [len(each.ids) for each in windower.tokens([row.question for row in rows])]
    texts = [passage_text(document) for row in rows for document in row.documents]
    total = sum(len(each.ids) for each in windower.tokens(texts))
    fed = min(total, sum(len(window.ids) for row in made for window in row.windows))
    vectors = sum(sum(windower.counts(row, rate)) for row in made)
    losses = [_loss(row, windowed) for row, windowed in zip(rows, made, strict=True)]
    held = sum(loss is not None for loss in losses)
    return {
        "passage_tokens": total,
        "fed": fed / total if total else 1.0,
        "questions_cut": 0 if read is None else sum(length > read for length in lengths),
        "answers_in_passages": held,
        "answers_cut": losses.count("cut") / held if held else None,
        "answers_split": losses.count("split") / held if held else None,
        "windows": sum(len(row.windows) for row in made),
        "vectors": vectors,
        "rate": fed / vectors if vectors else None,
    }


def _loss(row: CompressExample, windowed: Windowed) -> str | None:
    """Return what happens to the answers in a question's passages: ``cut``, ``split``, nothing (``""``); None without any."""
    texts = [passage_text(document) for document in row.documents]
    if not any(metrics.has_answer(row.answers, text) for text in texts):
        return None
    if not any(metrics.has_answer(row.answers, fed_text(row, windowed, place)) for place in range(len(texts))):
        return "cut"
    pieces = [
        texts[window.document][window.begin : window.end] if window.begin >= 0 else texts[window.document]
        for window in windowed.windows
    ]
    return "" if any(metrics.has_answer(row.answers, piece) for piece in pieces) else "split"
