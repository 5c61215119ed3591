"""Vectors of other tools that are plain arrays: .npy, .npz, raw .memmap, torch shards, Arrow columns."""

from __future__ import annotations

import functools
import json
import zipfile
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ragtrain.errors import DataError
from ragtrain.index.foreign.faiss_file import read_faiss
from ragtrain.index.foreign.find import PICKLE_HINT, Found
from ragtrain.index.foreign.places import AGAIN, BLOCK, ForeignVectors, Place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_Precision = Literal["float16", "float32"]
_PRECISIONS: tuple[tuple[_Precision, int], ...] = (("float32", 4), ("float16", 2))
_COLUMNS = ("embeddings", "embedding", "vectors", "vector")
_IDS = ("ids", "id", "docids", "doc_ids", "passage_ids")


def read_vectors(found: Found, *, passages: int | None, dim: int | None) -> ForeignVectors:
    """Look at the vectors of an index of any known kind.

    Args:
        found: the index.
        passages: number of its passages: a raw file has no shape of its own.
        dim: length of the encoder's vectors, where it is known.

    Raises:
        DataError: the file is damaged, or is not what its name says.
    """
    if found.kind == "faiss":
        return read_faiss(found.path)
    if found.kind == "npy":
        return _npy(found.path)
    if found.kind == "npz":
        return _npz(found.path)
    if found.kind == "memmap":
        return _raw(found.path, passages, dim)
    return _atlas(found.path, passages, dim) if found.kind == "atlas" else _arrow(found.path)


def _npy(path: Path) -> ForeignVectors:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        pickled = "allow_pickle" in str(error) or "Python objects" in str(error)
        what = "holds pickled objects, which are not read" if pickled else f"truncated or damaged file: {error}"
        raise DataError(what, path=path, hint=PICKLE_HINT if pickled else AGAIN) from error
    _matrix(array, path)
    whole = array.flags.c_contiguous and array.dtype in (np.dtype("<f2"), np.dtype("<f4"))
    place = Place(str(array.dtype), int(array.offset), array.shape[1], array.shape[1]) if whole else None
    return ForeignVectors(
        path, f"numpy {array.dtype}", len(array), array.shape[1], dtype=_precision(array.dtype), place=place,
        blocks=functools.partial(_slices, array),
    )  # fmt: skip


def _npz(path: Path) -> ForeignVectors:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"truncated or damaged file: {error}", path=path, hint=AGAIN) from error
    tables = [name for name, array in arrays.items() if array.ndim == 2 and array.dtype.kind == "f"]
    names = [name for name in _COLUMNS if name in tables] or tables
    if not names or (len(names) > 1 and names[0] not in _COLUMNS):
        shapes = ", ".join(f"{name} {array.dtype}{array.shape}" for name, array in arrays.items())
        raise DataError(
            f"expected one matrix of vectors, found {shapes}", path=path, hint="save one array `embeddings`"
        )
    array = arrays[names[0]]
    ids = next(([str(value) for value in arrays[name].tolist()] for name in _IDS if name in arrays), None)
    return ForeignVectors(
        path, f"numpy archive, {names[0]}", len(_matrix(array, path)), array.shape[1], dtype=_precision(array.dtype), ids=ids,
        blocks=functools.partial(_slices, array),
    )  # fmt: skip


