from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BartTokenizer, T5Tokenizer

from ragtrain.data.prompts import Cuts, Layout, assemble, bare_ids, layout_for, passage_string
from ragtrain.errors import ConfigError

PAIRS = [
    ("Oslo", "Oslo is the capital of Norway; it lies on a fjord.", "what is the capital of Norway?"),
    ("River Glomma", "The Glomma (621 km) is long", "(how) long is the Glomma"),
    ("Helium", '"Helium" is a gas.', '"which" gas has number 2?'),
    ("Zoë's café 中文 🙂", "it's 3/4 // done, isn't it?", "naïve 🙂?"),
    ("C++", "line one\nline two", "'s it C++?"),
]
Tokenizer = BartTokenizer | T5Tokenizer


def pieces(tokenizer: Tokenizer, rows: list[tuple[str, str, str]], before: str = "") -> tuple[list, list]:
    passages = bare_ids(tokenizer, [before + passage_string(title, text) for title, text, _ in rows])
    questions = bare_ids(tokenizer, [f" {question}" for *_, question in rows])
    return [np.array(ids) for ids in passages], [np.array(ids) for ids in questions]


def whole(tokenizer: Tokenizer, row: tuple[str, str, str], prefix: str = "") -> list[int]:
    title, text, question = row
    return tokenizer((prefix + title + " / " + text + " // " + question).replace("  ", " "))["input_ids"]


@pytest.mark.parametrize("prefix", ["", "answer: "])
def test_equals_tokenising_the_whole_string(
    tokenizer: Tokenizer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    layout = layout_for(tokenizer, prefix)
    ids, mask = assemble(*pieces(tokenizer, PAIRS, " " if layout.leading_space else ""), layout, 500)
    expected = [whole(tokenizer, row, prefix) for row in PAIRS]
    assert ids.shape[1] == max(map(len, expected))
    for row, ones, reference in zip(ids, mask, expected, strict=True):
        assert row[ones == 1].tolist() == reference
        assert (row[ones == 0] == tokenizer.pad_token_id).all()
        assert ones.tolist() == [1] * len(reference) + [0] * (len(row) - len(reference))
    assert "slightly" not in caplog.text


WORDS = st.lists(st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=8), min_size=1, max_size=6)
TEXT = WORDS.map(" ".join)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text(bpe: BartTokenizer, unigram: T5Tokenizer, rows: list[tuple[str, str, str]]) -> None:
    rows = [(title.strip('"') or "x", text, question) for title, text, question in rows]
    for tokenizer in (bpe, unigram):
        ids, mask = assemble(*pieces(tokenizer, rows), layout_for(tokenizer), 5000)
        for row, ones, reference in zip(ids, mask, rows, strict=True):
            assert row[ones == 1].tolist() == whole(tokenizer, reference)


@pytest.mark.reference
def test_equals_rag_retriever(tokenizer: Tokenizer) -> None:
    pytest.importorskip("faiss", reason="transformers' RagRetriever needs faiss")
    from transformers import RagRetriever

    class Stub:
        title_sep, doc_sep, n_docs, max_combined_length = " / ", " // ", 1, 200

    retriever = RagRetriever.__new__(RagRetriever)
    retriever.config, retriever.generator_tokenizer = Stub(), tokenizer
    retriever.return_tokenized_docs = False
    docs = [{"title": [title], "text": [text]} for title, text, _ in PAIRS]
    theirs, _ = retriever.postprocess_docs(docs, [row[2] for row in PAIRS], "", 1, return_tensors="np")
    theirs_ids = theirs["input_ids"] if isinstance(theirs, dict) else theirs
    ids, _ = assemble(*pieces(tokenizer, PAIRS), layout_for(tokenizer), 200)
    theirs_ids = np.asarray(theirs_ids)
    assert theirs_ids.shape[1] == 200, "transformers pads to max_combined_length, we do not"
    assert (theirs_ids[:, : ids.shape[1]] == ids).all()
    assert (theirs_ids[:, ids.shape[1] :] == tokenizer.pad_token_id).all()


LAYOUT = Layout(start=(90,), prefix=(91, 92), separator=(93,), end=(94, 95), pad=99)


def by_hand(passage: list[int], question: list[int], layout: Layout, limit: int) -> list[int]:
    question = question[: limit - layout.n_fixed]
    passage = passage[: limit - layout.n_fixed - len(question)]
    return [*layout.start, *layout.prefix, *passage, *layout.separator, *question, *layout.end]


