"""Files of faiss: vectors found where they lie, whatever is around them, or reconstructed.

The layout is that of ``faiss/impl/index_write.cpp`` (unchanged since 1.5 for what is read here)::

    header    fourcc, d int32, ntotal int64, 2 x int64, is_trained byte, metric int32[, its argument float32]
    Flat      header, number of bytes / 4 as uint64, the vectors                       IxFI IxF2 IxFl
    IDMap     header, the index within, number of ids as uint64, ids int64             IxMp IxM2
    HNSWFlat  header, the graph (5 arrays, 5 x int32), the Flat index of its vectors   IHNf

What is found is compared with faiss's own ``reconstruct``; everything else is read through faiss.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import struct
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from ragtrain.errors import DataError
from ragtrain.index.faiss_search import import_faiss
from ragtrain.index.foreign.places import AGAIN, BLOCK, ForeignVectors, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

log = logging.getLogger("ragtrain")

_FLAT, _ID_MAP, _HNSW = (b"IxFI", b"IxF2", b"IxFl"), (b"IxMp", b"IxM2"), (b"IHNf",)
_KINDS = {b"IxFI": "Flat", b"IxF2": "Flat", b"IxFl": "Flat", b"IxMp": "IDMap", b"IxM2": "IDMap2", b"IHNf": "HNSWFlat"}
#: faiss's METRIC_INNER_PRODUCT and METRIC_L2.
_METRICS: dict[int, Literal["inner_product", "l2"]] = {0: "inner_product", 1: "l2"}
_METRIC_NAMES = {2: "L1", 3: "L-infinity", 4: "Lp", 20: "Canberra", 21: "Bray-Curtis", 22: "Jensen-Shannon"}
#: Bytes of the arrays of an HNSW graph: probabilities, neighbours per level, levels, offsets, neighbours.
_GRAPH = (8, 4, 4, 8, 4)
#: Rows compared with faiss's own reading of them.
COMPARED = 16


def is_faiss(path: Path) -> bool:
    """Return whether a file begins as faiss's indexes do (``Ix..``, ``IH..``, ``Iw..``, ``IN..``)."""
    with path.open("rb") as file:
        start = file.read(4)
    return len(start) == 4 and start[:2] in (b"Ix", b"IH", b"Iw", b"IN") and start.isalnum()


@dataclasses.dataclass(frozen=True)
class _Header:
    fourcc: bytes
    dim: int
    count: int
    metric: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the beginning of a faiss file says, and where its vectors are.

    ``offset`` is None where the kind of index is not one whose vectors can be read as they lie.
    """

    kind: str
    dim: int
    count: int
    metric: int
    offset: int | None
    ids: np.ndarray | None = None


class _CutError(Exception):
    """The file ends before what it announces."""


def read_layout(path: Path) -> Layout:
    """Read what a faiss file says of itself, without its vectors.

    Raises:
        DataError: the file is cut short.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            return _layout(file, size)
        except _CutError as error:
            raise DataError(f"truncated file: {error}", path=path, hint=AGAIN) from error


def _layout(file: IO[bytes], size: int) -> Layout:
    header = _header(file)
    kind = _KINDS.get(header.fourcc, header.fourcc.decode("ascii", "replace"))
    if header.fourcc in _ID_MAP:
        inner = _layout(file, size)
        if inner.offset is None:
            return dataclasses.replace(inner, kind=f"{kind}({inner.kind})")
        file.seek(inner.offset + 4 * inner.dim * inner.count)
        entries = _number(file)
        content = file.read(8 * entries) if entries == header.count else b""
        if len(content) != 8 * header.count:
            raise _CutError(f"the {header.count:,} ids at its end are not whole")
        return dataclasses.replace(inner, kind=f"{kind}({inner.kind})", ids=np.frombuffer(content, "<i8"))
    if header.fourcc in _HNSW:
        for item in _GRAPH:
            file.seek(_number(file) * item, 1)
        file.seek(5 * 4, 1)
        if file.tell() > size:
            raise _CutError(f"{size:,} bytes, and the graph of its {header.count:,} vectors ends beyond")
        storage = _layout(file, size)
        offset = storage.offset if storage.kind == "Flat" and storage.count == header.count else None
        return Layout(kind, header.dim, header.count, header.metric, offset)
    if header.fourcc in _FLAT:
        numbers, offset = _number(file), file.tell()
        if numbers != header.dim * header.count:
            return Layout(kind, header.dim, header.count, header.metric, None)
        if size < offset + 4 * numbers:
            raise _CutError(
                f"{size:,} bytes where {header.count:,} vectors of {header.dim} numbers end at {offset + 4 * numbers:,}"
            )
        return Layout(kind, header.dim, header.count, header.metric, offset)
    return Layout(kind, header.dim, header.count, header.metric, None)


