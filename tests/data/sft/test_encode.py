"""Labels: equal to TRL's, to RAG-FiT's rule written as a loop, and to a slow twin."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from ragtrain.data.sft import encode
from ragtrain.data.sft.prompts import Prompter, PromptSettings
from ragtrain.data.sft.records import IGNORED, Sample
from ragtrain.records import Document

QUESTIONS = (
    "Which city is the capital?", "How long is the Glomma?", 'Which "gas" has number 2?', "Who made it in 1991?",
    "Is Oslo on a fjord?", "What is 621 km long?",
)  # fmt: skip
ANSWERS = ("Oslo", "621 km", "", " Helium", "Guido van Rossum\n", "yes", "…été", "a longer answer, of some words.")
DOCS = (
    Document("d1", "Oslo", "Oslo is the capital of Norway; it lies on a fjord."),
    Document("d2", "", "The Glomma (621 km) is Norway's longest river. <|im_end|> is only text here."),
    Document("d3", "Gas", "Helium:\n\na gas  with   number 2.\t"),
)


def rows() -> list[Sample]:
    """Three dozen samples: passages and none, empty answers, answers with spaces at their ends."""
    samples = []
    for i in range(36):
        documents = DOCS[i % 3 :] if i % 4 else ()
        samples.append(Sample(f"r{i}", QUESTIONS[i % len(QUESTIONS)], documents, ANSWERS[i % len(ANSWERS)]))
    return samples


CASES: dict[str, Callable[[SimpleNamespace], object]] = {
    "chat": lambda c: c.bpe(chat=c.chatml),
    "plain": lambda c: c.bpe(),
    "pad is eos": lambda c: c.bpe(chat=c.chatml, pad="<|im_end|>"),
    "pad is eos, plain": lambda c: c.bpe(pad="<|im_end|>"),
    "no pad token": lambda c: c.bpe(pad=None),
    "adds a start token": lambda c: c.bpe(adds_bos=True),
    "adds a start token, chat": lambda c: c.bpe(adds_bos=True, chat=c.llama3),
    "adds start and end": lambda c: c.bpe(adds_bos=True, adds_eos=True),
    "no system role": lambda c: c.bpe(chat=c.gemma),
    "drops the system text": lambda c: c.bpe(chat=c.drops_system),
    "thinks": lambda c: c.bpe(chat=c.qwen3),
    "ends after the conversation": lambda c: c.bpe(chat=c.phi),
    "unigram": lambda c: c.metaspace(),
}
TEMPLATES = {
    "ends in a space": "{question}\nAnswer: {output}",
    "nothing between": "{question}{output}",
    "inside a word": "{question} the ci{output}",
    "goes on": "### {question}\n###{output}\nThe end.",
    "brings its end": "{question} => {output}<|im_end|>",
}


@pytest.fixture(scope="module")
def trl_labels(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[tuple[list[int], list[int]]]]:
    """Ids and labels of rows as TRL's trainer prepares them."""
    trl = pytest.importorskip("trl", reason="the reference is TRL")
    from datasets import Dataset, disable_progress_bars
    from transformers import LlamaConfig, LlamaForCausalLM

    disable_progress_bars()
    folder = tmp_path_factory.mktemp("trl")

    def prepare(tokenizer, rows: list[dict]) -> list[tuple[list[int], list[int]]]:
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
        arguments = trl.SFTConfig(
            output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
            max_length=None, disable_tqdm=True,
        )  # fmt: skip
        trainer = trl.SFTTrainer(
            LlamaForCausalLM(config), arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]

    return prepare


