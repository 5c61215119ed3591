"""Folders of what was computed of an index, beside it or in the user's cache, built once however many processes ask."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("ragtrain")


def writable_folder(index_path: Path, passages_sha256: str, what: str) -> Path:
    """Return the index folder, or one in the user's cache where that cannot be written to.

    Args:
        index_path: the index folder.
        passages_sha256: of its manifest; without it, the path stands for the index.
        what: goes there, for the log: ``the passages' tokens``.
    """
    if os.access(index_path, os.W_OK):
        return index_path
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = passages_sha256 or hashlib.sha256(str(index_path.resolve()).encode()).hexdigest()
    folder = cache / "ragtrain" / name[:16]
    log.info("%s cannot be written to: %s go to %s", index_path, what, folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Give a folder to write into and rename it to ``folder`` at the end; what stands there is replaced.

    After an error nothing is left of it, and what stood there stays.
    """
    aside = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        shutil.rmtree(folder, ignore_errors=True)
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, work: str) -> Iterator[None]:
    """Hold a lock between processes while the block runs; where the system has none, go on without.

    Args:
        folder: what the block builds; the lock is a file beside it.
        work: what another process may be doing, for the log: ``tokenises the passages``.
    """
    try:
        import fcntl
    except ImportError:  # Windows: processes may build twice, and the last rename stands
        yield
        return
    with folder.with_name(f".{folder.name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process %s; waiting for it", work)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s cannot be locked (%s): each process %s", file.name, error, work)
        yield
