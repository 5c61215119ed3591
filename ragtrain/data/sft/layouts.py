"""Where the parts of a sample stand in the text that a model reads: a conversation, a template file, or plain lines."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import re
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.data.sft.prompts import PromptSettings
    from ragtrain.data.sft.records import Sample, Shot
    from ragtrain.data.sft.templates import TextTemplate
    from ragtrain.records import Document

log = logging.getLogger("ragtrain")

Role = Literal["instruction", "shots", "passages", "question", "answer"]
Messages = list[dict[str, str]]
_TODAY = re.compile(r"""\bstrftime_now\(\s*(["'])(.*?)\1\s*\)""")
_SYSTEM, _USER, _ANSWER = "systemprobe", "userprobe", "answerprobe"


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A piece of a sample and what it is."""

    role: Role
    text: str


def passage_text(number: int, document: Document) -> str:
    """Return a passage as it stands in a prompt: ``[1] title``, and the text on the next line."""
    title, text = document.title.strip(), document.text.strip()
    return f"[{number}] {title}\n{text}" if title else f"[{number}] {text}"


def passage_block(documents: Sequence[Document]) -> str:
    """Return passages with an empty line after each, the empty string for none."""
    return "".join(f"{passage_text(i, document)}\n\n" for i, document in enumerate(documents, start=1))


def question_text(question: str) -> str:
    """Return a question as it stands after the passages."""
    return f"Question: {question.strip()}"


def query_text(sample: Sample | Shot) -> str:
    """Return passages and question, or the finished prompt of a row that brings one."""
    finished: str | None = getattr(sample, "finished", None)
    if finished is not None:
        return finished
    return passage_block(sample.documents) + question_text(sample.question)


def answer_cue(query: str) -> str:
    """Return what a plain prompt ends with: a line ``Answer:`` where it does not end with a colon by itself."""
    return "" if query.rstrip().endswith(":") else "\nAnswer:"


def shot_text(shot: Shot) -> str:
    """Return a solved example as plain text, with an empty line after it."""
    query = query_text(shot)
    return f"{query}{answer_cue(query)} {shot.target.strip()}\n\n"


class Layout(Protocol):
    """How texts are written.

    Attributes:
        special: the tokenizer is to put its own special tokens around a text.
        separate_instruction: the instruction is a part of its own, not an opening of the first user turn.
    """

    special: bool
    separate_instruction: bool

    def prompts(self, samples: Sequence[Sample]) -> list[str]:
        """Return the text before the target of each sample."""
        ...

    def wholes(self, samples: Sequence[Sample]) -> list[str]:
        """Return the text of each sample with its target, to the end token."""
        ...


def make_layout(tokenizer: Any, settings: PromptSettings, template: TextTemplate | None) -> Layout:  # noqa: ANN401
    """Return the layout of a template file if there is one, else of the tokenizer's chat template, else plain text.

    Raises:
        ConfigError: the chat template cannot be rendered, or ``instruction_in_prompt`` asks for what it cannot do.
    """
    if template is None and getattr(tokenizer, "chat_template", None):
        return ChatLayout(tokenizer, settings)
    return PlainLayout(tokenizer, settings, template)


def _dated(template: str, date: str) -> str:
    """Return a chat template with a date in place of its calls for today's."""
    day = datetime.date.fromisoformat(date)
    return _TODAY.sub(lambda call: repr(day.strftime(call[2])), template)


class ChatLayout:
    """A conversation, written by the tokenizer's chat template."""

    special = False

    def __init__(self, tokenizer: Any, settings: PromptSettings) -> None:  # noqa: ANN401
        self._tokenizer, self._instruction = tokenizer, settings.instruction
        self._chat = None if settings.date is None else _dated(tokenizer.get_chat_template(), settings.date)
        system = self._has_system_role()
        if settings.instruction_in_prompt is False and not system and self._instruction:
            raise ConfigError(
                "instruction_in_prompt is false, but the chat template of this model has no system role",
                hint="leave instruction_in_prompt out: the instruction then opens the user's turn",
            )
        self.separate_instruction = system and settings.instruction_in_prompt is not True
        self._check_end()

    def _has_system_role(self) -> bool:
        """Return whether the template writes a system message; templates without one raise an error or leave it out."""
        from jinja2 import TemplateError

        user = {"role": "user", "content": _USER}
        try:
            written = self._write([[{"role": "system", "content": _SYSTEM}, user]], add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError):
            written = [""]
        if _SYSTEM in written[0]:
            return True
        try:
            self._write([[user]], add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as err:
            raise ConfigError(
                f"the chat template of {self._tokenizer.name_or_path!r} cannot be rendered: {err}",
                hint="give the text of an example by --template",
            ) from err
        return False

    def _check_end(self) -> None:
        """Warn of a template that drops answers, or puts no end token after them, so that a model never learns to stop."""
        messages = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}]
        (text,) = self._write([messages])
        _, found, after = text.rpartition(_ANSWER)
        if not found:
            raise ConfigError(
                f"the chat template of {self._tokenizer.name_or_path!r} does not write the assistant's turn",
                hint="give the text of an example by --template",
            )
        ids = self._tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
        marks = {*self._tokenizer.all_special_ids, *getattr(self._tokenizer, "added_tokens_decoder", {})}
        if not marks.intersection(ids):
            log.warning(
                "the chat template of %r writes no special token after an answer: the model will not learn to stop",
                self._tokenizer.name_or_path,
            )

    def _write(self, conversations: list[Messages], *, add_generation_prompt: bool = False) -> list[str]:
        texts: list[str] = self._tokenizer.apply_chat_template(
            conversations, chat_template=self._chat, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return texts

    def messages(self, sample: Sample) -> Messages:
        """Return the turns before the target."""
        turns: Messages = []
        if self._instruction and self.separate_instruction:
            turns.append({"role": "system", "content": self._instruction})
        for shot in sample.shots:
            turns.append({"role": "user", "content": query_text(shot)})
            turns.append({"role": "assistant", "content": shot.target.strip()})
        turns.append({"role": "user", "content": query_text(sample)})
        if self._instruction and not self.separate_instruction:
            turns[0]["content"] = f"{self._instruction}\n\n{turns[0]['content']}"
        return turns

    def prompts(self, samples: Sequence[Sample]) -> list[str]:
        """Return the conversation of each sample up to where the assistant's turn begins."""
        conversations = [self.messages(sample) for sample in samples]
        return self._write(conversations, add_generation_prompt=True) if samples else []

    def wholes(self, samples: Sequence[Sample]) -> list[str]:
        """Return the conversation of each sample with the target as the assistant's turn."""
        conversations = [
            [*self.messages(sample), {"role": "assistant", "content": sample.target}] for sample in samples
        ]
        return self._write(conversations) if samples else []


class PlainLayout:
    """Text, by a template file or line by line; the tokenizer's end token follows the target."""

    special = True

    def __init__(self, tokenizer: Any, settings: PromptSettings, template: TextTemplate | None) -> None:  # noqa: ANN401
        self._template, self._instruction = template, settings.instruction or ""
        self._tokens = {"bos_token": tokenizer.bos_token or "", "eos_token": tokenizer.eos_token or ""}
        in_template = template is not None and template.uses("instruction")
        self.separate_instruction = in_template or template is None
        if settings.instruction_in_prompt is False and self._instruction and not in_template:
            raise ConfigError(
                "instruction_in_prompt is false, but without a chat template there is no system message",
                hint="leave instruction_in_prompt out, or write {instruction} into the template",
            )
        if not tokenizer.eos_token:
            log.warning("the tokenizer %r has no end token: the model will not learn to stop", tokenizer.name_or_path)

    def _pair(self, sample: Sample) -> tuple[str, str]:
        """Return prompt and completion of a sample, without the end token."""
        shots = "".join(map(shot_text, sample.shots))
        query = query_text(sample)
        opening = f"{self._instruction}\n\n" if self._instruction else ""
        if self._template is None:
            return f"{opening}{shots}{query}{answer_cue(query)}", f" {sample.target}"
        if not self.separate_instruction:
            shots = opening + shots
        return self._template.render({**self._tokens, **self._values(sample, query, shots)})

    def _values(self, sample: Sample, query: str, before: str) -> dict[str, Any]:
        """Return what placeholders stand for; ``before`` is what has to come before the query in some place or other."""
        template = self._template
        context = passage_block(sample.documents).rstrip("\n") if sample.finished is None else ""
        question = sample.question if sample.finished is None else query
        if template is not None and before and not template.uses("shots"):
            if template.uses("query"):
                query = before + query
            elif template.uses("context") or template.uses("passages"):
                context = before + context
            else:
                question = before + question
        return {
            "query": query, "output": sample.target, "instruction": self._instruction, "context": context,
            "passages": context, "question": question, "shots": before, "documents": sample.documents,
        }  # fmt: skip

    def prompts(self, samples: Sequence[Sample]) -> list[str]:
        """Return the text of each sample up to its target."""
        return [self._pair(sample)[0] for sample in samples]

    def wholes(self, samples: Sequence[Sample]) -> list[str]:
        """Return the text of each sample, with the end token unless it is there."""
        end = self._tokens["eos_token"]
        return [
            f"{prompt}{completion}" if completion.endswith(end) else f"{prompt}{completion}{end}"
            for prompt, completion in map(self._pair, samples)
        ]
