r"""Passages as windows of the compressor's tokens. No token is left out, unless ``max_windows`` says so.

A window is read as::

    n_layers, small_lm   [bos] Query:\n question \nDocument:\n window [memory tokens] [rank token]
    modernbert           [CLS] question [SEP] window [SEP] [memory tokens] [rank token]

without the question's part where the compressor does not read it. A passage that is longer than a window becomes as few
windows as can hold it. Where these leave room, a border stands at the end of a sentence, else before a word, as near to
equal windows as may be; where they leave none, anywhere between two tokens.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ragtrain.data.compress.batches import WindowBatch
from ragtrain.data.compress.records import Window, Windowed, passage_text
from ragtrain.data.sft.encode import special_ends, token_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.config.compression import CompressSettings
    from ragtrain.records import Document

#: A place after which a sentence ends, and one at which a word begins.
_SENTENCE = re.compile(r"[.!?][\"')\]»”’]*\s+|\n+|[。！？]")
_WORD = re.compile(r"\s+")
#: What stands around the question and before a window, where the compressor is a causal language model.
_QUESTION, _DOCUMENT = "Query:\n", "\nDocument:\n"


@dataclasses.dataclass(frozen=True, slots=True)
class Tokens:
    """A passage's tokens, and the characters that each covers; None where the tokenizer does not say."""

    text: str
    ids: np.ndarray
    spans: np.ndarray | None


