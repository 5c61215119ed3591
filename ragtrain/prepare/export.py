"""``--export-hf``: an index in the form that transformers' ``RagRetriever`` loads.

::

    FOLDER/hf_dataset/                what Dataset.save_to_disk writes: id, title, text, embeddings (float32)
    FOLDER/hf_dataset_index.faiss     IndexFlatIP over the embeddings, in the same order

which are the names that ``RagRetriever.save_pretrained`` gives them::

    RagConfig(..., index_name="custom", passages_path="FOLDER/hf_dataset", index_path="FOLDER/hf_dataset_index.faiss")

Both are streamed: neither vectors nor passages are held in memory. transformers scores by inner product, so an index of
cosines must be asked with a question encoder that scales to unit length; the order is the same without.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain import report
from ragtrain.errors import ConfigError
from ragtrain.index.foreign.faiss_file import write_flat
from ragtrain.records import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ragtrain.index.search import DenseIndex

log = logging.getLogger("ragtrain")

DATASET, INDEX = "hf_dataset", "hf_dataset_index.faiss"
#: Passages of a batch, as datasets writes them, and bytes of a shard.
BATCH = 1000
SHARD = 500_000_000
_TYPES = {"id": "string", "title": "string", "text": "string"}


def export_hf(index: DenseIndex, folder: Path, *, overwrite: bool = False) -> None:
    """Write an index for ``RagRetriever``; an export of the same index that is there already is left alone.

    Raises:
        ConfigError: something else is there.
    """
    mark = _mark(index)
    if (folder / DATASET / "state.json").is_file() and not overwrite:
        if f'"_fingerprint": "{mark}"' in (folder / DATASET / "state.json").read_text(encoding="utf-8"):
            log.info("%s holds this export already", folder)
            return
        raise ConfigError(f"{folder} holds another export", hint="give --overwrite, or another --export-hf")
    if not overwrite and any((folder / name).exists() for name in (DATASET, INDEX)):
        raise ConfigError(f"{folder} holds something else", hint="give --overwrite, or another --export-hf")
    aside = folder / f".export.tmp-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    (aside / DATASET).mkdir(parents=True)
    try:
        write_flat(aside / INDEX, _blocks(index), index.count, index.dim)
        _write_dataset(index, aside / DATASET, mark)
        shutil.rmtree(folder / DATASET, ignore_errors=True)
        (aside / DATASET).replace(folder / DATASET)
        (aside / INDEX).replace(folder / INDEX)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    report.panel("Export for transformers", [("passages_path", folder / DATASET), ("index_path", folder / INDEX)])


def _mark(index: DenseIndex) -> str:
    """Return 16 hexadecimal digits that stand for passages and vectors."""
    whole = f"{index.manifest['passages_sha256']} {index.manifest['vectors_sha256']} {index.count} {index.dim}"
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def _blocks(index: DenseIndex) -> Iterator[np.ndarray]:
    for start in range(0, index.count, BATCH):
        yield np.array(index.vectors[start : start + BATCH], dtype=np.float32)


def _write_dataset(index: DenseIndex, folder: Path, mark: str) -> None:
    """Write what ``datasets.load_from_disk`` reads: Arrow streams, their list, and the types of the columns."""
    import pyarrow as pa

    schema = pa.schema([*((name, pa.string()) for name in _TYPES), ("embeddings", pa.list_(pa.float32()))])
    of_passage = SHARD // (4 * index.dim + 1000)
    rows = max(BATCH, of_passage // BATCH * BATCH)
    starts = range(0, index.count, rows)
    names = [f"data-{number:05d}-of-{len(starts):05d}.arrow" for number in range(len(starts))]
    bar: report.Progress[None] = report.progress(index.count, "Exporting passages")
    with bar:
        for name, start in zip(names, starts, strict=True):
            with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
                for first in range(start, min(start + rows, index.count), BATCH):
                    last = min(first + BATCH, start + rows, index.count)
                    writer.write_batch(_batch(index, first, last, schema))
                    bar.advance(last - first)
    features: dict[str, Any] = {name: {"dtype": dtype, "_type": "Value"} for name, dtype in _TYPES.items()}
    features["embeddings"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "List"}
    write_json(folder / "dataset_info.json", {"citation": "", "description": "", "features": features, "homepage": "",
                                              "license": ""})  # fmt: skip
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names], "_fingerprint": mark, "_format_columns": None,
        "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None,
    }  # fmt: skip
    write_json(folder / "state.json", state)


def _batch(index: DenseIndex, first: int, last: int, schema: Any) -> Any:  # noqa: ANN401 - pyarrow has no types
    import pyarrow as pa

    passages = index.passages[first:last]
    numbers = np.array(index.vectors[first:last], dtype=np.float32, order="C")
    offsets = np.arange(0, numbers.size + 1, index.dim, dtype=np.int32)
    columns = [pa.array([getattr(passage, name) for passage in passages], pa.string()) for name in _TYPES]
    columns.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(numbers.reshape(-1))))
    return pa.record_batch(columns, schema=schema)
