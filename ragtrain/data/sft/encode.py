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

import dataclasses
import functools
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain.data.sft.records import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence

NEAR = 512
"""Characters before the end of a prompt in which a special token is looked for."""


def token_ids(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[list[int]]:  # noqa: ANN401 - no common type
    """Return the ids of each text, whatever its length.

    Args:
        tokenizer: of transformers.
        texts: to be tokenised.
        special: with the special tokens that the tokenizer puts around a text by itself; chat templates write their own.
    """
    if not texts:
        return []
    # The first text goes the whole way, which also switches truncation and padding off in the backend; where the backend by
    # itself gives the same ids, it reads the others: it leaves out what is not asked for and is a quarter faster.
    backend = getattr(tokenizer, "backend_tokenizer", None) if getattr(tokenizer, "is_fast", False) else None
    first = _call(tokenizer, texts[:1], special)
    if len(texts) == 1:
        return first
    if backend is None or _read(backend, texts[:1], special) != first:
        return _call(tokenizer, texts, special)
    return first + _read(backend, texts[1:], special)


def _call(tokenizer: Any, texts: Sequence[str], special: bool) -> list[list[int]]:  # noqa: ANN401
    encoded = tokenizer(
        list(texts), add_special_tokens=special, padding=False, truncation=False, return_attention_mask=False,
        return_token_type_ids=False, verbose=False,
    )  # fmt: skip
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _read(backend: Any, texts: Sequence[str], special: bool) -> list[list[int]]:  # noqa: ANN401
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=special)]


def special_ends(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:  # noqa: ANN401
    """Return the ids that the tokenizer puts before and after a text by itself."""
    (whole,) = token_ids(tokenizer, ["a"], special=True)
    (bare,) = token_ids(tokenizer, ["a"], special=False)
    at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return tuple(whole[:at]), tuple(whole[at + len(bare) :])


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """Where training begins in a row: after ``common`` tokens, where the prompt alone has ``prompt``."""

    common: int
    prompt: int


def training_starts(
    tokenizer: Any,  # noqa: ANN401
    prompts: Sequence[str],
    wholes: Sequence[str],
    ids: Sequence[np.ndarray],
    *,
    special: bool,
) -> list[Start]:
    """Return the common prefix of each prompt's tokens with those of its example.

    A text is cut at special tokens before anything else is done to it, so that what stands before the last one of them that
    prompt and example share has the same tokens in both: only the rest of the prompt is tokenised. Where the example shows
    that this is not so, or where there is no special token near the end of the prompt, it is tokenised as a whole.

    Args:
        tokenizer: of transformers.
        prompts: texts that end where an answer begins.
        wholes: texts of the examples.
        ids: of the examples, (tokens,) int32 each.
        special: as in ``token_ids``.
    """
    marks = None if special else _marks(tokenizer)
    cuts = [_cut(prompt, whole, marks) for prompt, whole in zip(prompts, wholes, strict=True)]
    near = [i for i, cut in enumerate(cuts) if cut is not None]
    tails = token_ids(tokenizer, [text[i][cuts[i] :] for i in near for text in (prompts, wholes)], special=False)
    starts: dict[int, Start] = {}
    for i, prompt, whole in zip(near, tails[::2], tails[1::2], strict=True):
        head = len(ids[i]) - len(whole)
        if head >= 0 and ids[i][head:].tolist() == whole:
            starts[i] = Start(head + _common(prompt, whole), head + len(prompt))
    rest = [i for i in range(len(prompts)) if i not in starts]
    for i, read in zip(rest, token_ids(tokenizer, [prompts[i] for i in rest], special=special), strict=True):
        starts[i] = Start(common_prefix(np.asarray(read, dtype=np.int32), ids[i]), len(read))
    return [starts[i] for i in range(len(prompts))]


def _marks(tokenizer: Any) -> re.Pattern[str] | None:  # noqa: ANN401
    """Return what finds the special tokens that a text is cut at, just as they are written."""
    texts = [
        token.content
        for token in getattr(tokenizer, "added_tokens_decoder", {}).values()
        if token.special and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
    ]
    return _pattern(tuple(sorted(texts, key=len, reverse=True)))


@functools.lru_cache(maxsize=8)
def _pattern(texts: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def _cut(prompt: str, whole: str, marks: re.Pattern[str] | None) -> int | None:
    """Return where the last special token begins in what two texts have in common, if it is near."""
    if marks is None:
        return None
    end = len(prompt) if whole.startswith(prompt) else _common(prompt, whole)
    found = [match.start() for match in marks.finditer(prompt, max(end - NEAR, 0), end)]
    return found[-1] if found else None


def _common(ids: Sequence[object], others: Sequence[object]) -> int:
    pairs = enumerate(zip(ids, others, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(ids), len(others)))


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
