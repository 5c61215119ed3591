"""Text that spends exactly what the memory of a question spends: its first tokens, or its best sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from ragtrain.records import Document


def first_tokens(documents: Sequence[Document], budget: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the first ``budget`` tokens of passages in their order, titles among them, as texts."""
    raise NotImplementedError


def best_sentences(
    question: str, documents: Sequence[Document], budget: int, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Return the sentences that BM25 ranks highest for the question, within ``budget`` tokens, in the order of the text."""
    raise NotImplementedError
