"""Passages on disk: long texts split into pieces, one JSON line a piece, random access by byte offset.

A store is two files. ``passages.jsonl`` holds one passage a line in the order of the vectors; ``passages.idx.npy``
holds the byte offset of every line and, last, the size of the file. Opening a store reads neither.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from ragtrain.errors import ConfigError, DataError
from ragtrain.records import Passage

PASSAGES_FILE = "passages.jsonl"
OFFSETS_FILE = "passages.idx.npy"

# Han, Hiragana and Katakana are written without spaces: there each character counts as a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def split_passages(passages: Iterable[Passage], words: int | None, overlap: int = 0) -> Iterator[Passage]:
    """Yield passages of at most ``words`` words: longer texts in pieces, the others as they are.

    A piece is a substring of the text, so spacing and line breaks inside it stay as they were. Pieces of the passage
    ``ID`` are called ``ID#0``, ``ID#1``, …; each keeps the title and the metadata.

    Args:
        passages: what to split.
        words: words in a piece (space-separated; each Chinese or Japanese character is one); None splits nothing.
        overlap: words that two neighbouring pieces share.

    Raises:
        ConfigError: ``overlap`` is not smaller than ``words``.
    """
    if words is not None and not 0 <= overlap < words:
        message = f"overlap is {overlap} words where a piece has passage_words={words}"
        raise ConfigError(message, hint="choose an overlap smaller than passage_words")
    return iter(passages) if words is None else _pieces(passages, words, overlap)


def _pieces(passages: Iterable[Passage], words: int, overlap: int) -> Iterator[Passage]:
    for passage in passages:
        # A text of fewer characters than words is short whatever stands in it: most passages end here.
        spans = [match.span() for match in _WORD.finditer(passage.text)] if len(passage.text) > words else []
        if len(spans) <= words:
            yield passage
            continue
        for number, start in enumerate(range(0, len(spans) - overlap, words - overlap)):
            last = min(start + words, len(spans)) - 1
            text = passage.text[spans[start][0] : spans[last][1]]
            yield dataclasses.replace(passage, id=f"{passage.id}#{number}", text=text)


def passage_line(passage: Passage) -> bytes:
    """Return the line that stands for a passage in ``passages.jsonl``, newline included."""
    row = passage.to_json()
    row.update(id=passage.id, title=passage.title, text=passage.text)  # metadata of the same name gives way
    return (json.dumps(row, ensure_ascii=False, default=str) + "\n").encode("utf-8", errors="replace")


@dataclasses.dataclass(frozen=True)
class Written:
    """What stands in a store: passages, bytes, and the SHA-256 of ``passages.jsonl``."""

    count: int
    size: int
    sha256: str


class PassageDigest:
    """Counts and hashes passages as a store of them would be, without writing one."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._offsets = array("q", [0])
        self._hashes = array("q")

    def add(self, passage: Passage) -> bytes:
        """Take in one passage and return its line.

        Raises:
            DataError: the passage has neither title nor text.
        """
        if not passage.text.strip() and not passage.title.strip():
            raise DataError(
                f"passage {passage.id!r} (number {len(self._hashes)}) has neither title nor text",
                hint="remove it from the passages",
            )
        line = passage_line(passage)
        self._digest.update(line)
        self._offsets.append(self._offsets[-1] + len(line))
        # Eight bytes an id, so that tens of millions fit; equal hashes are looked at again in `repeated`.
        self._hashes.append(hash(passage.id))
        return line

    def written(self) -> Written:
        """Return what was taken in so far."""
        return Written(len(self._hashes), self._offsets[-1], self._digest.hexdigest())

    @property
    def offsets(self) -> np.ndarray:
        """(count + 1,) int64: where each line begins, and where the last one ends."""
        return np.array(self._offsets, dtype=np.int64)

    def repeated(self) -> np.ndarray:
        """Return the positions, in order, of passages whose id may occur twice (equal hashes)."""
        hashes = np.frombuffer(self._hashes, dtype=np.int64)
        ordered = np.sort(hashes)  # no positions beside them: sixteen bytes an id at the most, while this runs
        return np.flatnonzero(np.isin(hashes, np.unique(ordered[1:][ordered[1:] == ordered[:-1]])))


