"""From a sample to the tokens that a model is trained on, and to those that it answers.

Where the tokenizer has a chat template and no template file is given, a prompt is a conversation::

    system      instruction
    user        [1] title
                text

                [2] title
                text

                Question: …
    assistant   target

With a chat template that has no system role, or with ``instruction_in_prompt``, there is no system message and the instruction
opens the first user turn; it is never there twice. Without a chat template the same parts are plain text, the last line being
``Answer: target``. Solved examples are turns of their own, or stand in plain text before the passages.

Passages come before the question: the prompts of several questions on the same passages then share all their tokens up to
the question. Closed-book prompts have no passages, and nothing in their place. A finished prompt is taken as it is, in place
of passages and question.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import re
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from ragtrain.data.sft.encode import (
    Start,
    labels_after,
    labels_after_marker,
    special_ends,
    token_ids,
    training_starts,
)
from ragtrain.data.sft.fitting import Fitted, fit
from ragtrain.data.sft.layouts import Layout, make_layout
from ragtrain.data.sft.overflow import OverflowReport, Policy
from ragtrain.data.sft.records import IGNORED, Encoded
from ragtrain.data.sft.templates import parse_template, read_instruction, read_template
from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ragtrain.config.commands.sft import SftPromptConfig
    from ragtrain.data.sft.records import Sample

log = logging.getLogger("ragtrain")

T = TypeVar("T")

ROWS = 1024
"""Samples whose texts are tokenised at once."""
_THINKING = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)
_EMPTY = np.empty(0, dtype=np.int32)


@dataclasses.dataclass(frozen=True)
class PromptSettings:
    """Everything that decides how a prompt is written; saved beside a model, so that it is asked as it was trained.

    Attributes:
        instruction: its text.
        instruction_in_prompt: the instruction stands in the first user turn, never in a system message (True), the other way
            round (False), or as the chat template allows (None).
        template: text of a template file.
        mask_mode: which tokens are trained (``encode.py``).
        completion_start: where training begins, in mode ``ragfit``.
        max_length: longest example in tokens.
        on_overflow: what a longer one loses (``fitting.py``).
        answer_pattern: regular expression whose first group is the answer.
        date: ISO date that chat templates are told is today (Llama 3 writes it into the system message), so that a prompt does
            not change with the day; filled in by ``Prompter`` where the template asks for it.
    """

    instruction: str | None = None
    instruction_in_prompt: bool | None = None
    template: str | None = None
    mask_mode: Literal["trl", "ragfit"] = "trl"
    completion_start: str | None = None
    max_length: int = 2048
    on_overflow: Policy = "drop-docs"
    answer_pattern: str | None = None
    date: str | None = None

    def __post_init__(self) -> None:
        if self.mask_mode == "ragfit" and not self.completion_start:
            raise ConfigError(
                "mask_mode ragfit needs completion_start, the text after which training begins",
                hint="set --completion-start '<|assistant|>' as the chat template has it, or --mask-mode trl",
            )
        if self.answer_pattern is not None:
            try:
                groups = re.compile(self.answer_pattern).groups
            except re.error as err:
                raise ConfigError(f"answer_pattern {self.answer_pattern!r} is no regular expression: {err}") from err
            if not groups:
                raise ConfigError(
                    f"answer_pattern {self.answer_pattern!r} has no group",
                    hint="put what is the answer in parentheses, as '<ANSWER>: (.*)'",
                )

    @classmethod
    def from_config(cls, config: SftPromptConfig) -> PromptSettings:
        """Return the settings of a configuration, with the texts of its files.

        Raises:
            ConfigError: a file is missing, a template is wrong, or fields contradict each other.
        """
        if config.completion_start and config.mask_mode != "ragfit":
            log.info("completion_start has no effect with mask_mode %s: the prompt says where training begins",
                     config.mask_mode)  # fmt: skip
        return cls(
            instruction=read_instruction(config.instruction),
            instruction_in_prompt=config.instruction_in_prompt,
            template=None if config.template is None else read_template(config.template),
            mask_mode=config.mask_mode,
            completion_start=config.completion_start,
            max_length=config.max_length,
            on_overflow=config.on_overflow,
            answer_pattern=config.answer_pattern,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> PromptSettings:
        """Return the settings of a JSON form; fields that are not known are left out, those that are missing have defaults."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in row.items() if key in known})


