"""The passages of an adopted index: read where they are, through byte offsets, or rewritten once.

Every line is read in two ways, by the full reader of foreign formats and by the short form that the manifest keeps;
where they differ, or there are no lines, the passages are written anew as ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ragtrain import report
from ragtrain.data import formats
from ragtrain.data.formats.files import plain_stem
from ragtrain.errors import DataError, IndexMismatchError
from ragtrain.index.foreign import LineForm, LineStore, line_offsets, refuse_pickle
from ragtrain.index.foreign.lines import chosen
from ragtrain.index.passages import OFFSETS_FILE, PASSAGES_FILE, PassageStore, write_passages
from ragtrain.records import sha256_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ragtrain.index.foreign import ForeignVectors
    from ragtrain.records import Passage

log = logging.getLogger("ragtrain")


@dataclasses.dataclass(frozen=True)
class Passages:
    """Passages as they will be opened.

    Attributes:
        store: they themselves.
        source: where they came from.
        form: how a line of the source is read; None where they were rewritten.
        format: name of the recognised format.
        read, skipped: records read and left out.
        sha256: of the passages in their order.
    """

    store: PassageStore
    source: Path
    form: LineForm | None
    format: str
    read: int
    skipped: int
    sha256: str

    @property
    def described(self) -> str:
        """Where they are, in words."""
        return f"{self.source} ({'read where they are' if self.form else f'rewritten to {PASSAGES_FILE}'})"


def read_passages(path: Path, aside: Path, *, skip_bad_lines: bool = False) -> Passages:
    """Open the passages of a file or folder; what is written goes to ``aside``.

    Raises:
        DataError: they cannot be read, or are a pickle.
    """
    if path.is_file():
        refuse_pickle(path)
    reader = formats.iter_passages(path, skip_bad_lines=skip_bad_lines)
    files = reader.files
    if len(files) == 1 and files[0].is_file():
        form = _form(files[0])
        if form is not None:
            offsets = line_offsets(files[0], skip=int(form.container == "tsv"))
            np.save(aside / OFFSETS_FILE, offsets)
            store = LineStore(files[0], aside / OFFSETS_FILE, form)
            read = _same(store, report.progress(reader, "Reading passages", total=len(store)))
            if read is not None:
                return Passages(store, path, form, reader.format, read, reader.skipped, sha256_file(files[0]))
    log.info("%s cannot be read by byte offset: the passages are written to %s once", path, PASSAGES_FILE)
    written = write_passages(aside, report.progress(reader, "Writing passages"))
    return Passages(PassageStore(aside), path, None, reader.format, written.count, reader.skipped, written.sha256)


def _form(file: Path) -> LineForm | None:
    """Return how the lines of a file are read by themselves, None where there are no such lines."""
    with file.open("rb") as opened:
        first = opened.readline().removeprefix(b"\xef\xbb\xbf")
    container: Literal["jsonl", "tsv"] = "jsonl"
    try:
        record: Any = json.loads(first)
    except ValueError:
        if b"\t" not in first:
            return None
        container = "tsv"
        try:
            record = {name.strip(): "" for name in first.decode("utf-8").rstrip("\r\n").split("\t")}
        except UnicodeDecodeError:
            return None
    return LineForm.of(record, plain_stem(file), container) if isinstance(record, dict) else None


def _same(store: LineStore, passages: Iterator[Passage] | report.Progress[Passage]) -> int | None:
    """Return how many passages there are if the short form reads every one as the full reader does."""
    count, mine = 0, iter(store)
    for passage in passages:
        try:
            other = next(mine, None)
        except DataError:
            return None
        if other is None or (other.id, other.title, other.text) != (passage.id, passage.title, passage.text):
            return None
        count += 1
    return count if count == len(store) else None


def read_ids(path: Path) -> list[str]:
    """Return the ids of vectors, in their order: one a line, a JSON list, or a ``.npy`` array.

    Raises:
        DataError: the file is none of these.
    """
    if not path.is_file():
        raise DataError("there is no such file", path=path, hint="check the path")
    refuse_pickle(path)
    try:
        if path.suffix == ".npy":
            return [str(value) for value in np.load(path, allow_pickle=False).ravel().tolist()]
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            return [str(value) for value in json.loads(text)]
    except (ValueError, EOFError) as error:
        hint = "write one id a line, a JSON list, or a .npy array of numbers or strings"
        raise DataError(f"no list of ids: {error}", path=path, hint=hint) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def reorder(passages: Passages, ids: list[str] | np.ndarray | None, source: ForeignVectors, aside: Path) -> Passages:
    """Return the passages in the order of the vectors.

    ``ids`` are ids of passages where there are such; numbers that are not may also be places among the passages.

    Raises:
        IndexMismatchError: there is not one id for each vector, or an id is no passage's.
    """
    if ids is None:
        return passages
    if len(ids) != source.count:
        raise IndexMismatchError(
            f"count mismatch: {len(ids):,} ids for {source.count:,} vectors",
            path=source.path, hint="give one id for each vector, in their order (--ids-file)",
        )  # fmt: skip
    place = {passage.id: number for number, passage in enumerate(passages.store)}
    names = [str(value) for value in ids]
    lost = [name for name in names if name not in place]
    if not lost:
        order = np.fromiter((place[name] for name in names), np.int64, len(names))
    elif isinstance(ids, np.ndarray) and len(ids) and ids.min() >= 0 and ids.max() < len(place):
        order = ids.astype(np.int64)  # faiss's own numbers, which need not be the passages' ids
    else:
        raise IndexMismatchError(
            f"count mismatch: {len(lost):,} of {len(names):,} ids of vectors are no passage's, {lost[0]!r} first",
            path=source.path, hint="give the passages that were encoded (--passages), or the right --ids-file",
        )  # fmt: skip
    if len(np.unique(order)) != len(order):
        raise IndexMismatchError("an id stands for two vectors", path=source.path, hint="give each vector its own id")
    if np.array_equal(order, np.arange(len(place))):
        return passages
    log.info("the vectors are in another order than the passages: they are matched by id")
    sha256 = hashlib.sha256(f"{passages.sha256} {hashlib.sha256(order.tobytes()).hexdigest()}".encode()).hexdigest()
    form, path = passages.form, passages.store.path
    if form is None:  # rewritten: as lines of ours, chosen in the vectors' order
        form = LineForm("jsonl", "text", "title", "id")
    flat = np.load(aside / OFFSETS_FILE)
    np.save(aside / OFFSETS_FILE, chosen(flat, order))
    return dataclasses.replace(
        passages, store=LineStore(path, aside / OFFSETS_FILE, form), form=form, sha256=sha256, read=len(place)
    )