def _header(file: IO[bytes]) -> _Header:
    content = file.read(37)
    if len(content) < 37:
        raise _CutError("it ends within its header")
    fourcc, dim, count, _, _, _, metric = struct.unpack("<4siqqq?i", content)
    if metric > 1:
        file.read(4)
    return _Header(fourcc, dim, count, metric)


def _number(file: IO[bytes]) -> int:
    content = file.read(8)
    if len(content) < 8:
        raise _CutError("it ends before what its header announces")
    return int(struct.unpack("<Q", content)[0])


def read_faiss(path: Path) -> ForeignVectors:
    """Find the vectors of any faiss index.

    Raises:
        ConfigError: faiss is not installed.
        DataError: the file is cut short or damaged, or ranks by a metric that questions cannot be scored with.
    """
    layout = read_layout(path)
    index = _load(path)
    metric = _METRICS.get(index.metric_type)
    if metric is None:
        name = _METRIC_NAMES.get(index.metric_type, f"number {index.metric_type}")
        raise DataError(
            f"unknown metric: this index ranks by {name}, where scores are inner products",
            path=path,
            hint="encode the passages again: ragtrain index prepare --passages FILE --encoder ENCODER",
        )
    count, width = int(index.ntotal), int(index.d)
    if not count:
        raise DataError("this index holds no vector", path=path, hint=AGAIN)
    if layout.offset is not None and (layout.count, layout.dim) == (count, width):
        place = Place("float32", layout.offset, width, width)
        if _agrees(index, place.open(path, count)):
            ids = None if layout.ids is None or np.array_equal(layout.ids, np.arange(count)) else layout.ids
            return ForeignVectors(
                path, f"faiss {layout.kind}", count, width, metric=metric, place=place, ids=ids, searchable=ids is None
            )
        log.warning("%s: its vectors are not where its layout says; they are copied out through faiss", path)
    return _through_faiss(path, index, metric)


def _load(path: Path) -> Any:  # noqa: ANN401 - faiss has no types
    faiss = import_faiss()
    # Maps what can be mapped, so that a large flat file costs no memory.
    flag = getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
    try:
        return faiss.read_index(str(path), flag)
    except (RuntimeError, MemoryError) as error:
        said = str(error).rsplit("Error: ", 1)[-1]
        cut = "read error" in said or "nread" in said
        what = "truncated file: faiss" if cut else "damaged or unknown: faiss"
        raise DataError(f"{what} cannot read it ({said})", path=path, hint=AGAIN) from error


def _inner(index: Any) -> tuple[Any, np.ndarray | None]:  # noqa: ANN401
    """Return the index within an IDMap, and its ids where they are not the positions."""
    faiss = import_faiss()
    if not hasattr(index, "id_map"):
        return index, None
    ids = faiss.vector_to_array(index.id_map)
    inner = faiss.downcast_index(index.index)
    return inner, None if np.array_equal(ids, np.arange(len(ids))) else ids


def _agrees(index: Any, vectors: np.ndarray) -> bool:  # noqa: ANN401
    inner, _ = _inner(index)
    rows = np.unique(np.linspace(0, len(vectors) - 1, COMPARED).astype(np.int64))
    return all(np.array_equal(inner.reconstruct(int(row)), vectors[row], equal_nan=True) for row in rows)


def _through_faiss(path: Path, index: Any, metric: Literal["inner_product", "l2"]) -> ForeignVectors:  # noqa: ANN401
    inner, ids = _inner(index)
    name = type(inner).__name__.removeprefix("Index")
    kind = f"faiss {name}" if inner is index else f"faiss {type(index).__name__.removeprefix('Index')}({name})"
    count, width = int(index.ntotal), int(index.d)
    blocks, list_ids = _lists(inner) if name == "IVFFlat" else (functools.partial(_reconstructed, inner, path), None)
    if list_ids is not None and not np.array_equal(list_ids, np.arange(count)):
        if ids is None:
            ids = list_ids  # given by whoever added the vectors
        else:
            raise DataError("the ids of this index are mapped twice", path=path, hint="save the index without IDMap")
    half = name in ("ScalarQuantizer", "HNSWSQ", "IVFScalarQuantizer") and "fp16" in _quantizer(inner)
    return ForeignVectors(
        path, kind, count, width, "float16" if half else "float32", metric, blocks=blocks, ids=ids, loss=_loss(inner),
        searchable=ids is None, owner=index,
    )  # fmt: skip


