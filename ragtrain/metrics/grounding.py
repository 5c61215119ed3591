"""Whether a prediction stands on its passages, without a judge: by words and by runs of words in SQuAD's normal form.

All three see words only. A prediction that denies what a passage says, or mixes two passages up, may score 1, and one that
says the same in other words scores low; an answer that is right but not in the passages scores low, as it should: this is
faithfulness, not correctness.
"""

from __future__ import annotations

import collections
import functools
import math
import re
from typing import TYPE_CHECKING

from ragtrain.metrics.words import normalize_answer

if TYPE_CHECKING:
    from collections.abc import Iterable

# In pairs of one kind, within a line. Straight marks open where no word ends and close where none begins: no inches.
_QUOTED = re.compile(
    r"##begin_quote##(?P<raft>.*?)##end_quote##"
    r"|„(?P<low>[^“”\n]+)[“”]"
    r"|“(?P<curly>[^“”\n]+)”"
    r"|«(?P<angle>[^«»\n]+)»"
    r"|「(?P<corner>[^「」\n]+)」"
    r'|(?<!\w)"(?P<straight>[^"\n]+)"(?!\w)',
    re.DOTALL,
)
_GAP = re.compile(r"\[?(?:\.\.\.|…)\]?")


@functools.lru_cache(maxsize=1 << 13)  # neighbouring questions are asked about the same passages
def _line(text: str) -> str:
    return f" {normalize_answer(text)} "


def k_precision(prediction: str, texts: Iterable[str]) -> float:
    """Return the share of the prediction's words that the passages hold, 0 to 1; nan if the prediction has no word.

    Words are those of SQuAD's normal form, and one that the prediction has twice must be in the passages twice. Source:
    K-Precision of Adlakha et al., TACL 2024 (arXiv:2307.16877), which gives 0 to predictions without words.
    """
    words = collections.Counter(normalize_answer(prediction).split())
    if not words:
        return math.nan
    known: collections.Counter[str] = collections.Counter()
    for text in texts:
        known.update(_line(text).split())
    return sum((words & known).values()) / words.total()


def answer_in_context(prediction: str, texts: Iterable[str]) -> float:
    """Return 1.0 if the whole prediction stands in one of the passages, word for word, else 0.0; nan if it has no word.

    Meant for short answers. The right answer is another matter: whether a passage holds that is ``has_answer``.
    """
    words = normalize_answer(prediction)
    if not words:
        return math.nan
    return float(any(f" {words} " in _line(text) for text in texts))


def quoted_spans(prediction: str) -> list[str]:
    """Return what the prediction quotes: between “ ”, „ “, « », 「 」, straight double marks, or RAFT's marks.

    RAFT's are ``##begin_quote##`` and ``##end_quote##``. Single marks are not taken: they are apostrophes more often.
    """
    return [next(span for span in found.groups() if span is not None) for found in _QUOTED.finditer(prediction)]


def quoted_support(prediction: str, texts: Iterable[str]) -> float:
    """Return the share of quoted spans that stand word for word in one of the passages; nan if no word is quoted.

    A span with an ellipsis stands in a passage if all its pieces do. Titles in quotation marks count as quotations.
    """
    lines = [_line(text) for text in texts]
    spans = [
        [words for piece in _GAP.split(span) if (words := _line(piece)).strip()] for span in quoted_spans(prediction)
    ]
    spans = [pieces for pieces in spans if pieces]
    if not spans:
        return math.nan
    return sum(any(all(piece in line for piece in pieces) for line in lines) for pieces in spans) / len(spans)
