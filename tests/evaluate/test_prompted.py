"""Prompts answered and scored: known values, what stood in the prompt, and shares of several processes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ragtrain import metrics
from ragtrain.data.sft.fitting import Fitted
from ragtrain.data.sft.records import Sample
from ragtrain.evaluate import prompted
from ragtrain.evaluate.prompted import PromptedRecord, PromptedSettings, evaluate_samples, measure, summarise
from ragtrain.models.generate import Generated, generate
from ragtrain.records import Document

WORDS = 40


def document(place: int, text: str, *, gold: bool | None = None) -> Document:
    return Document(f"p{place}", f"title {place}", text, gold)


class Words:
    """A prompter of a word a token that keeps the best ``most`` passages and loses questions that begin with "long"."""

    def __init__(self, most: int = 9, pattern: str | None = None) -> None:
        self.most, self.pattern, self.rooms = most, pattern, set[int]()

    def fitted_prompts(self, samples: Sequence[Sample], *, room: int) -> list[Fitted]:
        self.rooms.add(room)
        rows = []
        for sample in samples:
            ranks = sample.ranks or tuple(range(len(sample.documents)))
            kept = [place for place, rank in enumerate(ranks) if rank < self.most]
            left = dataclasses.replace(
                sample, documents=tuple(sample.documents[i] for i in kept), ranks=tuple(ranks[i] for i in kept)
            )
            size = 1 + len(sample.question.split()) + len(kept)
            ids = [3 + (len(sample.id) + place * 7) % (WORDS - 3) for place in range(size)]
            if sample.question.startswith("long"):
                rows.append(Fitted(sample, [], "row"))
            else:
                rows.append(Fitted(left, ids, "docs" if len(kept) < len(ranks) else ""))
        return rows

    def extract(self, text: str) -> str:
        found = re.search(self.pattern, text) if self.pattern else None
        return (found[1] if found else text).strip()


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch):
    """Make the model write given texts, in the order of the prompts that are asked."""

    def make(*texts: str) -> None:
        def answer(model: object, tokenizer: object, prompts: Sequence[Sequence[int]], **_: object) -> list[Generated]:
            assert len(prompts) == len(texts)
            return [
                Generated(text, len(text.split()) + 1, text != "endless", 0.1 * (i + 1)) for i, text in enumerate(texts)
            ]

        monkeypatch.setattr(prompted, "generate", answer)

    return make


@pytest.fixture
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            initializer_range=0.4, max_position_embeddings=64,
        )
    )  # fmt: skip


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


SAMPLES = [
    Sample("a", "who", (document(0, "it was Ada"), document(1, "nobody", gold=True)), ranks=(0, 1)),
    # Three passages, of which the prompt keeps the ranks 0 and 1, in their order.
    Sample("b", "where", (document(2, "Paris"), document(3, "Rome"), document(4, "Bonn")), ranks=(2, 0, 1)),
    Sample("c", "when"),
    Sample("d", "long question", (document(5, "1843"),)),
    Sample("e", "what", (document(6, "a river"),)),
]
ANSWERS = [("Ada", "Lovelace"), ("Paris",), ("1843",), ("1843",), ("river",)]


def test_known_values(says, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    says("It is <A> Ada.", "endless", "1843", "no answer")
    prompter = Words(most=2, pattern="<A> (.*)")
    settings = PromptedSettings(max_new_tokens=7, abstain_target="No answer.", recall_at=(1, 2))
    found = [SAMPLES[0].documents, SAMPLES[1].documents[1:], (), (), SAMPLES[4].documents]
    result = evaluate_samples(model, tokenizer, prompter, SAMPLES, ANSWERS, settings, found)
    assert prompter.rooms == {7}
    records = result.records
    assert [record.id for record in records] == list("abcde")
    assert [record.prediction for record in records] == ["Ada.", "endless", "1843", "", "no answer"]
    assert [record.em for record in records] == [1, 0, 1, 0, 0]
    assert [record.answer_in_prompt for record in records] == [True, False, False, False, True]
    assert [record.lost for record in records] == ["", "docs", "", "row", ""]
    assert [[doc.id for doc in record.documents] for record in records] == [["p0", "p1"], ["p3", "p4"], [], [], ["p6"]]
    assert [doc.rank for doc in records[1].documents] == [0, 1]
    assert [doc.has_answer for doc in records[0].documents] == [True, False]
    assert [doc.is_gold for doc in records[0].documents] == [None, True]
    assert [record.first_hit for record in records] == [1, None, None, None, 1]
    assert {record.depth for record in records} == {2}
    assert [record.abstained for record in records] == [False, False, False, False, True]
    assert [record.ended for record in records] == [True, False, True, False, True]
    values = result.metrics
    expected = {
        "em": 2 / 5, "f1": 2 / 5, "answer_in_prompt": 2 / 5, "em_given_answer": 1 / 2, "em_given_no_answer": 1 / 3,
        "reader_error": 1 / 5, "retrieval_error": 2 / 5, "answer_recall@1": 2 / 5, "answer_recall@2": 2 / 5,
        "ended": 3 / 5, "abstained": 1 / 5, "n_docs": 1, "prompt_tokens": (4 + 4 + 2 + 0 + 3) / 5,
        "new_tokens": (5 + 2 + 2 + 0 + 3) / 5, "latency_p50_s": 0.2, "latency_p95_s": pytest.approx(0.38),
    }  # fmt: skip
    assert {name: value for name, value in values.items() if name != "questions_per_s"} == pytest.approx(expected)
    assert values["em"] + values["reader_error"] + values["retrieval_error"] == pytest.approx(1)
    assert values["questions_per_s"] > 0
    assert result.intervals["em_given_no_answer"] == metrics.wilson(1, 3)
    assert result.intervals["f1"] == metrics.bootstrap_mean([record.f1 for record in records], 10_000, 0)
    assert "latency_p50_s" not in result.intervals


def test_a_line_holds_what_compare_reads_and_what_was_written_where_it_differs(
    says, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    says("It is <A> Ada", "Rome")
    records = measure(model, tokenizer, Words(pattern="<A> (.*)"), SAMPLES[:2], ANSWERS, PromptedSettings())
    first, second = (json.loads(json.dumps(record.to_json())) for record in records)
    assert (first["prediction"], first["output"]) == ("Ada", "It is <A> Ada")
    assert "output" not in second
    assert (second["id"], second["answers"], second["first_hit"], second["depth"]) == ("b", ["Paris"], None, 0)
    assert second["documents"][0] == {
        "id": "p2", "title": "title 2", "text": "Paris", "rank": 2, "has_answer": True, "is_gold": None,
    }  # fmt: skip


def test_what_has_no_question_is_left_out(says, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    says("Ada")
    records = measure(model, tokenizer, Words(), SAMPLES[:1], ANSWERS, PromptedSettings(recall_at=(1,)))
    values, intervals = summarise(records, PromptedSettings(recall_at=(1,)))
    assert not {"em_given_no_answer", "abstained", "answer_recall@1"} & values.keys(), "nothing was searched"
    assert values["em_given_answer"] == 1
    assert intervals.keys() <= values.keys()
    assert summarise([], PromptedSettings()) == ({}, {})


def test_rules_of_others_where_they_differ(says, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """A prediction and a reference that are nothing but an article: right by all, of F1 1 by SQuAD's v2.0 alone."""
    sample = Sample(id="a", question="what")
    scores = {}
    for compat in ("squad", "kilt", "ragfit"):
        says("the")
        settings = PromptedSettings(compat=compat)
        (record,) = evaluate_samples(model, tokenizer, Words(), [sample], [["A"]], settings).records
        scores[compat] = (record.em, record.f1)
    assert scores == {"squad": (1, 1), "kilt": (1, 0), "ragfit": (1, 0)}


