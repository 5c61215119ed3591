"""Answers kept as they come, so that an evaluation that was interrupted goes on with the questions that are left.

They lie beside the folder of the evaluation, in ``.eval.FINGERPRINT.part.jsonl``: a first line that says of what they are, and one
line a question. An evaluation of anything else has another fingerprint and so another file; the file goes when the evaluation is
written.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from ragtrain.evaluate import results

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger("ragtrain")


class Kept:
    """The answers of one evaluation that there are already; more are added after each batch.

    Attributes:
        answers: by the question's id, in whatever JSON form they were added in.
        seconds: time that they took.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Read what an earlier attempt at the same evaluation left.

        Answers of other versions of the libraries are left aside, and so are all where the evaluation is made once more although
        it is there.

        Args:
            folder: of the evaluation.
            fingerprint: of all that it depends on.
        """
        self.path = folder.with_name(f".{folder.name}.{fingerprint}.part.jsonl")
        self.answers: dict[str, Any] = {}
        self.seconds = 0.0
        self._head = {"fingerprint": fingerprint, "versions": results.versions()}
        if not results.holds(folder, fingerprint):
            self._read()
        if self.answers:
            log.info("going on: %d questions were answered before the interruption", len(self.answers))
        else:
            self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        if not self.path.is_file():
            return
        whole = 0  # bytes up to the end of the last line that is whole
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):  # it was being written when the end came
                    break
                try:
                    row = json.loads(line)
                except ValueError:  # a disk that was full, say: what stands before it counts
                    break
                if number == 0 and row != self._head:
                    return
                if number:
                    self.answers[row["id"]] = row["answer"]
                    self.seconds += row["seconds"]
                whole += len(line)
        with self.path.open("r+b") as file:
            file.truncate(whole)

    def add(self, answers: Mapping[str, Any], seconds: float) -> None:
        """Keep the answers of a batch on the disk.

        Args:
            answers: JSON values by the questions' ids.
            seconds: time of all of them together.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        share = seconds / max(1, len(answers))
        with self.path.open("a", encoding="utf-8") as file:
            if new:
                file.write(json.dumps(self._head) + "\n")
            file.writelines(
                json.dumps({"id": identifier, "seconds": share, "answer": answer}) + "\n"
                for identifier, answer in answers.items()
            )

    def done(self) -> None:
        """Let go of the file: the evaluation is written."""
        self.path.unlink(missing_ok=True)