class Prompter:
    """Write samples as a tokenizer's model is to read them.

    Attributes:
        tokenizer: of transformers.
        settings: as given, with the date filled in.
        layout: writes the texts.
        report: what was lost since the prompter was made, in ``encode`` and ``encode_prompts``.
    """

    def __init__(self, tokenizer: Any, settings: PromptSettings) -> None:  # noqa: ANN401 - no common type
        chat = tokenizer.get_chat_template() if getattr(tokenizer, "chat_template", None) else ""
        if settings.date is None and settings.template is None and "strftime_now" in chat:
            today = datetime.datetime.now(tz=datetime.UTC).astimezone().date()
            settings = dataclasses.replace(settings, date=today.isoformat())
        self.tokenizer, self.settings = tokenizer, settings
        self.report = OverflowReport(policy=settings.on_overflow)
        template = None if settings.template is None else parse_template(settings.template)
        self.layout: Layout = make_layout(tokenizer, settings, template)
        self._bos, self._end = special_ends(tokenizer) if self.layout.special else ((), ())
        self._marker: list[int] = []
        if settings.completion_start and settings.mask_mode == "ragfit":
            (self._marker,) = token_ids(tokenizer, [settings.completion_start], special=False)
        self._warned = False

    def encode(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Return prompt and target of each sample, in order, none longer than ``max_length``.

        Raises:
            DataError: ``on_overflow`` is error and a sample is too long.
        """
        return self._encode_all(samples, self.layout.wholes, self.settings.max_length, self._labelled)

    def encode_prompts(self, samples: Sequence[Sample], *, room: int) -> list[Encoded]:
        """Return the prompt of each sample as it stands before the target in training, for a model to go on from.

        Args:
            samples: their targets do not count.
            room: tokens that an answer may have: a prompt is at most ``max_length - room`` long.

        Raises:
            ConfigError: ``room`` leaves none for the prompt.
            DataError: as ``encode``.
        """
        return self._unlabelled(self.fitted_prompts(samples, room=room))

    def fitted_prompts(self, samples: Sequence[Sample], *, room: int) -> list[Fitted]:
        """Return the same prompts with the passages that are left in them, as far as these were cut, cut."""
        limit = self.settings.max_length - room
        if limit < 1:
            raise ConfigError(
                f"max_length={self.settings.max_length} leaves no room for a prompt beside {room} tokens of an answer",
                hint="raise max_length or lower max_new_tokens",
            )
        return self._encode_all(samples, self.layout.prompts, limit, list, n_end=len(self._end), room=room)

    def extract(self, text: str) -> str:
        """Return the answer in what a model wrote.

        That is the first group of ``answer_pattern``; the whole text where there is no pattern or it does not occur. A block
        ``<think>…</think>`` at the beginning is no part of it.
        """
        text = _THINKING.sub("", text, count=1) if _THINKING.match(text) else text
        if self.settings.answer_pattern is not None:
            found = re.search(self.settings.answer_pattern, text)
            text = found[1] or "" if found else text
        return text.strip()

    def fitted(self, samples: Sequence[Sample]) -> list[Fitted]:
        """Return each sample as ``encode`` leaves it, without counting what it lost; for a preview."""
        return self._fit(samples, self.layout.wholes, self.settings.max_length, 0, OverflowReport())

    def text_and_ends(self, sample: Sample) -> tuple[str, list[int] | None]:
        """Return the text of a sample with its target, and where each of its tokens ends in it, in characters.

        ``None`` for the ends where the tokenizer does not say.
        """
        (text,) = self._once_begun(self.layout.wholes([sample]))
        if not getattr(self.tokenizer, "is_fast", False):
            return text, None
        encoded = self.tokenizer(
            text, add_special_tokens=self.layout.special, return_offsets_mapping=True, verbose=False
        )
        return text, [end for _, end in encoded["offset_mapping"]]

    def _once_begun(self, texts: Sequence[str]) -> Sequence[str]:
        """Return texts without the start token of a template where the tokenizer puts one there as well."""
        bos = self.tokenizer.bos_token
        if self.layout.special and bos and self.tokenizer.bos_token_id in self._bos:
            return [text.removeprefix(bos) for text in texts]
        return texts

    def _tokens(self, texts: Sequence[str], n_end: int = 0) -> list[list[int]]:
        """Return the ids of texts, without the last ``n_end``, which the tokenizer puts behind every text."""
        ids = token_ids(self.tokenizer, self._once_begun(texts), special=self.layout.special)
        return [row[: len(row) - n_end] for row in ids] if n_end else ids

    def _fit(
        self,
        samples: Sequence[Sample],
        write: Callable[[Sequence[Sample]], list[str]],
        limit: int,
        n_end: int,
        report: OverflowReport,
    ) -> list[Fitted]:
        def ids_of(some: Sequence[Sample]) -> list[list[int]]:
            return self._tokens(write(some), n_end)

        return fit(
            samples, ids_of, limit=limit, policy=self.settings.on_overflow, tokenizer=self.tokenizer, report=report
        )

    def _encode_all(
        self,
        samples: Sequence[Sample],
        write: Callable[[Sequence[Sample]], list[str]],
        limit: int,
        label: Callable[[list[Fitted]], list[T]],
        n_end: int = 0,
        room: int = 0,
    ) -> list[T]:
        encoded: list[T] = []
        report = OverflowReport(limit=limit, room=room)
        for start in range(0, len(samples), ROWS):
            encoded += label(self._fit(samples[start : start + ROWS], write, limit, n_end, report))
        self.report.add(report)
        if self.settings.on_overflow == "error":
            report.raise_if_over()
        return encoded

    def _labelled(self, fitted: list[Fitted]) -> list[Encoded]:
        kept = [row for row in fitted if row.lost != "row"]
        ids = [np.asarray(row.ids, dtype=np.int32) for row in kept]
        if self._marker:
            end = self.tokenizer.eos_token_id
            labels = [labels_after_marker(row, self._marker, end) for row in ids]
        else:
            samples = [row.sample for row in kept]
            prompts = self._once_begun(self.layout.prompts(samples))
            wholes = self._once_begun(self.layout.wholes(samples))
            starts = training_starts(self.tokenizer, prompts, wholes, ids, special=self.layout.special)
            self._warn_of_merges(prompts, starts)
            labels = [labels_after(row, start.common) for row, start in zip(ids, starts, strict=True)]
        each = iter(zip(ids, labels, strict=True))
        return [_encoded(row, *next(each)) if row.lost != "row" else _LOST for row in fitted]

    def _unlabelled(self, fitted: list[Fitted]) -> list[Encoded]:
        encoded = []
        for row in fitted:
            ids = np.asarray(row.ids, dtype=np.int32)
            encoded.append(_encoded(row, ids, np.full_like(ids, IGNORED)) if row.lost != "row" else _LOST)
        return encoded

    def _warn_of_merges(self, prompts: Sequence[str], starts: list[Start]) -> None:
        """Say once that a model will be asked with other tokens than it was trained on (TRL says the same)."""
        bad = [i for i, start in enumerate(starts) if start.common < start.prompt - len(self._end)]
        if not bad or self._warned:
            return
        self._warned = True
        ids = token_ids(self.tokenizer, [prompts[bad[0]]], special=self.layout.special)[0]
        rest = self.tokenizer.decode(ids[starts[bad[0]].common :])
        log.warning(
            "the tokens of the prompt are not the first ones of the example in %d of %d rows: %r at the end of the prompt is "
            "written otherwise where an answer follows. Training begins where they part; the model will be asked with the "
            "prompt alone. End the prompt at a word's end, or take a chat template that writes it the same way",
            len(bad), len(prompts), rest,
        )  # fmt: skip


def _encoded(row: Fitted, ids: np.ndarray, labels: np.ndarray) -> Encoded:
    return Encoded(ids=ids, labels=labels, n_docs=len(row.sample.documents), lost=row.lost)


_LOST = Encoded(ids=_EMPTY, labels=_EMPTY, n_docs=0, lost="row")
