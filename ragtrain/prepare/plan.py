"""What making an index would take, measured on a sample."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain.index import ann
from ragtrain.models.folders import hushed
from ragtrain.prepare.encoders import encode, resolve_device

if TYPE_CHECKING:
    from pathlib import Path

    from ragtrain.config.commands import PrepareConfig
    from ragtrain.models.encoder import TextEncoder
    from ragtrain.prepare.source import Source, Survey


def plan(config: PrepareConfig, survey: Survey, source: Source, encoder: TextEncoder, path: Path) -> dict[str, Any]:
    """Return what making the index would take; time and tokens are measured on a sample of the pieces."""
    pairs = [(piece.title, piece.text) for piece in survey.sample]
    limit = encoder.max_tokens("passage")
    with hushed():  # of texts that are longer than the encoder reads: that is what is counted
        lengths = [int(encoder.tokenize_passages([pair], 10**6)["attention_mask"].sum()) for pair in pairs]
    device = resolve_device(config.device)
    encode(encoder, pairs[: config.encode_batch_size], config.encode_batch_size, device)  # the first is slow
    started = time.perf_counter()
    encode(encoder, pairs, config.encode_batch_size, device)
    each = (time.perf_counter() - started) / len(pairs)
    shard = min(config.shard_size, survey.count)
    # Two shards at a time: one is computed, the next is tokenized; of a piece its text, ids as Python numbers, vector.
    piece = 2 * survey.size / survey.count + 40 * float(np.mean(np.minimum(lengths, limit))) + 12 * encoder.dim
    memory = peak_memory_bytes() + 2 * shard * piece + 32 * survey.count
    vectors = survey.count * encoder.dim * np.dtype(config.storage).itemsize
    faiss = 0
    if config.index_type != "flat":
        settings = ann.settings_for(config.index_type, config.ann, survey.count, encoder.dim)
        faiss = ann.expected_bytes(config.index_type, settings, survey.count, encoder.dim)
    return {
        "passages": source.read,
        "skipped": source.skipped,
        "pieces": survey.count,
        "words": survey.words,
        "tokens_estimated": round(survey.count * float(np.mean(lengths))),
        "pieces_cut_estimated": f"{np.mean([length > limit for length in lengths]):.0%} (over {limit} tokens)",
        "dimensions": encoder.dim,
        "bytes": vectors + faiss + survey.size + 8 * (survey.count + 1),
        "shards": f"{-(-survey.count // config.shard_size)} of up to {config.shard_size} pieces",
        "memory_bytes_estimated": round(memory),
        "disk_bytes_free": shutil.disk_usage(_existing(path.absolute())).free,
        "device": str(device),
        "seconds_estimated": round(survey.count * each, 1),
        "output": str(path),
    }


def peak_memory_bytes() -> int:
    """Return the most memory this process has held so far, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
