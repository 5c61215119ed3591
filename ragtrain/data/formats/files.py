"""Files as lines: gzip by content, UTF-8 by line, pickles refused, folders resolved to the files they stand for."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from ragtrain.errors import DataError
from ragtrain.records import sha256_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_GZIP = b"\x1f\x8b"
_REFUSED_SUFFIXES = {".pkl": "a pickle", ".pickle": "a pickle", ".pt": "a torch file", ".pth": "a torch file"}
_REFUSED_STARTS = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "bzip2-compressed",
    b"\xfd7zXZ": "xz-compressed",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"\x93NUMPY": "a numpy array",
}

#: Names under which people keep a split, the official one first.
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test",),
}


class BadRecordError(Exception):
    """A record that cannot be used; whoever knows file and line turns it into a DataError."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message, self.field = message, field


def plain_suffix(path: Path) -> str:
    """Return the lower-case extension under a possible ``.gz``."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def plain_stem(path: Path) -> str:
    """Return the file name without ``.gz`` and without its extension."""
    name = path.name
    if name.lower().endswith(".gz"):
        name = name[:-3]
    return Path(name).stem


def open_binary(path: Path) -> IO[bytes]:
    """Open a file for reading, through gzip where its first bytes say so.

    Raises:
        DataError: there is no such file, or it is of a kind that is refused (pickles run code when they are loaded).
    """
    if path.is_dir():
        raise DataError("this is a folder; a file was expected", path=path)
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == _GZIP
        file = cast("IO[bytes]", gzip.open(path)) if zipped else path.open("rb")  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", path=path, hint="check the path") from error
    try:
        start = file.read(8)
        file.seek(0)
        _refuse(path, start)
    except (OSError, EOFError, zlib.error) as error:
        file.close()
        raise DataError(f"the gzip file cannot be read: {error}", path=path) from error
    except DataError:
        file.close()
        raise
    return file


def _refuse(path: Path, start: bytes) -> None:
    pickled = len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5
    kind = "a pickle" if pickled else _REFUSED_SUFFIXES.get(plain_suffix(path))
    if kind:
        raise DataError(
            f"this is {kind}, which can run any code when it is loaded; it is not read",
            path=path,
            hint="convert it to JSON lines or TSV where it comes from (DPR and Atlas publish their passages as such too)",
        )
    for magic, name in _REFUSED_STARTS.items():
        if start.startswith(magic):
            raise DataError(f"this is {name}; plain or gzip-compressed text was expected", path=path, hint="unpack it")


def byte_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield every line with its number from 1, without line end and byte-order mark.

    Raises:
        DataError: the file cannot be opened, or its gzip stream is cut short.
    """
    number = 0
    with open_binary(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                content = line.rstrip(b"\r\n")
                yield number, content.removeprefix(b"\xef\xbb\xbf") if number == 1 else content
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"the file is cut short or damaged: {error}", path=path, line=number + 1) from error


def decode(line: bytes) -> str:
    """Return a line as text.

    Raises:
        BadRecordError: it is not UTF-8.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecordError(f"expected UTF-8 text, found byte 0x{line[error.start]:02x} at {error.start}") from error


def whole_text(path: Path) -> str:
    """Return a file's whole text.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    with open_binary(path) as file:
        try:
            content = file.read()
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"the file is cut short or damaged: {error}", path=path) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"expected UTF-8 text, found byte 0x{content[error.start]:02x}", path=path, line=line
        ) from error


def digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of a file, or of the names and hashes of several."""
    if len(files) == 1:
        return sha256_file(files[0])
    lines = "".join(f"{sha256_file(path)}  {path.name}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def first_existing(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first of the names that is a file in the folder, ``.gz`` included."""
    for name in names:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    return None


def question_files(path: Path, split: str) -> list[Path]:
    """Return the files that hold the questions of ``path``: itself, or those of one split of a folder.

    Raises:
        DataError: there is no such path, or the folder holds no questions of the split.
    """
    if not path.exists():
        raise DataError("there is no such file or folder", path=path, hint="check the path")
    if not path.is_dir():
        return [path]
    names = SPLIT_NAMES[split]
    endings = (".jsonl", ".json", ".source", ".tsv", ".csv")
    found = first_existing(path, [name + ending for name in names for ending in endings])
    if found is not None:
        return [found]
    for folder in (path, *(path / name for name in names)):
        if (folder / "state.json").is_file():
            return [folder]
    shards = sorted(path.glob("*.parquet")) or sorted(path.glob("*/*.parquet"))
    named = [shard for shard in shards if shard.name.startswith(names)]
    if named or (shards and split == "train" and not any(s.name.startswith(_ALL_SPLITS) for s in shards)):
        return named or shards
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:12]) or "nothing"
    raise DataError(
        f"the folder holds no {split} questions; it holds {held}",
        path=path,
        hint=f"name the file itself, or make a dataset folder with {split}.jsonl in it (ragtrain data fetch)",
    )


_ALL_SPLITS = tuple(name for names in SPLIT_NAMES.values() for name in names)

_TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".rst")


def is_text_document(path: Path) -> bool:
    """Return whether a file is prose, one document a file."""
    return plain_suffix(path) in _TEXT_SUFFIXES


def passage_files(path: Path) -> list[Path]:
    """Return the files (or save_to_disk folders) that hold the passages of ``path``, in order.

    Raises:
        DataError: there is no such path, or the folder holds none of the known forms.
    """
    if not path.exists():
        raise DataError("there is no such file or folder", path=path, hint="check the path")
    if not path.is_dir() or (path / "state.json").is_file():
        return [path]
    found = first_existing(path, ("passages.jsonl", "corpus.jsonl", "dataset_corpus.json", "raw/dataset_corpus.json"))
    if found is not None:
        return [found]
    if (path / "dataset_dict.json").is_file():
        return sorted(folder for folder in path.iterdir() if (folder / "state.json").is_file())
    for wanted in (
        lambda entry: entry.suffix == ".parquet",
        is_text_document,
        lambda entry: plain_suffix(entry) in (".jsonl", ".tsv"),
    ):
        entries = sorted(entry for entry in path.rglob("*") if entry.is_file() and wanted(entry))
        if entries:
            return entries
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:12]) or "nothing"
    raise DataError(
        f"the folder holds no passages in a known form; it holds {held}",
        path=path,
        hint="expected passages.jsonl, corpus.jsonl, a save_to_disk folder, parquet files, or .txt and .md files",
    )
