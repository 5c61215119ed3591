"""What ``ragtrain index prepare`` gives back, whichever way the index came about."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


@dataclasses.dataclass(frozen=True)
class PrepareResult:
    """An index as it stands: made now, found finished (``reused``), or planned only (``plan``)."""

    path: Path
    count: int
    dim: int
    metric: str
    seconds: float
    passages_read: int
    skipped: int
    reused: bool = False
    plan: dict[str, Any] | None = None
    verification: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**dataclasses.asdict(self), "path": str(self.path)}
