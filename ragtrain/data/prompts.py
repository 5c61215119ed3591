"""What the generator reads, put together from token ids.

An encoder-decoder reads ``[bos] title / text // question [eos]``, a causal language model, padded on the left so that
its answer follows immediately::

    [bos] title / text
    Question: question
    Answer:

The first is the string of transformers' ``RagRetriever.postprocess_docs`` (``title_sep`` " / ", ``doc_sep`` " // "). Both
byte-level BPE and sentencepiece tokenizers cut at spaces before anything else, so that the pieces may be tokenised
apart, each with the space before it, and joined: the ids are those of the whole string.

What differs from there: a passage without title has no `` / ``; a pair of quotes around a title goes, a single quote
stays; spaces at the ends of a passage go. Where the input is too long, the passage is cut and the question is not:
there, the end of the whole string is cut, which is the question.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger("ragtrain")

TITLE_SEPARATOR = " / "
DOC_SEPARATOR = " //"
CAUSAL_SEPARATOR, CAUSAL_END = "\nQuestion:", "\nAnswer:"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Everything in a generator input that is neither passage nor question, as token ids.

    Attributes:
        start: special tokens before everything (BART: bos; T5: none).
        prefix: the tokens of ``generator.config.prefix``, where there is one.
        separator: what stands between passage and question.
        end: special tokens after everything.
        pad: what rows are filled up with.
        leading_space: whether passages are tokenised with a space before them, because a prefix stands there.
        pad_left: rows are filled up on the left.
    """

    start: tuple[int, ...]
    prefix: tuple[int, ...]
    separator: tuple[int, ...]
    end: tuple[int, ...]
    pad: int
    leading_space: bool = False
    pad_left: bool = False

    @property
    def n_fixed(self) -> int:
        """Tokens that every input has besides passage and question."""
        return len(self.start) + len(self.prefix) + len(self.separator) + len(self.end)


@dataclasses.dataclass
class Cuts:
    """How many inputs were put together, and how many passages and questions had to be cut for that."""

    inputs: int = 0
    passages: int = 0
    questions: int = 0

    def add(self, inputs: int, passages: int, questions: int, max_tokens: int) -> None:
        """Count a batch; cut questions are warned of when their number passes a power of two."""
        before = self.questions
        self.inputs, self.passages, self.questions = (
            self.inputs + inputs,
            self.passages + passages,
            self.questions + questions,
        )
        if self.questions.bit_length() > before.bit_length():
            log.warning(
                "%d of %d generator inputs hold a question that is longer than max_input_tokens=%d by itself: its end "
                "is cut and no passage is left",
                self.questions, self.inputs, max_tokens,
            )  # fmt: skip


#: Of this process; a caller who wants numbers of its own passes its own.
CUTS = Cuts()


def passage_string(title: str, text: str) -> str:
    """Return ``title / text``, or the text alone where there is no title."""
    if len(title) > 1 and title[0] == title[-1] == '"':
        title = title[1:-1]
    title, text = title.strip(), text.strip()
    joined = f"{title}{TITLE_SEPARATOR}{text}" if title and text else title or text
    return joined.replace("  ", " ")


def layout_for(tokenizer: Any, prefix: str = "", *, causal: bool = False) -> Layout:  # noqa: ANN401 - no common type
    """Return the layout of a generator's inputs.

    Args:
        tokenizer: the generator's tokenizer; special tokens are those which it puts around a text by itself.
        prefix: ``generator.config.prefix``, written before every passage (T5 checkpoints of transformers' RAG).
        causal: the generator is a causal language model.

    Raises:
        ConfigError: the tokenizer has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path!r} has no padding token",
            hint="take a BART or T5 generator, or set pad_token in its tokenizer_config.json",
        )
    whole: list[int] = tokenizer("a")["input_ids"]
    bare = bare_ids(tokenizer, ["a"])[0]
    at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    separator, end = (CAUSAL_SEPARATOR, CAUSAL_END) if causal else (DOC_SEPARATOR, "")
    layout = Layout(
        start=tuple(whole[:at]),
        prefix=tuple(bare_ids(tokenizer, [prefix.rstrip()])[0]) if prefix.strip() else (),
        separator=tuple(bare_ids(tokenizer, [separator])[0]),
        # What a causal model's tokenizer puts at the end of a text would end the text before the answer.
        end=tuple(bare_ids(tokenizer, [end])[0]) if causal else tuple(whole[at + len(bare) :]),
        pad=int(tokenizer.pad_token_id),
        leading_space=bool(prefix.strip()) and prefix[-1].isspace(),
        pad_left=causal,
    )
    _warn_if_inexact(tokenizer, prefix, layout)
    return layout


def bare_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:  # noqa: ANN401
    """Return the token ids of each text without special tokens, whatever the length."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=False, padding=False, truncation=False, return_attention_mask=False,
        return_token_type_ids=False, verbose=False,
    )  # fmt: skip
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _warn_if_inexact(tokenizer: Any, prefix: str, layout: Layout) -> None:  # noqa: ANN401
    title, text, question = "Oslo", 'The capital of "Norway".', "Where is it (2)?"
    passage = (" " if layout.leading_space else "") + passage_string(title, text)
    pieces = [np.asarray(ids) for ids in bare_ids(tokenizer, [passage, " " + question])]
    ids, _ = assemble(pieces[:1], pieces[1:], layout, 512, cuts=Cuts())
    start = f"{prefix.strip()}{' ' if layout.leading_space else ''}"
    separator, end = (CAUSAL_SEPARATOR, CAUSAL_END) if layout.pad_left else (DOC_SEPARATOR, "")
    whole = tokenizer(f"{start}{title}{TITLE_SEPARATOR}{text}{separator} {question}{end}")["input_ids"]
    if ids[0].tolist() != whole[: len(ids[0])] or (len(whole) > len(ids[0]) and not layout.pad_left):
        log.warning(
            "the tokenizer %r does not cut texts at spaces: generator inputs differ slightly from those of the whole "
            "string",
            tokenizer.name_or_path,
        )


