"""How texts are compared: SQuAD's normal form of an answer, and DPR's tokens, by which passages are searched for one."""

from __future__ import annotations

import functools
import math
import re
import string
import unicodedata
from typing import TYPE_CHECKING

import regex

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_TOKENS = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


def normalize_answer(text: str) -> str:
    """Return an answer as SQuAD compares it: lower case, no ASCII punctuation, no English articles, single spaces.

    Source: the official ``evaluate-v2.0.py`` of SQuAD, function ``normalize_answer``; the order of the four steps is
    part of the rule ("a.n" becomes the article "an" and vanishes).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


@functools.lru_cache(maxsize=1 << 14)  # neighbouring questions are asked about the same passages
def _token_line(text: str) -> str:
    """Return the uncased tokens between single spaces, spaces at both ends: token runs become substrings of it."""
    tokens = _TOKENS.findall(unicodedata.normalize("NFD", text))
    return " " + "".join(token.lower() + " " for token in tokens)


def has_token(text: str) -> bool:
    """Return whether a text has any of DPR's tokens: more than separators and control characters."""
    return len(_token_line(text)) > 1


def has_answer(answers: Iterable[str], text: str) -> bool:
    """Return whether any answer occurs in the text as a run of whole tokens, whatever the case.

    A token is a run of letters, digits and marks, or any other single character that is neither a separator nor a
    control character, after Unicode decomposition (NFD). Source: ``has_answer`` with ``SimpleTokenizer`` of DPR's
    retrieval evaluation (match type "string"). What differs: an answer without any token is found nowhere, where DPR's
    loop finds it everywhere.
    """
    line = _token_line(text)
    return any(len(answer) > 1 and answer in line for answer in map(_token_line, answers))


def first_hit(answers: Sequence[str], texts: Iterable[str]) -> int | None:
    """Return the rank of the first text that holds an answer, counted from 1, or None if no text does."""
    wanted = [line for line in map(_token_line, answers) if len(line) > 1]
    for rank, text in enumerate(texts, 1):
        line = _token_line(text)
        if any(answer in line for answer in wanted):
            return rank
    return None


def answer_matrix(answers: Sequence[Sequence[str]], texts: Sequence[str]) -> list[list[bool]]:
    """Return for each question (outer list) which texts hold one of its answers, as ``has_answer`` says."""
    lines = [_token_line(text) for text in texts]
    wanted = [[line for line in map(_token_line, references) if len(line) > 1] for references in answers]
    return [[any(answer in line for answer in own) for line in lines] for own in wanted]


def answer_recall(first_hits: Sequence[int | None], k: int) -> float:
    """Return the share of questions with an answer among the first ``k`` passages, from the ranks of ``first_hit``."""
    if not first_hits:
        return math.nan
    return sum(rank is not None and rank <= k for rank in first_hits) / len(first_hits)
