"""Passages for the rows of fine-tuning, found in an index once and kept beside it.

The folder ``INDEX/contexts-KEY/`` holds what a search found::

    positions.npy    (rows, depth) int64 positions in the index, best first, -1 where it holds no more
    scores.npy       (rows, depth) float32 inner products of vectors
    meta.json        what the key is made of, the depth, and the hashes of both files

The key is a hash of everything that decides the result: ids and questions in order, passages and vectors of the index, the
weights of the question encoder, and what chooses passages. So a changed one never meets an old result, and a deeper search
serves a shallower one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ragtrain import metrics, report
from ragtrain.data import caches
from ragtrain.data.sft.distractors import NOT_FOUND, gold_of
from ragtrain.errors import CheckpointError, ConfigError, DataError
from ragtrain.index import fusion
from ragtrain.index.encode import MANIFEST_FILE
from ragtrain.index.passages import split_passages
from ragtrain.index.search import DenseIndex
from ragtrain.prepare.encoders import question_encoder, resolve_device
from ragtrain.records import Document, Passage, content_id, normalize_text, sha256_file, write_json
from ragtrain.runs import RunFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.data.sft.records import Example
    from ragtrain.models.encoder import TextEncoder

log = logging.getLogger("ragtrain")

POSITIONS_FILE, SCORES_FILE, META_FILE = "positions.npy", "scores.npy", "meta.json"
FORMAT, VERSION = "ragtrain-contexts", 1
#: Questions encoded and searched at a time.
CHUNK = 1024


def with_contexts(
    examples: Sequence[Example],
    *,
    index: Path,
    depth: int,
    retrieval: fusion.Retrieval = "dense",
    device: str | None = None,
) -> tuple[list[Example], dict[str, Any]]:
    """Return the rows with the passages that an index holds for them, best first, in place of their own.

    A gold passage of a row that the search did not find stands behind those found, with the score ``NOT_FOUND``: RAFT and the
    conditions of evaluation take it from there. Where index and data have different ids, the passage with the text of a
    gold one is gold. Where the index splits passages, the pieces of a gold passage that hold an answer are gold.

    Args:
        examples: rows without finished prompts.
        index: index folder, dataset folder with one, or the folder of a run: of ``train rag``, its index and the question
            encoder that it trained.
        depth: passages for each row.
        retrieval: what chooses them.
        device: where to encode and search; without it a GPU if there is one.

    Returns:
        The rows, and for ``data.json``: path and hashes of the index, fingerprint of the question encoder, retrieval, depth,
        and whether all was found in the cache.

    Raises:
        ConfigError: a row has a finished prompt, or the encoder cannot be loaded.
        DataError: there is no index, or it is damaged, or has no BM25 index where words are asked for.
        IndexMismatchError: question encoder and index have different dimensions.
    """
    if any(example.finished is not None for example in examples):
        raise ConfigError("rows with finished prompts have their passages in them", hint="leave --index out")
    found, name = open_source(Path(index))
    encoder = question_encoder(found, name)
    about = {
        "path": str(Path(index).resolve()), "index": str(found.path.resolve()), "count": found.count,
        "passages_sha256": found.manifest["passages_sha256"], "vectors_sha256": _vectors_sha256(found),
        "question_encoder": str(name or found.question_encoder or "built-in demo encoder"),
        "fingerprint": encoder.fingerprint(), "retrieval": retrieval, "depth": depth,
    }  # fmt: skip
    if not examples:
        return [], {**about, "cached": False}
    beside = caches.writable_folder(found.path, about["passages_sha256"], "the passages found for questions")
    folder = beside / f"contexts-{_key(examples, found, about)}"
    with caches.locked(folder, "searches passages for these questions"):
        hits = _read(folder, len(examples), depth, found.count)
        cached = hits is not None
        if hits is None:
            hits = _search(examples, found, encoder, depth, retrieval, resolve_device(device))
            _write(folder, *hits, about)
    if cached:
        log.info("passages for %d questions: contexts from the cache %s", len(examples), folder)
    splitting = found.manifest.get("splitting") or {}
    return filled(examples, found.passages, splitting, *hits), {**about, "cached": cached}


def open_source(path: Path) -> tuple[DenseIndex, str | None]:
    """Return the index that a path means, and the question encoder of a run; None where the index names its own.

    Raises:
        CheckpointError: a run has no final model, whose question encoder is meant.
        DataError: there is no index.
    """
    run_path = path.parent if path.name == "final_model" else path
    if not (run_path / "config.yaml").is_file():
        inner = path / "index"
        dataset = not (path / MANIFEST_FILE).is_file() and (inner / MANIFEST_FILE).is_file()
        return DenseIndex.open(inner if dataset else path), None
    run = RunFolder.open(run_path)
    held = _index_of(run)
    if run.kind != "rag":  # what it retrieved from may be a run itself
        return open_source(held)
    if not run.final_model.is_dir():
        raise CheckpointError("the run has no final model: its training has not ended, and its question encoder is meant",
                              path=run.path, hint=f"let it end, or search with the untrained one: --index {held}")  # fmt: skip
    return DenseIndex.open(held), str(run.final_model)


def _index_of(run: RunFolder) -> Path:
    """Return the index that a run was trained with, or left."""
    file = run.path / "data.json"
    try:
        entry = json.loads(file.read_text(encoding="utf-8")).get("index") if file.is_file() else None
    except (ValueError, AttributeError) as error:
        raise DataError(f"not the description of a run's data: {error}", path=file) from error
    recorded = entry.get("path") if isinstance(entry, dict) else None
    # A run that was moved takes the index along that it left in its own folder.
    for path in (recorded, run.path / "index"):
        if path is not None and Path(path).exists() and Path(path).resolve() != run.path.resolve():
            return Path(path)
    raise DataError(f"the run says of no index that is still there ({recorded or 'none'})", path=file,
                    hint="give the index folder itself with --index")  # fmt: skip


def _vectors_sha256(index: DenseIndex) -> str:
    """Return the hash of the vectors, from the manifest where it says it."""
    if known := index.manifest.get("vectors_sha256"):
        return str(known)
    vectors = index.manifest.get("vectors")
    return sha256_file(index.file(vectors["file"] if vectors else "vectors.npy"))


def _key(examples: Sequence[Example], index: DenseIndex, about: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits that change with anything that changes what is found."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.id, example.question]).encode() + b"\n")
    retrieval, depth = about["retrieval"], about["depth"]
    whole = {
        "version": VERSION, "questions": digest.hexdigest(), "metric": index.metric,
        **{name: about[name] for name in ("passages_sha256", "vectors_sha256", "fingerprint", "retrieval")},
        "words": None if retrieval == "dense" else index.manifest.get("bm25"),
        # Fused ranks depend on how deep the rankings go, which is no deeper than this for the most part.
        "pool": max(depth, fusion.POOL) if retrieval == "hybrid" else None,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _search(
    examples: Sequence[Example],
    index: DenseIndex,
    encoder: TextEncoder,
    depth: int,
    retrieval: fusion.Retrieval,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and scores, each (rows, depth)."""
    encoder.to(device)
    searcher = index.searcher(device)
    words = None if retrieval == "dense" else index.words()
    positions = np.full((len(examples), depth), -1, dtype=np.int64)
    scores = np.full((len(examples), depth), -np.inf, dtype=np.float32)
    bar: report.Progress[None] = report.progress(len(examples), "Retrieving passages")
    with bar:
        for start in range(0, len(examples), CHUNK):
            texts = [example.question for example in examples[start : start + CHUNK]]
            vectors = torch.from_numpy(encoder.encode_questions(texts, device=device))
            hits = fusion.search(searcher, words, retrieval, vectors, texts, depth)
            positions[start : start + len(texts)] = hits.ids.cpu().numpy()
            scores[start : start + len(texts)] = hits.scores.cpu().numpy()
            bar.advance(len(texts))
    return positions, scores


