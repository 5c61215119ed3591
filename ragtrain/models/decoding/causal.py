"""Passages read once: causal language models, whose prompt is read once and whose keys and values go on from there."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ragtrain.models.decoding.beams import SearchSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.models.rag import RagModel, Retrieved

#: Tokens held in copies of prompts while candidates are scored.
COPIED_TOKENS = 65536
#: Stands behind the end of an answer: a causal model's padding token may be its end token.
_BEHIND = -1


class CausalReading:
    """Prompts (rows) of a causal language model, padded on the left."""

    def __init__(self, model: RagModel, retrieved: Retrieved) -> None:
        self.model, self.generator = model, model.generator
        known = inspect.signature(type(model.generator).forward).parameters
        self._keeps, self._positions = "logits_to_keep" in known, "position_ids" in known
        ids, self.mask = retrieved.input_ids, retrieved.attention_mask
        self.cache, logits = self.read(ids, self.mask, None, last=True)
        self.logits = logits[:, -1].float()

    def settings(self, num_beams: int, max_new_tokens: int) -> SearchSettings:
        """Return how to search; end tokens, length penalty and early stopping are the generation settings'."""
        chosen: Any = self.generator.generation_config
        ends = chosen.eos_token_id
        return SearchSettings(
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            start=_BEHIND,
            pad=_BEHIND,
            ends=tuple(ends) if isinstance(ends, list | tuple) else () if ends is None else (ends,),
            length_penalty=1.0 if chosen.length_penalty is None else chosen.length_penalty,
            early_stopping=chosen.early_stopping or False,
        )

    def stepper(self, settings: SearchSettings) -> CausalStepper:
        """Return how beams of each prompt go on."""
        return CausalStepper(self)

    def score(self, rows: Sequence[int], sequences: Sequence[Sequence[tuple[int, ...]]]) -> list[Tensor]:
        """Return log p(token | prompt, tokens before), from copies of the prompts' keys and values."""
        pairs = [(row, sequence) for row, some in zip(rows, sequences, strict=True) for sequence in some]
        order = sorted(range(len(pairs)), key=lambda place: -len(pairs[place][1]))
        found: list[Tensor] = [self.logits[:0, 0]] * len(pairs)
        step = max(1, COPIED_TOKENS // self.mask.shape[1])
        for start in range(0, len(order), step):
            portion = order[start : start + step]
            for place, values in zip(portion, self._score([pairs[place] for place in portion]), strict=True):
                found[place] = values[: len(pairs[place][1])]
        ends, results = 0, []
        for some in sequences:
            mine, ends = found[ends : ends + len(some)], ends + len(some)
            results.append(torch.nn.utils.rnn.pad_sequence(mine, batch_first=True))
        return results

    def _score(self, pairs: Sequence[tuple[int, tuple[int, ...]]]) -> Tensor:
        device = self.mask.device
        rows = torch.tensor([row for row, _ in pairs], device=device)
        longest = max(len(sequence) for _, sequence in pairs)
        labels = torch.tensor([[*y, *[0] * (longest - len(y))] for _, y in pairs], device=device)
        real = torch.tensor([[t < len(y) for t in range(longest)] for _, y in pairs], device=device)
        logits = self.logits[rows][:, None]
        if longest > 1:
            cache = branch(self.cache)
            cache.reorder_cache(rows)
            mask = torch.cat([self.mask[rows], real[:, :-1].to(self.mask.dtype)], dim=1)
            _, more = self.read(labels[:, :-1], mask, cache)
            logits = torch.cat([logits, more.float()], dim=1)
        loglik = logits.gather(2, labels[..., None])[..., 0] - logits.logsumexp(-1)
        return loglik.masked_fill(~real, 0.0)

    def read(self, ids: Tensor, mask: Tensor, cache: Any, *, last: bool = False) -> tuple[Any, Tensor]:  # noqa: ANN401
        """Read (rows, new tokens) behind what a cache holds; return the cache and (rows, new tokens, vocabulary).

        Args:
            ids: the new tokens.
            mask: (rows, all tokens), 1 where there is a token.
            cache: of transformers, changed in place; None at the beginning.
            last: only the last position's logits are needed.
        """
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
        if self._positions:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if self._keeps and last:
            inputs["logits_to_keep"] = 1
        output = self.generator(**inputs, use_cache=True)
        return output.past_key_values, output.logits


class CausalStepper:
    """The beams of each prompt."""

    def __init__(self, reading: CausalReading) -> None:
        self.reading = reading
        self.cache, self.mask = branch(reading.cache), reading.mask
        self.first: Tensor = reading.logits
        self.beams = 1

    def __call__(self, tokens: Tensor, origin: Tensor | None) -> Tensor:
        """Return logits (prompts, beams, vocabulary) after the latest tokens."""
        if origin is None:
            return self.first[:, None]
        prompts = torch.arange(len(tokens), device=tokens.device)[:, None]
        rows = (prompts * self.beams + origin).flatten()
        self.beams = tokens.shape[1]
        self._take(rows)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(rows), 1)], dim=1)
        # A row that is done goes on with any token until it is dropped.
        self.cache, logits = self.reading.read(tokens.reshape(-1, 1).clamp(min=0), self.mask, self.cache)
        return logits[:, -1].view(*tokens.shape, -1)

    def select(self, rows: Tensor) -> None:
        """Keep some prompts."""
        self.first = self.first[rows]
        self._take((rows[:, None] * self.beams + torch.arange(self.beams, device=rows.device)).flatten())

    def _take(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)
        self.mask = self.mask[rows]


def branch(cache: Any) -> Any:  # noqa: ANN401 - any cache of transformers
    """Return a cache that can go on without changing the one that is given."""
    if all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        twin = copy.copy(cache)  # their tensors are replaced, never written to
        twin.layers = [copy.copy(layer) for layer in cache.layers]
        return twin
    return copy.deepcopy(cache)
