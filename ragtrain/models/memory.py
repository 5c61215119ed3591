"""What a training run needs in memory, before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

#: Bytes of a trained weight in float32: itself, its gradient, and AdamW's two moments.
TRAINED_BYTES = 4 + 4 + 8
FROZEN_BYTES = 4


def state_bytes(model: nn.Module) -> int:
    """Return the bytes of weights, gradients and optimizer state; exact for AdamW in float32."""
    return sum(p.numel() * (TRAINED_BYTES if p.requires_grad else FROZEN_BYTES) for p in model.parameters())


def activation_bytes(config: Any, rows: int, tokens: int, *, half: bool, checkpointing: bool) -> int:  # noqa: ANN401
    """Return an estimate of what a transformer stack keeps for the backward pass.

    ``tokens * rows * width * (34 + 5 heads * tokens / width)`` bytes a layer in half precision, twice that in single,
    and two bytes a value where layers are recomputed. Source: Korthikanti et al. 2022, arXiv:2205.05198, equation 2;
    the score matrices (second term) vanish with fused attention, so that this is an upper estimate.

    Args:
        config: a transformers configuration.
        rows: sequences in a micro-batch.
        tokens: length of a sequence.
        half: whether the forward pass runs in 16 bits.
        checkpointing: whether layers are recomputed in the backward pass.
    """
    width = int(getattr(config, "d_model", 0) or config.hidden_size)
    heads = _first(config, "encoder_attention_heads", "num_heads", "num_attention_heads")
    layers = _first(config, "encoder_layers", "num_layers", "num_hidden_layers")
    per_layer = 2 * width if checkpointing else 34 * width + 5 * heads * tokens
    return rows * tokens * per_layer * layers * (1 if half else 2)


def logit_bytes(rows: int, target_tokens: int, vocab_size: int) -> int:
    """Return the bytes of float32 logits, their log-probabilities and their gradient, at real target positions."""
    return 3 * 4 * rows * target_tokens * vocab_size


def readable(n_bytes: float) -> str:
    """Return bytes as a person reads them: ``1.4 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"


def _first(config: Any, *names: str) -> int:  # noqa: ANN401
    return int(next(value for name in names if (value := getattr(config, name, None)) is not None))
