"""An index in the making: a folder beside the target in which vectors grow shard by shard, and survive a kill.

::

    .NAME.work-REQUEST/
        passages.jsonl, passages.idx.npy    written first, in one go
        vectors.npy                         its whole length from the start; shard k fills rows k·size … (k+1)·size
        .journal/
            lock            held by the process that makes the index, for as long as it lives (flock)
            claims          byte k is locked by the process that encodes shard k (POSIX record locks)
            passages.json   the passages are whole: count, bytes, SHA-256
            shards/000007.json   shard 7 is whole: rows, SHA-256, longest vector

The name says what is asked for (``REQUEST``), not who writes, so that the same command finds the folder again. A record
is written when what it speaks of is on the disk (fsync), aside and then renamed: what has a record is whole, and what
has none is done again. A lock dies with its process, so nothing that a kill leaves behind has to be cleared by hand.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain.errors import ConfigError, DataError, RagtrainError
from ragtrain.index.passages import PassageStore
from ragtrain.index.vectors import VectorFile, storable

try:
    import fcntl
except ImportError:  # Windows: one process at a time is then left to the user
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ragtrain.index.vectors import Metric, Storage
    from ragtrain.records import Passage

log = logging.getLogger("ragtrain")

VECTORS_FILE = "vectors.npy"
JOURNAL = ".journal"
#: Seconds that another process may take to let go of the lock.
PATIENCE_S = 1.0
#: Seconds between two looks at what the others have finished.
POLL_S = 0.5


@dataclasses.dataclass(frozen=True)
class Job:
    """How passages become vectors, and how these are stored.

    Attributes:
        encode: maps what ``prepare`` returned for m passages to an array (m, dim).
        dim: length of a vector.
        storage: precision on disk.
        metric: with ``cosine``, vectors are scaled to unit length before they are stored.
        shard_size: passages in a shard.
        prepare: what can be done to the (title, text) pairs of a shard in another thread while the shard before is
            encoded, such as tokenizing.
    """

    encode: Callable[[Any], np.ndarray]
    dim: int
    storage: Storage
    metric: Metric
    shard_size: int
    prepare: Callable[[Sequence[tuple[str, str]]], Any] = list


class WorkFolder:
    """The folder of an index in the making, as one of the processes that work on it sees it."""

    def __init__(self, path: Path, rank: int = 0, processes: int = 1) -> None:
        """Look at a folder; the first process calls ``lock``, the others find it made."""
        self.path, self.rank, self.processes = path, rank, processes
        self.journal = path / JOURNAL
        self._lock: int | None = None
        self._claims: int | None = None
        self._held: set[int] = set()

    @property
    def vectors_path(self) -> Path:
        """Where the vectors are."""
        return self.path / VECTORS_FILE

    def lock(self, patience_s: float = PATIENCE_S) -> None:
        """Make the folder if need be, and keep every other process out until ``close`` or the end of this one.

        Args:
            patience_s: seconds that another process may take to let go: one that is just ending.

        Raises:
            ConfigError: another process works there.
        """
        deadline = time.monotonic() + patience_s
        while True:
            (self.journal / "shards").mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.journal / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            if _locked(descriptor):
                try:
                    same = os.fstat(descriptor).st_ino == (self.journal / "lock").stat().st_ino
                except FileNotFoundError:
                    same = False
                if same:
                    break
                os.close(descriptor)  # the folder was removed or put in place between the two calls
                continue
            holder = os.pread(descriptor, 100, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            if time.monotonic() >= deadline:
                raise ConfigError(
                    f"{self.path} is being written by another process ({holder or 'unknown'})",
                    hint="wait until it has ended, or stop it: this command then goes on where it was",
                )
            time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}\n".encode("ascii"), 0)
        self._lock = descriptor

    def close(self) -> None:
        """Let go of the locks."""
        for descriptor in (self._claims, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._claims = self._lock = None
        self._held.clear()

    def record(self, name: str, value: dict[str, Any]) -> None:
        """Write a record durably: after a power cut it is there whole, or not at all."""
        path = self.journal / name
        aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        with aside.open("w", encoding="utf-8") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a record, or None where there is none."""
        try:
            value: dict[str, Any] = json.loads((self.journal / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return value

    def finished(self) -> set[int]:
        """Return the numbers of the shards that are whole.

        Raises:
            FileNotFoundError: the folder is gone, since the index was put in place.
        """
        return {int(path.stem) for path in (self.journal / "shards").iterdir() if path.suffix == ".json"}

    def shard(self, number: int) -> dict[str, Any]:
        """Return the record of a shard that is whole."""
        found = self.read(f"shards/{number:06d}.json")
        if found is None:
            raise RagtrainError(f"shard {number} of {self.path} has no record")
        return found

    def claim(self, number: int) -> bool:
        """Return whether this process is now the only one to encode a shard."""
        if number in self._held:
            return True
        if self._claims is None:
            self._claims = os.open(self.journal / "claims", os.O_RDWR | os.O_CREAT, 0o644)
        if fcntl is not None:
            try:
                fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except OSError:
                return False
        self._held.add(number)
        return True

    def allocate(self, count: int, job: Job) -> None:
        """Make ``vectors.npy`` at its whole length, unless it is there, and forget shards whose bytes have changed.

        Raises:
            DataError: the disk has no room for it.
        """
        shape = (count, job.dim)
        if not self.vectors_path.is_file():
            _refuse_full_disk(self.path, count * job.dim * np.dtype(job.storage).itemsize)
            aside = self.path / f".{VECTORS_FILE}.tmp"
            np.lib.format.open_memmap(aside, mode="w+", dtype=np.dtype(job.storage), shape=shape)
            aside.replace(self.vectors_path)
            sync_folder(self.path)
            for number in self.finished():  # of vectors that are gone
                (self.journal / f"shards/{number:06d}.json").unlink()
            return
        with VectorFile(self.vectors_path, writable=False) as vectors:
            if (vectors.shape, vectors.dtype) != (shape, np.dtype(job.storage)):
                raise RagtrainError(f"{self.vectors_path} has another shape than asked: {vectors.shape}, {shape}")
            for number in sorted(self.finished()):
                entry = self.shard(number)
                if vectors.digest(*entry["rows"]) != entry["sha256"]:
                    log.warning(
                        "shard %d of %s was changed since it was written: it is encoded again", number, self.path
                    )
                    (self.journal / f"shards/{number:06d}.json").unlink()


def encode_shards(
    work: WorkFolder,
    job: Job,
    *,
    progress: Callable[[int], object] | None = None,
    others: Callable[[int], object] | None = None,
) -> None:
    """Encode the shards that are not whole, together with whatever other processes do the same.

    Shard k belongs to process k modulo their number. A process that has none left takes those that nobody has begun,
    and those of a process that died. The call ends when every shard is whole.

    Args:
        work: passages are written and vectors allocated there.
        job: how passages become vectors.
        progress: called with the number of passages of a shard when this process has finished it.
        others: called with the number of passages that other processes have finished since the last call.

    Raises:
        DataError: a vector is not finite, or zero, or does not fit the storage; the passage is named.
        FileNotFoundError: the others have finished, and the index was put in place.
    """
    store = PassageStore(work.path)
    total = -(-len(store) // job.shard_size)
    seen = work.finished()

    def load(number: int) -> tuple[int, list[Passage], Any]:
        passages = store.lines(number * job.shard_size, min((number + 1) * job.shard_size, len(store)))
        return number, passages, job.prepare([(passage.title, passage.text) for passage in passages])

    def tell_of_others() -> bool:
        new = work.finished() - seen
        seen.update(new)
        if new and others is not None:
            others(sum(_rows(work, number) for number in new))
        return bool(new)

    with VectorFile(work.vectors_path, writable=True) as vectors, ThreadPoolExecutor(1) as thread:
        while len(seen) < total:
            for number, passages, prepared in _ahead(thread, load, _claimed(work, total)):
                _encode_shard(work, job, vectors, number, passages, prepared)
                seen.add(number)
                if progress is not None:
                    progress(len(passages))
                tell_of_others()
            # The rest is with other processes; where one dies, its claim falls, and the next round takes it up.
            if not tell_of_others() and len(seen) < total:
                time.sleep(POLL_S)


def _encode_shard(
    work: WorkFolder, job: Job, vectors: VectorFile, number: int, passages: list[Passage], prepared: object
) -> None:
    start = number * job.shard_size
    rows = np.asarray(job.encode(prepared), dtype=np.float32)
    if rows.shape != (len(passages), job.dim):
        raise RagtrainError(f"the encoder returned {rows.shape} where ({len(passages)}, {job.dim}) was expected")
    stored = storable(rows, passages, start, storage=job.storage, metric=job.metric)
    longest = float(np.linalg.norm(stored.astype(np.float32), axis=1).max())
    entry = {"rows": [start, start + len(passages)], "sha256": vectors.write(start, stored), "max_norm": longest}
    work.record(f"shards/{number:06d}.json", entry)


def _rows(work: WorkFolder, number: int) -> int:
    start, stop = work.shard(number)["rows"]
    return int(stop - start)


def _claimed(work: WorkFolder, total: int) -> Iterator[int]:
    """Yield shards that this process is to encode: its own ones, and then those that nobody else encodes."""
    for own in (True, False):
        for number in range(total):
            if own == (number % work.processes == work.rank) and _is_free(work, number):
                yield number


def _is_free(work: WorkFolder, number: int) -> bool:
    # The claim comes first: a shard that was finished before the claim has its record by then.
    return number not in work.finished() and work.claim(number) and number not in work.finished()


def _ahead(
    thread: ThreadPoolExecutor, load: Callable[[int], tuple[int, list[Passage], Any]], numbers: Iterator[int]
) -> Iterator[tuple[int, list[Passage], Any]]:
    """Yield loaded shards; the next one is loaded while the caller works on the one before."""
    number = next(numbers, None)
    coming = None if number is None else thread.submit(load, number)
    while coming is not None:
        loaded = coming.result()
        number = next(numbers, None)
        coming = None if number is None else thread.submit(load, number)
        yield loaded


def _refuse_full_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"the vectors take {needed / 1e9:.1f} GB where {free / 1e9:.1f} GB are free",
            path=folder,
            hint="make room, choose an --output-dir on another disk, or --storage float16",
        )


def _locked(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Put on the disk which names a folder holds."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
