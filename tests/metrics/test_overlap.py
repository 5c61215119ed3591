"""BLEU and chrF against their definitions and against sacrebleu called directly."""

from __future__ import annotations

import collections
import math
import random

import pytest
import sacrebleu

from ragtrain import metrics

WORDS = ["the", "cat", "sat", "on", "mat", "red", "Oslo", "é", "is", "there"]


def sentences(n: int, seed: int, shortest: int = 1) -> tuple[list[str], list[list[str]]]:
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(shortest, 12)))

    predictions = [text() for _ in range(n)]
    references = [[text() for _ in range(draw.randint(0, 2))] for _ in range(n)]
    for prediction, own in zip(predictions, references, strict=True):
        words = prediction.split()
        words[draw.randrange(len(words))] = draw.choice(WORDS)
        own.insert(draw.randint(0, len(own)), " ".join(words))
    return predictions, references


def runs(items: list[str], n: int) -> collections.Counter[tuple[str, ...]]:
    return collections.Counter(tuple(items[start : start + n]) for start in range(len(items) - n + 1))


def slow_bleu(predictions: list[str], references: list[list[str]]) -> float:
    """Papineni et al.: clipped precisions of runs of 1 to 4 words, times the penalty of the closest length."""
    right, total, written, wanted = [0] * 4, [0] * 4, 0, 0
    for prediction, own in zip(predictions, references, strict=True):
        words = prediction.split()
        lengths = [len(reference.split()) for reference in own]
        written += len(words)
        wanted += min(lengths, key=lambda length: (abs(length - len(words)), length))
        for n in range(1, 5):
            most: collections.Counter[tuple[str, ...]] = collections.Counter()
            for reference in own:
                most |= runs(reference.split(), n)
            right[n - 1] += sum((runs(words, n) & most).values())
            total[n - 1] += runs(words, n).total()
    precision = math.exp(sum(math.log(a / b) for a, b in zip(right, total, strict=True)) / 4)
    return precision * min(1.0, math.exp(1 - wanted / written))


def slow_chrf(prediction: str, reference: str) -> float:
    """Popović: precision and recall of runs of 1 to 6 characters without spaces, each averaged, then F2."""
    precisions, recalls = [], []
    for n in range(1, 7):
        written, wanted = (runs(list("".join(text.split())), n) for text in (prediction, reference))
        if not written or not wanted:
            continue
        shared = (written & wanted).total()
        precisions.append(shared / written.total())
        recalls.append(shared / wanted.total())
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_corpus_bleu_is_the_definition(seed: int) -> None:
    predictions, references = sentences(30, seed, shortest=4)
    assert metrics.corpus_bleu(predictions, references) == pytest.approx(slow_bleu(predictions, references), abs=1e-9)


def test_bleu_of_a_sentence() -> None:
    predictions, references = sentences(150, seed=9)
    for prediction, own in zip(predictions, references, strict=True):
        expected = sacrebleu.sentence_bleu(prediction, own, use_effective_order=True).score / 100
        assert metrics.bleu(prediction, own) == pytest.approx(expected, abs=1e-12)
    # Every run is right and the length too: two words are enough for 1, where BLEU of four would be 0.
    assert metrics.bleu("red cat", ["dog", "red cat"]) == 1
    assert metrics.bleu("the cat sat on", ["the cat sat on the mat"]) == pytest.approx(math.exp(1 - 6 / 4))
    assert metrics.bleu("Red cat", ["red cat"]) < 1


def test_chrf_is_the_definition() -> None:
    predictions, references = sentences(150, seed=10)
    for prediction, own in zip(predictions, references, strict=True):
        expected = max(slow_chrf(prediction, reference) for reference in own)
        assert metrics.chrf(prediction, own) == pytest.approx(expected, abs=1e-9)
    corpus = metrics.corpus_chrf(predictions, [[own[0]] for own in references])
    expected = sacrebleu.corpus_chrf(predictions, [[own[0] for own in references]]).score / 100
    assert corpus == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("score", [metrics.bleu, metrics.chrf])
def test_blank_sides(score: object) -> None:
    assert callable(score)
    assert score("", []) == score(" ", ["", "\n"]) == 1
    assert score("", ["cat"]) == score("cat", []) == score("cat", [" "]) == 0
    assert score("cat", ["", "cat"]) == 1


def test_corpora_of_nothing_and_of_blanks() -> None:
    assert math.isnan(metrics.corpus_bleu([], []))
    assert math.isnan(metrics.corpus_chrf([], []))
    assert metrics.corpus_bleu(["", "cat"], [["dog"], []]) == 0
    with pytest.raises(ValueError, match="1 predictions and 2 lists"):
        metrics.corpus_bleu(["a"], [["a"], ["b"]])