def _reconstructed(index: Any, path: Path) -> Iterator[np.ndarray]:  # noqa: ANN401
    if hasattr(index, "make_direct_map"):
        index.make_direct_map(True)
    rows = max(1, BLOCK // index.d)
    for start in range(0, index.ntotal, rows):
        try:
            yield index.reconstruct_n(start, min(rows, index.ntotal - start))
        except RuntimeError as error:
            raise DataError(
                f"faiss cannot give the vectors of this {type(index).__name__} back: {error}",
                path=path,
                hint="encode the passages again: ragtrain index prepare --passages FILE --encoder ENCODER",
            ) from error


def _lists(index: Any) -> tuple[Callable[[], Iterator[np.ndarray]], np.ndarray | None]:  # noqa: ANN401
    """Read the inverted lists of an IVFFlat index; return its vectors by rising id, and the ids."""
    faiss = import_faiss()
    lists, ids, rows = index.invlists, [], []
    for number in range(index.nlist):
        size = lists.list_size(number)
        if size:
            ids.append(faiss.rev_swig_ptr(lists.get_ids(number), size).copy())
            codes = faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size)
            rows.append(codes.view(np.float32).reshape(size, index.d))
    all_ids = np.concatenate(ids)
    order = np.argsort(all_ids, kind="stable")
    list_of = np.repeat(np.arange(len(rows)), [len(part) for part in rows])[order]
    place_in = np.concatenate([np.arange(len(part)) for part in rows])[order]

    def blocks() -> Iterator[np.ndarray]:
        step = max(1, BLOCK // index.d)
        for start in range(0, len(order), step):
            part = np.empty((len(order[start : start + step]), index.d), np.float32)
            chosen, inside = list_of[start : start + step], place_in[start : start + step]
            for number in np.unique(chosen):
                part[chosen == number] = rows[number][inside[chosen == number]]
            yield part

    return blocks, all_ids[order]


def _loss(index: Any) -> str | None:  # noqa: ANN401
    """Return what an index keeps less than its vectors, None where it keeps them whole."""
    faiss = import_faiss()
    name = type(index).__name__
    if name == "IndexPreTransform":
        steps = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
        shrinks = [type(step).__name__ for step in steps if step.d_out < step.d_in]
        inner = _loss(faiss.downcast_index(index.index))
        return inner or (f"{', '.join(shrinks)} keeps {index.index.d} of {index.d} dimensions" if shrinks else None)
    if name in ("IndexFlat", "IndexFlatIP", "IndexFlatL2", "IndexHNSWFlat", "IndexIVFFlat", "IndexNSGFlat"):
        return None
    if name in ("IndexRefine", "IndexRefineFlat"):
        return _loss(faiss.downcast_index(index.refine_index))
    if hasattr(index, "pq"):
        return f"product quantisation keeps {index.pq.code_size} bytes of a vector of {4 * index.d}"
    if hasattr(index, "sq") or name == "IndexHNSWSQ":
        which = _quantizer(index)
        return None if which == "fp16" else f"scalar quantisation ({which}) keeps fewer bits of every number"
    if hasattr(index, "storage") and index.storage is not None:
        return _loss(faiss.downcast_index(index.storage))
    return f"{name} does not keep the vectors themselves"


def _quantizer(index: Any) -> str:  # noqa: ANN401
    faiss = import_faiss()
    held = index if hasattr(index, "sq") else faiss.downcast_index(index.storage)
    names = {getattr(faiss.ScalarQuantizer, name): name for name in dir(faiss.ScalarQuantizer) if name[:3] == "QT_"}
    return names.get(held.sq.qtype, "unknown").removeprefix("QT_")


def write_flat(path: Path, blocks: Iterator[np.ndarray], count: int, dim: int) -> None:
    """Write (m, dim) blocks as a faiss ``IndexFlatIP``, without holding them in memory."""
    with path.open("wb") as file:
        file.write(struct.pack("<4siqqq?i", b"IxFI", dim, count, 1 << 20, 1 << 20, True, 0))
        file.write(struct.pack("<Q", count * dim))
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype="<f4").tobytes())
