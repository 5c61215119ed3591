"""The processes of a launcher that make one index: the first decides, the others are told what to do and encode.

Nothing here is a collective operation, which would run out of time while one process encodes and another waits: the
first process puts its message into the launcher's key-value store, the others look there until it comes. What is done
and by whom stands in the work folder (ragtrain.index.shards), which all of them must see.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from typing import TYPE_CHECKING, Any

from torch.distributed.rendezvous import rendezvous

from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from types import TracebackType

    from torch._C._distributed_c10d import Store

KEY = "ragtrain/prepare"
#: Seconds between two looks for the message of the first process.
POLL_S = 0.2
#: For single requests to the store, which answers at once or is not there.
STORE_TIMEOUT = datetime.timedelta(seconds=300)


class Ranks:
    """This process and its siblings under torchrun or ``accelerate launch``; without a launcher it is alone.

    As a context of the first process, it tells the others in the end that there is nothing to wait for.
    """

    def __init__(self) -> None:
        """Find the others.

        Raises:
            ConfigError: the environment speaks of several processes and not of where they meet.
        """
        self.rank = int(os.environ.get("RANK", "0") or 0)
        self.count = int(os.environ.get("WORLD_SIZE", "1") or 1)
        self._told = False
        self._store: Store | None = None
        if self.count == 1:
            return
        try:
            meeting = rendezvous("env://", self.rank, self.count, timeout=STORE_TIMEOUT)
            self._store = next(iter(meeting))[0]
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"RANK={self.rank} of WORLD_SIZE={self.count} processes cannot find the others: {error}",
                hint="start several processes with `torchrun` or `accelerate launch`; for one, unset RANK and WORLD_SIZE",
            ) from error

    @property
    def first(self) -> bool:
        """Return whether this process decides."""
        return self.rank == 0

    def tell(self, message: dict[str, Any]) -> None:
        """Tell the others what to do; only the first message counts."""
        if self._store is not None and self.first and not self._told:
            self._store.set(KEY, json.dumps(message, default=str))
        self._told = True

    def hear(self) -> dict[str, Any]:
        """Wait, for as long as it takes, for what the first process tells.

        Raises:
            ConfigError: the first process failed; its own message says why.
        """
        if self._store is None:
            raise ConfigError("a process that is alone has nobody to listen to")
        while not self._store.check([KEY]):
            time.sleep(POLL_S)
        message: dict[str, Any] = json.loads(self._store.get(KEY))
        if message.get("failed"):
            raise ConfigError("the first process has failed", hint="its message says why")
        return message

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.first and not self._told:
            self.tell({"failed": True})
