"""Vectors of relations and of questions for a graph model, computed once and kept beside the graph.

The folders ``GRAPH/relations-KEY/`` and ``GRAPH/questions-KEY/`` hold::

    vectors.npy      (rows, dim) float32
    meta.json        what the key is made of, and the hash of the vectors

The key is a hash of the texts in their order and of the encoder's weights and settings, and of nothing else: a changed graph, a
changed file of questions or another encoder never meets old vectors.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Literal

import numpy as np

from ragtrain import report
from ragtrain.data import caches
from ragtrain.errors import NumericsError
from ragtrain.prepare.encoders import BATCH, CHUNK, resolve_device
from ragtrain.records import sha256_file, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from ragtrain.graphs import KnowledgeGraph
    from ragtrain.models.encoder import TextEncoder

log = logging.getLogger("ragtrain")

Role = Literal["relations", "questions"]

VECTORS_FILE, META_FILE = "vectors.npy", "meta.json"
FORMAT, VERSION = "ragtrain-texts", 1
#: Put before the name of a relation for that of its inverse (GFM-RAG, ``kg_dataset.py``).
INVERSE = "inverse_"


def relation_features(
    graph: KnowledgeGraph, encoder: TextEncoder, folder: Path | None = None, *, device: str | None = None
) -> np.ndarray:
    """Return the text vectors of the relations of a graph and of their inverses.

    Names are encoded as passages are; the inverse of ``r`` is called ``inverse_r``. Rows are ids, not names, so that a relation
    that is called ``inverse_r`` itself has a row of its own beside the inverse of ``r``.

    Args:
        graph: whose relations.
        encoder: a text encoder.
        folder: where the vectors are kept and found again; without it they are not kept.
        device: where to encode; without it a GPU if there is one.

    Returns:
        (2R, dim) float32: direct relations, then inverse ones.

    Raises:
        NumericsError: a vector is not finite.
    """
    return _features("relations", relation_texts(graph), encoder, folder, device)


def question_features(
    questions: Sequence[str], encoder: TextEncoder, folder: Path | None = None, *, device: str | None = None
) -> np.ndarray:
    """Return (questions, dim) float32 text vectors of questions, encoded as questions are.

    Args:
        questions: their texts.
        encoder: a text encoder.
        folder: where the vectors are kept and found again; without it they are not kept.
        device: where to encode; without it a GPU if there is one.

    Raises:
        NumericsError: a vector is not finite.
    """
    return _features("questions", list(questions), encoder, folder, device)


def relation_texts(graph: KnowledgeGraph) -> list[str]:
    """Return the 2R texts of a graph's relations: names, then names of the inverses."""
    return [*graph.relations, *(INVERSE + name for name in graph.relations)]


def _features(
    role: Role, texts: Sequence[str], encoder: TextEncoder, folder: Path | None, device: str | None
) -> np.ndarray:
    if not texts:
        return np.zeros((0, encoder.dim), dtype=np.float32)
    if folder is None:
        return _encode(role, texts, encoder, resolve_device(device))
    about = {
        "format": FORMAT, "version": VERSION, "role": role, "encoder": encoder.fingerprint(),
        "texts_sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest(), "rows": len(texts), "dim": encoder.dim,
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    place = caches.writable_folder(folder, "", f"vectors of {role}") / f"{role}-{key}"
    with caches.locked(place, f"encodes {role}"):
        vectors = _read(place, len(texts), encoder.dim)
        if vectors is not None:
            log.info("%d vectors of %s: from the cache %s", len(vectors), role, place)
            return vectors
        vectors = _encode(role, texts, encoder, resolve_device(device))
        with caches.written_aside(place) as aside:
            np.save(aside / VECTORS_FILE, vectors)
            write_json(aside / META_FILE, {**about, "sha256": sha256_file(aside / VECTORS_FILE)})
    return vectors


def _encode(role: Role, texts: Sequence[str], encoder: TextEncoder, device: torch.device) -> np.ndarray:
    """Return (texts, dim) float32 vectors; a text that occurs again is encoded once."""
    different = list(dict.fromkeys(texts))
    found: list[np.ndarray] = []
    bar: report.Progress[None] = report.progress(len(different), f"Encoding {role}")
    with bar:
        for start in range(0, len(different), CHUNK):
            part = different[start : start + CHUNK]
            if role == "questions":
                found.append(encoder.encode_questions(part, BATCH, device))
            else:
                found.append(encoder.encode_passages([("", text) for text in part], BATCH, device))
            bar.advance(len(part))
    vectors = np.concatenate(found).astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        more = f" (and {len(bad) - 1} more of {len(vectors)})" if len(bad) > 1 else ""
        message = f"the vector of {different[bad[0]]!r}, one of the {role},{more} is not finite"
        raise NumericsError(message, hint="the encoder is broken, or its arithmetic overflows: try another one")
    places = {text: number for number, text in enumerate(different)}
    return np.ascontiguousarray(vectors[[places[text] for text in texts]])


def _read(folder: Path, rows: int, dim: int) -> np.ndarray | None:
    """Return the vectors in a folder; None where there are none, or none to be trusted."""
    if not folder.exists():
        return None
    try:
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        if sha256_file(folder / VECTORS_FILE) != meta["sha256"]:
            raise ValueError(f"{VECTORS_FILE} was changed")
        vectors: np.ndarray = np.load(folder / VECTORS_FILE, allow_pickle=False)
        if vectors.shape != (rows, dim) or vectors.dtype != np.float32:
            raise ValueError(f"it holds {vectors.dtype} of shape {vectors.shape}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: no vectors from before, %s; encoding again", folder, error)
        return None
    return vectors