def _write(folder: Path, positions: np.ndarray, scores: np.ndarray, about: dict[str, Any]) -> None:
    with caches.written_aside(folder) as aside:
        np.save(aside / POSITIONS_FILE, positions)
        np.save(aside / SCORES_FILE, scores)
        files = {name: sha256_file(aside / name) for name in (POSITIONS_FILE, SCORES_FILE)}
        write_json(
            aside / META_FILE, {"format": FORMAT, **about, "version": VERSION, "rows": len(positions), "files": files}
        )


def _read(folder: Path, rows: int, depth: int, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return positions and scores of a folder, each (rows, depth); None where there is none, or none to be trusted."""
    if not folder.exists():
        return None
    try:
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        if int(meta["depth"]) < depth:
            log.info("%s holds %d passages a question, and %d are asked: searching again", folder, meta["depth"], depth)
            return None
        for name in (POSITIONS_FILE, SCORES_FILE):
            if sha256_file(folder / name) != meta["files"][name]:
                raise ValueError(f"{name} was changed")
        positions = np.load(folder / POSITIONS_FILE, allow_pickle=False)[:, :depth]
        scores = np.load(folder / SCORES_FILE, allow_pickle=False)[:, :depth]
        if positions.shape != (rows, depth) or scores.shape != (rows, depth) or positions.max(initial=-1) >= count:
            raise ValueError(f"it holds positions {positions.shape} for {rows} questions")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        log.warning("%s: no passages found before, %s; searching again", folder, error)
        return None
    return positions, scores


def filled(
    examples: Sequence[Example],
    passages: Sequence[Passage],
    splitting: dict[str, Any],
    positions: np.ndarray,
    scores: np.ndarray,
) -> list[Example]:
    """Return the rows with the passages at their positions; see ``with_contexts`` for gold ones.

    Args:
        examples: rows.
        passages: what was searched.
        splitting: ``passage_words`` and ``overlap`` with which they were split.
        positions: (rows, depth), best first, -1 where there is none.
        scores: (rows, depth).
    """
    seen: dict[int, Passage] = {}
    keys: dict[int, str] = {}
    filled: list[Example] = []
    for example, row, row_scores in zip(examples, positions.tolist(), scores.tolist(), strict=True):
        gold = _gold_units(example, splitting)
        missing = dict(gold)
        documents: list[Document] = []
        for position, score in zip(row, row_scores, strict=True):
            if position < 0:
                break
            if position not in seen:
                seen[position] = passages[position]
                keys[position] = content_id(seen[position].text)
            passage, key = seen[position], keys[position]
            whole = key if key in gold else _gold_of_piece(passage, gold, example) if gold else None
            if whole is not None:
                missing.pop(whole, None)
            is_gold = whole is not None if gold else None
            documents.append(Document(passage.id, passage.title, passage.text, is_gold, score))
        taken = {document.id for document in documents}
        for document in missing.values():
            # In the index this id may be that of another passage.
            own = content_id(document.title, document.text) if document.id in taken else document.id
            documents.append(dataclasses.replace(document, id=own, is_gold=True, score=NOT_FOUND))
        held = frozenset(document.id for document in documents if document.is_gold)
        filled.append(dataclasses.replace(example, documents=tuple(documents), gold=held))
    return filled


def _gold_units(example: Example, splitting: dict[str, Any]) -> dict[str, Document]:
    """Return a row's gold passages as the index would hold them, by the hash of their text.

    Of a gold passage that is longer than the index's pieces, those pieces count that hold an answer (all of them where none
    does): RAFT must not show a whole page among pieces, which would give it away.
    """
    units: dict[str, Document] = {}
    for document in gold_of(example):
        whole = Passage(document.id, document.title, document.text)
        pieces = list(split_passages([whole], splitting.get("passage_words"), splitting.get("overlap", 0)))
        answered = [piece for piece in pieces if metrics.has_answer(example.answers, piece.text)]
        for piece in (answered or pieces) if len(pieces) > 1 else pieces:
            units[content_id(piece.text)] = dataclasses.replace(document, id=piece.id, text=piece.text)
    return units


def _gold_of_piece(passage: Passage, gold: dict[str, Document], example: Example) -> str | None:
    """Return the key of the gold passage that a passage of the same id is a part of, or has as a part; else None.

    For an index of another tool, which does not say how it was split: of the pieces ``ID#0``, ``ID#1``, … those are gold that
    hold an answer.
    """
    base, mark, _ = passage.id.rpartition("#")
    for key, document in gold.items():
        if document.id == passage.id or (mark and document.id == base):
            whole, part = normalize_text(document.text), normalize_text(passage.text)
            if whole in part or (part in whole and metrics.has_answer(example.answers, passage.text)):
                return key
    return None
