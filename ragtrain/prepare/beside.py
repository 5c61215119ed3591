"""What stands beside the vectors of an index: ``index.faiss`` of any type, measured, and the BM25 index.

Both are added to a finished folder, whether it was made now or long ago, and replaced where other ones are asked for.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

from ragtrain import report
from ragtrain.errors import ConfigError
from ragtrain.index import ann
from ragtrain.index.bm25 import WORDS_FILE, add_bm25, import_bm25s
from ragtrain.index.encode import MANIFEST_FILE, file_entry
from ragtrain.index.exact import Searcher
from ragtrain.index.faiss_search import FAISS_FILE, FaissSearcher, import_faiss
from ragtrain.index.search import DenseIndex
from ragtrain.prepare.export import export_hf
from ragtrain.records import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ragtrain.config.commands import PrepareConfig

log = logging.getLogger("ragtrain")

#: Passages read at a time.
CHUNK = 4096
#: Vectors of which anything can be learned.
ENOUGH = 10**6
#: What another tool's faiss file is called in the manifest when ours takes its place; the file stays where it is.
ADOPTED_FILE = "adopted.faiss"


def check_libraries(config: PrepareConfig) -> None:
    """Refuse at once what could not be written after hours of encoding.

    Raises:
        ConfigError: faiss or bm25s is asked for and not installed.
    """
    if config.index_type != "flat":
        import_faiss()
    if config.bm25:
        import_bm25s()


def check_dimensions(config: PrepareConfig, dim: int) -> None:
    """Refuse a compression that vectors of ``dim`` numbers cannot have, before they are made.

    Raises:
        ConfigError: it is one.
    """
    if config.index_type == "ivfpq":
        ann.settings_for("ivfpq", config.ann, ENOUGH, dim)


def complete(config: PrepareConfig, path: Path) -> None:
    """Add ``index.faiss`` and BM25 to a finished folder, and export it, where asked for and not there yet.

    Raises:
        ConfigError: the vectors cannot be indexed as asked.
        DataError: no passage has a word.
    """
    if config.index_type != "flat":
        add_index(DenseIndex.open(path), config)
    if config.bm25:
        add_words(DenseIndex.open(path))
    if config.export_hf is not None:
        export_hf(DenseIndex.open(path), config.export_hf, overwrite=config.overwrite)


def add_words(index: DenseIndex) -> None:
    """Write the BM25 index into a finished folder that has none.

    Raises:
        DataError: no passage has a word.
    """
    if f"bm25/{WORDS_FILE}" in index.manifest["files"]:
        log.info("%s has a BM25 index already", index.path)
        return
    bar: report.Progress[None] = report.progress(index.count, "Reading words")
    with bar:
        passages = (p for i in range(0, index.count, CHUNK) for p in index.passages[i : i + CHUNK])
        add_bm25(index.path, index.manifest, passages, progress=bar.advance)


def add_index(index: DenseIndex, config: PrepareConfig) -> None:
    """Write ``index.faiss`` of the type asked for into a finished folder, measure it, and note both in the manifest.

    Raises:
        ConfigError: the vectors cannot be indexed as asked.
    """
    kind = config.index_type
    if kind == "flat":
        raise ConfigError("a flat index needs no faiss file", hint="--index-type faiss-flat writes one")
    settings = ann.settings_for(kind, config.ann, index.count, index.dim)
    manifest = index.manifest
    if _stands_in_the_way(index):
        raise ConfigError(
            f"{index.path / FAISS_FILE} is the other tool's, and --index-type {kind} would replace it",
            hint="adopt it into a folder of its own with --output-dir",
        )
    there = manifest.get("ann") or _plain(manifest)
    if (there.get("type"), there.get("settings")) == (kind, settings):
        log.info("%s has this %s already (%s)", index.path, FAISS_FILE, kind)
        return
    started = time.monotonic()
    aside = index.path / f".{FAISS_FILE}.tmp-{os.getpid()}"
    about: dict[str, Any] = {"type": kind, "settings": settings}
    try:
        bar: report.Progress[None] = report.progress(index.count, f"Building {kind}")
        with bar:
            built = ann.build(index.vectors, kind, settings, bar.advance)
        import_faiss().write_index(built, str(aside))
        del built
        about["seconds"] = round(time.monotonic() - started, 1)
        entry = file_entry(aside)
        about["bytes"] = entry["size"]
        if kind != "faiss-flat":
            about.update(measured(index, aside, config.ann.recall_samples))
        manifest = _without_adopted(manifest)
        aside.replace(index.path / FAISS_FILE)
    finally:
        aside.unlink(missing_ok=True)
    write_json(
        index.path / MANIFEST_FILE, {**manifest, "files": {**manifest["files"], FAISS_FILE: entry}, "ann": about}
    )
    _show(index, about)


def _stands_in_the_way(index: DenseIndex) -> bool:
    """Return whether ``index.faiss`` of the folder is another tool's: in an adopted folder only ``ann`` says it is ours."""
    target = index.path / FAISS_FILE
    if not target.exists():
        return False
    if "adopted" in (index.manifest.get("source") or {}):
        return "ann" not in index.manifest
    held = index.manifest.get("vectors") or {}
    return bool(held) and index.file(held["file"]).resolve() == target.resolve()


def _plain(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``index.faiss`` is where the manifest does not say: flat, unless it is another tool's."""
    ours = FAISS_FILE in manifest["files"] and (manifest.get("vectors") or {}).get("file") != FAISS_FILE
    return {"type": "faiss-flat", "settings": {}} if ours else {}


def _without_adopted(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest with another tool's ``index.faiss``, which holds the vectors, under a name of its own."""
    held = manifest.get("vectors") or {}
    if held.get("file") != FAISS_FILE:
        return manifest
    files = dict(manifest["files"])
    entry = files.pop(FAISS_FILE)
    return {**manifest, "files": {**files, ADOPTED_FILE: entry}, "vectors": {**held, "file": ADOPTED_FILE}}


def measured(index: DenseIndex, path: Path, samples: int) -> dict[str, Any]:
    """Return recall of a faiss file against exact search, what it was measured with, and milliseconds a question."""
    max_norm = index.manifest.get("max_norm")
    exact = Searcher(index.vectors, metric=index.metric, max_norm=max_norm)
    approximate = FaissSearcher(path, index.vectors, metric=index.metric, max_norm=max_norm)
    found = ann.measure(approximate, exact, index.vectors, samples)
    return {
        "recall": {str(n): round(share, 4) for n, share in found.recall.items()},
        "queries": found.queries,
        "ms_per_query": {"exact": round(found.exact_ms, 3), "approximate": round(found.approximate_ms, 3)},
    }


def _show(index: DenseIndex, about: dict[str, Any]) -> None:
    kind, size = about["type"], f"{about['bytes']:,}"
    if "recall" not in about:
        report.panel("faiss index", [("type", kind), ("bytes", size), ("seconds", about["seconds"])])
        return
    depths = list(about["recall"])
    exact_bytes = f"{index.vectors.nbytes:,}"
    milliseconds = about["ms_per_query"]
    queries = about["queries"]
    report.table(
        f"{kind} against exact search: {queries['count']} queries ({queries['what']}), {ann.BATCH} at a time",
        ["search", *(f"recall@{n}" for n in depths), "ms/query", "bytes"],
        [
            ["exact", *("100.0%" for _ in depths), f"{milliseconds['exact']:.2f}", exact_bytes],
            [kind, *(f"{about['recall'][n]:.1%}" for n in depths), f"{milliseconds['approximate']:.2f}", size],
        ],
    )  # fmt: skip