class Windower:
    """Cuts passages into windows and puts windows into tables."""

    def __init__(self, tokenizer: Any, settings: CompressSettings) -> None:  # noqa: ANN401 - no common type
        """Take the compressor's tokenizer and what a window is."""
        self.tokenizer, self.settings = tokenizer, settings
        start, end = special_ends(tokenizer)
        self._before, self._after = list(start), list(end)
        if settings.compressor_type == "modernbert":
            self._opening, self._middle = list(start), _between(tokenizer)
        else:
            opening, middle = token_ids(tokenizer, [_QUESTION, _DOCUMENT], special=False)
            # An end token that the tokenizer puts behind every text would be in the way: the memory ends a window.
            self._opening, self._middle, self._after = [*start, *opening], middle, []
        fallbacks = (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id, 0)
        #: Stands for a passage without any token.
        self._nothing = next(i for i in fallbacks if i is not None)
        self.pad_id = next(i for i in (tokenizer.pad_token_id, *fallbacks) if i is not None)

    def windows(self, rows: Sequence[tuple[str, Sequence[Document]]]) -> list[Windowed]:
        """Return the windows of several rows, each a question and its passages."""
        texts = [passage_text(document) for _, documents in rows for document in documents]
        each = iter(self.tokens(texts))
        questions = iter(self.questions([question for question, _ in rows]))
        made = []
        for _, documents in rows:
            windows = [window for i in range(len(documents)) for window in self.cut(next(each), i)]
            made.append(Windowed(next(questions), tuple(windows), len(documents)))
        return made

    def tokens(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of texts, special ones aside, whatever their length."""
        if not texts:
            return []
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        read = self.tokenizer(
            list(texts), add_special_tokens=False, padding=False, truncation=False, return_attention_mask=False,
            return_token_type_ids=False, return_offsets_mapping=fast, verbose=False,
        )  # fmt: skip
        made = []
        for i, text in enumerate(texts):
            ids = np.asarray(read["input_ids"][i], dtype=np.int32)
            spans = np.asarray(read["offset_mapping"][i], dtype=np.int64).reshape(-1, 2) if fast else None
            made.append(Tokens(text, ids, spans))
        return made

    def questions(self, questions: Sequence[str]) -> list[np.ndarray]:
        """Return what the compressor reads of questions, (tokens,) int32 each."""
        if not self.settings.query_dependent:
            return [np.empty(0, dtype=np.int32) for _ in questions]
        return [
            np.asarray(ids[: self.settings.max_query_tokens], dtype=np.int32) for ids in self._question_ids(questions)
        ]

    def question_lengths(self, questions: Sequence[str]) -> list[int]:
        """Return the tokens that questions have before any are cut; 0 where the compressor reads none."""
        return (
            [len(ids) for ids in self._question_ids(questions)]
            if self.settings.query_dependent
            else [0] * len(questions)
        )

    def _question_ids(self, questions: Sequence[str]) -> list[list[int]]:
        return token_ids(self.tokenizer, [question.strip() for question in questions], special=False)

    def cut(self, passage: Tokens, document: int = 0) -> list[Window]:
        """Return the windows of a passage, one at least."""
        ids, spans = passage.ids, passage.spans
        if not len(ids):
            return [Window(np.array([self._nothing], dtype=np.int32), document, 0)]
        most = self.settings.window_tokens
        limit = len(ids) if self.settings.max_windows is None else min(len(ids), self.settings.max_windows * most)
        borders = _borders(passage, limit, most)
        return [
            Window(ids[start:end], document, start)
            if spans is None
            else Window(ids[start:end], document, start, int(spans[start, 0]), int(spans[end - 1, 1]))
            for start, end in borders
        ]

    def counts(self, row: Windowed, rate: int | None = None) -> list[int]:
        """Return the memory vectors of each document of a row; without a rate, at the nominal one."""
        counts = [0] * row.n_documents
        for window in row.windows:
            counts[window.document] += self.vectors(window, rate)
        return counts

    def vectors(self, window: Window, rate: int | None = None) -> int:
        """Return the memory vectors of a window; without a rate, at the nominal one."""
        return self.settings.memory_of(len(window.ids), rate or self.settings.all_rates[0])

    def collate(self, rows: Sequence[Windowed], rate: int | None = None) -> WindowBatch:
        """Put the windows of rows into one table; without a rate, for the nominal one."""
        rate = rate or self.settings.all_rates[0]
        lines: list[_Line] = []
        offset = 0
        for row in rows:
            lines += [self._line(row, window, offset, rate) for window in row.windows]
            offset += row.n_documents
        shape = (len(lines), max((len(line.ids) for line in lines), default=1))
        input_ids = np.full(shape, self.pad_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        place, span = np.full(shape, -1, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
        for i, line in enumerate(lines):
            n = len(line.ids)
            input_ids[i, :n], mask[i, :n] = line.ids, 1
            place[i, :n], span[i, :n] = line.place, line.span
        return WindowBatch(
            input_ids=torch.from_numpy(input_ids), attention_mask=torch.from_numpy(mask), place=torch.from_numpy(place),
            span=torch.from_numpy(span), counts=torch.tensor([line.count for line in lines], dtype=torch.int64),
            document=torch.tensor([line.document for line in lines], dtype=torch.int64), n_documents=offset, rate=rate,
            tokens=sum(line.read for line in lines),
        )  # fmt: skip

    def _line(self, row: Windowed, window: Window, offset: int, rate: int) -> _Line:
        """Return a window as it is read: question and marks around it, memory and rank tokens behind it."""
        before = [*self._opening, *row.question, *self._middle] if len(row.question) else self._before
        n, count = len(window.ids), self.vectors(window, rate)
        mean = self.settings.pooling == "mean"
        memory = [] if mean else list(range(count))
        extra = [*memory, self.settings.max_memory] if self.settings.rank_head else memory
        ids = [*before, *window.ids, *self._after, *([self.pad_id] * len(extra))]
        place = [-1] * (len(ids) - len(extra)) + extra
        span = np.full(len(ids), -1, dtype=np.int64)
        if mean:
            span[len(before) : len(before) + n] = np.arange(n) * count // n
        return _Line(ids, place, span, count, window.document + offset, n)


@dataclasses.dataclass(frozen=True, slots=True)
class _Line:
    """A row of the table."""

    ids: list[int]
    place: list[int]
    span: np.ndarray
    count: int
    document: int
    read: int


def _between(tokenizer: Any) -> list[int]:  # noqa: ANN401
    """Return the ids that the tokenizer puts between the two texts of a pair."""
    start, _ = special_ends(tokenizer)
    one, other = token_ids(tokenizer, ["a", "b"], special=False)
    pair: list[int] = tokenizer("a", "b", return_attention_mask=False, return_token_type_ids=False)["input_ids"]
    first = len(start) + len(one)
    after = next((i for i in range(first, len(pair)) if pair[i : i + len(other)] == other), first)
    return pair[first:after]


def _borders(passage: Tokens, n: int, most: int) -> list[tuple[int, int]]:
    """Return first and last token, plus one, of each of the fewest windows that hold a passage's first ``n`` tokens."""
    count = -(-n // most)
    if count == 1:
        return [(0, n)]
    sentences, words = _starts(passage)
    borders, start = [], 0
    for left in range(count, 1, -1):
        lowest, highest = n - (left - 1) * most, min(start + most, n - left + 1)
        wanted = start + round((n - start) / left)
        lowest = max(lowest, start + 1)
        wanted = min(max(wanted, lowest), highest)
        border = _nearest(sentences, wanted, lowest, highest)
        border = _nearest(words, wanted, lowest, highest) if border is None else border
        end = wanted if border is None else border
        borders.append((start, end))
        start = end
    return [*borders, (start, n)]


def _starts(passage: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens that begin a sentence, and those that begin a word, ascending."""
    if passage.spans is None:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    text, ends = passage.text, passage.spans[:, 1]

    def first_after(pattern: re.Pattern[str]) -> np.ndarray:
        # The first token that reaches beyond the space: with byte-level tokenizers the space itself belongs to it.
        places = np.array([match.end() for match in pattern.finditer(text)], dtype=np.int64)
        return np.unique(np.searchsorted(ends, places, side="right"))

    return first_after(_SENTENCE), first_after(_WORD)


def _nearest(starts: np.ndarray, wanted: int, lowest: int, highest: int) -> int | None:
    """Return the start nearest to the wanted one within limits, both included; None where there is none."""
    within = starts[(starts >= lowest) & (starts <= highest)]
    return int(within[np.abs(within - wanted).argmin()]) if len(within) else None
