"""The encoders of passages and of questions to an index, and the device they run on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ragtrain import report
from ragtrain.data import demo
from ragtrain.errors import ConfigError, IndexMismatchError, OutOfMemoryError
from ragtrain.models.encoder import load_encoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ragtrain.config.commands import EncoderConfig
    from ragtrain.index.search import DenseIndex
    from ragtrain.models.encoder import TextEncoder
    from ragtrain.models.encoding import Precision, TokenBatches

#: Passages computed at a time, and handed over at a time to be sorted by length.
BATCH, CHUNK = 64, 2048


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


def context_encoder(index: DenseIndex, name: str | None = None) -> TextEncoder:
    """Load the encoder of an index's passages, to train it: the one named, or else the one that made the index.

    Raises:
        ConfigError: it cannot be loaded.
        IndexMismatchError: its vectors have another dimension than the index.
    """
    config = index.encoder_config
    encoder = load_encoder(name or index.manifest["encoder"].get("name") or demo.ENCODER, config=config, role="passage")
    if encoder.dim != index.dim:
        raise IndexMismatchError(
            f"holds vectors of {index.dim} dimensions, and the passage encoder makes {encoder.dim}",
            path=index.path,
            hint="name the encoder that the index was made with, or prepare the index with this one",
        )
    return encoder


def resolve_device(name: str | None) -> torch.device:
    """Return the device of that name; without one, a GPU if there is one: its own for each process of a launcher.

    Raises:
        ConfigError: there is no such device.
    """
    if name is None:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        own = int(os.environ.get("LOCAL_RANK", "0") or 0)
        return torch.device(f"cuda:{own % torch.cuda.device_count()}" if own else "cuda")
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


class PassageCoder:
    """Encodes the passages of an index: ``prepare`` in one thread, the call in another.

    Attributes:
        progress: called now and then with the number of passages that were computed since the last call.
        precision: arithmetic on the device. GPUs are several times faster at float16; its rounding is that of float16
            storage. T5 encoders overflow in it, and get bfloat16.
    """

    def __init__(self, encoder: TextEncoder, batch_size: int, device: torch.device) -> None:
        self.encoder, self.batch_size, self.device = encoder, batch_size, device
        self.progress: Callable[[int], object] | None = None
        self.precision: Precision = "float32"
        if device.type == "cuda":
            overflows = encoder.spec()["model_class"].startswith(("T5", "MT5", "UMT5"))
            self.precision = "bfloat16" if overflows else "float16"

    def prepare(self, pairs: Sequence[tuple[str, str]]) -> TokenBatches:
        """Return the batches of (title, text) pairs."""
        return self.encoder.passage_batches(pairs, self.batch_size, self.device)

    def __call__(self, batches: TokenBatches) -> np.ndarray:
        """Return (passages, dim) float32 vectors.

        Raises:
            OutOfMemoryError: the device is full.
        """
        try:
            return self.encoder.encode_passages(
                batches, self.batch_size, self.device, precision=self.precision, progress=self.progress
            )
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"{self.device} has no memory left for {self.batch_size} passages at a time",
                hint=f"try --encode-batch-size {max(1, self.batch_size // 2)}",
            ) from error


def encode_again(
    encoder: TextEncoder, index: DenseIndex, device: torch.device, places: range, title: str
) -> np.ndarray:
    """Return (places, dim) vectors of an index's passages at ``places``, in its precision, as an encoder is now.

    Args:
        encoder: of passages.
        index: its passages are read, its vectors are not.
        device: where to compute.
        places: positions in the index, one after the other.
        title: of the progress shown.
    """
    half = index.vectors.dtype == np.float16
    vectors = np.empty((len(places), index.dim), dtype=np.float16 if half else np.float32)
    bar: report.Progress[None] = report.progress(len(places), title)
    with bar:
        for start in range(0, len(places), CHUNK):
            pairs = [index.passages.texts(place) for place in places[start : start + CHUNK]]
            rows = encode(encoder, pairs, BATCH, device)
            if index.metric == "cosine":
                rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            with np.errstate(over="ignore"):  # whoever searches them refuses what is not finite
                vectors[start : start + len(pairs)] = rows
            bar.advance(len(pairs))
    return vectors


def encode(encoder: TextEncoder, pairs: Sequence[tuple[str, str]], batch_size: int, device: torch.device) -> np.ndarray:
    """Return (pairs, dim) float32 vectors of (title, text) pairs, computed as for an index.

    Raises:
        OutOfMemoryError: the device is full.
    """
    coder = PassageCoder(encoder, batch_size, device)
    return coder(coder.prepare(pairs))