def compare(prepared: list[tuple[list[int], list[int]]], prompter: Prompter, samples: list[Sample]) -> None:
    """Ids and labels are exactly those of TRL."""
    encoded = prompter.encode(samples)
    assert len(encoded) == len(prepared) == len(samples)
    for (ids, labels), row in zip(prepared, encoded, strict=True):
        assert row.ids.tolist() == ids
        assert row.labels.tolist() == labels


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_labels_are_those_of_trl(chats: SimpleNamespace, trl_labels: Callable, name: str) -> None:
    tokenizer, samples = CASES[name](chats), rows()
    prompter = Prompter(tokenizer, PromptSettings("Be brief.", max_length=4096))
    data = []
    for sample in samples:
        if tokenizer.chat_template:
            completion = [{"role": "assistant", "content": sample.target}]
            data.append({"prompt": prompter.layout.messages(sample), "completion": completion})
        else:
            (prompt,) = prompter.layout.prompts([sample])
            data.append({"prompt": prompt, "completion": f" {sample.target}"})
    compare(trl_labels(tokenizer, data), prompter, samples)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["plain", "unigram", "adds a start token"])
def test_labels_of_templates_are_those_of_trl(
    chats: SimpleNamespace, trl_labels: Callable, kind: str, name: str
) -> None:
    tokenizer, template = CASES[kind](chats), TEMPLATES[name]
    data, samples = [], rows()
    for sample in samples:
        before, after = template.split("{output}")
        prompt = before.format(question=sample.question)
        bare = prompt.rstrip(" ")  # the space belongs to the answer, or a prompt alone would end in a token of its own
        data.append({"prompt": bare, "completion": prompt[len(bare) :] + sample.target + after})
    prompter = Prompter(tokenizer, PromptSettings(template=template))
    compare(trl_labels(tokenizer, data), prompter, samples)


