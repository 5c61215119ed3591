"""What is handed from room to room: a row with its passages, a passage in windows, a prompt with places for memory."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ragtrain.data.sft.records import IGNORED, Example

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from ragtrain.records import Document

#: What a place of a decoder's prompt holds where it holds no memory vector (those count from 0).
TOKEN, RECONSTRUCT, CONTINUE = -1, -2, -3


@dataclasses.dataclass(frozen=True, slots=True)
class CompressExample(Example):
    """A row as it was read. ``targets`` are what may be learnt: references, or the teacher's answer.

    ``documents`` stand in the order of the file, and all of them; what an epoch shows of them is drawn by
    ``CompressContexts``.

    Attributes:
        scores: a reranker's scores by document id.
        teacher_answer: what a teacher answered, where it was asked.
    """

    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    teacher_answer: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """What is shown of a row in one epoch, or in every evaluation.

    Attributes:
        example: the row.
        documents: in the order of the prompt.
        scores: a reranker's score of each, None where it gave none, as for those of other rows.
        target: the text to learn; empty where the row has none.
    """

    example: CompressExample
    documents: tuple[Document, ...]
    scores: tuple[float | None, ...]
    target: str


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """A piece of a passage that is compressed by itself.

    Attributes:
        ids: (tokens,) int32 tokens of the passage, of the compressor's tokenizer, at least one.
        document: which of the row's documents it is a piece of.
        start: its first token in the passage.
        begin: character of the passage's text (``passage_text``) where it begins; -1 where the tokenizer does not say.
        end: the character after its last one; -1 likewise.
    """

    ids: np.ndarray
    document: int
    start: int
    begin: int = -1
    end: int = -1


@dataclasses.dataclass(frozen=True, slots=True)
class Windowed:
    """The passages of a row in windows, document by document, and the question that is read beside each.

    Attributes:
        question: (tokens,) int32, at most ``max_query_tokens``; empty without ``query_dependent``.
        windows: of all documents, in their order.
        n_documents: documents, of which each has at least one window.
    """

    question: np.ndarray
    windows: tuple[Window, ...]
    n_documents: int


@dataclasses.dataclass(frozen=True, slots=True)
class Prompted:
    """A prompt as the generator reads it, with what is learnt behind it if anything is.

    Attributes:
        ids: (tokens,) int32; the pad token where a vector stands.
        slots: (tokens,) int32: ``TOKEN`` where a token stands, k ≥ 0 where memory vector k of the row stands,
            ``RECONSTRUCT`` or ``CONTINUE`` where the embedding of a task does.
        labels: (tokens,) int32: the token where it is trained, -100 elsewhere; that of the first never counts.
        cut: tokens of passages that did not fit into the generator.
    """

    ids: np.ndarray
    slots: np.ndarray
    labels: np.ndarray
    cut: int = 0

    @property
    def trained(self) -> int:
        """Tokens that the loss counts."""
        return int((self.labels[1:] != IGNORED).sum())

    @property
    def vectors(self) -> int:
        """Memory vectors in it."""
        return int((self.slots >= 0).sum())


def passage_text(document: Document) -> str:
    """Return what the compressor reads of a document: its title, and its text on the next line."""
    title, text = document.title.strip(), document.text.strip()
    return f"{title}\n{text}" if title and text else title or text
