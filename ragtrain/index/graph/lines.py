"""Files of graphs as lines, JSON and CSV rows that know where they stand, and what becomes of bad ones."""

from __future__ import annotations

import csv
import json
import logging
from typing import TYPE_CHECKING, Any

from ragtrain.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger("ragtrain")

SKIP_HINT = "correct it, or leave such lines out with --skip-bad-lines"
#: Longest field of a CSV row in characters; the library's own bound of 131,072 is less than a long document.
_LONGEST_FIELD = 1 << 30


class BadLines:
    """Stops at the first bad line, or counts them all.

    Attributes:
        skip: whether to go on.
        count: bad lines so far.
    """

    def __init__(self, *, skip: bool = False) -> None:
        self.skip, self.count = skip, 0

    def add(self, message: str, path: Path, *, line: int | None = None, field: str | None = None) -> None:
        """Take note of a bad line; the first three are logged.

        Raises:
            DataError: bad lines are not to be skipped.
        """
        error = DataError(message, path=path, line=line, field=field, hint=SKIP_HINT)
        if not self.skip:
            raise error
        self.count += 1
        if self.count <= 3:
            log.warning("left out: %s", error)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that are not blank, with their numbers from 1, stripped.

    Raises:
        DataError: there is no such file, or a line is not UTF-8.
    """
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).decode("utf-8")
                # Not str.strip(): a tab at the end is an empty field.
                text = text.strip(" \r\n")
                if text.strip():
                    yield number, text
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", path=path, hint="check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8: {error}", path=path, line=number, hint="convert it to UTF-8") from error


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return the value in a JSON file. Keys that an object repeats get ``#2``, ``#3``, … from the second on.

    Raises:
        DataError: there is no such file, or it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_all_pairs)
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", path=path, hint="check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8: {error}", path=path, hint="convert it to UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"is no JSON: {error.msg} at column {error.colno}", path=path, line=error.lineno,
            hint="correct it there; where the file was cut, write it again",
        ) from error  # fmt: skip
    except RecursionError as error:
        raise DataError("is nested too deeply", path=path, hint="this is no file of graphs: check the path") from error


def _all_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) == len(pairs):
        return read
    read = {}
    for key, value in pairs:
        name, number = key, 1
        while name in read:
            number += 1
            name = f"{key}#{number}"
        read[name] = value
    return read


def csv_rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str] | None]]:
    """Yield the rows of a CSV file by its header, with the line on which each ends; None for one of another length.

    Raises:
        DataError: there is no such file, it is not UTF-8 or no CSV, or its header lacks a column of ``needed``.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for name in needed:
                if name not in header:
                    found = ", ".join(header) or "nothing"
                    message = f"the header has no such column; it has {found}"
                    raise DataError(message, path=path, line=1, field=name, hint=f"columns: {', '.join(needed)}")
            for cells in reader:
                line = reader.line_num
                if cells:
                    yield line, dict(zip(header, cells, strict=True)) if len(cells) == len(header) else None
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", path=path, hint="check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8: {error}", path=path, hint="convert it to UTF-8") from error
    except csv.Error as error:
        raise DataError(f"is no CSV: {error}", path=path, line=line + 1) from error


def shown(value: object, most: int = 60) -> str:
    """Return a value as an error shows it: its kind and its beginning."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= most else text[:most] + '…'}"