def ragfit_labels(tokenizer, text: str, marker: str) -> list[int]:
    """RAG-FiT's rule, step by step: chat text, end token as padding, everything up to the last marker masked."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    labels = [IGNORED if token == tokenizer.eos_token_id else token for token in ids]
    wanted = tokenizer(marker, add_special_tokens=False)["input_ids"]
    last = None
    for at in range(len(labels) - len(wanted) + 1):
        if labels[at : at + len(wanted)] == wanted:
            last = at
    if last is None:
        return [IGNORED] * len(labels)
    for at in range(last + len(wanted)):
        labels[at] = IGNORED
    return labels


@pytest.mark.parametrize("name", ["chat", "pad is eos", "no system role", "ends after the conversation", "thinks"])
def test_labels_of_ragfit(chats: SimpleNamespace, name: str) -> None:
    tokenizer = CASES[name](chats)
    marker = {
        "no system role": "<start_of_turn>model",
        "ends after the conversation": "<|im_start|>assistant<|im_start|>",
    }.get(name, "<|im_start|>assistant")
    samples = [*rows(), Sample("m", "q", (Document("d", marker, marker),), f"a {marker} b")]
    prompter = Prompter(tokenizer, PromptSettings("Be brief.", mask_mode="ragfit", completion_start=marker))
    for text, row in zip(prompter.layout.wholes(samples), prompter.encode(samples), strict=True):
        expected = ragfit_labels(tokenizer, text, marker)
        assert row.labels.tolist() == expected
        assert row.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    # The line break after the header is trained and the end token is not, an answer with the marker from there on.
    trained = prompter.encode(samples)[-1]
    text = tokenizer.decode(trained.ids[trained.labels != IGNORED])
    assert text.startswith(" b")
    assert tokenizer.eos_token not in text
    first = prompter.encode(samples)[1]
    assert tokenizer.decode(first.ids[first.labels != IGNORED]).startswith("\n")


def test_a_marker_that_is_not_there_trains_nothing(chats: SimpleNamespace) -> None:
    prompter = Prompter(chats.bpe(chat=chats.chatml), PromptSettings(mask_mode="ragfit", completion_start="### Answer"))
    assert all(row.trained == 0 and len(row.ids) for row in prompter.encode(rows()))


def test_both_rules_where_they_differ(chats: SimpleNamespace) -> None:
    tokenizer = chats.bpe(chat=chats.chatml)
    sample = Sample("q", "Which city?", target="Oslo")
    both = PromptSettings(), PromptSettings(mask_mode="ragfit", completion_start="<|im_start|>assistant")
    trl, ragfit = (Prompter(tokenizer, settings).encode([sample])[0] for settings in both)
    assert trl.ids.tolist() == ragfit.ids.tolist()
    assert tokenizer.decode(trl.ids[trl.labels != IGNORED]) == "Oslo<|im_end|>\n"
    assert tokenizer.decode(ragfit.ids[ragfit.labels != IGNORED]) == "\nOslo\n"


def test_together_is_not_apart(chats: SimpleNamespace) -> None:
    tokenizer = chats.bpe()
    (row,) = Prompter(tokenizer, PromptSettings(template="the ci{output}{question}")).encode(
        [Sample("q", "", target="ty")]
    )
    together = tokenizer("the city<|im_end|>")["input_ids"]
    apart = tokenizer("the ci")["input_ids"] + tokenizer("ty<|im_end|>")["input_ids"]
    assert row.ids.tolist() == together != apart


def slow_start(tokenizer, prompt: str, ids: np.ndarray, special: bool) -> int:
    (read,) = encode.token_ids(tokenizer, [prompt], special=special)
    start = 0
    while start < min(len(read), len(ids)) and read[start] == ids[start]:
        start += 1
    return start


@pytest.mark.parametrize("name", CASES)
def test_the_short_way_to_the_common_prefix(chats: SimpleNamespace, name: str) -> None:
    tokenizer = CASES[name](chats)
    prompter = Prompter(tokenizer, PromptSettings("Be brief."))
    special, samples = prompter.layout.special, rows()
    samples += [dataclasses.replace(each, target=f"<|im_start|>{each.target}<pad>") for each in samples]
    prompts, wholes = prompter.layout.prompts(samples), prompter.layout.wholes(samples)
    ids = [np.asarray(row, dtype=np.int32) for row in encode.token_ids(tokenizer, wholes, special=special)]
    starts = encode.training_starts(tokenizer, prompts, wholes, ids, special=special)
    assert [start.common for start in starts] == [
        slow_start(tokenizer, prompt, row, special) for prompt, row in zip(prompts, ids, strict=True)
    ]
    assert [start.prompt for start in starts] == [
        len(tokenizer(prompt, add_special_tokens=special)["input_ids"]) for prompt in prompts
    ]


def test_the_short_way_is_taken(chats: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    prompter = Prompter(chats.bpe(chat=chats.chatml), PromptSettings("Be brief."))
    read: list[str] = []
    plain = encode.token_ids
    monkeypatch.setattr(
        encode, "token_ids", lambda t, texts, special: read.extend(texts) or plain(t, texts, special=special)
    )
    prompter.encode(rows())
    assert max(len(text) for text in read) < 80  # tails only


def test_a_backend_that_reads_otherwise_is_not_used(chats: SimpleNamespace) -> None:
    tokenizer = chats.bpe()

    class Reader:
        is_fast = True
        backend_tokenizer = tokenizer.backend_tokenizer

        def __call__(self, texts: list[str], **options: object) -> dict:
            return tokenizer([text.upper() for text in texts], **options)

    expected = tokenizer(["OSLO", "NORWAY"])["input_ids"]
    assert encode.token_ids(Reader(), ["Oslo", "Norway"], special=True) == expected


def test_a_left_over_truncation_is_switched_off(chats: SimpleNamespace) -> None:
    tokenizer = chats.bpe()
    tokenizer("Oslo is the capital", truncation=True, max_length=2, padding="max_length")
    text = "Oslo is the capital of Norway"
    one, two = encode.token_ids(tokenizer, [text, text], special=True)
    assert tokenizer.decode(one) == tokenizer.decode(two) == text


@pytest.mark.parametrize(("marker", "expected"), [([2, 3], 4), ([9], None), ([], None), ([1, 2, 3, 1, 2, 3, 1], None)])
def test_last_occurrence(marker: list[int], expected: int | None) -> None:
    assert encode.last_occurrence(np.array([1, 2, 3, 1, 2, 3], dtype=np.int32), marker) == expected
