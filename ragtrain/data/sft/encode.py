"""Texts to token ids, and which of them are trained.

Two rules say which tokens are trained:

* ``trl``: prompt and example are tokenised, each as a whole, and what follows their longest common prefix is trained (TRL 1.16,
  ``SFTTrainer._prepare_dataset`` and ``data_utils.common_prefix_length``). Tokens that merge across the end of the prompt
  are thereby trained, and no token is seen in training that the whole text would not have.
* ``ragfit``: what follows the last occurrence of the ids of ``completion_start`` is trained (RAG-FiT's use of
  ``DataCollatorForCompletionOnlyLM``, TRL 0.8.6). RAG-FiT pads with the end token and never trains the padding, so that no
  end token is trained either; the marker is looked for after that. A line break after the marker is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain.data.sft.records import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence


def token_ids(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[list[int]]:  # noqa: ANN401 - no common type
    """Return the ids of each text, whatever its length.

    Args:
        tokenizer: of transformers.
        texts: to be tokenised.
        special: with the special tokens that the tokenizer puts around a text by itself; chat templates write their own.
    """
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=special, padding=False, truncation=False, return_attention_mask=False,
        return_token_type_ids=False, verbose=False,
    )  # fmt: skip
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def special_ends(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:  # noqa: ANN401
    """Return the ids that the tokenizer puts before and after a text by itself."""
    (whole,) = token_ids(tokenizer, ["a"], special=True)
    (bare,) = token_ids(tokenizer, ["a"], special=False)
    at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return tuple(whole[:at]), tuple(whole[at + len(bare) :])


def common_prefix(ids: np.ndarray, others: np.ndarray) -> int:
    """Return how many tokens two sequences, (tokens,) each, have in common from their beginning."""
    n = min(len(ids), len(others))
    differs = np.flatnonzero(ids[:n] != others[:n])
    return int(differs[0]) if len(differs) else n


def labels_after(ids: np.ndarray, start: int) -> np.ndarray:
    """Return labels (tokens,) int32 that train everything from ``start``."""
    labels = ids.copy()
    labels[:start] = IGNORED
    return labels


def labels_after_marker(ids: np.ndarray, marker: Sequence[int], end_token: int | None) -> np.ndarray:
    """Return the labels of the rule ``ragfit``.

    Args:
        ids: (tokens,) int32.
        marker: ids of ``completion_start``, without special tokens.
        end_token: never trained, because RAG-FiT pads with it.

    Returns:
        (tokens,) int32; nothing is trained where the marker does not occur.
    """
    labels = ids.copy()
    if end_token is not None:
        labels[ids == end_token] = IGNORED
    start = last_occurrence(labels, marker)
    labels[: len(ids) if start is None else start + len(marker)] = IGNORED
    return labels


def last_occurrence(ids: np.ndarray, marker: Sequence[int]) -> int | None:
    """Return where ``marker`` begins in ``ids`` (tokens,) for the last time, ``None`` where it does not."""
    wanted = np.asarray(marker, dtype=ids.dtype)
    if not 0 < len(wanted) <= len(ids):
        return None
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(wanted))
    found = np.flatnonzero((windows == wanted).all(axis=1))
    return int(found[-1]) if len(found) else None
