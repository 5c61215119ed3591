from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ragtrain.data.compress.prompts import INSTRUCTION, CompressPrompter
from ragtrain.data.compress.records import CONTINUE, RECONSTRUCT, Prompted
from ragtrain.data.sft.prompts import Prompter, PromptSettings
from ragtrain.data.sft.records import Sample
from ragtrain.errors import DataError
from ragtrain.records import Document

DOCUMENTS = (Document("1", "Oslo", "Oslo is the capital of Norway."), Document("2", "", "Helium is a gas."))
QUESTION = "What is the capital of Norway?"


def tokenizer_of(chats: Any, causal: Any, name: str) -> Any:
    if name == "demo":
        return causal
    if name == "metaspace":
        return chats.metaspace()
    if name == "plain":
        return chats.bpe(adds_bos=True)
    return chats.bpe(chat=getattr(chats, name))


FAMILIES = ("demo", "metaspace", "plain", "chatml", "gemma", "qwen3", "llama3", "phi")


def learnt(prompt: Prompted) -> list[int]:
    return prompt.labels[prompt.labels >= 0].tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_words_stand_around_memory_text_and_nothing(chats: Any, causal: Any, name: str) -> None:
    tokenizer = tokenizer_of(chats, causal, name)
    prompter = CompressPrompter(tokenizer)
    memory = prompter.memory(QUESTION, [3, 2], "Oslo")
    text = prompter.text(QUESTION, DOCUMENTS, "Oslo")
    nothing = prompter.nothing(QUESTION, "Oslo")
    # The answer is the same tokens behind each, and nothing else is learnt.
    answer = prompter.answer_ids("Oslo")
    for prompt in (memory, text, nothing):
        assert prompt.ids[-len(answer) :].tolist() == answer == learnt(prompt)
        assert tokenizer.decode(learnt(prompt), skip_special_tokens=True).strip() == "Oslo"
    assert memory.slots[memory.slots >= 0].tolist() == [0, 1, 2, 3, 4]
    assert set(memory.slots[memory.slots < 0].tolist()) == {-1}
    assert not (text.slots >= 0).any()
    # Passages before the question: the first vectors come after the instruction, the last ones before the question.
    places = np.flatnonzero(memory.slots >= 0)
    before, between = tokenizer.decode(memory.ids[: places[0]]), tokenizer.decode(memory.ids[places[2] + 1 : places[3]])
    after = tokenizer.decode(memory.ids[places[-1] + 1 :])
    assert INSTRUCTION.split(".")[0] in before
    assert before.rstrip().endswith("[1]")
    assert between.strip() == "[2]"
    assert QUESTION in after
    assert INSTRUCTION not in tokenizer.decode(text.ids).replace(INSTRUCTION, "", 1)
    # Asking takes away what is learnt, and nothing else.
    asked = prompter.memory(QUESTION, [3, 2])
    assert asked.ids.tolist() == memory.ids[: len(asked.ids)].tolist()
    assert asked.trained == 0
    assert len(asked.ids) + len(answer) == len(memory.ids)


@pytest.mark.parametrize("name", ["demo", "plain", "chatml", "gemma", "llama3", "phi"])
def test_text_is_asked_as_fine_tuning_asks_it(chats: Any, causal: Any, name: str) -> None:
    tokenizer = tokenizer_of(chats, causal, name)
    prompter = CompressPrompter(tokenizer)
    twin = Prompter(tokenizer, PromptSettings(instruction=INSTRUCTION, date=prompter.settings.date))
    sample = Sample("a", QUESTION, DOCUMENTS, "Oslo")
    (expected,) = twin.encode_prompts([sample], room=16)
    assert prompter.text(QUESTION, DOCUMENTS).ids.tolist() == expected.ids.tolist()
    (trained,) = twin.encode([sample])
    ours = prompter.text(QUESTION, DOCUMENTS, "Oslo")
    # A template may write more behind the end token, a line break say; it is not learnt here.
    assert ours.ids.tolist() == trained.ids[: len(ours.ids)].tolist()
    assert len(trained.ids) - len(ours.ids) <= 2


