"""Longer answers against right ones: ROUGE-L, BLEU and chrF, by rouge-score and sacrebleu; nothing is downloaded."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import regex

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class _Words:
    """Words as ROUGE counts them, in any script: lower-cased runs of letters, digits and marks."""

    @staticmethod
    def tokenize(text: str) -> list[str]:
        return [str(word) for word in regex.findall(r"[\p{L}\p{N}\p{M}]+", text.lower())]


@functools.cache
def _rouge() -> Any:  # noqa: ANN401 - the library has no types
    from rouge_score.rouge_scorer import RougeScorer  # brings nltk along, which takes a second

    return RougeScorer(["rougeL"], tokenizer=_Words())


def rouge_l(prediction: str, answers: Iterable[str]) -> float:
    """Return the greatest ROUGE-L of the prediction with any reference: F of their longest common subsequence, 0 to 1.

    Words are not stemmed. If either side has no word, it is 1 when both have none and else 0, as with ``f1``; references
    without a word are left out where others have one. Source: C.-Y. Lin, ACL workshop 2004; computed by rouge-score, with
    letters of every script where that library knows a to z only.
    """
    references = [answer for answer in answers if _Words.tokenize(answer)]
    if not references or not _Words.tokenize(prediction):
        return float(not references and not _Words.tokenize(prediction))
    return max(float(_rouge().score(reference, prediction)["rougeL"].fmeasure) for reference in references)


@functools.cache
def _sacrebleu(metric: str, *, sentences: bool) -> Any:  # noqa: ANN401 - either of two classes
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if metric == "chrf":
        return CHRF()
    # A sentence of three words has no run of four: only the lengths it has count. ``force`` keeps a remark on spacing quiet.
    return BLEU(effective_order=sentences, force=True)


def _best(metric: str, prediction: str, answers: Iterable[str]) -> float:
    references = [answer for answer in answers if answer.strip()]
    if not references or not prediction.strip():
        return float(not references and not prediction.strip())
    score = _sacrebleu(metric, sentences=True).sentence_score(prediction, references).score
    return min(1.0, float(score) / 100)


def bleu(prediction: str, answers: Iterable[str]) -> float:
    """Return the BLEU of one prediction against all references together, 0 to 1, case and punctuation included.

    Runs of up to four words, or as many as the prediction has, with exponential smoothing. If either side is blank, it is 1
    when both are and else 0. The mean over questions is not the BLEU of a corpus, for which see ``corpus_bleu``. Source:
    Papineni et al., ACL 2002; ``sentence_bleu`` of sacrebleu (Post, WMT 2018), tokens "13a".
    """
    return _best("bleu", prediction, answers)


def chrf(prediction: str, answers: Iterable[str]) -> float:
    """Return the greatest chrF of the prediction with any reference, 0 to 1: F2 of runs of up to six characters.

    Spaces do not count, case does; it needs no words, so that it means something in every script. Blank sides are as in
    ``bleu``. Source: Popović, WMT 2015; ``sentence_chrf`` of sacrebleu.
    """
    return _best("chrf", prediction, answers)


def corpus_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the BLEU of all predictions together, 0 to 1, as machine translation reports it; nan of nothing.

    Raises:
        ValueError: the two are not of one length.
    """
    return _corpus("bleu", predictions, references)


def corpus_chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the chrF of all predictions together, 0 to 1; nan of nothing.

    Raises:
        ValueError: the two are not of one length.
    """
    return _corpus("chrf", predictions, references)


def _corpus(metric: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} lists of references")
    if not predictions:
        return math.nan
    # sacrebleu wants the first references of all, the second of all, …, and None where there is no such reference; a
    # question must have one, for which a space stands.
    rows = [[answer for answer in own if answer.strip()] or [" "] for own in references]
    depth = max(map(len, rows))
    by_place = [[row[place] if place < len(row) else None for row in rows] for place in range(depth)]
    return min(1.0, float(_sacrebleu(metric, sentences=False).corpus_score(list(predictions), by_place).score) / 100)
