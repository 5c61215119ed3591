"""What the networks need of micro-batches, which are made in ``ragtrain.data.compress.batches``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class WindowRows(Protocol):
    """Windows of passages, one a row, padded on the right.

    Attributes:
        input_ids: (W, T); at a learnt token's place any id.
        attention_mask: (W, T), 1 where there is a token, learnt ones included.
        place: (W, T): -1 at a token of text, j at memory token j, ``max_memory`` at the rank token. Memory tokens of a
            window stand in the order of j.
        span: (W, T): stretch whose mean a token is part of, or -1; used where vectors are means.
        counts: (W,) vectors of each window.
        document: (W,) place of the window's passage among those of the batch.
        n_documents: passages in the batch.
    """

    @property
    def input_ids(self) -> Tensor: ...  # noqa: D102
    @property
    def attention_mask(self) -> Tensor: ...  # noqa: D102
    @property
    def place(self) -> Tensor: ...  # noqa: D102
    @property
    def span(self) -> Tensor: ...  # noqa: D102
    @property
    def counts(self) -> Tensor: ...  # noqa: D102
    @property
    def document(self) -> Tensor: ...  # noqa: D102
    @property
    def n_documents(self) -> int: ...  # noqa: D102


class MemoryRows(Protocol):
    """Prompts with places for vectors, one a row, padded on the right.

    Attributes:
        windows: what the vectors are made of.
        input_ids: (B, L); at a vector's place any id.
        slot: (B, L): -1 at a token, k >= 0 at vector k of all windows laid end to end, -2 at the task "reconstruct",
            -3 at the task "go on".
        predictors: (trained,) places, in rows laid end to end, where the trained tokens are predicted.
        targets: (trained,) those tokens.
    """

    @property
    def windows(self) -> WindowRows: ...  # noqa: D102
    @property
    def input_ids(self) -> Tensor: ...  # noqa: D102
    @property
    def slot(self) -> Tensor: ...  # noqa: D102
    @property
    def predictors(self) -> Tensor: ...  # noqa: D102
    @property
    def targets(self) -> Tensor: ...  # noqa: D102
