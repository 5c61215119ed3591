"""The most memory that a process or a device holds during a piece of work."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from ragtrain.prepare.plan import peak_memory_bytes

if TYPE_CHECKING:
    from types import TracebackType

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Measures a piece of work: ``with PeakMemory(device) as peak: …; peak.bytes``.

    On CUDA it is what the allocator held of the device; elsewhere the resident memory of the process, weights and all. Where the
    system cannot begin anew, the peak is that of the process so far.

    Attributes:
        bytes: the peak, once the work is done; None where the system does not say.
    """

    def __init__(self, device: torch.device) -> None:
        """Take where the work is done."""
        self._device = device
        self.bytes: int | None = None

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return self
        with contextlib.suppress(OSError):  # another system, or no right to
            _RESET.write_text("5", encoding="ascii")  # the kernel's high-water mark starts anew
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device)
            return
        try:
            found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
        except OSError:
            found = None
        self.bytes = 1024 * int(found[1]) if found else peak_memory_bytes() or None
