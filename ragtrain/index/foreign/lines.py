"""Passages in the lines of another tool: read from its file by byte offset, its field names mapped as they are read.

The full reader of foreign formats is ``ragtrain.data.formats``, which an index may not import. What is mapped here is
the part of it that a line needs, written into the manifest as a ``LineForm``; adoption compares the two on every line
and rewrites the passages where they differ.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
from array import array
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ragtrain.errors import DataError
from ragtrain.index.passages import PassageStore
from ragtrain.records import Passage, split_contents

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

AGAIN = "the file was changed after the index was adopted; adopt it again (ragtrain index prepare --index-path)"
ID_FIELDS = ("id", "_id", "passage_id", "psg_id", "docid", "doc_id", "pid")
TEXT_FIELDS = ("contents", "document_text", "text", "paragraph_text", "passage", "passage_text")


@dataclasses.dataclass(frozen=True)
class LineForm:
    """How a line becomes a passage.

    Attributes:
        container: ``jsonl``, or ``tsv`` with one record a line.
        columns: heads of a TSV.
        id: field of the id; None calls passages ``STEM-0``, ``STEM-1``, ...
        title: field of the title; None where there is none.
        text: field of the text; ``contents`` holds title and text (FlashRAG, Pyserini).
        section: a field ``section`` is put behind the title, as Atlas reads it.
        stem: what passages without an id are called after.
    """

    container: Literal["jsonl", "tsv"]
    text: str
    title: str | None = None
    id: str | None = None
    section: bool = False
    columns: tuple[str, ...] = ()
    stem: str = ""

    @classmethod
    def of(cls, record: Mapping[str, Any], stem: str, container: Literal["jsonl", "tsv"] = "jsonl") -> LineForm | None:
        """Return the form of a record by its fields, None where no text is among them."""
        text = next((name for name in TEXT_FIELDS if isinstance(record.get(name), str)), None)
        if text is None:
            return None
        return cls(
            container, text, "title" if "title" in record else None,
            next((name for name in ID_FIELDS if name in record), None), text == "text" and "title" in record,
            tuple(record) if container == "tsv" else (), stem,
        )  # fmt: skip

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LineForm:
        """Return the form that a manifest has."""
        return cls(**{**values, "columns": tuple(values["columns"])})

    def to_json(self) -> dict[str, Any]:
        """Return the form in which a manifest has it."""
        return dataclasses.asdict(self)

    def read(self, line: bytes, number: int) -> Passage:
        """Return the passage of a line.

        Args:
            line: as it stands in the file, line end included or not.
            number: of the passage in the file, from 0.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: the line is of another form.
        """
        if self.container == "jsonl":
            record: dict[str, Any] = json.loads(line)
        else:
            cells = line.decode("utf-8").rstrip("\r\n").split("\t")
            record = dict(zip(self.columns, map(_unquoted, cells), strict=True))
        title = (record.get(self.title) or "") if self.title else ""
        text = record[self.text]
        if self.text == "contents":
            head, body = split_contents(text)
            # Where the title has a field of its own, the first line belongs to the text unless it repeats the title.
            title, text = (title, text) if title and head and head != title else (title or head, body)
        given = record.get(self.id) if self.id else None
        identifier = "" if given is None else str(given).strip()
        taken = {self.id, self.title, self.text}
        meta = {name: value for name, value in record.items() if name not in taken and value is not None}
        title, section = title.strip(), record.get("section") if self.section else None
        if isinstance(section, str) and section.strip() and title and not title.endswith(f": {section.strip()}"):
            title = f"{title}: {section.strip()}"
        return Passage(identifier or f"{self.stem}-{number}", title, text.strip(), meta)


def _unquoted(cell: str) -> str:
    if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', ""):
        return cell[1:-1].replace('""', '"')
    return cell


def line_offsets(path: Path, *, skip: int = 0) -> np.ndarray:
    """Return (lines + 1,) int64: where each line that is not blank begins, and last the size of the file.

    Args:
        path: the file.
        skip: lines at the beginning that are no records (the head of a table).
    """
    offsets, position = array("q"), 0
    with path.open("rb") as file:
        for line in file:
            start = position + 3 if position == 0 and line.startswith(b"\xef\xbb\xbf") else position
            position += len(line)
            if not line.strip():
                continue
            if skip:
                skip -= 1
                continue
            offsets.append(start)
    offsets.append(position)
    return np.array(offsets, dtype=np.int64)


class LineStore(PassageStore):
    """Passages of a foreign file by position, read from a memory map when asked for.

    The offsets are (count + 1,) as in a store of ours where vectors and lines are in the same order; otherwise
    (count, 3): begin, end and number of the line of each vector.
    """

    def __init__(self, path: Path, offsets_path: Path, form: LineForm) -> None:
        """Open a file of passages.

        Raises:
            DataError: a file is missing, or the offsets do not belong to the passages.
        """
        self.folder, self.path, self.form, self._offsets_path = path.parent, path, form, offsets_path
        for file in (path, offsets_path):
            if not file.is_file():
                raise DataError("this file of the index is missing", path=file, hint=AGAIN)
        try:
            self._offsets = np.load(offsets_path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(f"not an array of byte offsets: {error}", path=offsets_path, hint=AGAIN) from error
        size = path.stat().st_size
        flat = self._offsets.ndim == 1
        end = int(self._offsets[-1] if flat else self._offsets[:, 1].max()) if self._offsets.size else 0
        if (flat and end != size) or not 0 < end <= size:
            raise DataError(f"has {size:,} bytes where its offsets end at {end:,}", path=path, hint=AGAIN)
        with path.open("rb") as opened:
            self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "offsets_path": self._offsets_path, "form": self.form}

    def __setstate__(self, state: dict[str, Any]) -> None:
        LineStore.__init__(self, **state)

    def __len__(self) -> int:
        return len(self._offsets) - int(self._offsets.ndim == 1)

    def _read(self, position: int) -> Passage:
        if self._offsets.ndim == 1:
            start, end, number = int(self._offsets[position]), int(self._offsets[position + 1]), position
        else:
            start, end, number = map(int, self._offsets[position])
        try:
            return self.form.read(self._map[start:end], number)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"no passage of the adopted form: {error}"
            raise DataError(what, path=self.path, line=number + 1, hint=AGAIN) from error


def chosen(offsets: np.ndarray, order: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the offsets (count, 3) of the lines with those numbers, in that order."""
    lines = np.asarray(order, dtype=np.int64)
    return np.stack([offsets[lines], offsets[lines + 1], lines], axis=1)