def assemble(
    passage_tokens: Sequence[np.ndarray],
    question_tokens: Sequence[np.ndarray],
    layout: Layout,
    max_tokens: int,
    *,
    cuts: Cuts = CUTS,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the generator's input ids and attention mask, padded to the longest of the batch.

    Args:
        passage_tokens: (rows) arrays of ``title / text`` tokens (``TokenStore.gather``); an empty one is no passage.
        question_tokens: (rows) arrays of question tokens, as they stand after a space; or (rows / n), each of which
            then serves n neighbouring passages.
        layout: everything else that stands in an input.
        max_tokens: longest input. The passage gives way; a question is cut only where it is too long alone.
        cuts: where cut passages and questions are counted.

    Returns:
        input_ids (rows, longest) int64 and attention_mask (rows, longest) int64, 1 where there is a token.

    Raises:
        ConfigError: ``max_tokens`` leaves no room, or the rows cannot be shared out among the questions.
    """
    rows, n_questions = len(passage_tokens), len(question_tokens)
    room = max_tokens - layout.n_fixed
    if room < 1:
        raise ConfigError(f"max_input_tokens={max_tokens} leaves no room beside {layout.n_fixed} fixed tokens")
    if not n_questions or rows % n_questions:
        raise ConfigError(f"{rows} passages cannot be shared out among {n_questions} questions")
    n_docs = rows // n_questions
    wanted = np.array([len(tokens) for tokens in question_tokens], dtype=np.int64)
    asked = np.minimum(wanted, room)
    full = np.array([len(tokens) for tokens in passage_tokens], dtype=np.int64)
    n_question = np.repeat(asked, n_docs)
    n_passage = np.minimum(full, room - n_question)
    cuts.add(rows, int((n_passage < full).sum()), int((wanted > room).sum()) * n_docs, max_tokens)

    # Where each part ends, row by row: (rows, 1) against the columns (1, longest).
    head = np.array([*layout.start, *layout.prefix], dtype=np.int64)
    passage_end = (len(head) + n_passage)[:, None]
    question_start = passage_end + len(layout.separator)
    question_end = question_start + n_question[:, None]
    input_end = question_end + len(layout.end)
    column = np.arange(int(input_end.max()))[None, :]

    ids = np.full((rows, column.shape[1]), layout.pad, dtype=np.int64)
    ids[:, : len(head)] = head
    # A boolean mask is filled row by row, which is the order in which the parts are joined.
    ids[(column >= len(head)) & (column < passage_end)] = _joined(passage_tokens, n_passage)
    ids[(column >= passage_end) & (column < question_start)] = np.tile(layout.separator, rows)
    repeated = [tokens for tokens in question_tokens for _ in range(n_docs)]
    ids[(column >= question_start) & (column < question_end)] = _joined(repeated, n_question)
    ids[(column >= question_end) & (column < input_end)] = np.tile(layout.end, rows)
    mask = column < input_end
    if layout.pad_left:
        # Filled row by row again: the same tokens, from the other end.
        left = np.full_like(ids, layout.pad)
        left[mask[:, ::-1]] = ids[mask]
        return left, mask[:, ::-1].astype(np.int64)
    return ids, mask.astype(np.int64)


def _joined(tokens: Sequence[np.ndarray], lengths: np.ndarray) -> np.ndarray:
    """Return the first ``lengths[i]`` tokens of each array, one after the other."""
    return np.concatenate([row[:length] for row, length in zip(tokens, lengths.tolist(), strict=True)])
