"""The encoders of passages and of questions to an index, and the device they run on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ragtrain.data import demo
from ragtrain.errors import ConfigError, IndexMismatchError, OutOfMemoryError
from ragtrain.models.encoder import load_encoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ragtrain.config.commands import EncoderConfig
    from ragtrain.index.search import DenseIndex
    from ragtrain.models.encoder import TextEncoder


def passage_encoder(config: EncoderConfig) -> TextEncoder:
    """Load the encoder of passages; without a name, the built-in one.

    Raises:
        ConfigError: it cannot be loaded.
    """
    return load_encoder(config.encoder or demo.ENCODER, config=config, role="passage")


def question_encoder(index: DenseIndex, name: str | Path | None = None) -> TextEncoder:
    """Load the encoder of questions to an index: the one named, or else the one that the index was made for.

    Args:
        index: the index.
        name: encoder folder, hub id or run folder.

    Raises:
        ConfigError: it cannot be loaded.
        IndexMismatchError: its vectors have another dimension than the index.
    """
    if name is not None:
        encoder = load_encoder(name, role="question")
    else:
        encoder = load_encoder(index.question_encoder or demo.ENCODER, config=index.encoder_config, role="question")
    if encoder.dim != index.dim:
        raise IndexMismatchError(
            f"holds vectors of {index.dim} dimensions, and the question encoder makes {encoder.dim}",
            path=index.path,
            hint="name the question encoder that belongs to the index, or prepare the index with this one",
        )
    return encoder


def resolve_device(name: str | None) -> torch.device:
    """Return the device of that name; without one, a GPU if there is one.

    Raises:
        ConfigError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: there is no {name!r} here", hint="use cpu, cuda or cuda:N") from error
    return device


def encoder_entry(config: EncoderConfig, encoder: TextEncoder, fingerprint: str) -> dict[str, Any]:
    """Return what the manifest says of the encoder; the built-in one has no name, since it has no fixed place."""
    name = config.encoder
    if name is not None and Path(name).is_dir():
        name = str(Path(name).resolve())
    spec = {key: value for key, value in encoder.spec().items() if key != "name"}
    asked = config.model_dump(mode="json", exclude={"encoder"}, exclude_none=True)
    return {"name": name, "fingerprint": fingerprint, "spec": spec, "config": asked}


def encode(encoder: TextEncoder, pairs: Sequence[tuple[str, str]], batch_size: int, device: torch.device) -> np.ndarray:
    """Return (pairs, dim) float32 vectors of (title, text) pairs.

    Raises:
        OutOfMemoryError: the device is full.
    """
    try:
        return encoder.encode_passages(pairs, batch_size=batch_size, device=device)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{device} has no memory left for {batch_size} passages at a time",
            hint=f"try --encode-batch-size {max(1, batch_size // 2)}",
        ) from error
