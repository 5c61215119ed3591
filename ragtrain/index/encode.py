"""Writing an index folder: passages first, then their vectors in the same order, then the manifest.

::

    manifest.json      what the other files are, with sizes and SHA-256
    passages.jsonl     one passage a line                       (ragtrain.index.passages)
    passages.idx.npy   byte offsets of the lines
    vectors.npy        (count, dim) float16 or float32, row i belongs to line i
    index.faiss        only where asked for

Everything is written into a hidden folder beside the target and renamed at the end, so that a folder with the
target's name is always whole.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import ragtrain
from ragtrain.errors import ConfigError, DataError, RagtrainError
from ragtrain.index.faiss_flat import FAISS_FILE, write_faiss
from ragtrain.index.passages import OFFSETS_FILE, PASSAGES_FILE, PassageStore, Written, write_passages
from ragtrain.records import Passage, sha256_file, write_json

if TYPE_CHECKING:
    from types import TracebackType

log = logging.getLogger("ragtrain")

Metric = Literal["inner_product", "cosine"]
Storage = Literal["float16", "float32"]
Encode = Callable[[Sequence[tuple[str, str]]], np.ndarray]

FORMAT = "ragtrain-index"
VERSION = 1
MANIFEST_FILE = "manifest.json"
VECTORS_FILE = "vectors.npy"
CHUNK = 4096


class IndexWriter:
    """Writes one index folder: passages, vectors, ``commit``; without ``commit`` nothing remains.

    ::

        with IndexWriter(path) as writer:
            writer.write_passages(passages)
            writer.write_vectors(encode, dim=768)
            writer.commit(encoder={"name": "..."})
    """

    def __init__(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Prepare to write at ``path``.

        Raises:
            ConfigError: something stands at the path, and it is not an index or ``overwrite`` is off.
        """
        self.path = Path(path)
        self._refuse_occupied(overwrite)
        self._aside = self.path.parent / f".{self.path.name}.tmp-{os.getpid()}"
        self.written: Written | None = None
        self._vectors: dict[str, Any] | None = None

    def _refuse_occupied(self, overwrite: bool) -> None:
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not (self.path / MANIFEST_FILE).is_file():
            raise ConfigError(f"{self.path} exists and is no index", hint="choose another --output-dir")
        if not overwrite:
            raise ConfigError(f"{self.path} holds an index", hint="give --overwrite or another --output-dir")

    def __enter__(self) -> IndexWriter:
        shutil.rmtree(self._aside, ignore_errors=True)
        self._aside.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutil.rmtree(self._aside, ignore_errors=True)

    def write_passages(self, passages: Iterable[Passage]) -> Written:
        """Stream the passages to disk; their order is the order of the vectors.

        Raises:
            DataError: there is no passage, one is empty, or two have the same id.
        """
        self.written = write_passages(self._aside, passages)
        return self.written

    def write_vectors(
        self,
        encode: Encode,
        *,
        dim: int,
        storage: Storage = "float16",
        metric: Metric = "inner_product",
        chunk: int = CHUNK,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        """Encode the written passages chunk by chunk into ``vectors.npy``.

        Args:
            encode: maps m (title, text) pairs to an array (m, dim).
            dim: length of a vector.
            storage: precision on disk.
            metric: with ``cosine``, vectors are scaled to unit length before they are stored.
            chunk: passages handed to ``encode`` at a time.
            progress: called after each chunk with the number of its passages.

        Raises:
            DataError: a vector is not finite, or zero, or does not fit the storage; the passage is named.
        """
        if self.written is None:
            raise RagtrainError("write_vectors was called before write_passages")
        store = PassageStore(self._aside)
        vectors = np.lib.format.open_memmap(
            self._aside / VECTORS_FILE, mode="w+", dtype=np.dtype(storage), shape=(len(store), dim)
        )
        largest = 0.0
        for start in range(0, len(store), chunk):
            passages = store[start : start + chunk]
            rows = np.asarray(encode([(passage.title, passage.text) for passage in passages]), dtype=np.float32)
            if rows.shape != (len(passages), dim):
                raise RagtrainError(f"the encoder returned {rows.shape} where ({len(passages)}, {dim}) was expected")
            stored = storable(rows, passages, start, storage=storage, metric=metric)
            vectors[start : start + len(passages)] = stored
            largest = max(largest, float(np.linalg.norm(stored.astype(np.float32), axis=1).max()))
            if progress is not None:
                progress(len(passages))
        vectors.flush()
        self._vectors = {"dim": dim, "storage": storage, "metric": metric, "max_norm": largest}

    def commit(
        self,
        *,
        encoder: Mapping[str, Any],
        source: Mapping[str, Any] | None = None,
        splitting: Mapping[str, Any] | None = None,
        faiss: bool = False,
    ) -> dict[str, Any]:
        """Write the manifest, put the folder in its place and return the manifest.

        Args:
            encoder: ``name``, ``fingerprint``, ``spec`` and ``config`` of the encoder of the passages.
            source: where the passages came from.
            splitting: how long texts were split.
            faiss: write ``index.faiss`` (a flat inner-product index) as well.
        """
        if self.written is None or self._vectors is None:
            raise RagtrainError("commit was called before passages and vectors were written")
        files = [PASSAGES_FILE, OFFSETS_FILE, VECTORS_FILE]
        if faiss:
            write_faiss(self._aside / VECTORS_FILE, self._aside / FAISS_FILE)
            files.append(FAISS_FILE)
        entries = {name: file_entry(self._aside / name) for name in files}
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "count": self.written.count,
            **self._vectors,
            "passages_sha256": self.written.sha256,
            "vectors_sha256": entries[VECTORS_FILE]["sha256"],
            "encoder": dict(encoder),
            "splitting": dict(splitting or {}),
            "source": dict(source or {}),
            "files": entries,
            "versions": _versions(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        write_json(self._aside / MANIFEST_FILE, manifest)
        self._put_in_place()
        return manifest

    def _put_in_place(self) -> None:
        before = self.path.parent / f".{self.path.name}.old-{os.getpid()}"
        if self.path.exists():
            self.path.replace(before)
        try:
            self._aside.replace(self.path)
        except OSError:
            if before.exists():
                before.replace(self.path)
            raise
        shutil.rmtree(before, ignore_errors=True)


def storable(
    rows: np.ndarray, passages: Sequence[Passage], first: int, *, storage: Storage, metric: Metric
) -> np.ndarray:
    """Return (m, dim) float32 vectors in the form in which they are stored.

    Raises:
        DataError: a vector is not finite, or zero, or does not fit the storage; the passage is named.
    """
    _refuse(~np.isfinite(rows).all(axis=1), passages, first, "is not finite (NaN or infinity)",
            "the encoder is broken or its arithmetic overflowed: try it in float32, or another encoder")  # fmt: skip
    if metric == "cosine":
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(norms > 0, norms, 1)
    with np.errstate(over="ignore"):
        stored = rows.astype(storage)
    _refuse(~np.isfinite(stored).all(axis=1), passages, first, f"has a component too large for {storage}",
            "store the vectors with --storage float32")  # fmt: skip
    _refuse(~(stored != 0).any(axis=1), passages, first, f"is zero in {storage}",
            "look at the passage's text; if all vectors are tiny, store them with --storage float32")  # fmt: skip
    return stored


def _refuse(bad: np.ndarray, passages: Sequence[Passage], first: int, what: str, hint: str) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        passage = passages[int(rows[0])]
        more = f" (and {len(rows) - 1} more of {len(passages)})" if len(rows) > 1 else ""
        message = f"the vector of passage {passage.id!r} (number {first + int(rows[0])}){more} {what}"
        raise DataError(f"{message}; its title is {passage.title!r}, its text begins {passage.text[:80]!r}", hint=hint)


def file_entry(path: Path) -> dict[str, Any]:
    """Return what the manifest says of a file: its size in bytes and its SHA-256."""
    return {"size": path.stat().st_size, "sha256": sha256_file(path)}


def add_faiss(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Add ``index.faiss`` to a finished index folder and return the new manifest."""
    aside = folder / f".{FAISS_FILE}.tmp-{os.getpid()}"
    try:
        write_faiss(folder / VECTORS_FILE, aside)
        entry = file_entry(aside)
        aside.replace(folder / FAISS_FILE)
    finally:
        aside.unlink(missing_ok=True)
    changed = {**manifest, "files": {**manifest["files"], FAISS_FILE: entry}}
    write_json(folder / MANIFEST_FILE, changed)
    return changed


def _versions() -> dict[str, str]:
    versions = {"ragtrain": ragtrain.__version__}
    for name in ("numpy", "torch", "transformers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            log.debug("%s is not installed", name)
    return versions
