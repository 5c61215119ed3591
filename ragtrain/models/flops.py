"""What a transformer stack costs: floating-point operations counted on tensors without data, bytes of its cache.

Networks are built from their configuration on torch's ``meta`` device, where nothing is stored and nothing computed, and
``FlopCounterMode`` counts every product of matrices of a forward pass (a multiplication and an addition are two). So the
figures hold for any architecture and size and for any machine, and are those of the layers as they are computed here:
attention is counted whole, without what a kernel saves where the mask hides half of it, and element-wise work is left
out. Adapters count nothing, since they can be merged.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForCausalLM

from ragtrain.errors import ConfigError
from ragtrain.models.folders import hushed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Lengths at which a stack is counted; a polynomial goes through the first three and is checked at the last.
_LENGTHS = (16, 32, 64, 144)


class StackFlops:
    """Floating-point operations of a stack, as a function of length.

    A forward pass costs ``a + b tokens + c tokens²``, and a token more costs ``a + b past``. The coefficients come from counts at
    three lengths and are checked at a fourth; where a stack costs something else, every length that is asked for is counted.

    Args:
        config: a transformers configuration; sizes alone are read from it.
        head: whether the language model's head is part of it; it is charged for the last token only, as in generation.
    """

    def __init__(self, config: Any, *, head: bool) -> None:  # noqa: ANN401
        """Build the stack without data and count it.

        Raises:
            ConfigError: it cannot be built or computed without data.
        """
        own = copy.deepcopy(config.get_text_config(decoder=True) if head else config)
        if hasattr(own, "quantization_config"):
            del own.quantization_config
        # Past its window a layer's attention costs the same for ever.
        window = int(getattr(own, "sliding_window", None) or 0)
        try:
            self._model = _without_data(own, head=head)
            known = inspect.signature(self._model.forward).parameters
            self._last = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
            self._forward = _polynomial(self._count_forward, 2)
            self._step = _polynomial(self._count_step, 1, window) if head else None
        # Whatever a network does that needs its numbers fails in a way of its own.
        except (ValueError, RuntimeError, AssertionError, TypeError, AttributeError) as error:
            kind = getattr(own, "model_type", type(own).__name__)
            raise ConfigError(f"operations of a {kind} model cannot be counted: {error}") from error

    def forward(self, tokens: int, rows: int = 1) -> int:
        """Return the operations of ``rows`` sequences of ``tokens`` tokens each, read at once."""
        return rows * self._forward(tokens) if tokens else 0

    def decode(self, prompt: int, new_tokens: int) -> int:
        """Return the operations of writing ``new_tokens`` after a prompt that was read: the first token costs nothing more.

        Raises:
            ConfigError: the stack has no head.
        """
        if self._step is None:
            raise ConfigError("a stack without a head writes nothing")
        return sum(self._step(past) for past in range(prompt, prompt + new_tokens - 1))

    def _count_forward(self, tokens: int) -> int:
        return _counted(lambda: self._model(**_ids(tokens), **self._last))

    def _count_step(self, past: int) -> int:
        with torch.no_grad():
            cache = self._model(**_ids(past), **self._last, use_cache=True).past_key_values
        ids = torch.zeros(1, 1, dtype=torch.long, device="meta")
        return _counted(lambda: self._model(input_ids=ids, past_key_values=cache, use_cache=True))


def linear_flops(module: nn.Module) -> int:
    """Return the operations of one vector through all linear layers of a module: two for each weight."""
    return sum(2 * part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def cache_bytes(config: Any, tokens: int, *, bytes_per_value: int | None = None) -> int:  # noqa: ANN401
    """Return the bytes of keys and values of one sequence.

    ``2 × heads × width of a head × bytes`` for each token and layer; a layer with a sliding window keeps no more than the
    tokens of its window.

    Args:
        config: a transformers configuration of a causal language model.
        tokens: in the cache.
        bytes_per_value: of a number; without it, that of the configuration's type.
    """
    own = config.get_text_config(decoder=True)
    heads = getattr(own, "num_key_value_heads", None) or own.num_attention_heads
    width = getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads
    if bytes_per_value is None:
        bytes_per_value = (getattr(own, "dtype", None) or torch.float32).itemsize
    kept = sum(min(tokens, most) for most in _spans(own, tokens))
    return 2 * int(heads) * int(width) * bytes_per_value * kept


def _spans(config: Any, tokens: int) -> list[int]:  # noqa: ANN401
    """Return the most tokens that each layer's cache keeps."""
    layers = int(config.num_hidden_layers)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = getattr(config, "layer_types", None)
    if window is None:
        return [tokens] * layers
    # The last token of a full window is the one that is being read.
    return [int(window) - 1 if kinds is None or kinds[i] == "sliding_attention" else tokens for i in range(layers)]


def _without_data(config: Any, *, head: bool) -> Any:  # noqa: ANN401
    """Return the network on the meta device, with torch's own attention where it has that."""
    auto: Any = AutoModelForCausalLM if head else AutoModel
    # Experts are products of groups of rows, which torch has in this type only.
    with torch.device("meta"), hushed():
        try:
            return auto.from_config(config, attn_implementation="sdpa", dtype=torch.bfloat16).eval()
        except ValueError:
            return auto.from_config(config, attn_implementation="eager", dtype=torch.bfloat16).eval()


def _ids(tokens: int) -> dict[str, Any]:
    return {"input_ids": torch.zeros(1, tokens, dtype=torch.long, device="meta")}


def _counted(work: Callable[[], object]) -> int:
    experts = {torch.ops.aten._grouped_mm: _grouped_flops}  # which torch's own table lacks
    with FlopCounterMode(display=False, custom_mapping=experts) as counter, torch.no_grad():
        work()
    return int(counter.get_total_flops())


def _grouped_flops(rows: Sequence[int], _: object, *__: object, out_shape: Sequence[int], **___: object) -> int:
    """Return the operations of rows that are multiplied with their experts' weights: (tokens, in) to (tokens, out)."""
    return 2 * math.prod(out_shape) * rows[-1]


def _polynomial(count: Callable[[int], int], degree: int, bend: int = 0) -> Callable[[int], int]:
    """Return a count as a polynomial of the length, or itself, remembered, where it is none.

    Args:
        count: exact, and slow.
        degree: of the polynomial.
        bend: length from which on it is another polynomial; 0 for none.
    """
    counted = functools.cache(count)
    below = _through(counted, degree, [length for length in _LENGTHS if not bend or length < bend])
    above = _through(counted, degree, [bend + length for length in _LENGTHS]) if bend else below
    return lambda length: (above if bend and length >= bend else below)(length)


def _through(count: Callable[[int], int], degree: int, lengths: Sequence[int]) -> Callable[[int], int]:
    """Return the polynomial through the first counts if the others lie on it, else the count itself."""
    points = [(length, count(length)) for length in lengths]
    used, rest = points[: degree + 1], points[degree + 1 :]

    def value(length: int) -> int:
        total = Fraction(0)
        for i, (x, y) in enumerate(used):
            term = Fraction(y)
            for j, (other, _) in enumerate(used):
                if j != i:
                    term *= Fraction(length - other, x - other)
            total += term
        return int(total)

    return value if rest and all(value(length) == exact for length, exact in rest) else count
