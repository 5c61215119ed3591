"""What is handed from room to room: a row as it was read, as it is prompted, and as token ids."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

    from ragtrain.records import Document

Lost = Literal["", "docs", "text", "row"]
IGNORED = -100


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A row as it was read, with the passages found for it.

    Attributes:
        id: of the row.
        question: the question; of a row with a finished prompt, that prompt.
        answers: every reference, for exact match and F1.
        targets: what may be learnt: the answers, or the texts of ``output_key`` (a chain of thought).
        documents: passages, best first; deeper than a prompt where hard negatives are drawn from them.
        gold: ids of the passages that answer the question, where the data says so.
        finished: the prompt of a row that brings its own.
        group: what a split must not cut.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    targets: tuple[str, ...]
    documents: tuple[Document, ...] = ()
    gold: frozenset[str] = frozenset()
    finished: str | None = None
    group: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Shot:
    """A solved example that stands before the question."""

    question: str
    documents: tuple[Document, ...]
    target: str


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """What one prompt is made of, in one epoch.

    Attributes:
        id: of the example.
        question: as in the example.
        documents: the passages of this prompt, in their order in it.
        target: the text to learn; empty where only a prompt is wanted.
        shots: solved examples before the question.
        finished: the prompt of a row that brings its own; ``documents`` then say which parts of it are passages.
        ranks: the rank of each document, from 0 for the best: the highest is the first to give way.
    """

    id: str
    question: str
    documents: tuple[Document, ...] = ()
    target: str = ""
    shots: tuple[Shot, ...] = ()
    finished: str | None = None
    ranks: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
    """A sample as a model reads it.

    Attributes:
        ids: (tokens,) int32.
        labels: (tokens,) int32: the token where it is trained, -100 elsewhere; that of the first token never counts.
        n_docs: passages that are left in it.
        lost: what it lost for being too long: nothing, passages, the ends of passages, or the row itself (which then has
            no tokens).
    """

    ids: np.ndarray
    labels: np.ndarray
    n_docs: int = 0
    lost: Lost = ""

    @property
    def trained(self) -> int:
        """Tokens that the loss counts."""
        return int((self.labels[1:] != IGNORED).sum())
