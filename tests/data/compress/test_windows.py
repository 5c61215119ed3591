from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtrain.config.compression import CompressSettings
from ragtrain.data.compress.records import passage_text
from ragtrain.data.compress.windows import Windower
from ragtrain.records import Document

TEXT = (
    "The lake is deep. It lies in the hills of Peru and was found in 1911 by Ann. It has many fish in it and people like it. "
    "So they come in the summer, and often they come in winter to skate, or not."
)
LAKE, SHORT = Document("1", "Lake X", TEXT), Document("2", "", "Short text.")


def make(tokenizer: Any, **given: Any) -> Windower:
    return Windower(tokenizer, CompressSettings(**{"num_memory_tokens": 8, "compression_rate": 4, **given}))


@pytest.mark.parametrize("name", ["causal", "encoder"])
@given(n_words=st.integers(0, 120), window=st.sampled_from([(1, 1), (2, 3), (8, 4), (8, 16)]), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_no_token_is_lost_and_windows_are_as_few_as_can_be(
    request: pytest.FixtureRequest, name: str, n_words: int, window: tuple[int, int], seed: int
) -> None:
    words = np.random.default_rng(seed).choice(
        ["river", "in", "Peru.", "Why?\n", "1911,", "antidisestablished", "é"], n_words
    )
    windower = make(request.getfixturevalue(name), num_memory_tokens=window[0], compression_rate=window[1])
    (passage,) = windower.tokens([" ".join(words)])
    windows = windower.cut(passage, 3)
    if not len(passage.ids):
        assert len(windows) == 1
        assert len(windows[0].ids) == 1
        return
    most = window[0] * window[1]
    assert np.concatenate([each.ids for each in windows]).tolist() == passage.ids.tolist()
    assert len(windows) == -(-len(passage.ids) // most)
    assert all(0 < len(each.ids) <= most and each.document == 3 for each in windows)
    assert [each.start for each in windows] == np.cumsum([0, *(len(each.ids) for each in windows[:-1])]).tolist()
    assert windows[0].begin == passage.spans[0, 0]
    assert windows[-1].end == passage.spans[-1, 1]


def test_borders_are_ends_of_sentences_where_there_is_room(causal: Any) -> None:
    windower = make(causal)
    (passage,) = windower.tokens([passage_text(LAKE)])
    assert 64 < len(passage.ids) < 96  # three windows, with room
    pieces = [passage.text[each.begin : each.end] for each in windower.cut(passage)]
    assert [piece.rstrip()[-1] for piece in pieces] == [".", ".", "."]
    # Without room, a border is wherever it must be.
    full = make(causal, num_memory_tokens=1, compression_rate=len(passage.ids) // 3)
    lengths = [len(each.ids) for each in full.cut(passage)]
    assert max(lengths) <= len(passage.ids) // 3


def test_max_windows_cuts_what_is_behind_full_windows(causal: Any) -> None:
    windower = make(causal, max_windows=2)
    (passage,) = windower.tokens([passage_text(LAKE)])
    windows = windower.cut(passage)
    assert [len(each.ids) for each in windows] == [32, 32]
    assert np.concatenate([each.ids for each in windows]).tolist() == passage.ids[:64].tolist()


def test_an_encoder_reads_a_pair_as_its_tokenizer_writes_it(encoder: Any) -> None:
    windower = make(encoder, compressor_type="modernbert", num_memory_tokens=4, compression_rate=64, rank_head=True)
    batch = windower.collate(windower.windows([("How deep is it?", [LAKE, SHORT])]))
    for i, document in enumerate((LAKE, SHORT)):
        expected = encoder("How deep is it?", passage_text(document))["input_ids"]
        n = len(expected)
        assert batch.input_ids[i, :n].tolist() == expected
        assert batch.place[i, : n + 5].tolist() == [*[-1] * n, 0, 1, 2, 3, 4]
        assert batch.attention_mask[i].tolist() == [1] * (n + 5) + [0] * (batch.input_ids.shape[1] - n - 5)
    alone = make(encoder, compressor_type="modernbert", query_dependent=False)
    batch = alone.collate(alone.windows([("How deep is it?", [SHORT])]))
    expected = encoder("Short text.")["input_ids"]
    assert batch.input_ids[0, : len(expected)].tolist() == expected


def test_a_causal_compressor_reads_question_and_window(causal: Any) -> None:
    windower = make(causal, num_memory_tokens=2)
    batch = windower.collate(windower.windows([("How deep is it?", [SHORT])]))
    read = causal.decode(batch.input_ids[0, :-2])
    assert read == "<s> Query: How deep is it? Document: Short text."
    assert batch.place[0, -3:].tolist() == [-1, 0, 1]
    alone = make(causal, num_memory_tokens=2, query_dependent=False)
    batch = alone.collate(alone.windows([("How deep is it?", [SHORT])]))
    assert causal.decode(batch.input_ids[0, :-2]) == "<s> Short text."


def test_an_end_token_of_the_tokenizer_is_not_put_before_the_memory(chats: Any) -> None:
    tokenizer = chats.bpe(adds_bos=True, adds_eos=True)
    windower = make(tokenizer, num_memory_tokens=2)
    batch = windower.collate(windower.windows([("Which city?", [SHORT])]))
    assert tokenizer.eos_token_id not in batch.input_ids[0].tolist()
    assert batch.input_ids[0, 0] == tokenizer.bos_token_id


def test_a_long_question_is_cut_for_the_compressor_only(causal: Any) -> None:
    windower = make(causal, max_query_tokens=3)
    question = "How deep is the lake in the hills of Peru?"
    (cut,) = windower.questions([question])
    assert cut.tolist() == causal(question, add_special_tokens=False)["input_ids"][:3]
    assert windower.question_lengths([question])[0] > 3
    assert len(make(causal, query_dependent=False).questions([question])[0]) == 0


@pytest.mark.parametrize("pooling", ["memory", "mean"])
@pytest.mark.parametrize("proportional", [False, True])
def test_counts_places_and_stretches(causal: Any, pooling: str, proportional: bool) -> None:
    windower = make(causal, pooling=pooling, proportional=proportional, rates=(2, 16), rank_head=True)
    rows = windower.windows([("How deep?", [LAKE, SHORT, Document("3", "", "")]), ("What?", [SHORT])])
    assert [row.n_documents for row in rows] == [3, 1]
    for rate in (4, 2, 16):
        batch = windower.collate(rows, rate)
        assert batch.rate == rate
        assert batch.n_documents == 4
        lengths = [len(window.ids) for row in rows for window in row.windows]
        assert batch.tokens == sum(lengths)
        assert batch.counts.tolist() == [windower.settings.memory_of(n, rate) for n in lengths]
        assert batch.document.tolist() == sorted(batch.document.tolist())
        assert set(batch.document.tolist()) == set(range(4))
        assert sum(map(sum, (windower.counts(row, rate) for row in rows))) == int(batch.counts.sum())
        for i, (n, count) in enumerate(zip(lengths, batch.counts.tolist(), strict=True)):
            placed = batch.place[i][batch.place[i] >= 0].tolist()
            assert placed == [*(range(count) if pooling == "memory" else ()), 16]  # 16: most vectors of all rates
            spans = batch.span[i][batch.span[i] >= 0]
            if pooling == "memory":
                assert len(spans) == 0
            else:
                assert len(spans) == n
                sizes = torch.bincount(spans)
                assert len(sizes) == count
                assert int(sizes.min()) >= int(sizes.max()) - 1 >= 0


def test_windows_do_not_need_a_fast_tokenizer(causal: Any) -> None:
    class Slow:
        """A tokenizer that says no places."""

        is_fast = False

        def __init__(self) -> None:
            self.eos_token_id, self.sep_token_id, self.pad_token_id = 2, None, None

        def __call__(self, text: Any, **options: Any) -> Any:
            assert not options.pop("return_offsets_mapping", False)
            return causal(text, **options)

    slow, fast = make(Slow()), make(causal)
    (window, *_), (expected, *_) = slow.cut(slow.tokens([TEXT])[0]), fast.cut(fast.tokens([TEXT])[0])
    assert (window.begin, window.end) == (-1, -1)
    assert abs(len(window.ids) - len(expected.ids)) < 16
    assert slow.collate(slow.windows([("q", [LAKE])])).tokens == fast.collate(fast.windows([("q", [LAKE])])).tokens


def test_no_windows_at_all(causal: Any) -> None:
    windower = make(causal)
    batch = windower.collate(windower.windows([("q", [])]))
    assert batch.input_ids.shape == (0, 1)
    assert batch.n_documents == 0
