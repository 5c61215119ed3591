"""Prompts: where their parts stand, what is trained, and that a model is asked as it was trained."""

from __future__ import annotations

import dataclasses
import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest

from ragtrain.config.commands.sft import SftPromptConfig
from ragtrain.data.sft.prompts import Prompter, PromptSettings
from ragtrain.data.sft.records import IGNORED, Sample, Shot
from ragtrain.errors import ConfigError
from ragtrain.records import Document

DOCS = (
    Document("d1", "Oslo", "Oslo is the capital of Norway."),
    Document("d2", "Glomma", "The Glomma is Norway's longest river."),
    Document("d3", "", "Helium is a gas."),
)
SAMPLE = Sample("q1", "Which city is the capital?", DOCS, target="Oslo")
SHOT = Shot("How long is the Glomma?", (DOCS[1],), "621 km")
BODY = (
    "[1] Oslo\nOslo is the capital of Norway.\n\n[2] Glomma\nThe Glomma is Norway's longest river.\n\n"
    "[3] Helium is a gas.\n\nQuestion: Which city is the capital?"
)
PASSAGES = BODY.partition("\n\nQuestion:")[0]
SHOWN = "[1] Glomma\nThe Glomma is Norway's longest river.\n\nQuestion: How long is the Glomma?\nAnswer: 621 km\n\n"


def texts(tokenizer: object, settings: PromptSettings, sample: Sample = SAMPLE) -> tuple[str, str, str]:
    """Return the text of the prompt, of the whole example, and of what is trained."""
    prompter = Prompter(tokenizer, settings)
    (encoded,) = prompter.encode([sample])
    (prompt,) = prompter.encode_prompts([sample], room=1)
    assert encoded.ids.dtype == encoded.labels.dtype == np.int32
    assert (prompt.labels == IGNORED).all()
    trained = encoded.labels != IGNORED
    assert (encoded.labels[trained] == encoded.ids[trained]).all()
    decode = prompter.tokenizer.decode
    return decode(prompt.ids), decode(encoded.ids), decode(encoded.ids[trained])


def test_chat_with_a_system_role(chats: SimpleNamespace) -> None:
    prompt, whole, trained = texts(chats.bpe(chat=chats.chatml), PromptSettings("Be brief."))
    assert prompt == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{BODY}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert trained == "Oslo<|im_end|>\n"
    assert whole == prompt + trained


def test_plain_layout(chats: SimpleNamespace) -> None:
    prompt, whole, trained = texts(chats.bpe(), PromptSettings("Be brief."))
    assert prompt == f"Be brief.\n\n{BODY}\nAnswer:"
    assert trained == " Oslo<|im_end|>"
    assert whole == prompt + trained


def test_closed_book_and_no_instruction(chats: SimpleNamespace) -> None:
    bare = dataclasses.replace(SAMPLE, documents=())
    assert texts(chats.bpe(), PromptSettings(), bare)[0] == "Question: Which city is the capital?\nAnswer:"
    prompt = texts(chats.bpe(chat=chats.chatml), PromptSettings(), bare)[0]
    assert prompt == "<|im_start|>user\nQuestion: Which city is the capital?<|im_end|>\n<|im_start|>assistant\n"


def test_shots_are_turns_or_lines(chats: SimpleNamespace) -> None:
    sample = dataclasses.replace(SAMPLE, documents=(), shots=(SHOT,))
    shot = "[1] Glomma\nThe Glomma is Norway's longest river.\n\nQuestion: How long is the Glomma?"
    prompt = texts(chats.bpe(chat=chats.chatml), PromptSettings("Be brief."), sample)[0]
    assert f"<|im_start|>user\n{shot}<|im_end|>\n<|im_start|>assistant\n621 km<|im_end|>\n<|im_start|>user\n" in prompt
    prompt = texts(chats.bpe(), PromptSettings("Be brief."), sample)[0]
    assert prompt == f"Be brief.\n\n{shot}\nAnswer: 621 km\n\nQuestion: Which city is the capital?\nAnswer:"
    # Without a system role the instruction opens the first turn, which is a shot's.
    prompt = texts(chats.bpe(chat=chats.gemma), PromptSettings("Be brief."), sample)[0]
    assert prompt.startswith(f"<s><start_of_turn>user\nBe brief.\n\n{shot}<end_of_turn>")


def test_a_finished_prompt_is_taken_as_it_is(chats: SimpleNamespace) -> None:
    sample = Sample("r", "", target="Oslo", finished="Context: x\nWhich city?")
    prompt = texts(chats.bpe(chat=chats.chatml), PromptSettings("Be brief."), sample)[0]
    assert "<|im_start|>user\nContext: x\nWhich city?<|im_end|>" in prompt
    assert texts(chats.bpe(), PromptSettings(), sample)[0] == "Context: x\nWhich city?\nAnswer:"
    asked = dataclasses.replace(sample, finished="Context: x\nWhich city?\nReply:")
    assert texts(chats.bpe(), PromptSettings(), asked)[0] == "Context: x\nWhich city?\nReply:"


