"""Scores against the published rules of SQuAD, DPR, KILT and RAG-FiT, said again here, slowly, on thousands of pairs.

Nothing below uses the package's own text functions: each rule is written from what the official script does, with the plainest
means, its oddities included.
"""

from __future__ import annotations

import random
import re
import string
import subprocess
import sys
import unicodedata
from functools import cache

import pytest

from ragtrain import metrics

# Words that meet every rule: articles within and around words, marks of all kinds, other scripts, digits, nothing.
# fmt: off
WORDS = [
    "a", "an", "the", "The", "A", "theatre", "banana", "a.n", "the-end", "“the”", "Oslo", "oslo.", "OSLO", "U.S.A.", "us", "house",
    "don't", "dont", "1,234", "1234", "3.14", "½", "é", "e\u0301", "É", "İstanbul", "straße", "ﬁre", "R&B", "--", ".", "...", "東京",
    "नमस्ते", "👍🏽", "\u200b", "\u00a0", "\n", "\t", "", "new", "York", "New York", "_", "`", "¿qué?", "\u2028", "K\u00ad", "Ǆ", "ı",
]
# fmt: on


def pairs(n: int, seed: int) -> list[tuple[str, list[str]]]:
    """Return n predictions with references: half the predictions are a reference with something done to it."""
    draw = random.Random(seed)

    def text() -> str:
        return draw.choice([" ", " ", " ", "", ", "]).join(draw.choices(WORDS, k=draw.randint(0, 5)))

    made = []
    for _ in range(n):
        answers = [text() for _ in range(draw.randint(1, 4))]
        prediction = text()
        if draw.random() < 0.6:
            prediction = draw.choice(answers)
            for _ in range(draw.randint(0, 3)):
                change = draw.randrange(6)
                if change == 0:
                    prediction = draw.choice(["the ", "A ", "It is "]) + prediction
                elif change == 1:
                    prediction += draw.choice([".", "!", " ?", "\n", ", " + text()])
                elif change == 2:
                    prediction = prediction.upper()
                elif change == 3:
                    prediction = unicodedata.normalize(draw.choice(["NFC", "NFD", "NFKC"]), prediction)
                elif change == 4:
                    prediction = " ".join(reversed(prediction.split(" ")))
                else:
                    prediction = text() + " " + prediction
        made.append((prediction, answers))
    return made


# --- SQuAD ------------------------------------------------------------------------------------------------------------


def squad_normal(text: str) -> str:
    """lower(), then punctuation out, then articles (as whole words) to spaces, then white space to single spaces."""
    kept = [character for character in text.lower() if character not in string.punctuation]
    pieces = re.split(r"\b", "".join(kept))
    return " ".join("".join(" " if piece in {"a", "an", "the"} else piece for piece in pieces).split())


def shared_words(left: list[str], right: list[str]) -> int:
    return sum(min(left.count(word), right.count(word)) for word in set(left))


def harmonic(shared: int, written: int, wanted: int) -> float:
    precision, recall = shared / written, shared / wanted
    return 2 * precision * recall / (precision + recall)


def squad_f1(prediction: str, answer: str, *, version: int) -> float:
    written, wanted = squad_normal(prediction).split(), squad_normal(answer).split()
    if version == 2 and (not written or not wanted):  # v1.1 has no such case
        return float(written == wanted)
    shared = shared_words(written, wanted)
    return harmonic(shared, len(written), len(wanted)) if shared else 0.0


def squad2(prediction: str, answers: list[str]) -> tuple[float, float]:
    """evaluate-v2.0: references that are empty when normalised go; if none is left, "" is the only one."""
    left = [answer for answer in answers if squad_normal(answer)] or [""]
    exact = max(float(squad_normal(prediction) == squad_normal(answer)) for answer in left)
    return exact, max(squad_f1(prediction, answer, version=2) for answer in left)


def squad1(prediction: str, answers: list[str]) -> tuple[float, float]:
    """evaluate-v1.1: the best over all references as they are."""
    exact = max(float(squad_normal(prediction) == squad_normal(answer)) for answer in answers)
    return exact, max(squad_f1(prediction, answer, version=1) for answer in answers)


def test_exact_match_and_f1_are_squads() -> None:
    right = differing = 0
    for prediction, answers in pairs(6000, seed=1):
        ours = metrics.exact_match(prediction, answers), metrics.f1(prediction, answers)
        assert ours == pytest.approx(squad2(prediction, answers), abs=1e-12), (prediction, answers)
        assert metrics.score("em", prediction, answers) == ours[0]
        assert metrics.score("f1", prediction, answers) == ours[1]
        right += ours[0] == 1
        # v1.1 was written for references that have words; of these, both versions say the same.
        if all(squad_normal(answer) for answer in answers):
            assert ours == pytest.approx(squad1(prediction, answers), abs=1e-12), (prediction, answers)
        else:
            differing += ours != pytest.approx(squad1(prediction, answers), abs=1e-12)
    assert right > 1000
    assert differing > 10


