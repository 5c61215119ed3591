"""SIGINT and SIGTERM end a run after the step in progress; a second one ends it at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from ragtrain.errors import Interrupted

if TYPE_CHECKING:
    from types import FrameType, TracebackType

logger = logging.getLogger("ragtrain")

LAUNCHER_GRACE_S = 2.0
"""A launcher passes the terminal's Ctrl-C on to workers that got it already: so long, a repetition is the same one."""


class Signals:
    """While entered, ``received`` tells the first signal that came; the handlers from before are restored after.

    Outside of the main thread Python can set no handlers, and nothing is caught.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._grace = LAUNCHER_GRACE_S if "TORCHELASTIC_RUN_ID" in os.environ else 0.0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.received is None:
            self.received, self._since = signal.Signals(number), time.monotonic()
            logger.warning("%s: stopping after the step in progress; once more stops at once", name)
        elif time.monotonic() - self._since >= self._grace:
            raise Interrupted(
                f"stopped at once by a second signal ({name}); the steps since the last checkpoint are lost",
                signal_number=number,
                hint="the same command goes on from the last checkpoint",
            )
