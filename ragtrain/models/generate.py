"""What a causal language model writes after prompts: greedy, in batches of similar length, up to its own end.

The likeliest token is taken at each step, whatever the model's generation settings say of sampling or of penalties: a
penalty of repetition would punish a reader for copying its answer from the passages. Only the end tokens are theirs.

Tokens equal those of transformers' ``generate`` (the tests compare them). The loop here costs less per step, which is
what counts for small models, and lets go of rows that have ended; models whose cache is not made of keys and values
alone, or that prepare their inputs in a way of their own, go through ``generate``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import logging
import time
import warnings
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ragtrain.errors import ConfigError, OutOfMemoryError
from ragtrain.models.causal import positions_of
from ragtrain.models.folders import hushed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("ragtrain")

#: Rows that have ended are let go of once they are this share of a batch: each time costs a copy of the cache.
_DROPPED_SHARE = 0.25
#: Stands in an assistant's turn so that what the chat template puts after it can be found.
_REPLY = "forty-two"
#: Prompts as ids or embeddings, by transformers' name of them, and their mask.
_Rows: TypeAlias = "tuple[dict[str, Tensor], Tensor]"


@dataclasses.dataclass(frozen=True, slots=True)
class Generated:
    """What was written after one prompt.

    Attributes:
        text: without special tokens, stripped.
        n_tokens: tokens written, the end token among them.
        ended: whether it came to an end token before the limit.
        seconds: from the beginning of its batch until it was complete.
    """

    text: str
    n_tokens: int
    ended: bool
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Written:
    """Token ids after one prompt, without the end token."""

    ids: list[int]
    ended: bool
    seconds: float


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[Mapping[int, Generated]], None] | None = None,
) -> list[Generated]:
    """Continue prompts greedily, each up to an end token or the limit, and return them in their order.

    A batch that does not fit on the device is cut in half, and so are all after it. The model's modules are left in the
    mode they were in, and its settings as they were; the result does not depend on the batch size beyond rounding.

    Args:
        model: a causal language model, with or without adapters in it.
        tokenizer: its tokenizer; a padding token is not needed.
        prompts: token ids, at least one each.
        max_new_tokens: most tokens written after a prompt.
        batch_size: prompts at a time.
        advance: called after each batch with what was written in it, by the prompts' places.

    Raises:
        ConfigError: a prompt fills all positions that the model has.
        OutOfMemoryError: one prompt alone does not fit on the device.
    """
    filler = _filler(tokenizer)

    def rows(places: Sequence[int]) -> _Rows:
        ids, mask = _padded([prompts[place] for place in places], filler, model.device)
        return {"input_ids": ids}, mask

    return continue_rows(
        model, tokenizer, [len(prompt) for prompt in prompts], rows, max_new_tokens=max_new_tokens,
        batch_size=batch_size, advance=advance,
    )  # fmt: skip


def continue_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[int],
    rows: Callable[[Sequence[int]], _Rows],
    *,
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[Mapping[int, Generated]], None] | None = None,
) -> list[Generated]:
    """Continue prompts of any form; see ``generate``.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        lengths: places of each prompt.
        rows: returns prompts by their numbers, padded on the left: ``input_ids`` or ``inputs_embeds`` by name, and the
            (rows, longest) mask.
        max_new_tokens: most tokens written after a prompt.
        batch_size: prompts at a time.
        advance: called after each batch with what was written in it, by the prompts' places.
    """
    network = cast("PreTrainedModel", getattr(model, "_orig_mod", model))  # compiled, it would compile every length
    most = positions_of(network)
    _check(lengths, most)
    ends = end_tokens(network, tokenizer)
    filler = _filler(tokenizer)
    # Longest first: neighbours are padded little, and a batch that does not fit fails at once.
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    found: dict[int, Generated] = {}
    start, size = 0, batch_size
    with _answering(network):
        while start < len(order):
            places = order[start : start + size]
            room = [max_new_tokens if most is None else min(max_new_tokens, most - lengths[i]) for i in places]
            written = _attempt(network, functools.partial(rows, places), room, ends, filler)
            if written is None:
                size = _smaller(len(places), lengths[places[0]])
                continue
            batch = {place: _generated(tokenizer, one) for place, one in zip(places, written, strict=True)}
            found.update(batch)
            start += len(places)
            if advance is not None:
                advance(batch)
    return [found[place] for place in range(len(lengths))]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return every token that ends an answer: those of the generation settings, of the tokenizer, and of a chat's turn."""
    settings: Any = model.generation_config
    named = settings.eos_token_id if settings is not None else None
    ends = set(named if isinstance(named, list | tuple) else () if named is None else (named,))
    own: Any = tokenizer.eos_token_id
    ends.update(() if own is None else (own,))
    turn = _turn_end(tokenizer)
    ends.update(() if turn is None else (turn,))
    return frozenset(int(token) for token in ends)


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that the chat template puts after an assistant's reply, or None if it puts none there.

    It is one of the tokenizer's added tokens (``<|im_end|>``): an ordinary one, like a line break, may be part of an
    answer.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _REPLY}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except (TemplateError, ValueError, TypeError, KeyError):  # a template that knows no such conversation
        return None
    behind = text.rpartition(_REPLY)[2]
    added = set(tokenizer.get_added_vocab().values())
    for token in tokenizer(behind, add_special_tokens=False)["input_ids"]:
        if token in added:
            return int(token)
        if str(tokenizer.decode([token])).strip():
            return None
    return None


