"""Opening an index folder: every file is checked against the manifest and the others, by size and by count."""

from __future__ import annotations

import json
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ragtrain.config.commands import EncoderConfig
from ragtrain.errors import DataError, IndexMismatchError
from ragtrain.index.again import prepare_command
from ragtrain.index.bm25 import BM25Index
from ragtrain.index.encode import FORMAT, MANIFEST_FILE, VECTORS_FILE, VERSION
from ragtrain.index.exact import Hits, Searcher
from ragtrain.index.faiss_search import FAISS_FILE, FaissSearcher
from ragtrain.index.foreign import LineForm, LineStore, Place, find, is_index
from ragtrain.index.passages import OFFSETS_FILE, PassageStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

__all__ = ["DenseIndex", "FaissSearcher", "Hits", "Searcher", "read_manifest"]

log = logging.getLogger("ragtrain")

AGAIN = "prepare the index again with `ragtrain index prepare --overwrite`"


class DenseIndex:
    """An index folder: passages, their vectors, and the manifest that says how they were made."""

    def __init__(self, path: Path, manifest: dict[str, Any], vectors: np.ndarray, passages: PassageStore) -> None:
        self.path, self.manifest = path, manifest
        self.vectors, self.passages = vectors, passages

    @classmethod
    def open(cls, path: Path | str, *, passages: Path | None = None) -> DenseIndex:
        """Open a folder of ``ragtrain index prepare`` without reading passages or vectors.

        Args:
            path: the folder, or a file in it: an adopted index stays where it was.
            passages: what the user takes for its passages; said to be unused where it is another file.

        Raises:
            DataError: it is no index, or a file is missing, cut, or does not fit the others; the file is named.
        """
        folder = index_folder(Path(path), passages)
        manifest = read_manifest(folder)
        for name, entry in manifest["files"].items():
            check_size(file_path(folder, manifest, name), int(entry["size"]))
        held = manifest.get("passages")
        vectors = _open_vectors(folder, manifest)
        if held is None:
            store = PassageStore(folder)
        else:
            file = file_path(folder, manifest, held["file"])
            store = LineStore(file, folder / OFFSETS_FILE, LineForm.from_json(held["form"]))
        if len(store) != len(vectors):
            raise IndexMismatchError(
                f"has {len(store)} passages for {len(vectors)} vectors", path=store.path, hint=AGAIN
            )
        if passages is not None and passages.resolve() not in _passage_paths(store, manifest):
            log.warning("the index %s has its passages from %s: %s is not read", folder, store.path, passages)
        return cls(folder, manifest, vectors, store)

    def file(self, name: str) -> Path:
        """Return where a file of the manifest is; an adopted one lies outside the folder."""
        return file_path(self.path, self.manifest, name)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def count(self) -> int:
        """Number of passages."""
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.vectors.shape[1])

    @property
    def metric(self) -> Literal["inner_product", "cosine"]:
        """What a score is; with ``cosine`` the stored vectors have unit length."""
        return "cosine" if self.manifest["metric"] == "cosine" else "inner_product"

    @property
    def question_encoder(self) -> str | None:
        """Name of the encoder that questions to this index need; None is the built-in demo encoder.

        For a DPR context encoder it is the question encoder that was trained with it, where its name says so; the index
        of a run that trained both names both.
        """
        encoder = self.manifest["encoder"]
        if trained := encoder.get("question_encoder"):
            return str(trained)
        name: str | None = encoder.get("name")
        if name is not None and encoder.get("spec", {}).get("model_class") == "DPRContextEncoder":
            return name.replace("ctx_encoder", "question_encoder")
        return name

    @property
    def encoder_config(self) -> EncoderConfig:
        """What was asked of the encoder when the index was made, to be asked again of the encoder of questions."""
        return EncoderConfig.model_validate(self.manifest["encoder"].get("config") or {})

    def searcher(
        self, device: torch.device | str = "cpu", *, backend: Literal["flat", "faiss", "faiss-flat"] = "flat"
    ) -> Searcher:
        """Return a searcher that holds the vectors on a device.

        Args:
            device: where the matrix lies and where hits are returned.
            backend: ``flat`` is exact search in torch; ``faiss`` (or ``faiss-flat``) uses ``index.faiss``, whatever its
                type, on the CPU.

        Raises:
            ConfigError: faiss is not installed.
            DataError: ``index.faiss`` is missing or does not fit the index.
        """
        max_norm = self.manifest.get("max_norm")
        if backend == "flat":
            return Searcher(self.vectors, device, metric=self.metric, max_norm=max_norm)
        kind = "faiss-flat" if backend == "faiss-flat" else "hnsw"
        hint = f"write it with `{prepare_command(self.path, self.manifest, '--index-type', kind)}`"
        path = self.file(FAISS_FILE)
        if FAISS_FILE not in self.manifest["files"] and path.exists():
            # Of an earlier index, or of another tool with numbers of its own: its answers are not positions here.
            own = f"search with --search-index flat, or adopt it with --index-type {kind} into another folder (--output-dir)"
            raise DataError("this file is no search index of these vectors", path=path, hint=own)
        return FaissSearcher(path, self.vectors, device, metric=self.metric, max_norm=max_norm, hint=hint)

    def words(self) -> BM25Index:
        """Return search by words in this index's passages.

        Raises:
            ConfigError: bm25s is not installed.
            DataError: the index has no ``bm25`` folder, or it was made from other passages.
        """
        hint = f"write it with `{prepare_command(self.path, self.manifest, '--bm25')}`"
        return BM25Index.open(self.path, self.manifest, hint)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an index folder.

    Raises:
        DataError: there is none, or it is not one that this version reads.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        what = "there is no such folder" if not folder.exists() else f"no index: there is no {MANIFEST_FILE} in it"
        raise DataError(what, path=folder, hint="make one with `ragtrain index prepare --output-dir`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"no JSON: {error}", path=path, hint=AGAIN) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"no manifest of an index: `format` is not {FORMAT!r}", path=path, field="format")
    if manifest.get("version") != VERSION:
        raise DataError(f"version {manifest.get('version')} where {VERSION} is read", path=path, hint=AGAIN)
    for key in ("count", "dim", "metric", "storage", "encoder", "files", "passages_sha256"):
        if key not in manifest:
            raise DataError("is missing", path=path, field=key, hint=AGAIN)
    return manifest


def index_folder(path: Path, passages: Path | None = None) -> Path:
    """Return the index folder that a path means: itself, or the folder of a file in it.

    Raises:
        DataError: there is none; where it is an index of another tool, the command that adopts it is named.
    """
    folder = path.parent if path.is_file() else path
    if (folder / MANIFEST_FILE).is_file() and (folder == path or _holds(folder, path)):
        return folder
    if not path.exists():
        raise DataError("there is no such folder", path=path, hint="make one with `ragtrain index prepare`")
    if not is_index(path):
        raise DataError(
            f"no index: there is no {MANIFEST_FILE} in it",
            path=path,
            hint="make one with `ragtrain index prepare --output-dir`",
        )
    found = find(path).passages() or Path("PASSAGES_FILE")
    given = passages or found
    raise DataError(
        "this is an index of another tool that was not adopted yet",
        path=path,
        hint=f"adopt it, once and without a copy:\n  ragtrain index prepare --index-path {shlex.quote(str(path))} "
        f"--passages {shlex.quote(str(given))} --encoder ENCODER\nwhere ENCODER is what the passages were encoded with",
    )


def _holds(folder: Path, file: Path) -> bool:
    manifest = read_manifest(folder)
    return any(file.resolve() == file_path(folder, manifest, name).resolve() for name in manifest["files"])


def file_path(folder: Path, manifest: Mapping[str, Any], name: str) -> Path:
    """Return where a file of a manifest is; ``path`` of its entry is absolute or relative to the folder."""
    return folder / str(manifest["files"].get(name, {}).get("path", name))


def _passage_paths(store: PassageStore, manifest: Mapping[str, Any]) -> set[Path]:
    source = manifest.get("source", {}).get("path")
    return {store.path.resolve(), *([Path(source).resolve()] if source else [])}


def _open_vectors(folder: Path, manifest: Mapping[str, Any]) -> np.ndarray:
    held, expected = manifest.get("vectors"), (int(manifest["count"]), int(manifest["dim"]))
    if held is not None:
        return Place(**held["place"]).open(file_path(folder, manifest, held["file"]), expected[0])
    path = folder / VECTORS_FILE
    try:
        vectors: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"not an array of vectors: {error}", path=path, hint=AGAIN) from error
    if vectors.shape != expected or vectors.dtype != np.dtype(manifest["storage"]):
        found = f"{vectors.dtype} {vectors.shape}"
        raise IndexMismatchError(
            f"holds {found} where the manifest says {manifest['storage']} {expected}", path=path, hint=AGAIN
        )
    return vectors


def check_size(path: Path, size: int) -> None:
    """Refuse a file that is not as long as it was when the index was made.

    Raises:
        DataError: it is missing or has another size.
    """
    if not path.is_file():
        raise DataError("this file of the index is missing", path=path, hint=AGAIN)
    found = path.stat().st_size
    if found != size:
        what = "was cut" if found < size else "was changed"
        raise DataError(f"{what}: {found:,} bytes where the manifest says {size:,}", path=path, hint=AGAIN)
