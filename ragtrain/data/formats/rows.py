"""Containers: JSON lines, JSON arrays, TSV, CSV, parquet and Arrow folders, each as rows that know where they stand.

Line formats, parquet and Arrow are streamed. A JSON array is held as text and decoded item by item, so that a bad
item is located by its line.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import re
from typing import TYPE_CHECKING, Any

from ragtrain.data.formats.files import BadRecordError, byte_lines, decode, open_binary, plain_suffix, whole_text
from ragtrain.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_TABLE_SUFFIXES = (".tsv", ".csv")
_SPACE = re.compile(r"\s*")
#: Longest quoted TSV field, in lines: beyond it an opening quote is a quote and not the start of a field.
_MOST_QUOTED_LINES = 200
#: Columns of vectors, which are never read as text.
_VECTOR_COLUMNS = ("embeddings", "embedding", "vector")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A record and where it stands: its line, where the container has lines, and its place (``[3]``) elsewhere."""

    value: Any
    number: int
    line: int | None = None
    place: str = ""
    problem: BadRecordError | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Container:
    """What a file is on the outside. ``columns`` are the heads of a table, None where it has none."""

    kind: str
    path: Path
    delimiter: str = ""
    columns: tuple[str, ...] | None = None
    width: int = 0


def sniff(path: Path, known_columns: Iterable[str]) -> Container:
    """Recognise a file's container from its extension and its beginning.

    Args:
        path: a file, or a folder written by ``Dataset.save_to_disk``.
        known_columns: names that make the first line of a table its head.

    Raises:
        DataError: the file is empty, refused, or is none of the containers.
    """
    if path.is_dir():
        return Container("arrow", path)
    with open_binary(path) as file:
        start = file.read(6)
    if start.startswith(b"PAR1"):
        return Container("parquet", path)
    if start.startswith(b"ARROW1") or plain_suffix(path) == ".arrow":
        return Container("arrow", path)
    first = next(((n, line) for n, line in byte_lines(path) if line.strip()), None)
    if first is None:
        raise DataError("the file is empty", path=path)
    suffix, number, line = plain_suffix(path), *first
    if suffix not in _TABLE_SUFFIXES:
        opening = line.lstrip()[:1]
        if opening == b"[":
            return Container("json-array", path)
        if opening == b"{":
            return Container(_object_or_lines(path, suffix, line), path)
        if suffix in _JSON_SUFFIXES:
            raise DataError(
                f"expected a JSON object or array, found {line[:40].decode('utf-8', 'replace')!r}",
                path=path,
                line=number,
            )
    return _table(path, suffix, number, line, set(known_columns))


def _object_or_lines(path: Path, suffix: str, first: bytes) -> str:
    """Tell JSON lines from one JSON object: the first line of JSON lines is an object of its own."""
    try:
        json.loads(first)
    except ValueError:
        # A bad first line of JSON lines is told from an object over several lines by its extension, or by its end.
        ends = first.rstrip().endswith(b"}") and len(first.strip()) > 1
        return "jsonl" if suffix in (".jsonl", ".ndjson") or ends else "json-object"
    more = itertools.islice((line for _, line in byte_lines(path) if line.strip()), 1, 2)
    return "jsonl" if suffix in (".jsonl", ".ndjson") or next(more, None) is not None else "json-object"


def _table(path: Path, suffix: str, number: int, line: bytes, known: set[str]) -> Container:
    try:
        head = decode(line)
    except BadRecordError as error:
        raise DataError(error.message, path=path, line=number) from error
    delimiter = "\t" if "\t" in head or suffix != ".csv" else ";" if head.count(";") > head.count(",") else ","
    cells = _split_tsv(head) if delimiter == "\t" else next(csv.reader([head], delimiter=delimiter))
    names = [cell.strip() for cell in cells]
    is_head = len(set(names)) == len(names) and sum(name.lower() in known for name in names) >= min(2, len(names))
    return Container("table", path, delimiter, tuple(names) if is_head else None, len(cells))


def read_rows(container: Container) -> Iterator[Row]:
    """Yield the rows of a container; a row that cannot be decoded carries its ``problem`` instead of a value.

    Raises:
        DataError: the file as a whole is damaged: nothing after that point can be read.
    """
    if container.kind == "jsonl":
        return _json_lines(container.path)
    if container.kind == "json-array":
        return _json_array(container.path)
    if container.kind == "table":
        return _table_rows(container)
    return _arrow_rows(container)


def _json_lines(path: Path) -> Iterator[Row]:
    number = 0
    for line_number, line in byte_lines(path):
        if not line.strip():
            continue
        try:
            yield Row(json.loads(decode(line)), number, line_number)
        except BadRecordError as error:
            yield Row(None, number, line_number, problem=error)
        except (ValueError, RecursionError) as error:
            message = f"expected a JSON object, found {_reason(error)}"
            yield Row(None, number, line_number, problem=BadRecordError(message))
        number += 1


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"an error at column {error.colno}: {error.msg}"
    return "nesting that is too deep" if isinstance(error, RecursionError) else str(error)


