"""What long examples lose, against a search that tries one passage less at a time; real rows keep questions and answers."""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ragtrain.data.sft import fitting
from ragtrain.data.sft.layouts import passage_block, question_text
from ragtrain.data.sft.overflow import OverflowReport, check_trained
from ragtrain.data.sft.prompts import Prompter, PromptSettings
from ragtrain.data.sft.records import IGNORED, Encoded, Sample, Shot
from ragtrain.errors import DataError
from ragtrain.records import Document

WORDS = [
    "Oslo",
    "is",
    "the",
    "capital",
    "of",
    "Norway",
    "and",
    "lies",
    "on",
    "a",
    "fjord;",
    "the",
    "Glomma",
    "621",
    "km",
    "long",
    "river,",
    "which",
    "gas",
    "has",
    "number",
    "2?",
]


def make(n: int, seed: int = 0, *, shots: bool = False, finished: bool = False) -> list[Sample]:
    """Samples with 0 to 6 passages of 3 to 60 words in an order that is not that of their ranks."""
    chosen, samples = random.Random(seed), []

    def words(low: int, high: int) -> str:
        return " ".join(chosen.choices(WORDS, k=chosen.randint(low, high)))

    for i in range(n):
        count = chosen.randint(0, 6)
        documents = tuple(Document(f"{i}.{j}", words(0, 3), f"{words(3, 60)} {i}.{j}") for j in range(count))
        ranks = tuple(chosen.sample(range(10), count)) if i % 3 else ()
        examples = tuple(Shot(words(3, 8), (), words(1, 3)) for _ in range(i % 3)) if shots else ()
        question = f"{words(4, 12)} q{i}?"
        text = passage_block(documents) + question_text(question) if finished else None
        samples.append(Sample(f"r{i}", question, documents, f"answer {i}", examples, text, ranks))
    return samples


def one_less(prompter: Prompter, sample: Sample, limit: int) -> Sample | None:
    """Leave out one thing after the other until the whole fits; the slow twin."""
    while True:
        (text,) = prompter.layout.wholes([sample])
        if len(prompter.tokenizer(text, add_special_tokens=prompter.layout.special)["input_ids"]) <= limit:
            return sample
        if sample.documents:
            ranks = sample.ranks or tuple(range(len(sample.documents)))
            worst = ranks.index(max(ranks))
            sample = dataclasses.replace(
                sample,
                documents=sample.documents[:worst] + sample.documents[worst + 1 :],
                ranks=ranks[:worst] + ranks[worst + 1 :],
            )
        elif sample.shots:
            sample = dataclasses.replace(sample, shots=sample.shots[1:])
        else:
            return None


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("limit", [40, 90, 150, 260])
def test_drop_docs_drops_the_fewest(chats: SimpleNamespace, chat: bool, limit: int) -> None:
    tokenizer = chats.bpe(chat=chats.chatml if chat else None)
    prompter = Prompter(tokenizer, PromptSettings("Be brief.", max_length=limit))
    samples = make(60, shots=True)
    expected = [one_less(prompter, sample, limit) for sample in samples]
    encoded = prompter.encode(samples)
    over = 0
    for sample, left, row in zip(samples, expected, encoded, strict=True):
        if left is None:
            assert row.lost == "row"
            assert not len(row.ids)
            over += 1
            continue
        assert tokenizer.decode(row.ids) == prompter.layout.wholes([left])[0]
        assert row.n_docs == len(left.documents)
        assert row.lost == ("docs" if left is not sample else "")
        over += left is not sample
    report = prompter.report
    assert len(report.over) == over
    assert report.dropped == [sample.id for sample, left in zip(samples, expected, strict=True) if left is None]
    kept = [(sample, left) for sample, left in zip(samples, expected, strict=True) if left is not None]
    assert report.passages_dropped == sum(len(sample.documents) - len(left.documents) for sample, left in kept)
    assert report.shots_dropped == sum(len(sample.shots) - len(left.shots) for sample, left in kept)
    assert over


