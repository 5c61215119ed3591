"""What windows leave of passages: tokens and answers that a limit cuts off, and answers that a border splits."""

from __future__ import annotations

import dataclasses
import logging
import re
from typing import TYPE_CHECKING

from ragtrain.data.compress.records import passage_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ragtrain.data.compress.records import Context, Window
    from ragtrain.data.compress.windows import Windower

log = logging.getLogger("ragtrain")

#: Rows whose passages are tokenised at once.
_ROWS = 256


@dataclasses.dataclass
class Coverage:
    """Counts over the passages of rows.

    Attributes:
        rows: questions looked at.
        passages: their passages, each as often as it is shown.
        windows: windows of these.
        longer: passages of more than one window.
        cut: passages that lost tokens.
        tokens: tokens of all passages, of the compressor's tokenizer.
        tokens_cut: those that are in no window.
        question_tokens: tokens of the questions.
        question_tokens_cut: those that the compressor does not read (``max_query_tokens``); the generator reads them.
        vectors: memory vectors at the nominal rate.
        most_vectors: of the row that has most.
        spans: places in passages where a reference answer stands, word for word.
        spans_cut: those not wholly in windows.
        spans_split: those that are, but in no single one.
        answered: rows with such a place.
        answered_cut: of them those that lost every such place.
        answered_split: of the others those that have no place within one window.
    """

    rows: int = 0
    passages: int = 0
    windows: int = 0
    longer: int = 0
    cut: int = 0
    tokens: int = 0
    tokens_cut: int = 0
    question_tokens: int = 0
    question_tokens_cut: int = 0
    vectors: int = 0
    most_vectors: int = 0
    spans: int = 0
    spans_cut: int = 0
    spans_split: int = 0
    answered: int = 0
    answered_cut: int = 0
    answered_split: int = 0

    def to_json(self) -> dict[str, int | float]:
        """Return the counts, and the shares that are asked for most."""
        shares = {
            "share_of_tokens_cut": _share(self.tokens_cut, self.tokens),
            "share_of_answers_cut": _share(self.answered_cut, self.answered),
            "share_of_spans_cut": _share(self.spans_cut, self.spans),
            "share_of_spans_split": _share(self.spans_split, self.spans),
            "share_of_question_tokens_cut": _share(self.question_tokens_cut, self.question_tokens),
            "tokens_per_vector": self.tokens / max(self.vectors, 1),
        }
        return {**dataclasses.asdict(self), **shares}

    def summary(self) -> str:
        """Return the counts as a sentence."""
        lost = (
            f"{100 * _share(self.tokens_cut, self.tokens):.1f} % of the tokens and "
            f"{100 * _share(self.answered_cut, self.answered):.1f} % of the answers are cut off (--max-windows)"
            if self.tokens_cut
            else "nothing is cut off"
        )
        return (
            f"{self.passages} passages of {self.rows} questions are {self.windows} windows, {self.longer} passages more than "
            f"one: {lost}; a border splits {100 * _share(self.spans_split, self.spans):.1f} % of {self.spans} answer spans"
        )


def coverage(shown: Sequence[Context], windower: Windower) -> Coverage:
    """Return what the windows of contexts hold.

    Spans need a tokenizer that says which characters a token covers; without that they are not counted.
    """
    counts = Coverage()
    for start in range(0, len(shown), _ROWS):
        some = shown[start : start + _ROWS]
        texts = [passage_text(document) for each in some for document in each.documents]
        passages = iter(windower.tokens(texts))
        for each in some:
            vectors, spans, kept, whole = 0, 0, 0, 0
            for _ in each.documents:
                passage = next(passages)
                windows = windower.cut(passage)
                counts.passages += 1
                counts.windows += len(windows)
                counts.longer += len(windows) > 1
                lost = len(passage.ids) - sum(len(window.ids) for window in windows) if len(passage.ids) else 0
                counts.tokens += len(passage.ids)
                counts.tokens_cut += lost
                counts.cut += lost > 0
                vectors += sum(windower.vectors(window) for window in windows)
                if passage.spans is not None:
                    found = spans_of(each.example.answers, passage.text)
                    inside = [span for span in found if span[1] <= windows[-1].end]
                    spans, kept = spans + len(found), kept + len(inside)
                    whole += sum(_in_one(span, windows) for span in inside)
            _add_row(counts, vectors, spans, kept, whole)
    for given, read in zip(
        windower.question_lengths([each.example.question for each in shown]),
        windower.questions([each.example.question for each in shown]),
        strict=True,
    ):
        counts.question_tokens += given
        counts.question_tokens_cut += given - len(read)
    return counts


def _add_row(counts: Coverage, vectors: int, spans: int, kept: int, whole: int) -> None:
    """Add a question: its vectors, and the places of its answers in all, in windows, and within one window each."""
    counts.rows += 1
    counts.vectors += vectors
    counts.most_vectors = max(counts.most_vectors, vectors)
    counts.spans += spans
    counts.spans_cut += spans - kept
    counts.spans_split += kept - whole
    counts.answered += spans > 0
    counts.answered_cut += spans > 0 and not kept
    counts.answered_split += kept > 0 and not whole


def spans_of(answers: Iterable[str], text: str) -> list[tuple[int, int]]:
    """Return where answers stand in a text as whole words, whatever their case, each place once."""
    found: set[tuple[int, int]] = set()
    for answer in answers:
        if wanted := answer.strip():
            # A border of words is asked for only where the answer ends in a letter or number by itself.
            before, after = (r"(?<!\w)" * wanted[0].isalnum(), r"(?!\w)" * wanted[-1].isalnum())
            pattern = before + re.escape(wanted) + after
            found.update(match.span() for match in re.finditer(pattern, text, re.IGNORECASE))
    return sorted(found)


def _in_one(span: tuple[int, int], windows: Sequence[Window]) -> bool:
    return any(window.begin <= span[0] and span[1] <= window.end for window in windows)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