def _check(lengths: Sequence[int], most: int | None) -> None:
    longest = max(lengths, default=0)
    if most is not None and longest >= most:
        raise ConfigError(f"a prompt of {longest} tokens leaves no room in the {most} positions of the model",
                          hint="give a smaller --max-length in training, or fewer passages (--n-docs)")  # fmt: skip


def _filler(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return a token for places that nothing looks at."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    return 0


def _smaller(rows: int, tokens: int) -> int:
    """Return half a batch size.

    Raises:
        OutOfMemoryError: there is no half of one.
    """
    if rows == 1:
        raise OutOfMemoryError(f"a prompt of {tokens} tokens does not fit on the device by itself",
                               hint="give fewer passages (--n-docs), or a base in 8 or 4 bits (--load-in-4bit)")  # fmt: skip
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.warning("%d prompts of %d tokens do not fit on the device at once: going on with %d", rows, tokens, rows // 2)
    return rows // 2


@contextlib.contextmanager
def _answering(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout and gradients off, and leave every module as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(False)
    try:
        # Not inference mode: what is computed once and kept (rotary tables) must serve training afterwards.
        with torch.no_grad(), hushed():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _attempt(
    model: PreTrainedModel, rows: Callable[[], _Rows], limits: list[int], ends: frozenset[int], filler: int
) -> list[_Written] | None:
    """Return what is written after one batch of prompts, or None where the device was full."""
    try:
        first, mask = rows()
        if cast("Any", type(model)).prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation:
            written = _greedy(model, first, mask, limits, ends)
            if written is not None:
                return written
        return _by_transformers(model, first, mask, limits, ends, filler)
    # The error goes, with its traceback, which holds every tensor that was alive.
    except torch.OutOfMemoryError:
        return None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        return None


def _padded(prompts: Sequence[Sequence[int]], filler: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask of prompts that are padded on the left: (rows, longest) each."""
    longest = max(len(ids) for ids in prompts)
    ids = torch.full((len(prompts), longest), filler, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.long)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _greedy(
    model: PreTrainedModel, first: Mapping[str, Tensor], mask: Tensor, limits: list[int], ends: frozenset[int]
) -> list[_Written] | None:
    """Return what is written after left-padded prompts; None where the model's cache is of an unknown kind.

    Args:
        model: the network.
        first: prompts, as ids or as embeddings.
        mask: (rows, longest), 1 where there is a token.
        limits: most tokens for each row.
        ends: tokens that end a row.
    """
    started = time.perf_counter()
    known = inspect.signature(type(model).forward).parameters
    rows, longest = mask.shape
    seen = torch.cat([mask, mask.new_ones(rows, max(limits))], dim=1)
    positions = mask.sum(1, keepdim=True)
    inputs: dict[str, Any] = {**first, "attention_mask": mask, "use_cache": True}
    if "position_ids" in known:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    if "logits_to_keep" in known:
        inputs["logits_to_keep"] = 1
    output = model(**inputs)
    cache = output.past_key_values
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    if any(type(layer) not in kinds for layer in getattr(cache, "layers", (None,))):
        return None

    written: list[list[int]] = [[] for _ in range(rows)]
    done: dict[int, tuple[bool, float]] = {}
    live = list(range(rows))  # the prompt of each row of the cache
    for step in range(1, max(limits) + 1):
        tokens = output.logits[:, -1].argmax(-1)
        for row, token in zip(live, tokens.tolist(), strict=True):
            if row in done:
                continue
            if token in ends:
                done[row] = True, time.perf_counter() - started
                continue
            written[row].append(token)
            if step == limits[row]:
                done[row] = False, time.perf_counter() - started
        if len(done) == rows:
            break
        kept = [place for place, row in enumerate(live) if row not in done]
        if len(live) - len(kept) >= _DROPPED_SHARE * len(live):
            chosen = torch.tensor(kept, device=mask.device)
            cache.batch_select_indices(chosen)
            tokens, seen, positions = tokens[chosen], seen[chosen], positions[chosen]
            live = [live[place] for place in kept]
        inputs = {"input_ids": tokens[:, None], "attention_mask": seen[:, : longest + step], "use_cache": True}
        if "position_ids" in known:
            inputs["position_ids"] = positions + step - 1
        output = model(**inputs, past_key_values=cache)
    return [_Written(written[row], *done[row]) for row in range(rows)]


def _by_transformers(
    model: PreTrainedModel, first: Mapping[str, Tensor], mask: Tensor, limits: list[int], ends: frozenset[int],
    filler: int,
) -> list[_Written]:  # fmt: skip
    """Return the same by transformers' ``generate``, for any model that has it."""
    started = time.perf_counter()
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, num_beams=1, max_new_tokens=max(limits), eos_token_id=sorted(ends) or None, pad_token_id=filler
    )
    own = model.generation_config
    # What the settings above leave open would be taken from the model's own.
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output: Any = cast("Any", model).generate(**first, attention_mask=mask, generation_config=settings)
    finally:
        model.generation_config = own
    seconds = time.perf_counter() - started
    read = mask.shape[1] if "input_ids" in first else 0  # of embeddings, only what is new comes back
    written = []
    for row, limit in zip(output[:, read:].tolist(), limits, strict=True):
        end = next((place for place, token in enumerate(row[:limit]) if token in ends), None)
        written.append(_Written(row[: limit if end is None else end], end is not None, seconds))
    return written


def _generated(tokenizer: PreTrainedTokenizerBase, written: _Written) -> Generated:
    text = str(tokenizer.decode(written.ids, skip_special_tokens=True)).strip()
    return Generated(text, len(written.ids) + written.ended, written.ended, written.seconds)