def _raw(path: Path, passages: int | None, dim: int | None) -> ForeignVectors:
    """Read a file of nothing but numbers: its size, the passages and the encoder give the shape."""
    size = path.stat().st_size
    if not passages:
        raise DataError("a raw file of numbers has no shape of its own", path=path, hint="give its --passages")
    each, rest = divmod(size, passages)
    fits: list[tuple[_Precision, int]] = [
        (precision, each // item) for precision, item in _PRECISIONS if each % item == 0 and each
    ]
    if dim is not None:
        fits = [(precision, width) for precision, width in fits if width == dim]
    if rest or not fits:
        asked = "" if dim is None else f" of {dim} numbers"
        raise DataError(
            f"count mismatch: {size:,} bytes are no float32 or float16 vectors{asked} of {passages:,} passages",
            path=path,
            hint="the file is cut, or the passages or the encoder are not those it was made with",
        )
    precision, width = next((fit for fit in fits if len(fits) == 1 or _plausible(path, *fit)), fits[0])
    place = Place(precision, 0, width, width)
    return ForeignVectors(path, f"raw {precision} numbers", passages, width, dtype=precision, place=place)


def _plausible(path: Path, precision: str, width: int) -> bool:
    """Return whether the first rows read as numbers of like size: two halves read as one float are spread widely."""
    rows = np.fromfile(path, dtype=np.dtype(precision), count=16 * width).astype(np.float64)
    sizes = np.abs(rows[rows != 0])
    # An exponent of a half is read eight times as large; of normally distributed numbers the spread is 1.6.
    return bool(len(sizes) and np.isfinite(rows).all() and np.log2(sizes).std() < 4)


def _atlas(folder: Path, passages: int | None, dim: int | None) -> ForeignVectors:
    """Read Atlas' ``embeddings.{i}.pt``: one (dim, count) half-precision tensor a shard."""
    shards = sorted(folder.glob("embeddings.*.pt"), key=lambda path: _shard_number(path))
    numbers = [_shard_number(path) for path in shards]
    if numbers != list(range(len(numbers))):
        raise DataError(f"its shards are numbered {numbers}; some are missing", path=folder, hint=AGAIN)
    shapes = [tuple(_shard(path).shape) for path in shards]
    turned = _orientation(shapes, folder, passages, dim)
    counts = [shape[1] if turned else shape[0] for shape in shapes]
    width = shapes[0][0] if turned else shapes[0][1]

    def blocks() -> Iterator[np.ndarray]:
        for path in shards:
            tensor = _shard(path)
            for part in torch.split(tensor.T if turned else tensor, max(1, BLOCK // width)):
                yield part.contiguous().float().numpy()

    half = _shard(shards[0]).dtype == torch.float16
    return ForeignVectors(
        folder,
        f"Atlas, {len(shards)} shards",
        sum(counts),
        width,
        dtype="float16" if half else "float32",
        blocks=blocks,
    )


def _orientation(shapes: list[tuple[int, ...]], folder: Path, passages: int | None, dim: int | None) -> bool:
    """Return whether a vector is a column, as Atlas writes it."""
    for turned in (True, False):
        widths = {shape[0 if turned else 1] for shape in shapes}
        count = sum(shape[1 if turned else 0] for shape in shapes)
        if len(widths) == 1 and count == (passages or count) and dim in (None, *widths):
            return turned
    raise DataError(
        f"count mismatch: shards of {', '.join(map(str, shapes[:4]))} hold neither as columns nor as rows one vector "
        f"for each of {passages} passages" + ("" if dim is None else f" of {dim} dimensions"),
        path=folder,
        hint="give the passages and the encoder that these shards were made with",
    )


def _shard_number(path: Path) -> int:
    middle = path.name.removeprefix("embeddings.").removesuffix(".pt")
    return int(middle) if middle.isdigit() else -1


def _shard(path: Path) -> torch.Tensor:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, zip and runtime errors: none has more to say than that
        raise DataError(
            f"no tensor that can be read safely: {str(error).splitlines()[0]}", path=path, hint=AGAIN
        ) from error
    if not isinstance(value, torch.Tensor) or value.ndim != 2:
        raise DataError(f"expected a matrix, found {type(value).__name__}", path=path, hint=AGAIN)
    return value


def _arrow(folder: Path) -> ForeignVectors:
    """Read the column of vectors of a folder that ``Dataset.save_to_disk`` wrote."""
    count, width, column = 0, 0, ""
    for batch in _batches(folder):
        column = next((name for name in _COLUMNS if name in batch.schema.names), "")
        if not column:
            raise DataError(
                f"no column of vectors among {', '.join(batch.schema.names)}",
                path=folder,
                hint="expected `embeddings`; or encode the passages: ragtrain index prepare --passages FOLDER",
            )
        rows = _rows(batch, column, folder)
        if len(rows) and width not in (0, rows.shape[1]):
            raise DataError(f"vectors of {width} and of {rows.shape[1]} numbers", path=folder, field=column)
        count, width = count + len(rows), rows.shape[1] if len(rows) else width

    def blocks() -> Iterator[np.ndarray]:
        return (_rows(batch, column, folder) for batch in _batches(folder) if batch.num_rows)

    return ForeignVectors(folder, f"dataset folder, column {column}", count, width, blocks=blocks)


def _batches(folder: Path) -> Iterator[Any]:
    import pyarrow as pa

    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state.get("_indices_data_files"):
            raise DataError("rows are chosen by an index mapping", path=folder, hint="save flatten_indices() of it")
        for entry in state["_data_files"]:
            with pa.memory_map(str(folder / entry["filename"])) as mapped:
                yield from pa.ipc.open_stream(mapped)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"truncated or damaged dataset: {error}", path=folder, hint=AGAIN) from error


def _rows(batch: Any, column: str, folder: Path) -> np.ndarray:  # noqa: ANN401
    """Return (rows, dim) float32 of a column of lists; the numbers are one buffer, so nothing is converted row by row."""
    values = batch.column(batch.schema.get_field_index(column))
    if hasattr(values, "storage"):  # datasets' Array2D
        values = values.storage
    flat = values.flatten()
    while hasattr(flat, "flatten") and str(flat.type).startswith(("list", "fixed_size_list", "large_list")):
        flat = flat.flatten()
    width, rest = divmod(len(flat), max(1, len(values)))
    even = rest == 0 and values.null_count == 0 and flat.null_count == 0
    if even and str(values.type).startswith(("list", "large_list")):
        even = len(values) < 2 or bool(
            (np.diff(np.asarray(values.offsets)) == np.diff(np.asarray(values.offsets))[0]).all()
        )
    if not even:
        raise DataError("not every row has a vector of the same length", path=folder, field=column, hint=AGAIN)
    numbers: np.ndarray = flat.to_numpy(zero_copy_only=False).astype(np.float32)
    return numbers.reshape(len(values), width)


def _slices(array: np.ndarray) -> Iterator[np.ndarray]:
    rows = max(1, BLOCK // array.shape[1])
    return (np.asarray(array[start : start + rows], dtype=np.float32) for start in range(0, len(array), rows))


def _matrix(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim != 2 or array.dtype.kind != "f" or not array.size:
        raise DataError(f"expected a matrix of vectors, found {array.dtype}{array.shape}", path=path, hint=AGAIN)
    return array


def _precision(dtype: np.dtype[Any]) -> _Precision:
    return "float16" if dtype == np.float16 else "float32"
