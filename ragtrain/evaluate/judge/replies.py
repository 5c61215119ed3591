"""Replies on disk, under a hash of who was asked what."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

from ragtrain.evaluate.judge.prompts import VERSION
from ragtrain.prepare.chat import Reply

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Replies:
    """The replies in a file, to which new ones are appended as they come.

    Attributes:
        path: the file; a line a reply, without prompts.
    """

    def __init__(self, path: Path, judge: str) -> None:
        """Read what is there.

        Args:
            path: the file.
            judge: who is asked; replies of others are not used.
        """
        self.path, self._judge = path, judge
        self._known: dict[str, Reply] = {}
        if not path.is_file():
            return
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                    reply = Reply(row["reply"], row.get("prompt_tokens"), row.get("new_tokens"))
                    if isinstance(row["key"], str) and isinstance(reply.text, str):
                        self._known[row["key"]] = reply
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # the line in whose middle an earlier command was killed

    def key(self, prompt: str, turn: str = "") -> str:
        """Return the hash under which a reply is kept.

        Args:
            prompt: what is asked.
            turn: tells apart the times that it is asked, where it is asked more than once on purpose.
        """
        text = json.dumps([VERSION, self._judge, turn, prompt])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def get(self, key: str) -> Reply | None:
        """Return the reply under a key, if there is one."""
        return self._known.get(key)

    def add(self, replies: Mapping[str, Reply]) -> None:
        """Write replies by key; once this returns, a kill loses none of them."""
        if not replies:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.is_file() and self.path.stat().st_size > 0 and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" if torn else "")
            for key, reply in replies.items():
                row: dict[str, Any] = {"key": key, "reply": reply.text}
                row |= {"prompt_tokens": reply.prompt_tokens, "new_tokens": reply.new_tokens}
                file.write(json.dumps(row) + "\n")  # ASCII: a text may hold half a surrogate pair
            file.flush()
            os.fsync(file.fileno())
        self._known.update(replies)