@pytest.mark.parametrize("name", ["gemma", "drops_system"])
def test_without_a_system_role_the_instruction_opens_the_turn(chats: SimpleNamespace, name: str) -> None:
    tokenizer = chats.bpe(chat=getattr(chats, name))
    prompt, whole, _ = texts(tokenizer, PromptSettings("Be brief."))
    assert f"user\nBe brief.\n\n{BODY}" in prompt
    assert whole.count("Be brief.") == 1
    with pytest.raises(ConfigError, match="no system role"):
        Prompter(tokenizer, PromptSettings("Be brief.", instruction_in_prompt=False))


def test_instruction_in_prompt_is_never_there_twice(chats: SimpleNamespace) -> None:
    tokenizer = chats.bpe(chat=chats.chatml)
    prompt = texts(tokenizer, PromptSettings("Be brief.", instruction_in_prompt=True))[0]
    assert prompt.startswith(f"<|im_start|>user\nBe brief.\n\n{BODY}")
    assert prompt.count("Be brief.") == 1
    assert "system" not in prompt
    with pytest.raises(ConfigError, match="no system message"):
        Prompter(chats.bpe(), PromptSettings("Be brief.", instruction_in_prompt=False))


def test_thinking_templates_train_the_empty_block(chats: SimpleNamespace) -> None:
    tokenizer = chats.bpe(chat=chats.qwen3)
    prompt, _, trained = texts(tokenizer, PromptSettings("Be brief."))
    assert prompt.endswith("<|im_start|>assistant\n")
    assert trained == "<think>\n\n</think>\n\nOslo<|im_end|>\n"
    thought = dataclasses.replace(SAMPLE, target="<think>\nNorway.\n</think>\n\nOslo")
    assert texts(tokenizer, PromptSettings(), thought)[2] == "<think>\nNorway.\n</think>\n\nOslo<|im_end|>\n"
    # Solved examples are earlier turns, which have no such block.
    shots = dataclasses.replace(SAMPLE, shots=(SHOT,))
    assert texts(tokenizer, PromptSettings(), shots)[1].count("<think>") == 1
    assert Prompter(tokenizer, PromptSettings()).extract("<think>\n\n</think>\n\nOslo") == "Oslo"


def test_the_date_of_a_template_is_kept_with_the_settings(chats: SimpleNamespace) -> None:
    tokenizer = chats.bpe(chat=chats.llama3)
    first = Prompter(tokenizer, PromptSettings("Be brief."))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", str(first.settings.date))
    then = PromptSettings.from_json({**first.settings.to_json(), "date": "2025-03-09"})
    assert "Today Date: 09 Mar 2025\n\nBe brief.<|eot_id|>" in texts(tokenizer, then)[0]
    assert Prompter(chats.bpe(chat=chats.chatml), PromptSettings()).settings.date is None


def test_prompts_on_the_same_passages_begin_alike(chats: SimpleNamespace) -> None:
    for chat in (None, chats.chatml, chats.llama3):
        prompter = Prompter(chats.bpe(chat=chat), PromptSettings("Be brief."))
        other = dataclasses.replace(SAMPLE, id="q2", question="What is Helium?", target="a gas")
        one, two = (each.ids for each in prompter.encode([SAMPLE, other]))
        n = int(np.flatnonzero(one[: len(two)] != two[: len(one)])[0])
        assert prompter.tokenizer.decode(one[:n]).endswith("[3] Helium is a gas.\n\nQuestion:")


@pytest.mark.parametrize("name", ["chatml", "phi", "gemma", "qwen3", "llama3", "plain", "bos", "eos", "metaspace"])
def test_prompts_for_generation_are_the_beginning_of_training(chats: SimpleNamespace, name: str) -> None:
    tokenizer = {
        "plain": chats.bpe, "bos": lambda: chats.bpe(adds_bos=True), "metaspace": chats.metaspace,
        "eos": lambda: chats.bpe(adds_bos=True, adds_eos=True),
    }.get(name, lambda: chats.bpe(chat=getattr(chats, name)))()  # fmt: skip
    prompter = Prompter(tokenizer, PromptSettings("Be brief."))
    samples = [SAMPLE, dataclasses.replace(SAMPLE, documents=()), dataclasses.replace(SAMPLE, target="")]
    for prompt, whole in zip(prompter.encode_prompts(samples, room=64), prompter.encode(samples), strict=True):
        assert whole.ids[: len(prompt.ids)].tolist() == prompt.ids.tolist()
        trained = np.flatnonzero(whole.labels != IGNORED)
        assert trained[0] == len(prompt.ids)


