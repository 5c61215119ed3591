"""The most memory that tensors took at a time, above what was there before."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from torch import Tensor


class PeakBytes:
    """Measures a piece of work: ``with PeakBytes(device, model.parameters()) as peak: …; peak.bytes``.

    On CUDA it is what the allocator says. Elsewhere every tensor is counted from the operation that made it until it is let go
    of, which is the same whatever else the machine does; what a kernel takes for itself meanwhile is not in it.

    Attributes:
        bytes: the peak, once the work is done.
    """

    def __init__(self, device: torch.device, known: Iterable[Tensor] = ()) -> None:
        """Take where the work is done.

        Args:
            device: of the tensors.
            known: what was there before and is not counted, such as weights.
        """
        self._cuda = device if device.type == "cuda" else None
        self._counter = None if self._cuda else _Counter(known)
        self._before = 0
        self.bytes = 0

    @property
    def how(self) -> str:
        """In words, what is counted."""
        return "allocator" if self._cuda else "tensors"

    def __enter__(self) -> Self:
        if self._counter is not None:
            self._counter.__enter__()  # type: ignore[no-untyped-call]
        else:
            torch.cuda.synchronize(self._cuda)
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._before = torch.cuda.memory_allocated(self._cuda)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._counter is not None:
            self._counter.__exit__(kind, value, trace)  # type: ignore[no-untyped-call]
            self.bytes = self._counter.peak
        else:
            torch.cuda.synchronize(self._cuda)
            self.bytes = torch.cuda.max_memory_allocated(self._cuda) - self._before


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch has no types for it
    """Sums the storages of all tensors that operations return, as long as they live."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._live: dict[int, int] = {}
        self._now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: object, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        # What goes in was there before, or was counted when it was made.
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._known and key not in self._live and key not in given:
                    self._live[key] = storage.nbytes()
                    self._now += storage.nbytes()
                    self.peak = max(self.peak, self._now)
                    weakref.finalize(storage, self._drop, key)
        return result

    def _drop(self, key: int) -> None:
        self._now -= self._live.pop(key)
