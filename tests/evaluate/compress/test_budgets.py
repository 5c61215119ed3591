"""Text within a budget: never more, and never less than there is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtrain.data import demo
from ragtrain.evaluate.compress.budgets import (
    SentenceRanker,
    count_tokens,
    cut_to,
    first_tokens,
    sentences_of,
)
from ragtrain.models.folders import load_tokenizer
from ragtrain.records import Document

TOKENIZER = load_tokenizer(demo.CAUSAL, "demo")
BUILT = demo.build(0)
PIECES = st.sampled_from(
    ["The Sun is a star. ", "Dr. J. Smith! ", "“Why?” ", "東京です。次。", "3.5 km ", "\n\n", "🙂", "naïve ", "e.g. a"]
)
TEXTS = st.lists(PIECES, max_size=8).map("".join)


class Slow:
    """A tokenizer that does not say where its tokens end."""

    is_fast = False

    def __call__(self, text: object, **options: object) -> object:
        return TOKENIZER(text, **{name: value for name, value in options.items() if name != "return_offsets_mapping"})


@settings(deadline=None)
@given(TEXTS)
def test_sentences_lose_nothing_but_space(text: str) -> None:
    assert "".join("".join(sentences_of(text)).split()) == "".join(text.split())


def test_sentences_end_where_a_reader_ends_them() -> None:
    text = (
        'J. R. Smith met Dr. Who in St. Louis on 3.5. "No!" he said. Was it? It was.\nA title\n東京は都です。次です。'
    )
    assert sentences_of(text) == [
        "J. R. Smith met Dr. Who in St. Louis on 3.5.", '"No!" he said.', "Was it?", "It was.", "A title", "東京は都です。",
        "次です。",
    ]  # fmt: skip
    assert sentences_of(" \n ") == []


@settings(deadline=None)
@given(TEXTS, st.integers(0, 12))
def test_a_cut_text_is_the_longest_beginning_within_the_budget(text: str, budget: int) -> None:
    for tokenizer in (TOKENIZER, Slow()):
        cut = cut_to(text, budget, tokenizer)
        assert text.startswith(cut)
        assert count_tokens([cut], TOKENIZER) <= budget
        if budget and count_tokens([text], TOKENIZER) <= budget:
            assert cut == text
    spans = TOKENIZER(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    pieces = ["", *(text[:end].rstrip() for _, end in spans[:budget])]
    within = [piece for piece in pieces if count_tokens([piece], TOKENIZER) <= budget]
    if budget < len(spans):
        assert cut_to(text, budget, TOKENIZER) == max(within, key=len)


@pytest.mark.parametrize("budget", [1, 4, 8, 24, 60])
def test_arms_of_text_spend_the_budget_to_the_last_token(budget: int) -> None:
    questions = BUILT.train[:40]
    contexts = [tuple(BUILT.passages[3 * place : 3 * place + 2]) for place in range(len(questions))]
    documents = [tuple(Document(p.id, p.title, p.text) for p in passages) for passages in contexts]
    ranker = SentenceRanker(documents, TOKENIZER)
    exact = 0
    for question, own in zip(questions, documents, strict=True):
        there = count_tokens([f"{document.title}\n{document.text}" for document in own], TOKENIZER)
        texts = first_tokens(own, budget, TOKENIZER)
        spent = count_tokens(texts, TOKENIZER)
        assert spent <= budget
        assert spent == min(budget, there) or spent >= budget - 3
        whole = "\n".join(f"{document.title}\n{document.text}" for document in own)
        assert whole.startswith(texts[0])
        sentences = ranker.best(question.question, own, budget)
        chosen = count_tokens(sentences, TOKENIZER)
        assert chosen <= budget
        exact += (spent == budget) + (chosen == budget)
    assert exact >= 60 or budget == 60


def test_the_best_sentence_is_the_one_that_is_asked_for() -> None:
    found = 0
    questions = [question for question in BUILT.train[:60] if question.documents]
    contexts = [question.documents for question in questions]
    ranker = SentenceRanker(contexts, TOKENIZER)
    for question in questions:
        (place, number), *_ = ranker.ranked(question.question, question.documents)
        sentence = sentences_of(question.documents[place].text)[number]
        found += any(answer in sentence for answer in question.answers)
    assert found / len(questions) > 0.5


def test_sentences_stand_in_the_order_of_the_text_whatever_their_rank() -> None:
    first = Document("a", "Iron", "It rusts. The symbol of iron is Fe. It is heavy.")
    second = Document("b", "Gold", "It shines. The symbol of gold is Au.")
    ranker = SentenceRanker([(first, second)], TOKENIZER)
    texts = ranker.best("What is the symbol of gold?", (first, second), 1000)
    assert texts == [first.text, second.text]
    assert ranker.best("What is the symbol of gold?", (first, second), 6)[-1].startswith("The symbol of gold")
    assert ranker.best("Why?", (), 9) == []
    assert ranker.best("Why?", (first,), 0) == []