# --- DPR --------------------------------------------------------------------------------------------------------------


@cache
def dpr_tokens(text: str) -> list[str]:
    """Runs of letters, digits and marks, and every other character that is neither separator nor control, after NFD."""
    tokens, run = [], ""
    for character in [*unicodedata.normalize("NFD", text), " "]:
        kind = unicodedata.category(character)[0]
        if kind in "LNM":
            run += character
            continue
        if run:
            tokens.append(run)
        run = ""
        if kind not in "ZC":
            tokens.append(character)
    return [token.lower() for token in tokens]


def dpr_has_answer(answers: list[str], text: str) -> bool:
    """Every place of the text is compared; an answer without tokens equals the empty run at the first place."""
    tokens = dpr_tokens(text)
    return any(
        tokens[start : start + len(dpr_tokens(answer))] == dpr_tokens(answer)
        for answer in answers
        for start in range(len(tokens) - len(dpr_tokens(answer)) + 1)
    )


def test_has_answer_is_dprs() -> None:
    found = 0
    for passage, answers in pairs(6000, seed=2):
        with_tokens = [answer for answer in answers if dpr_tokens(answer)]
        expected = dpr_has_answer(with_tokens, passage)
        assert metrics.has_answer(answers, passage) is expected, (answers, passage)
        found += expected
        # The one difference: what has no token is found everywhere by DPR's loop, and nowhere here.
        if with_tokens != answers:
            assert dpr_has_answer(answers, passage)
            assert not metrics.has_answer([answer for answer in answers if not dpr_tokens(answer)], passage)
    assert 1500 < found < 5500


# --- KILT -------------------------------------------------------------------------------------------------------------


def kilt_rouge(prediction: str, answer: str) -> float:
    """ROUGE-L of the package rouge: union of the words of longest common subsequences, as sets."""

    def sentences(text: str) -> list[list[str]]:
        return [" ".join(sentence.split()).split(" ") for sentence in text.split(".") if len(sentence) > 0]

    def length(x: tuple[str, ...], y: tuple[str, ...]) -> int:
        row = [0] * (len(y) + 1)
        for word in x:
            above, row = row, [0]
            for j, other in enumerate(y, 1):
                row.append(above[j - 1] + 1 if word == other else max(above[j], row[j - 1]))
        return row[-1]

    def words(x: tuple[str, ...], y: tuple[str, ...]) -> set[str]:
        if not x or not y:
            return set()
        if x[-1] == y[-1]:
            return words(x[:-1], y[:-1]) | {x[-1]}
        return words(x[:-1], y) if length(x[:-1], y) > length(x, y[:-1]) else words(x, y[:-1])

    written, wanted = sentences(prediction), sentences(answer)
    if not written or not wanted:
        return 0.0  # an error there
    common = set().union(*(words(tuple(right), tuple(left)) for right in wanted for left in written))
    recall = len(common) / len(set().union(*wanted))
    precision = len(common) / len(set().union(*written))
    return 2 * (precision * recall) / (precision + recall + 1e-8)


def test_kilts_rules() -> None:
    seen = set()
    for prediction, answers in pairs(4000, seed=3):
        left = {answer.strip() for answer in answers if answer and answer.strip()}
        if not left or not prediction.strip():
            continue  # the script stops
        written = prediction.strip()
        exact = max(float(squad_normal(written) == squad_normal(answer)) for answer in left)
        overlap = max(squad_f1(written, answer, version=1) for answer in left)
        assert metrics.score("em", prediction, answers, "kilt") == exact
        assert metrics.score("f1", prediction, answers, "kilt") == pytest.approx(overlap, abs=1e-12)
        rouge = max(kilt_rouge(written, answer) for answer in left)
        assert metrics.score("rouge_l", prediction, answers, "kilt") == pytest.approx(rouge, abs=1e-12)
        seen.add((exact, overlap == 0, exact != metrics.exact_match(prediction, answers)))
    # Right with F1 0 (two answers of articles), and right where SQuAD says wrong, among them.
    assert {(1.0, True, True), (1.0, False, False), (0.0, True, False)} <= seen


