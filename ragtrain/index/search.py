"""Opening an index folder: every file is checked against the manifest and the others, by size and by count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ragtrain.config.commands import EncoderConfig
from ragtrain.errors import DataError, IndexMismatchError
from ragtrain.index.encode import FORMAT, MANIFEST_FILE, VECTORS_FILE, VERSION
from ragtrain.index.exact import Hits, Searcher
from ragtrain.index.faiss_flat import FAISS_FILE, FaissSearcher
from ragtrain.index.passages import PassageStore

if TYPE_CHECKING:
    import torch

__all__ = ["DenseIndex", "FaissSearcher", "Hits", "Searcher", "read_manifest"]

AGAIN = "prepare the index again with `ragtrain index prepare --overwrite`"


class DenseIndex:
    """An index folder: passages, their vectors, and the manifest that says how they were made."""

    def __init__(self, path: Path, manifest: dict[str, Any], vectors: np.ndarray, passages: PassageStore) -> None:
        self.path, self.manifest = path, manifest
        self.vectors, self.passages = vectors, passages

    @classmethod
    def open(cls, path: Path | str) -> DenseIndex:
        """Open a folder of ``ragtrain index prepare`` without reading passages or vectors.

        Raises:
            DataError: it is no index, or a file is missing, cut, or does not fit the others; the file is named.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        for name, entry in manifest["files"].items():
            check_size(folder / name, int(entry["size"]))
        try:
            vectors = np.load(folder / VECTORS_FILE, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(f"not an array of vectors: {error}", path=folder / VECTORS_FILE, hint=AGAIN) from error
        expected = (int(manifest["count"]), int(manifest["dim"]))
        if vectors.shape != expected or vectors.dtype != np.dtype(manifest["storage"]):
            found = f"{vectors.dtype} {vectors.shape}"
            raise IndexMismatchError(
                f"holds {found} where the manifest says {manifest['storage']} {expected}",
                path=folder / VECTORS_FILE,
                hint=AGAIN,
            )
        passages = PassageStore(folder)
        if len(passages) != len(vectors):
            raise IndexMismatchError(
                f"has {len(passages)} passages for {len(vectors)} vectors", path=passages.path, hint=AGAIN
            )
        return cls(folder, manifest, vectors, passages)

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

        For a DPR context encoder it is the question encoder that was trained with it, where its name says so.
        """
        encoder = self.manifest["encoder"]
        name: str | None = encoder.get("name")
        if name is not None and encoder.get("spec", {}).get("model_class") == "DPRContextEncoder":
            return name.replace("ctx_encoder", "question_encoder")
        return name

    @property
    def encoder_config(self) -> EncoderConfig:
        """What was asked of the encoder when the index was made, to be asked again of the encoder of questions."""
        return EncoderConfig.model_validate(self.manifest["encoder"].get("config") or {})

    def searcher(
        self, device: torch.device | str = "cpu", *, backend: Literal["flat", "faiss-flat"] = "flat"
    ) -> Searcher:
        """Return a searcher that holds the vectors on a device.

        Args:
            device: where the matrix lies and where hits are returned.
            backend: ``flat`` is a matrix product in torch; ``faiss-flat`` uses ``index.faiss``, on the CPU.

        Raises:
            ConfigError: faiss is not installed.
            DataError: ``index.faiss`` is missing or does not fit the index.
        """
        max_norm = self.manifest.get("max_norm")
        if backend == "faiss-flat":
            path = self.path / FAISS_FILE
            return FaissSearcher(path, self.vectors, device, metric=self.metric, max_norm=max_norm)
        return Searcher(self.vectors, device, metric=self.metric, max_norm=max_norm)


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
