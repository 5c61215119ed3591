from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ragtrain.config.commands.compress import CompressContextConfig, CompressDataConfig
from ragtrain.config.compression import CompressSettings
from ragtrain.data.compress.contexts import CompressContexts
from ragtrain.data.compress.coverage import coverage, spans_of
from ragtrain.data.compress.records import CompressExample
from ragtrain.data.compress.rows import read_rows
from ragtrain.data.compress.windows import Windower
from ragtrain.records import Document


def contexts(rows: list[CompressExample], **given: Any) -> Any:
    return CompressContexts(rows, CompressContextConfig(**given), seed=0).contexts()


def test_spans_are_whole_words() -> None:
    text = "Oslo is in Norway, oslo's people; Oslo-born; Osloan. 42 m"
    assert [text[a:b] for a, b in spans_of(["Oslo", "42 m", "oslo", ""], text)] == ["Oslo", "oslo", "Oslo", "42 m"]
    assert spans_of(["(42"], "f(42 x") == [(1, 4)]


def test_what_is_cut_and_split_is_counted(causal: Any) -> None:
    # One token a word; windows of four words, two of them at most.
    assert all(len(causal(word, add_special_tokens=False)["input_ids"]) == 1 for word in ("the", "of", "in", "was"))
    documents = (Document("c", "", "the in was the"), Document("d", "", "the of in the of the of in was"))
    rows = [
        CompressExample("split", "q", ("the the",), (), (Document("a", "", "in of was the the of in was"),)),
        CompressExample("cut", "q", ("of was",), (), (Document("b", "", "in in in in in in in in of was"),)),
        CompressExample("whole", "q", ("in was",), (), documents),
    ]
    windower = Windower(causal, CompressSettings(num_memory_tokens=1, compression_rate=4, max_windows=2))
    counts = coverage(contexts(rows, shuffle_docs=False), windower)
    assert (counts.rows, counts.passages, counts.windows) == (3, 4, 7)
    assert (counts.tokens, counts.tokens_cut, counts.cut) == (31, 3, 2)
    assert (counts.spans, counts.spans_split, counts.spans_cut) == (4, 1, 2)
    assert (counts.answered, counts.answered_split, counts.answered_cut) == (3, 1, 1)
    assert counts.vectors == 7
    assert counts.most_vectors == 3
    assert "cut off" in counts.summary()
    assert counts.to_json()["share_of_answers_cut"] == pytest.approx(1 / 3)


def test_nothing_of_squad_is_lost(real_data: Path, causal: Any) -> None:
    path = real_data / "squad/squad_v1.1_20articles.json.gz"
    rows, about = read_rows(CompressDataConfig(), path, split="train")
    assert about["with_passages"] == about["with_gold"] == about["rows"] == 4639
    shown = contexts(rows[::4])
    counts = coverage(shown, Windower(causal, CompressSettings()))
    # Every question has its answer in its paragraph, but for the few that stand within a word.
    assert counts.answered >= 0.99 * counts.rows
    assert counts.tokens_cut == counts.spans_cut == counts.answered_cut == counts.cut == 0
    assert counts.longer > 0.8 * counts.passages
    assert counts.to_json()["share_of_spans_split"] < 0.02
    assert "nothing is cut off" in counts.summary()
    cut = coverage(shown, Windower(causal, CompressSettings(max_windows=1)))
    assert cut.tokens_cut > 0.4 * cut.tokens
    assert cut.answered_cut > 0.3 * cut.answered
    assert cut.spans == counts.spans