def test_a_start_token_is_not_doubled(chats: SimpleNamespace) -> None:
    tokenizer = chats.bpe(chat=chats.gemma, adds_bos=True)
    (encoded,) = Prompter(tokenizer, PromptSettings()).encode([SAMPLE])
    assert (encoded.ids == tokenizer.bos_token_id).sum() == 1
    written = PromptSettings(template="<s>{query} -> {output}")
    (encoded,) = Prompter(chats.bpe(adds_bos=True), written).encode([SAMPLE])
    assert (encoded.ids == tokenizer.bos_token_id).sum() == 1
    (encoded,) = Prompter(chats.bpe(), written).encode([SAMPLE])
    assert (encoded.ids == tokenizer.bos_token_id).sum() == 1


def test_merges_across_the_end_of_a_prompt_are_said_once(
    chats: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    prompter = Prompter(chats.bpe(), PromptSettings(template="{question} the ci{output}"))
    sample = dataclasses.replace(SAMPLE, target="ty")
    with caplog.at_level(logging.WARNING, logger="ragtrain"):
        (encoded,) = prompter.encode([sample])
        prompter.encode([sample])
    assert prompter.tokenizer.decode(encoded.ids[encoded.labels != IGNORED]) == " city<|im_end|>"
    assert caplog.text.count("not the first ones of the example") == 1


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{query}\n=>{output}", f"Be brief.\n\n{SHOWN}{BODY}\n=>"),
        ("{instruction}\n{query}\n=>{output}", f"Be brief.\n{SHOWN}{BODY}\n=>"),
        ("{shots}{context}\n{question}\n=>{output}", f"Be brief.\n\n{SHOWN}{PASSAGES}\n{SAMPLE.question}\n=>"),
        ("{context}\n{question}\n=>{output}", f"Be brief.\n\n{SHOWN}{PASSAGES}\n{SAMPLE.question}\n=>"),
        ("{{ question }} {{ output }}", f"Be brief.\n\n{SHOWN}{SAMPLE.question}"),
    ],
)
def test_nothing_is_left_out_of_a_template(chats: SimpleNamespace, template: str, prompt: str) -> None:
    sample = dataclasses.replace(SAMPLE, shots=(SHOT,))
    settings = PromptSettings("Be brief.", template=template)
    assert texts(chats.bpe(chat=chats.chatml), settings, sample)[0] == prompt  # rather than the chat template
    bare = texts(chats.bpe(), PromptSettings(template=template), SAMPLE)[0]
    assert "Be brief." not in bare
    assert not bare.startswith("\n\n")


def test_extract(chats: SimpleNamespace) -> None:
    prompter = Prompter(chats.bpe(), PromptSettings(answer_pattern="<ANSWER>: (.*)"))
    assert prompter.extract("It is in Norway.\n<ANSWER>: Oslo \n") == "Oslo"
    assert prompter.extract(" Oslo\n") == "Oslo"
    assert Prompter(chats.bpe(), PromptSettings()).extract(" <ANSWER>: Oslo") == "<ANSWER>: Oslo"


def test_settings_are_checked_and_kept() -> None:
    with pytest.raises(ConfigError, match="needs completion_start"):
        PromptSettings(mask_mode="ragfit")
    with pytest.raises(ConfigError, match="no regular expression"):
        PromptSettings(answer_pattern="(")
    with pytest.raises(ConfigError, match="has no group"):
        PromptSettings(answer_pattern="answer")
    settings = PromptSettings("x", True, "{query}{output}", "ragfit", "<a>", 9, "error", "(a)", "2025-01-01")
    assert PromptSettings.from_json({**settings.to_json(), "newer": 1}) == settings


def test_settings_of_a_configuration(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "template.txt"
    path.write_text("{query}\n{output}\n")
    with caplog.at_level(logging.INFO, logger="ragtrain"):
        settings = PromptSettings.from_config(
            SftPromptConfig(instruction="qa", template=path, completion_start="<|a|>", max_length=99)
        )
    assert settings.template == "{query}\n{output}"
    assert settings.max_length == 99
    assert "Answer the question" in str(settings.instruction)
    assert "completion_start has no effect" in caplog.text


def test_no_room_for_a_prompt(chats: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match="leaves no room"):
        Prompter(chats.bpe(), PromptSettings(max_length=64)).encode_prompts([SAMPLE], room=64)


def test_templates_that_do_not_end_or_drop_answers(chats: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="ragtrain"):
        Prompter(chats.bpe(chat="{% for m in messages %}{{ m.content }}\n{% endfor %}"), PromptSettings())
    assert "will not learn to stop" in caplog.text
    with pytest.raises(ConfigError, match="does not write the assistant's turn"):
        Prompter(chats.bpe(chat="{{ messages[0].content }}"), PromptSettings())
    with pytest.raises(ConfigError, match="cannot be rendered"):
        Prompter(chats.bpe(chat="{{ raise_exception('no') }}"), PromptSettings())
