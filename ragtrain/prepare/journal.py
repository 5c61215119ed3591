"""What a command has found so far, one JSON line each, so that a killed one goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def key_of(*parts: object) -> str:
    """Return 32 hexadecimal digits that stand for values of JSON."""
    text = json.dumps(parts, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Journal:
    """Results by key, in a file that is only ever appended to.

    A line in whose middle a command was killed is passed over, and the next one begins on a line of its own. The keys are
    hashes of everything that decides a result: what stands under one is never out of date, and what is asked with other
    settings is asked anew.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, dict[str, Any]] = {}
        if not path.is_file():
            return
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                    self._known[row.pop("key")] = row
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: object) -> bool:
        return key in self._known

    def get(self, key: str) -> dict[str, Any] | None:
        """Return what is known under a key."""
        return self._known.get(key)

    def add(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Write results; once this returns, a kill loses none of them."""
        lines = "".join(json.dumps({"key": key, **value}, ensure_ascii=False) + "\n" for key, value in found.items())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
                lines = "\n" + lines if torn else lines
            file.write(lines.encode("utf-8", "replace"))
            file.flush()
            os.fsync(file.fileno())
        self._known.update({key: dict(value) for key, value in found.items()})
