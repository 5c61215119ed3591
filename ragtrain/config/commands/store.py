"""``ragtrain index compress``."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from ragtrain.config.base import Command, PositiveInt


class StoreConfig(Command):
    """Compress a corpus once: store the memory vectors of its passages, to be read in place of their text."""

    name: ClassVar[str] = "index compress"
    examples: ClassVar[tuple[str, ...]] = (
        "ragtrain index compress --model-dir runs/compress --passages data/demo/passages.jsonl",
        "ragtrain index compress --model-dir runs/compress --index data/demo/index --storage int8 --output-dir data/demo/memory",
    )
    title: ClassVar[str] = "Vectors of a corpus"

    model_dir: str | None = None
    """Run of ``train compress`` whose compressor reads no question (--no-query-dependent), or its model."""
    passages: Path | None = None
    """Passages in any known format; without it and without ``index``, the demo's."""
    index: Path | None = None
    """Index folder whose passages are compressed, in its order."""
    passage_words: PositiveInt | None = None
    """Words after which a longer one of ``passages`` is split into passages of its own; without it, windows alone split it."""
    max_passages: PositiveInt | None = None
    """Passages to compress, from the beginning."""
    skip_bad_lines: bool = False
    """Leave out lines that cannot be read, and count them, instead of stopping at the first."""
    compression_rate: PositiveInt | None = None
    """One of the rates that the model was trained for; without it, its nominal one."""
    storage: Literal["float16", "int8"] = "float16"
    """Precision in which vectors are stored; int8 has a scale for each vector."""
    shard_size: PositiveInt = 4096
    """Passages of a file, and between two points from which a stopped command goes on."""
    batch_size: PositiveInt = 64
    """Windows compressed at a time."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Arithmetic of the compressor."""
    output_dir: Path | None = None
    """Folder to write; without it ``memory`` beside the passages or the index."""
    device: str | None = None
    """Device to compute on; without it a GPU if there is one."""
    overwrite: bool = False
    """Replace what an earlier request left in the folder."""