def write_passages(folder: Path, passages: Iterable[Passage]) -> Written:
    """Stream passages into a store in an existing folder.

    Raises:
        DataError: there is no passage, one is empty, or two have the same id.
    """
    digest = PassageDigest()
    with (folder / PASSAGES_FILE).open("wb") as file:
        for passage in passages:
            file.write(digest.add(passage))
        file.flush()
        os.fsync(file.fileno())  # what is recorded as written must be there after a power cut
    written = digest.written()
    if not written.count:
        raise DataError("there is no passage", hint="give a file with at least one passage")
    with (folder / OFFSETS_FILE).open("wb") as offsets:
        np.save(offsets, digest.offsets)
        offsets.flush()
        os.fsync(offsets.fileno())
    _refuse_duplicates(PassageStore(folder), digest.repeated())
    return written


def _refuse_duplicates(store: PassageStore, suspects: np.ndarray) -> None:
    seen: dict[str, int] = {}
    for position in suspects.tolist():
        identifier = store[position].id
        if identifier in seen:
            raise DataError(
                f"passages number {seen[identifier]} and {position} have the same id {identifier!r}",
                field="id",
                hint="give every passage an id of its own, or remove the repeated one",
            )
        seen[identifier] = position


class PassageStore(Sequence[Passage]):
    """Passages of a folder by position, read from a memory map when asked for.

    Reading moves no file position, so threads may share a store; processes get their own map when it is pickled.
    """

    def __init__(self, folder: Path | str) -> None:
        """Open ``passages.jsonl`` and ``passages.idx.npy`` of a folder.

        Raises:
            DataError: a file is missing, or the offsets do not belong to the passages.
        """
        self.folder = Path(folder)
        self.path = self.folder / PASSAGES_FILE
        offsets_path = self.folder / OFFSETS_FILE
        for path in (self.path, offsets_path):
            if not path.is_file():
                raise DataError("this file of the index is missing", path=path, hint="prepare the index again")
        try:
            self._offsets = np.load(offsets_path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(f"not an array of byte offsets: {error}", path=offsets_path) from error
        size = self.path.stat().st_size
        if self._offsets.ndim != 1 or len(self._offsets) < 2 or int(self._offsets[-1]) != size:
            raise DataError(
                f"has {size} bytes where {OFFSETS_FILE} expects "
                f"{int(self._offsets[-1]) if self._offsets.ndim == 1 and len(self._offsets) else 'nothing'}",
                path=self.path,
                hint="the file was cut or changed after the index was made; prepare the index again",
            )
        with self.path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        PassageStore.__init__(self, state["folder"])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Passage: ...
    @overload
    def __getitem__(self, index: slice) -> list[Passage]: ...
    def __getitem__(self, index: int | slice) -> Passage | list[Passage]:
        """Return the passage at a position, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self._read(i) for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"passage {index} of {len(self)}")
        return self._read(position)

    def __iter__(self) -> Iterator[Passage]:
        return (self._read(i) for i in range(len(self)))

    def texts(self, position: int) -> tuple[str, str]:
        """Return title and text of the passage at a position."""
        passage = self[int(position)]
        return passage.title, passage.text

    def lines(self, start: int, stop: int) -> list[Passage]:
        """Return the passages from ``start`` to before ``stop``, read from the file at once and not from the map.

        Pages of the map that were looked at count as memory of the process; going through a store larger than memory
        should leave no trace.
        """
        bounds = np.asarray(self._offsets[start : stop + 1])
        with self.path.open("rb") as file:
            file.seek(int(bounds[0]))
            block = file.read(int(bounds[-1] - bounds[0]))
        bounds = bounds - bounds[0]
        return [self._parse(block[bounds[i] : bounds[i + 1]], start + i) for i in range(len(bounds) - 1)]

    def _read(self, position: int) -> Passage:
        return self._parse(self._map[int(self._offsets[position]) : int(self._offsets[position + 1])], position)

    def _parse(self, line: bytes, position: int) -> Passage:
        try:
            row = json.loads(line)
            return Passage(id=row.pop("id"), title=row.pop("title"), text=row.pop("text"), meta=row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"no passage in our form: {error}",
                path=self.path,
                line=position + 1,
                hint="the file was changed after the index was made; prepare the index again",
            ) from error