def test_few_texts_are_tokenised_again(chats: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    prompter = Prompter(chats.bpe(), PromptSettings(max_length=100))
    written = 0
    plain = prompter.layout.wholes

    def counted(samples: list[Sample]) -> list[str]:
        nonlocal written
        written += len(samples)
        return plain(samples)

    monkeypatch.setattr(prompter.layout, "wholes", counted)
    samples = make(200, seed=1)
    prompter.fitted(samples)
    over = sum(len(prompter.tokenizer(text)["input_ids"]) > 100 for text in plain(samples))
    assert written <= len(samples) + 1.3 * over


@pytest.mark.parametrize("chat", [True, False])
def test_finished_prompts_lose_the_same(chats: SimpleNamespace, chat: bool) -> None:
    """A prompt that is written as ours loses what ours loses, up to the numbers of what is left."""
    tokenizer = chats.bpe(chat=chats.chatml if chat else None)
    samples = make(40, finished=True)
    prompter = Prompter(tokenizer, PromptSettings(max_length=120))
    lost = 0
    for sample, row in zip(samples, prompter.encode(samples), strict=True):
        if row.lost == "row":
            (text,) = prompter.layout.wholes([dataclasses.replace(sample, finished=question_text(sample.question))])
            assert len(tokenizer(text)["input_ids"]) > 120
            continue
        text = tokenizer.decode(row.ids)
        assert question_text(sample.question) in text
        ranks = sample.ranks or tuple(range(len(sample.documents)))
        kept = sorted(range(len(ranks)), key=lambda i: ranks[i])[: row.n_docs]
        assert [document.text in text for document in sample.documents] == [i in kept for i in range(len(ranks))]
        blocks = text.split("\n\n")
        assert sum(block.startswith("[") or "\n[" in block for block in blocks) == row.n_docs
        lost += row.lost == "docs"
    assert lost > 5


def test_an_opaque_prompt_is_dropped(chats: SimpleNamespace) -> None:
    prompter = Prompter(chats.bpe(), PromptSettings(max_length=20))
    sample = Sample("x", "", (Document("d", "", "not in there at all, anywhere"),), "a", (), "word " * 50, (0,))
    (row,) = prompter.encode([sample])
    assert row.lost == "row"
    assert prompter.report.needed > 50


@pytest.mark.parametrize("finished", [False, True])
def test_truncate_docs_cuts_the_longest(chats: SimpleNamespace, finished: bool) -> None:
    limit = 170
    tokenizer = chats.bpe(chat=chats.chatml)
    prompter = Prompter(tokenizer, PromptSettings("Be brief.", max_length=limit, on_overflow="truncate-docs"))
    samples = make(80, seed=2, finished=finished)
    fitted, cut = prompter.fitted(samples), 0
    for sample, row in zip(samples, fitted, strict=True):
        assert len(row.ids) <= limit
        if row.lost != "text":
            continue
        assert question_text(sample.question) in tokenizer.decode(row.ids)
        assert len(row.sample.documents) == len(sample.documents)
        before = [len(tokenizer(each.text)["input_ids"]) for each in sample.documents]
        after = [len(tokenizer(each.text)["input_ids"]) for each in row.sample.documents]
        for old, new, n_old, n_new in zip(sample.documents, row.sample.documents, before, after, strict=True):
            assert old.text.startswith(new.text)
            assert new.text in tokenizer.decode(row.ids)
            assert n_new == n_old or fitting.LEAST - 1 <= n_new <= max(after)
        assert max(after) - min(n for n, was in zip(after, before, strict=True) if n < was) <= 2  # the same length
        assert len(row.ids) > limit - len(sample.documents) - 6  # and no shorter than needed
        cut += sum(n < was for n, was in zip(after, before, strict=True))
    assert cut > 50
    prompter.encode(samples)
    assert prompter.report.passages_cut == cut
    assert {row.lost for row in fitted} >= {"", "text", "docs"}


def test_drop_row_and_error(chats: SimpleNamespace) -> None:
    samples = make(30)
    prompter = Prompter(chats.bpe(), PromptSettings(max_length=120, on_overflow="drop-row"))
    encoded = prompter.encode(samples)
    whole = Prompter(chats.bpe(), PromptSettings(max_length=10**6)).encode(samples)
    lengths = [len(row.ids) for row in whole]
    assert [row.lost for row in encoded] == ["row" if length > 120 else "" for length in lengths]
    assert prompter.report.needed == max(lengths)
    refused = Prompter(chats.bpe(), PromptSettings(max_length=120, on_overflow="error"))
    first = next(sample.id for sample, length in zip(samples, lengths, strict=True) if length > 120)
    with pytest.raises(DataError, match=f"longer than 120 tokens: {first}") as caught:
        refused.encode(samples)
    assert f"--max-length ≥ {max(lengths)}" in str(caught.value.hint)
    assert (
        not Prompter(chats.bpe(), PromptSettings(max_length=max(lengths), on_overflow="error")).encode(samples)[0].lost
    )


def test_prompts_for_generation_leave_room(chats: SimpleNamespace) -> None:
    samples = make(40, seed=3)
    prompter = Prompter(chats.bpe(chat=chats.chatml), PromptSettings(max_length=150))
    for sample, row in zip(samples, prompter.encode_prompts(samples, room=30), strict=True):
        if row.lost != "row":
            assert len(row.ids) <= 120
            text = prompter.tokenizer.decode(row.ids)
            assert f"{question_text(sample.question)}<|im_end|>\n<|im_start|>assistant\n" in text
            assert sample.target not in text


def rows_of(trained: list[int], lost: str = "") -> list[Encoded]:
    return [
        Encoded(
            np.arange(9, dtype=np.int32),
            np.array([IGNORED] * (9 - n) + [1] * n, dtype=np.int32),
            0,
            lost if not n else "",
        )
        for n in trained
    ]


def test_check_trained(caplog: pytest.LogCaptureFixture) -> None:
    ids = [f"r{i}" for i in range(10)]
    assert check_trained(rows_of([1] * 10), ids, 0.0) == []
    with caplog.at_level(logging.WARNING, logger="ragtrain"):
        assert check_trained(rows_of([1] * 9 + [0], "row"), ids, 0.1) == ["r9"]
    assert "1 of 10 rows (10.0 %) train no token, too long: r9" in caplog.text
    report = OverflowReport(needed=812)
    with pytest.raises(
        DataError, match=r"7 of 10 rows \(70.0 %\).*r3, r4, r5, r6, r7 and 2 more; at most 5 %"
    ) as caught:
        check_trained(rows_of([1] * 3 + [0] * 7, "row"), ids, 0.05, report)
    assert caught.value.hint == "set --max-length ≥ 812 or --on-overflow drop-docs"
    assert caught.value.exit_code == 3
    with pytest.raises(DataError, match="without anything to learn") as caught:
        check_trained(rows_of([0] * 10), ids, 1.0)
    assert "--completion-start" in str(caught.value.hint)


def test_report_adds_up(chats: SimpleNamespace) -> None:
    prompter = Prompter(chats.bpe(), PromptSettings(max_length=120))
    samples = make(30)
    prompter.encode(samples[:10])
    prompter.encode(samples[10:])
    once = Prompter(chats.bpe(), PromptSettings(max_length=120))
    once.encode(samples)
    assert once.report == prompter.report
    assert once.report.to_json()["rows"] == 30
    assert "of 30 rows" in once.report.summary()
    assert Prompter(chats.bpe(), PromptSettings()).encode([]) == []


def squad(folder: Path) -> list[Sample]:
    """Questions on SQuAD paragraphs, each with its paragraph among four neighbours, in another order."""
    with gzip.open(folder / "squad" / "squad_v1.1_20articles.json.gz", "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"][:6]
    chosen, samples = random.Random(0), []
    for article in articles:
        paragraphs = article["paragraphs"]
        for i, paragraph in enumerate(paragraphs):
            others = [j for j in range(max(i - 2, 0), i + 3) if j != i and j < len(paragraphs)]
            for asked in paragraph["qas"][:2]:
                places = chosen.sample([i, *others], 1 + len(others))
                documents = tuple(
                    Document(str(j), article["title"].replace("_", " "), paragraphs[j]["context"]) for j in places
                )
                ranks = tuple(0 if j == i else 1 + others.index(j) for j in places)
                target = asked["answers"][0]["text"]
                samples.append(Sample(asked["id"], asked["question"], documents, target, (), None, ranks))
    return samples


@pytest.mark.parametrize("policy", ["drop-docs", "truncate-docs"])
def test_real_rows_keep_question_and_answer(chats: SimpleNamespace, real_data: Path, policy: str) -> None:
    samples, limit = squad(real_data), 900
    tokenizer = chats.bpe(chat=chats.chatml)  # 467 tokens: about three a word
    prompter = Prompter(tokenizer, PromptSettings("Be brief.", max_length=limit, on_overflow=policy))
    encoded = prompter.encode(samples)
    dropped = kept_gold = 0
    for sample, row in zip(samples, encoded, strict=True):
        bare = prompter.layout.wholes([dataclasses.replace(sample, documents=(), ranks=())])
        assert row.lost != "row", bare
        assert len(row.ids) <= limit
        text, trained = tokenizer.decode(row.ids), tokenizer.decode(row.ids[row.labels != IGNORED])
        assert trained == f"{sample.target}<|im_end|>\n"
        assert f"{question_text(sample.question)}<|im_end|>\n<|im_start|>assistant\n{trained}" in text
        assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")
        best = sample.documents[sample.ranks.index(0)]
        kept_gold += best.text in text
        if policy == "drop-docs":
            assert sum(document.text in text for document in sample.documents) == row.n_docs
            assert best.text in text or not row.n_docs
        dropped += len(sample.documents) - row.n_docs
    report = prompter.report
    assert report.rows == len(samples) > 300
    assert len(report.over) == sum(bool(row.lost) for row in encoded) > 200
    assert report.passages_dropped == dropped
    assert report.dropped == []
    assert kept_gold / len(samples) > (0.8 if policy == "drop-docs" else 0.0)
