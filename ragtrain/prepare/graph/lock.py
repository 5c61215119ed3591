"""One process at a time makes or changes a graph; readers need no lock, since a graph is put in place whole."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def changing(graph: Path) -> Iterator[None]:
    """Keep every other process from changing a graph while the block runs; where the system has no locks, go on without.

    The lock is a file beside the folder of the graph. It ends with the process, however that ends, and is removed.

    Raises:
        ConfigError: another process changes the graph.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = graph.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_name(f".{path.name}.lock")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 100, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise ConfigError(
                f"{graph} is being changed by another process ({holder or 'unknown'})",
                hint="wait until it has ended, or stop it; then give the same command again",
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                break
        os.close(descriptor)  # it was removed between the two calls
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}\n".encode("ascii"), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
