"""Making an index in stretches: what an earlier attempt has left is used, and a stop leaves something to use."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ragtrain import report
from ragtrain.errors import DataError, Interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from ragtrain.index.encode import IndexWriter
    from ragtrain.index.passages import Written
    from ragtrain.index.shards import Job
    from ragtrain.prepare.encoders import PassageCoder
    from ragtrain.prepare.source import Source

log = logging.getLogger("ragtrain")

#: Seconds between two lines of progress off the terminal.
LINE_EVERY_S = 30.0


class Stopped(KeyboardInterrupt):
    """SIGTERM, in the form of Ctrl-C."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM interrupt as Ctrl-C does; only the main thread of a process can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def resumable(writer: IndexWriter, shard_size: int) -> Iterator[None]:
    """Say what a stop leaves behind.

    Raises:
        Interrupted: instead of a KeyboardInterrupt, once the passages are on the disk.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if writer.written is None:
            raise
        total = -(-writer.written.count // shard_size)
        raise Interrupted(
            f"stopped; {len(writer.work.finished())} of {total} shards are encoded and kept in {writer.work.path}",
            signal_number=signal.SIGTERM if isinstance(interrupt, Stopped) else signal.SIGINT,
            hint="the same command goes on from there",
        ) from interrupt
    except Exception as error:
        if not isinstance(error, DataError) and writer.written is not None and (done := len(writer.work.finished())):
            log.warning("%d finished shards are kept in %s: the same command goes on there", done, writer.work.path)
        raise


def store_passages(writer: IndexWriter, source: Source) -> Written:
    """Write the passages, unless an earlier attempt has, and return what stands there.

    Raises:
        DataError: the passages cannot be read, or two have the same id.
    """
    for other in writer.leftovers():
        log.info("%s was left by another request; it is removed when this index is done", other.path)
        other.close()
    record = writer.stored_passages()
    if record is None or writer.written is None:
        written = writer.write_passages(report.progress(source.pieces(), "Reading passages", every_s=LINE_EVERY_S))
        writer.record_passages(read=source.read, skipped=source.skipped, format=source.format)
        return written
    source.read, source.skipped, source.format = record["read"], record["skipped"], record["format"]
    return writer.written


def encode_with_progress(writer: IndexWriter, job: Job, coder: PassageCoder, finished: set[int]) -> None:
    """Encode the shards that are not whole; the bar counts what all processes have done.

    Raises:
        DataError: a vector is not finite, or zero, or does not fit the storage.
        OutOfMemoryError: the device is full.
    """
    written, total = writer.written, 0
    if written is not None:
        total = -(-written.count // job.shard_size)
    done = 0
    for number in finished:
        start, stop = writer.work.shard(number)["rows"]
        done += stop - start
    if finished:
        first = next((number for number in range(total) if number not in finished), total)
        log.info(
            "going on at shard %d of %d in %s: %d pieces are encoded already",
            first + 1, total, writer.work.path, done,
        )  # fmt: skip
    bar: report.Progress[None] = report.progress(
        written.count if written else 0, "Encoding passages", every_s=LINE_EVERY_S
    )
    with bar:
        bar.skip(done)
        coder.progress = bar.advance
        try:
            writer.write_shards(job, others=bar.advance)
        finally:
            coder.progress = None
