"""What retrieval hands to the model: passages for a batch of questions, with their vectors."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Pool:
    """The different passages of a batch, where they are encoded anew or contrasted with each other.

    Attributes:
        place: (batch, n_docs) column in the pool of each passage retrieved; 0 where there is none.
        vectors: (m, dim) float32, the passages' vectors in the index.
        inputs: what the passage encoder reads, (m, tokens) each; None where its vectors are the index's.
        positive: (batch, m) bool, passages that hold an answer to the question; None without a contrastive loss.
        candidate: (batch, m) bool, passages that the positive ones are told from, themselves among them.
    """

    place: Tensor
    vectors: Tensor
    inputs: Mapping[str, Tensor] | None = None
    positive: Tensor | None = None
    candidate: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Retrieved:
    """Passages found for a batch of questions, assembled with them into generator inputs.

    Attributes:
        vectors: (batch, n_docs, dim) float32, the passages' vectors in the index.
        mask: (batch, n_docs) bool, False where fewer passages were found.
        ids: (batch, n_docs) int64 positions in the index, -1 where ``mask`` is False.
        input_ids: (batch * n_docs, tokens) generator inputs, the passages of one question after each other.
        attention_mask: (batch * n_docs, tokens), 1 where there is a token.
        lengths: tokens of each row of ``input_ids``, on the host: read from there, nothing waits for the device.
        pool: the batch's different passages, where training needs them.
    """

    vectors: Tensor
    mask: Tensor
    ids: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    lengths: Sequence[int] | None = None
    pool: Pool | None = None