def test_an_empty_thought_is_part_of_the_prompt(chats: Any) -> None:
    tokenizer = chats.bpe(chat=chats.qwen3)
    prompter = CompressPrompter(tokenizer)
    assert tokenizer.decode(prompter.nothing(QUESTION).ids).endswith("<think>\n\n</think>\n\n")
    assert tokenizer.decode(prompter.answer_ids("Oslo")) == "Oslo<|im_end|>"


def test_an_answer_behind_a_cue_begins_as_a_word(chats: Any, causal: Any) -> None:
    tokenizer = chats.metaspace()
    prompter = CompressPrompter(tokenizer)
    whole = tokenizer("Question: x\nAnswer: Oslo", add_special_tokens=False)["input_ids"]
    ids = prompter.answer_ids("Oslo")
    assert ids[-1] == tokenizer.eos_token_id
    assert whole[-len(ids) + 1 :] == ids[:-1]
    assert CompressPrompter(causal).answer_ids(" Oslo ") == CompressPrompter(causal).answer_ids("Oslo")


def test_a_question_may_hold_private_characters(causal: Any) -> None:
    prompter = CompressPrompter(causal)
    prompt = prompter.memory("What is \ue0000\ue000 and \ue0011\ue001?", [2, 1])
    assert prompt.vectors == 3


def test_passages_without_memory_and_no_passages(causal: Any) -> None:
    prompter = CompressPrompter(causal)
    assert prompter.memory(QUESTION, []).ids.tolist() == prompter.nothing(QUESTION).ids.tolist()
    same = prompter.passages(QUESTION, ["Oslo\nOslo is the capital of Norway.", "Helium is a gas."])
    assert same.ids.tolist() == prompter.text(QUESTION, DOCUMENTS).ids.tolist()


@pytest.mark.parametrize("name", ["demo", "chatml"])
def test_text_that_does_not_fit_is_cut_and_counted(chats: Any, causal: Any, name: str) -> None:
    tokenizer = tokenizer_of(chats, causal, name)
    long = (Document("1", "Oslo", "Oslo is the capital of Norway. " * 40), DOCUMENTS[1])
    whole = CompressPrompter(tokenizer).text(QUESTION, long, "Oslo")
    limit = len(whole.ids) - 100
    prompter = CompressPrompter(tokenizer, limit=limit)
    cut = prompter.text(QUESTION, long, "Oslo")
    assert limit - 8 <= len(cut.ids) <= limit
    assert cut.cut == len(whole.ids) - len(cut.ids) == prompter.cut_tokens
    assert prompter.cut_rows == 1
    text = tokenizer.decode(cut.ids)
    assert "Helium is a gas." in text  # the longest gives way first
    assert QUESTION in text
    assert learnt(cut) == learnt(whole)
    asked = prompter.text(QUESTION, long, room=50)
    assert limit - 58 <= len(asked.ids) <= limit - 50
    with pytest.raises(DataError, match="the generator has"):
        CompressPrompter(tokenizer, limit=20).text(QUESTION, long, "Oslo")


def test_memory_that_does_not_fit_is_refused(causal: Any) -> None:
    prompter = CompressPrompter(causal, limit=200)
    assert prompter.memory(QUESTION, [50]).vectors == 50
    with pytest.raises(DataError, match=r"150 memory vectors needs .* and the generator has 200"):
        prompter.memory(QUESTION, [75, 75], "Oslo")
    with pytest.raises(DataError, match="needs"):
        prompter.memory(QUESTION, [50], room=100)


def test_tasks(causal: Any) -> None:
    prompter = CompressPrompter(causal)
    (ids,) = prompter.text_ids(["Oslo is a city."])
    again = prompter.task(RECONSTRUCT, 3, ids, ended=True)
    assert again.slots.tolist() == [-1, 0, 1, 2, -2, *[-1] * (len(ids) + 1)]
    assert again.ids[0] == causal.bos_token_id
    assert learnt(again) == [*ids, causal.eos_token_id]
    further = prompter.task(CONTINUE, 3, ids, ended=False)
    assert further.slots[4] == -3
    assert learnt(further) == ids
    with pytest.raises(ValueError, match="expected the task"):
        prompter.task(-1, 3, ids, ended=False)