def _json_array(path: Path) -> Iterator[Row]:
    text = whole_text(path)
    decoder = json.JSONDecoder()
    position = _skip(text, text.index("[") + 1)
    line, counted = 1, 0
    number = 0
    while position < len(text) and text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            at = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise DataError(
                f"the JSON array breaks off in item {number}: {_reason(error)}", path=path, line=at
            ) from error
        yield Row(value, number, line, f"[{number}]")
        number += 1
        position = _skip(text, position)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            break
    if text[position : position + 1] != "]" or text[position + 1 :].strip():
        line += text.count("\n", counted, position)
        raise DataError(f"the JSON array is not closed after {number} items", path=path, line=line)


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def read_object(path: Path) -> dict[str, Any]:
    """Return a file that is one JSON object.

    Raises:
        DataError: it is not valid JSON, or no object.
    """
    try:
        value = json.loads(whole_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"invalid JSON: {error.msg}", path=path, line=error.lineno) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"invalid JSON: {_reason(error)}", path=path) from error
    if not isinstance(value, dict):
        raise DataError(f"expected a JSON object, found {type(value).__name__}", path=path)
    return value


def _table_rows(container: Container) -> Iterator[Row]:
    rows = _tsv_rows(container) if container.delimiter == "\t" else _csv_rows(container)
    if container.columns is not None:
        next(rows, None)
    for number, (line, cells) in enumerate(rows):
        if isinstance(cells, BadRecordError):
            yield Row(None, number, line, problem=cells)
        elif len(cells) != container.width:
            problem = BadRecordError(f"expected {container.width} columns, found {len(cells)}")
            yield Row(None, number, line, problem=problem)
        else:
            yield Row(
                cells if container.columns is None else dict(zip(container.columns, cells, strict=True)), number, line
            )


def _csv_rows(container: Container) -> Iterator[tuple[int, list[str] | BadRecordError]]:
    csv.field_size_limit(1 << 30)

    def lines() -> Iterator[str]:
        for number, line in byte_lines(container.path):
            try:
                yield decode(line) + "\n"
            except BadRecordError as error:
                raise DataError(error.message, path=container.path, line=number) from error

    reader = csv.reader(lines(), delimiter=container.delimiter)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"invalid CSV: {error}", path=container.path, line=start) from error


def _tsv_rows(container: Container) -> Iterator[tuple[int, list[str] | BadRecordError]]:
    """Split tab-separated lines, with and without quoting.

    Some sources quote as CSV does (DPR, the HF RAG scripts), some do not quote at all (MS MARCO), and there a text may
    begin with a quotation mark. So every line is split at its tabs first; only a field that is quoted from end to end
    is unquoted, and only a last field that opens a quote and is closed on a later line is continued there.
    """
    lines = byte_lines(container.path)
    waiting: list[tuple[int, bytes]] = []
    while True:
        number, line = waiting.pop(0) if waiting else next(lines, (0, b""))
        if not number:
            return
        if not line.strip():
            continue
        try:
            text = decode(line)
            last = text.rsplit("\t", 1)[-1]
            if _opens(last):
                while len(waiting) < _MOST_QUOTED_LINES:
                    following = next(lines, None)
                    if following is None:
                        break
                    waiting.append(following)
                continued = _continued(text, [more.decode("utf-8", "replace") for _, more in waiting], container.width)
                if continued is not None:
                    text, used = continued
                    del waiting[:used]
            yield number, _split_tsv(text)
        except BadRecordError as error:
            yield number, error


def _opens(field: str) -> bool:
    return field.startswith('"') and not _quoted(field) and '"' not in field[1:].replace('""', "")


def _quoted(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', "")


def _split_tsv(line: str) -> list[str]:
    return [cell[1:-1].replace('""', '"') if _quoted(cell) else cell for cell in line.split("\t")]


def _continued(text: str, following: Sequence[str], width: int) -> tuple[str, int] | None:
    """Return the line with those that its last, quoted field goes on in, and their number; None if it ends here."""
    for used, line in enumerate(following, start=1):
        text += "\n" + line
        marks = line.replace('""', "")
        if '"' in marks:
            # Only the last field of a record may go on, so the closing mark ends the line.
            closed = marks.endswith('"') and marks.count('"') == 1 and text.count("\t") == width - 1
            return (text, used) if closed else None
        if "\t" in line:
            return None
    return None


def _arrow_rows(container: Container) -> Iterator[Row]:
    number = itertools.count()
    for batch in _batches(container):
        names = [name for name in batch.schema.names if name not in _VECTOR_COLUMNS]
        for value in batch.select(names).to_pylist():
            at = next(number)
            yield Row(value, at, place=f"[{at}]")


def _batches(container: Container) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = container.path
    try:
        if container.kind == "parquet":
            file = pq.ParquetFile(path)
            columns = [name for name in file.schema_arrow.names if name not in _VECTOR_COLUMNS]
            yield from file.iter_batches(batch_size=1024, columns=columns)
            return
        for part in _arrow_files(path):
            with pa.memory_map(str(part)) as mapped:
                # save_to_disk writes streams; a file of Arrow's own kind begins with ARROW1 and has a footer.
                is_file = mapped.read(6) == b"ARROW1"
                mapped.seek(0)
                reader = pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
                for batch in batches:
                    yield from (batch.slice(start, 1024) for start in range(0, batch.num_rows, 1024))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"the {container.kind} data cannot be read: {error}", path=path) from error


def _arrow_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    state = read_object(path / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(
            "rows of this folder are chosen by an index mapping", path=path, hint="save flatten_indices() of it"
        )
    try:
        return [path / entry["filename"] for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise DataError("expected '_data_files' as save_to_disk writes it", path=path / "state.json") from error