def test_kilt_where_its_script_stops() -> None:
    assert [metrics.score(name, " ", ["x"], "kilt") for name in ("em", "f1", "rouge_l")] == [0, 0, 0]
    assert metrics.score("em", " ", ["the"], "kilt") == 0
    assert metrics.score("em", "", [" "], "kilt") == metrics.score("em", "", [], "kilt") == 1
    assert metrics.score("rouge_l", "...", ["x"], "kilt") == 0


def slow_places(ranking: list[str], evidence: list[list[str]]) -> list[object]:
    """KILT's ranking of evidence sets: by going back, for each set, to where its last page was found."""
    pages = list(dict.fromkeys(ranking))
    distinct: list[set[str]] = []
    for own in evidence:
        if set(own) not in distinct:
            distinct.append(set(own))
    events: list[tuple[int, int, object]] = []
    for number, own in enumerate(distinct):
        found = [place for place, page in enumerate(pages) if page in own]
        if found:
            events.append((found[-1], number, True if len(found) == len(own) else "unfinished"))
    events += [(place, -1, False) for place, page in enumerate(pages) if not any(page in own for own in distinct)]
    return [what for _, _, what in sorted(events, key=lambda event: event[:2])]


def test_kilts_retrieval() -> None:
    draw = random.Random(4)
    scored = set()
    for _ in range(1500):
        ranking = [draw.choice("abcdefgh") for _ in range(draw.randint(0, 8))]
        evidence = [draw.sample("abcdefghij", draw.randint(1, 3)) for _ in range(draw.randint(1, 3))]
        distinct = len({frozenset(own) for own in evidence})
        for k in (1, 2, 5):
            expected = slow_places(ranking, evidence)[:k].count(True) / distinct
            assert metrics.kilt_recall_at(ranking, evidence, k) == pytest.approx(expected)
            scored.add(expected)
        found = list(dict.fromkeys(ranking))
        shares = [sum(page in own for page in found[: len(own)]) / len(own) for own in evidence]
        assert metrics.kilt_r_precision(ranking, evidence) == pytest.approx(max(shares))
    assert {0.0, 0.5, 1.0} <= scored


# --- RAG-FiT ----------------------------------------------------------------------------------------------------------


def test_ragfits_rules() -> None:
    everywhere = 0
    for prediction, answers in pairs(2000, seed=5):
        ours = metrics.answer_scores(prediction, answers, [answers, ["us", "zzz"]], "ragfit")
        exact = max(float(squad_normal(prediction) == squad_normal(answer)) for answer in answers)
        assert ours["em"] == exact
        overlap = max(squad_f1(prediction, answer, version=1) for answer in answers)
        assert ours["f1"] == pytest.approx(overlap, abs=1e-12)
        # RecallEM is DPR's rule on the prediction, answers without tokens included.
        assert ours["recall_em"] == float(dpr_has_answer(answers, prediction))
        everywhere += any(not dpr_tokens(answer) for answer in answers)
        # StringEM looks for the characters of answers as they are in the normalised prediction.
        text = squad_normal(prediction)
        assert ours["string_em"] == (any(answer in text for answer in answers) + ("us" in text)) / 2
    assert everywhere > 100
    assert metrics.answer_scores("a House", ["us"], [["us"], ["House"]], "ragfit")["string_em"] == 0.5
    assert metrics.answer_scores("a House", ["us"], [["us"], ["House"]])["recall_em"] == 0.5


def test_ragfits_rouge_is_the_librarys_with_its_own_tokens() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    differing = 0
    for prediction, answers in pairs(800, seed=6):
        expected = max(scorer.score(answer, prediction)["rougeL"].fmeasure for answer in answers)
        assert metrics.score("rouge_l", prediction, answers, "ragfit") == pytest.approx(expected, abs=1e-12)
        differing += expected != pytest.approx(metrics.rouge_l(prediction, answers))
    assert differing > 50


def test_scoring_leaves_the_log_alone() -> None:
    """In a process of its own: a handler of the root logger would write every line of the log twice."""
    code = (
        "import logging; from ragtrain import metrics\n"
        "for rules in ('squad', 'kilt', 'ragfit'): metrics.answer_scores('a b .', ['a c .'], [['a c .']], rules)\n"
        "metrics.corpus_bleu(['a b .'] * 200, [['a c .']] * 200)\n"
        "assert not logging.getLogger().handlers"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_has_no_other_rule_is_scored_as_ever() -> None:
    for prediction, answers in pairs(200, seed=7):
        for name in ("contains", "bleu", "chrf"):
            own = metrics.score(name, prediction, answers)
            assert metrics.score(name, prediction, answers, "kilt") == own
            assert metrics.score(name, prediction, answers, "ragfit") == own
