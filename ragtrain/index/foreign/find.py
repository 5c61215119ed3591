"""Which file is the index, and which are the passages: the names under which other tools write them.

Sources: transformers ``RagRetriever.save_pretrained`` and the ``use_own_knowledge_dataset.py`` of its RAG examples,
FlashRAG ``retriever/index_builder.py``, DPR ``dpr/indexer/faiss_indexers.py``, Atlas ``src/index.py``, Pyserini
``pyserini.encode``, BEIR.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ragtrain.errors import DataError
from ragtrain.index.foreign.faiss_file import is_faiss

if TYPE_CHECKING:
    from pathlib import Path

PICKLE_HINT = (
    "pickles run any code when they are loaded: give the passages in the order of the vectors with --passages "
    "(JSON lines, TSV, a dataset folder), and where the order differs the vectors' ids with --ids-file"
)
#: Patterns of index files, the most telling first.
VECTORS = (
    "index.faiss", "hf_dataset_index.faiss", "*_hnsw_index.faiss", "*.faiss", "*_Flat.index", "*.index.dpr", "*.index",
    "index", "embeddings.npy", "vectors.npy", "emb*.npy", "*.npy", "*.npz", "emb_*.memmap", "*.memmap",
)  # fmt: skip
#: Files that are not the index although a pattern above fits.
_NOT_VECTORS = ("passages.idx.npy", "ids.npy", "docids.npy", "doc_ids.npy", "passage_ids.npy")
PASSAGES = (
    "passages.jsonl", "corpus.jsonl", "psgs_w100.tsv", "passages.jsonl.gz", "corpus.jsonl.gz", "psgs_w100.tsv.gz",
    "hf_dataset", "my_knowledge_dataset", "passages.tsv", "passages.parquet", "corpus.parquet",
)  # fmt: skip
IDS = ("ids.txt", "docid", "docids.txt", "ids.json", "ids.npy", "docids.npy", "doc_ids.npy", "passage_ids.npy")


@dataclasses.dataclass(frozen=True)
class Found:
    """An index of another tool.

    Attributes:
        kind: ``faiss``, ``npy``, ``npz``, ``memmap``, ``atlas`` or ``arrow``.
        path: the file of the vectors; the folder for ``atlas`` and ``arrow``.
        folder: where its companions are looked for.
    """

    kind: str
    path: Path
    folder: Path

    def passages(self) -> Path | None:
        """Return the passages beside the index, None where none has a known name."""
        if self.kind == "arrow":
            return self.path
        # RAG's examples write my_knowledge_dataset/ and my_knowledge_dataset_hnsw_index.faiss.
        stems = [name for ending in ("_hnsw_index.faiss", "_index.faiss") if (name := _without(self.path.name, ending))]
        for name in (*stems, *PASSAGES):
            candidate = self.folder / name
            if candidate.is_file() or (candidate / "state.json").is_file():
                return candidate
        datasets = [part.parent for part in sorted(self.folder.glob("*/state.json"))]
        return datasets[0] if len(datasets) == 1 else None

    def ids(self) -> Path | None:
        """Return the list of the vectors' ids beside the index, None where none has a known name."""
        return next((self.folder / name for name in IDS if (self.folder / name).is_file()), None)


def find(path: Path) -> Found:
    """Find the index of a path: the file itself, or the one in the folder.

    Raises:
        DataError: there is none, or several that could be meant, or it is of a kind that is refused.
    """
    if not path.exists():
        raise DataError("there is no such file or folder", path=path, hint="check the path")
    if path.is_file():
        return _file(path)
    if (path / "state.json").is_file():
        return Found("arrow", path, path.parent)
    if list(path.glob("embeddings.*.pt")):
        return Found("atlas", path, path)
    for pattern in VECTORS:
        files = [file for file in sorted(path.glob(pattern)) if file.is_file() and file.name not in _NOT_VECTORS]
        if len(files) > 1:
            names = ", ".join(file.name for file in files[:6])
            raise DataError(f"holds several indexes: {names}", path=path, hint="name the file itself with --index-path")
        if files and (pattern != "index" or is_faiss(files[0])):
            return _file(files[0])
    datasets = [part.parent for part in sorted(path.glob("*/state.json"))]
    if len(datasets) == 1:
        return Found("arrow", datasets[0], path)
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:12]) or "nothing"
    raise DataError(
        f"the folder holds no index of a known kind; it holds {held}",
        path=path,
        hint="known are faiss files (index.faiss, *.index, *.index.dpr), .npy, .npz and .memmap files, embeddings.*.pt "
        "and dataset folders with a column embeddings",
    )


def is_index(path: Path) -> bool:
    """Return whether something that could be adopted stands at a path."""
    try:
        find(path)
    except (DataError, OSError):
        return False
    return True


def _file(path: Path) -> Found:
    refuse_pickle(path)
    if path.name.startswith("embeddings.") and path.suffix == ".pt":
        return Found("atlas", path.parent, path.parent)
    with path.open("rb") as file:
        start = file.read(6)
    if is_faiss(path):
        return Found("faiss", path, path.parent)
    if start == b"\x93NUMPY":
        return Found("npy", path, path.parent)
    if start[:4] == b"PK\x03\x04" and path.suffix == ".npz":
        return Found("npz", path, path.parent)
    if path.suffix in (".memmap", ".mmap", ".dat", ".bin"):
        return Found("memmap", path, path.parent)
    if path.name in ("state.json", "dataset_info.json"):
        return find(path.parent)
    if path.suffix == ".arrow" and (path.parent / "state.json").is_file():
        return Found("arrow", path.parent, path.parent.parent)
    if not start or path.suffix in (".faiss", ".index") or path.name.endswith(".index.dpr"):
        what = "truncated file: it is empty" if not start else "truncated or damaged file: no index of faiss begins so"
        raise DataError(what, path=path, hint="copy the file again from where it was made")
    raise DataError(
        "no index of a known kind", path=path, hint="known are faiss files, .npy, .npz, .memmap and embeddings.*.pt"
    )


def refuse_pickle(path: Path) -> None:
    """Refuse a file that is a pickle by its name or by its first bytes.

    Raises:
        DataError: it is one.
    """
    with path.open("rb") as file:
        start = file.read(2)
    named = path.suffix in (".pkl", ".pickle") or path.name.endswith(".index_meta.dpr")
    named = named or path.name.startswith("wiki_passages_")
    if named or (len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5):
        raise DataError("this is a pickle, which is not read", path=path, hint=PICKLE_HINT)


def _without(name: str, ending: str) -> str:
    return name.removesuffix(ending) if name.endswith(ending) else ""