def test_answers_are_those_of_the_model_and_shares_add_up(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """What two processes measure, one the even and one the odd samples, is what one measures."""
    samples = [Sample(f"q{'x' * i}", f"w{i} " * (i % 3 + 1), (document(i, f"w{i}"),)) for i in range(9)]
    answers = [(f"w{i}",) for i in range(9)]
    settings, prompter = PromptedSettings(max_new_tokens=4, batch_size=2), Words()
    model.train()
    whole = measure(model, tokenizer, prompter, samples, answers, settings)
    assert model.training
    for sample, record in zip(samples, whole, strict=True):
        (encoded,) = prompter.fitted_prompts([sample], room=4)
        (one,) = generate(model, tokenizer, [encoded.ids], max_new_tokens=4, batch_size=1)
        assert (record.prediction, record.new_tokens, record.prompt_tokens) == (
            one.text,
            one.n_tokens,
            len(encoded.ids),
        )
    parts = [measure(model, tokenizer, prompter, samples[i::2], answers[i::2], settings) for i in range(2)]

    def timeless(records: Sequence[PromptedRecord]) -> list[PromptedRecord]:
        return sorted((dataclasses.replace(record, seconds=0.0) for record in records), key=lambda record: record.id)

    assert timeless([*parts[0], *parts[1]]) == timeless(whole)
    values, _ = summarise(timeless([*parts[0], *parts[1]]), settings)
    assert values == pytest.approx(summarise(timeless(whole), settings)[0])


def test_half_precision_is_that_of_autocast(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    seen = []
    hook = model.lm_head.register_forward_hook(lambda *given: seen.append(given[2].dtype))
    for precision in ("no", "bf16"):
        measure(
            model, tokenizer, Words(), SAMPLES[:1], ANSWERS, PromptedSettings(max_new_tokens=1, precision=precision)
        )
    hook.remove()
    assert seen == [torch.float32, torch.bfloat16]
