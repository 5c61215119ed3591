"""Writing an index folder: passages first, then their vectors in the same order, then the manifest.

::

    manifest.json      what the other files are, with sizes and SHA-256
    passages.jsonl     one passage a line                       (ragtrain.index.passages)
    passages.idx.npy   byte offsets of the lines
    vectors.npy        (count, dim) float16 or float32, row i belongs to line i
    index.faiss        only where asked for

Everything is written into a hidden folder beside the target and renamed at the end, so that a folder with the
target's name is always whole. A writer that is told what is asked for (``request``) finds what an earlier one of the
same request has written, and goes on there (ragtrain.index.shards).
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import ragtrain
from ragtrain.errors import ConfigError, DataError, RagtrainError
from ragtrain.index.faiss_search import FAISS_FILE, write_faiss
from ragtrain.index.passages import OFFSETS_FILE, PASSAGES_FILE, PassageStore, Written, write_passages
from ragtrain.index.shards import JOURNAL, VECTORS_FILE, Job, WorkFolder, encode_shards, sync_folder
from ragtrain.index.vectors import Metric, Storage, storable
from ragtrain.records import Passage, sha256_file, write_json

__all__ = [
    "CHUNK", "FORMAT", "MANIFEST_FILE", "VECTORS_FILE", "VERSION", "Encode", "IndexWriter", "Job", "Metric", "Storage",
    "add_faiss", "encode_shards", "file_entry", "storable",
]  # fmt: skip

if TYPE_CHECKING:
    from types import TracebackType

log = logging.getLogger("ragtrain")

Encode = Callable[[Sequence[tuple[str, str]]], np.ndarray]

FORMAT = "ragtrain-index"
VERSION = 1
MANIFEST_FILE = "manifest.json"
CHUNK = 4096
PASSAGES_RECORD = "passages.json"


class IndexWriter:
    """Writes one index folder: passages, vectors, ``commit``; without ``commit`` and without a request nothing remains.

    ::

        with IndexWriter(path) as writer:
            writer.write_passages(passages)
            writer.write_vectors(encode, dim=768)
            writer.commit(encoder={"name": "..."})
    """

    def __init__(
        self, path: Path | str, *, overwrite: bool = False, request: str | None = None, processes: int = 1
    ) -> None:
        """Prepare to write at ``path``.

        Args:
            path: the folder of the index.
            overwrite: replace an index that stands there.
            request: short name of everything that decides the index: passages, encoder, settings. What a writer of the
                same request left is used; without a request nothing is left.
            processes: processes that encode; the others take part by ``encode_shards``.

        Raises:
            ConfigError: something stands at the path, and it is not an index or ``overwrite`` is off.
        """
        self.path = Path(path)
        self._overwrite = overwrite
        self._refuse_occupied()
        self._request = request
        name = f".{self.path.name}.work-"
        self._siblings = f"{name}*"
        self.work = WorkFolder(self.path.parent / f"{name}{request or f'pid{os.getpid()}'}", 0, processes)
        self.written: Written | None = None
        self._vectors: dict[str, Any] | None = None
        self._committed = False

    def _refuse_occupied(self) -> None:
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not (self.path / MANIFEST_FILE).is_file():
            raise ConfigError(f"{self.path} exists and is no index", hint="choose another --output-dir")
        if not self._overwrite:
            raise ConfigError(f"{self.path} holds an index", hint="give --overwrite or another --output-dir")
        if '"adopted":' in (self.path / MANIFEST_FILE).read_text(encoding="utf-8", errors="replace"):
            # Replacing the folder would delete the files of the other tool, which lie in it.
            message = f"{self.path} holds an index of another tool, which was adopted as it stands"
            raise ConfigError(message, hint="give another --output-dir")

    def __enter__(self) -> IndexWriter:
        self.work.lock()
        try:
            self._refuse_occupied()  # whoever held the lock until now may have put an index there
        except ConfigError:
            self.work.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._committed and not self._worth_keeping(value):
            shutil.rmtree(self.work.path, ignore_errors=True)
        self.work.close()

    def _worth_keeping(self, error: BaseException | None) -> bool:
        """Return whether what is written spares the next attempt work; passages that are at fault must be changed."""
        if self._request is None or self.written is None or isinstance(error, DataError):
            return False
        return isinstance(error, KeyboardInterrupt) or bool(self.work.finished())

    def stored_passages(self) -> dict[str, Any] | None:
        """Return the record of ``write_passages`` of an earlier writer of this request, if its files are whole."""
        record = self.work.read(PASSAGES_RECORD)
        if record is None:
            return None
        path = self.work.path / PASSAGES_FILE
        if not path.is_file() or sha256_file(path) != record["sha256"]:
            return None
        PassageStore(self.work.path)
        self.written = Written(record["count"], record["size"], record["sha256"])
        return record

    def write_passages(self, passages: Iterable[Passage]) -> Written:
        """Stream the passages to disk; their order is the order of the vectors.

        Raises:
            DataError: there is no passage, one is empty, or two have the same id.
        """
        # Vectors of passages that were not whole, or not the same, are of no use.
        shutil.rmtree(self.work.journal / "shards", ignore_errors=True)
        (self.work.journal / "shards").mkdir()
        self.work.vectors_path.unlink(missing_ok=True)
        self.written = write_passages(self.work.path, passages)
        return self.written

    def record_passages(self, **more: object) -> None:
        """Note durably that the passages are whole, and what else the next writer of this request should know."""
        if self.written is None:
            raise RagtrainError("record_passages was called before write_passages")
        self.work.record(PASSAGES_RECORD, {**dataclasses.asdict(self.written), **more})

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
        self.write_shards(Job(encode, dim, storage, metric, chunk), progress=progress)

    def allocate(self, job: Job) -> set[int]:
        """Make room for the vectors, and return the shards that an earlier writer of this request has finished."""
        if self.written is None:
            raise RagtrainError("write_vectors was called before write_passages")
        self.work.allocate(self.written.count, job)
        return self.work.finished()

    def write_shards(
        self,
        job: Job,
        *,
        progress: Callable[[int], object] | None = None,
        others: Callable[[int], object] | None = None,
    ) -> None:
        """Encode the shards that are not whole; arguments and errors are those of ``encode_shards``."""
        self.allocate(job)
        encode_shards(self.work, job, progress=progress, others=others)
        longest = max(self.work.shard(number)["max_norm"] for number in self.work.finished())
        self._vectors = {"dim": job.dim, "storage": job.storage, "metric": job.metric, "max_norm": longest}

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
            write_faiss(self.work.path / VECTORS_FILE, self.work.path / FAISS_FILE)
            files.append(FAISS_FILE)
        entries = {name: file_entry(self.work.path / name) for name in files}
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
        write_json(self.work.path / MANIFEST_FILE, manifest)
        self._put_in_place()
        return manifest

    def _put_in_place(self) -> None:
        before = self.path.parent / f".{self.path.name}.old-{os.getpid()}"
        if self.path.exists():
            self.path.replace(before)
        try:
            self.work.path.replace(self.path)
        except OSError:
            if before.exists():
                before.replace(self.path)
            raise
        self._committed = True
        sync_folder(self.path.parent)
        shutil.rmtree(self.path / JOURNAL, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)
        for leftover in self.leftovers():
            shutil.rmtree(leftover.path, ignore_errors=True)
            leftover.close()

    def leftovers(self) -> Iterator[WorkFolder]:
        """Yield, locked, what stopped writers of other requests left beside the target; live ones are passed over."""
        for path in sorted(self.path.parent.glob(self._siblings)):
            work = WorkFolder(path)
            if path == self.work.path or not (work.journal / "lock").is_file():
                continue
            try:
                work.lock(patience_s=0)
            except ConfigError:
                continue
            yield work


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