@given(
    st.lists(st.tuples(st.lists(st.integers(1, 80), max_size=30), st.lists(st.integers(1, 80), max_size=20)),
             min_size=1, max_size=6),
    st.integers(8, 40), st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_equals_lists_put_together_by_hand(rows: list, limit: int, n_docs: int) -> None:
    questions = [np.array(question, dtype=np.int64) for _, question in rows]
    passages = [np.array(passage[d:], dtype=np.uint16) for passage, _ in rows for d in range(n_docs)]
    cuts = Cuts()
    ids, mask = assemble(passages, questions, LAYOUT, limit, cuts=cuts)
    expected = [
        by_hand(passages[b * n_docs + d].tolist(), rows[b][1], LAYOUT, limit)
        for b in range(len(rows)) for d in range(n_docs)
    ]  # fmt: skip
    assert [row[ones == 1].tolist() for row, ones in zip(ids, mask, strict=True)] == expected
    assert ids.shape[1] == max(map(len, expected)) <= limit
    assert ids.dtype == mask.dtype == np.int64
    assert cuts.questions == n_docs * sum(len(question) > limit - LAYOUT.n_fixed for _, question in rows)


def test_the_passage_gives_way_and_the_question_does_not(tokenizer: Tokenizer) -> None:
    layout = layout_for(tokenizer)
    passages, questions = pieces(tokenizer, [("Oslo", "Oslo is the capital of Norway. " * 50, "what is it called?")])
    cuts = Cuts()
    ids, mask = assemble(passages, questions, layout, 40, cuts=cuts)
    assert mask.sum() == 40
    tail = [*layout.separator, *questions[0].tolist(), *layout.end]
    assert ids[0].tolist()[-len(tail) :] == tail
    assert ids[0].tolist()[: 40 - len(tail)] == [
        *layout.start,
        *passages[0].tolist()[: 40 - len(tail) - len(layout.start)],
    ]
    assert (cuts.inputs, cuts.passages, cuts.questions) == (1, 1, 0)


def test_a_question_too_long_alone_is_cut_and_counted(bpe: BartTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    layout, cuts = layout_for(bpe), Cuts()
    passages, questions = pieces(bpe, [("Oslo", "the capital", "why " * 200)])
    with caplog.at_level(logging.WARNING, "ragtrain"):
        for _ in range(5):
            ids, _ = assemble(passages, questions, layout, 50, cuts=cuts)
    assert ids.shape == (1, 50)
    assert ids[0].tolist() == [*layout.start, *layout.separator, *questions[0][: 50 - layout.n_fixed], *layout.end]
    assert cuts.questions == 5
    assert [record.args[0] for record in caplog.records] == [1, 2, 4], "warned at powers of two"


def test_no_passage_leaves_the_question(bpe: BartTokenizer) -> None:
    layout = layout_for(bpe)
    question = np.array([5, 6])
    ids, mask = assemble([np.empty(0, np.uint16), np.array([7], np.uint16)], [question], layout, 50)
    assert ids[0][mask[0] == 1].tolist() == [*layout.start, *layout.separator, 5, 6, *layout.end]
    assert mask.sum(axis=1).tolist() == [layout.n_fixed + 2, layout.n_fixed + 3]


def test_special_tokens(bpe: BartTokenizer, unigram: T5Tokenizer) -> None:
    bart, t5 = layout_for(bpe), layout_for(unigram, "is Norway ")
    assert (bart.start, bart.end, bart.prefix) == ((bpe.bos_token_id,), (bpe.eos_token_id,), ())
    assert (t5.start, t5.end) == ((), (unigram.eos_token_id,))
    assert unigram.decode(t5.prefix) == "is Norway"
    assert t5.leading_space
    assert not bart.leading_space


def test_passage_string() -> None:
    assert passage_string("Oslo", " a  b ") == "Oslo / a b"
    assert passage_string("", "text") == "text"
    assert passage_string("Oslo", "") == "Oslo"
    assert passage_string('"Heroes"', "song") == "Heroes / song"
    assert passage_string('"Heroes" (song)', "x") == '"Heroes" (song) / x'


def test_refusals(bpe: BartTokenizer) -> None:
    layout, one = layout_for(bpe), np.array([1])
    with pytest.raises(ConfigError, match="leaves no room"):
        assemble([one], [one], layout, layout.n_fixed)
    with pytest.raises(ConfigError, match="3 passages cannot be shared out among 2"):
        assemble([one] * 3, [one] * 2, layout, 50)


def test_a_tokenizer_that_does_not_cut_at_spaces_is_told(caplog: pytest.LogCaptureFixture) -> None:
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.WordLevel({"<unk>": 0, "<pad>": 1, "a": 2, " //": 3, ". // Where": 4}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\. // Where| //|."), "isolated")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")
    layout_for(wrapped)
    assert "does not cut texts at spaces" in caplog.text
