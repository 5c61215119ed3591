"""Prompts of the generator: the same words around memory, around text, and around nothing.

Where the tokenizer has a chat template, a prompt is a conversation::

    system      instruction
    user        [1] memory of the first passage
                                                      (or its title and text)
                [2] memory of the second

                Question: …
    assistant   answer

and otherwise the same as plain lines, the last one ``Answer: …``; a template without a system role has the instruction at the
beginning of the user's turn. Passages stand before the question. An answer is tokenised apart from its prompt and put behind
it, with what the template ends a turn with, so that a prompt is the same in training and generation, and the answer is the
same behind memory and behind text.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain.data.compress.records import CONTINUE, RECONSTRUCT, TOKEN, Prompted, passage_text
from ragtrain.data.sft.encode import special_ends, token_ids
from ragtrain.data.sft.layouts import make_layout
from ragtrain.data.sft.prompts import PromptSettings
from ragtrain.data.sft.records import IGNORED, Sample
from ragtrain.data.sft.templates import read_instruction
from ragtrain.errors import DataError
from ragtrain.records import Document

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger("ragtrain")

#: The bundled instruction that is given; ``train sft`` has the same, and the built-in demo generator was tuned on it.
INSTRUCTION = read_instruction("qa-short")
_PROBE = "answerprobe"
#: A private character stands on both sides of the number of a passage whose memory belongs there.
_MARKS = "\ue000\ue001\ue002\ue003\ue004"


class CompressPrompter:
    """Writes prompts for one generator.

    Attributes:
        tokenizer: of the generator.
        settings: how the text is written; saved beside a model.
        limit: most tokens that the generator takes, None where that is not known.
        cut_rows: prompts of text so far that did not fit, and lost the ends of their passages.
        cut_tokens: tokens that these lost.
    """

    def __init__(
        self,
        tokenizer: Any,  # noqa: ANN401 - no common type
        *,
        instruction: str | None = INSTRUCTION,
        limit: int | None = None,
        settings: PromptSettings | None = None,
    ) -> None:
        """Take a tokenizer and how to ask.

        Args:
            tokenizer: of the generator.
            instruction: what stands before everything else; None for nothing.
            limit: most tokens of a prompt and its answer, the generator's positions.
            settings: of a saved model, in place of ``instruction``.

        Raises:
            ConfigError: the chat template cannot be rendered.
        """
        settings = settings or PromptSettings(instruction=instruction)
        chat = tokenizer.get_chat_template() if getattr(tokenizer, "chat_template", None) else ""
        if settings.date is None and "strftime_now" in chat:
            today = datetime.datetime.now(tz=datetime.UTC).astimezone().date()
            settings = dataclasses.replace(settings, date=today.isoformat())
        self.tokenizer, self.settings, self.limit = tokenizer, settings, limit
        self._layout = make_layout(tokenizer, settings, None)
        self._start, self._stop = special_ends(tokenizer) if self._layout.special else ((), ())
        self._opening, self._glue, self._end = self._around_answer()
        fallbacks = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad_id = next(i for i in fallbacks if i is not None)
        self.cut_rows = self.cut_tokens = 0

    def memory(self, question: str, counts: Sequence[int], answer: str | None = None, *, room: int = 0) -> Prompted:
        """Return a prompt with places for memory. Nothing of it gives way.

        Args:
            question: the question, all of it.
            counts: memory vectors of each passage, in their order.
            answer: what is learnt; None for a prompt that is to be answered.
            room: tokens that an answer to come may have.

        Raises:
            DataError: prompt and answer have more tokens than the generator takes.
        """
        mark = next((mark for mark in _MARKS if mark not in question), _MARKS[0])
        documents = [Document(str(i), "", f"{mark}{i}{mark}") for i in range(len(counts))]
        # The number of a passage has a space behind it; before a vector that space would be a token of its own.
        pieces = re.split(f" *{mark}(\\d+){mark}", self._text(question, documents))
        texts = token_ids(self.tokenizer, pieces[::2], special=False)
        ids, slots = list(self._begun(texts[0])), [TOKEN] * len(self._begun(texts[0]))
        vectors = 0
        for number, text in zip(pieces[1::2], texts[1:], strict=True):
            count = counts[int(number)]
            ids += [self.pad_id] * count + text
            slots += [*range(vectors, vectors + count), *([TOKEN] * len(text))]
            vectors += count
        prompt = self._answered(ids, slots, answer)
        if self.limit is not None and len(prompt.ids) + room > self.limit:
            raise DataError(
                f"a question with {vectors} memory vectors needs {len(prompt.ids) + room} places, and the generator has "
                f"{self.limit}: {question[:60]!r}",
                hint="lower --n-docs, raise --compression-rate, or cut long passages with --max-windows",
            )
        return prompt

    def text(
        self, question: str, documents: Sequence[Document], answer: str | None = None, *, room: int = 0
    ) -> Prompted:
        """Return a prompt with passages as text.

        One that does not fit into the generator loses the ends of its longest passages, which is counted.

        Args:
            question: the question.
            documents: the passages, in their order.
            answer: as in ``memory``.
            room: tokens that an answer to come may have.

        Raises:
            DataError: question and answer alone do not fit.
        """
        ids = self._ids(self._text(question, documents))
        behind = room if answer is None else len(self.answer_ids(answer))
        cut = 0
        if self.limit is not None and len(ids) + behind > self.limit:
            before = len(ids)
            ids = self._fitted(question, documents, self.limit - behind)
            cut = before - len(ids)
            self.cut_rows, self.cut_tokens = self.cut_rows + 1, self.cut_tokens + cut
        return dataclasses.replace(self._answered(ids, [TOKEN] * len(ids), answer), cut=cut)

    def nothing(self, question: str, answer: str | None = None) -> Prompted:
        """Return a prompt without passages."""
        return self.text(question, (), answer)

    def passages(self, question: str, texts: Sequence[str], answer: str | None = None, *, room: int = 0) -> Prompted:
        """Return a prompt with pieces of text in the places of passages, as ``text``."""
        documents = [Document(str(i), "", text) for i, text in enumerate(texts)]
        return self.text(question, documents, answer, room=room)

    def task(self, task: int, vectors: int, text_ids: Sequence[int], *, ended: bool) -> Prompted:
        """Return memory, the mark of a task, and the text that is to be learnt from both.

        Args:
            task: ``RECONSTRUCT`` or ``CONTINUE``.
            vectors: memory vectors.
            text_ids: what is learnt, as ``text_ids`` of this class gives it.
            ended: the text ends there, and the end token is learnt too.
        """
        if task not in (RECONSTRUCT, CONTINUE):
            raise ValueError(f"expected the task {RECONSTRUCT} or {CONTINUE}, found {task}")
        start = special_ends(self.tokenizer)[0]
        end = [self.tokenizer.eos_token_id] if ended and self.tokenizer.eos_token_id is not None else []
        before = len(start) + vectors + 1
        ids = [*start, *([self.pad_id] * (vectors + 1)), *text_ids, *end]
        slots = [*([TOKEN] * len(start)), *range(vectors), task, *([TOKEN] * (len(text_ids) + len(end)))]
        return _prompted(ids, slots, before)

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the generator's tokens of texts, special ones aside."""
        return token_ids(self.tokenizer, texts, special=False)

    def answer_ids(self, answer: str) -> list[int]:
        """Return the tokens of an answer as they stand behind any prompt, with those that end it."""
        text = self._glue + answer.strip()
        if not self._cue:
            return [*token_ids(self.tokenizer, [text], special=False)[0], *self._end]
        # With some tokenizers a text that stands alone begins otherwise than behind another.
        whole = token_ids(self.tokenizer, [self._cue + text], special=False)[0]
        cue = self._cue_ids
        ids = whole[len(cue) :] if whole[: len(cue)] == cue else token_ids(self.tokenizer, [text], special=False)[0]
        return [*ids, *self._end]

    def _around_answer(self) -> tuple[str, str, list[int]]:
        """Return what belongs to the end of a prompt, to the beginning of an answer, and the tokens that end one.

        Some templates write more before an answer than a prompt ends with, such as an empty block of thought: that is no part
        of what is learnt, and a model that was not trained is to answer right behind it, too.
        """
        sample = Sample("", "q", (), _PROBE)
        (prompt,), (whole,) = self._layout.prompts([sample]), self._layout.wholes([sample])
        begun = whole.startswith(prompt)
        before, _, after = (whole[len(prompt) :] if begun else whole).rpartition(_PROBE)
        opening, glue = (before, "") if begun and before.strip() else ("", before if begun else "")
        self._cue = prompt.rstrip().rsplit("\n", 1)[-1] if self._layout.special else ""
        self._cue_ids = token_ids(self.tokenizer, [self._cue], special=False)[0] if self._cue else []
        ids = token_ids(self.tokenizer, [after], special=False)[0] if after else []
        end = self.tokenizer.eos_token_id
        special = {*self.tokenizer.all_special_ids, *getattr(self.tokenizer, "added_tokens_decoder", {})}
        # To the end token, which generation stops at; a mark of the turn is enough where the template writes no other.
        last = ids.index(end) if end in ids else next((i for i, token in enumerate(ids) if token in special), None)
        if last is not None:
            return opening, glue, ids[: last + 1]
        return opening, glue, [] if end is None else [end]

    def _text(self, question: str, documents: Sequence[Document]) -> str:
        (text,) = self._layout.prompts([Sample("", question, tuple(documents))])
        text += self._opening
        bos = self.tokenizer.bos_token
        return text.removeprefix(bos) if self._layout.special and bos and self._start else text

    def _ids(self, text: str) -> list[int]:
        return self._begun(token_ids(self.tokenizer, [text], special=False)[0])

    def _begun(self, ids: list[int]) -> list[int]:
        return [*self._start, *ids]

    def _fitted(self, question: str, documents: Sequence[Document], limit: int) -> list[int]:
        """Return the prompt with so much of each passage as fits: the longest ones are cut to one length."""
        fixed = len(self._ids(self._text(question, ())))
        texts = [passage_text(document) for document in documents]
        ids = token_ids(self.tokenizer, texts, special=False)
        longest = max((len(each) for each in ids), default=0)
        low, high, best = 0, longest, None
        while low <= high:
            most = (low + high) // 2
            kept = [self._head(text, each, most) for text, each in zip(texts, ids, strict=True)]
            pieces = [Document(str(i), "", text) for i, text in enumerate(kept) if text]
            tried = self._ids(self._text(question, pieces))
            if len(tried) <= limit:
                best, low = tried, most + 1
            else:
                high = most - 1
        if best is None:
            raise DataError(
                f"a question has {fixed} tokens, and the generator has {max(limit, 0)} for it beside the answer: {question[:60]!r}",
                hint="shorten the question or the answer, or take a generator with more positions",
            )
        return best

    def _head(self, text: str, ids: list[int], most: int) -> str:
        if len(ids) <= most:
            return text
        return str(self.tokenizer.decode(ids[:most], skip_special_tokens=False))

    def _answered(self, ids: list[int], slots: list[int], answer: str | None) -> Prompted:
        behind = [] if answer is None else self.answer_ids(answer)
        return _prompted([*ids, *behind], [*slots, *([TOKEN] * len(behind))], len(ids))


def _prompted(ids: Sequence[int], slots: Sequence[int], start: int) -> Prompted:
    """Return a prompt that trains everything from ``start``."""
    tokens = np.asarray(ids, dtype=np.int32)
    labels = tokens.copy()
    labels[:start] = IGNORED
    return Prompted(tokens, np.asarray(slots, dtype=np.int32), labels)
