"""``ragtrain index prepare --index-path``: an index of another tool becomes one of ours, as it stands.

Vectors and passages stay in their files; what is written is a manifest and the byte offsets of the passages, beside
them or in ``--output-dir``. Copied are only vectors that no array can be laid over (inverted lists, quantised ones,
Arrow columns) and passages that cannot be read by byte offset (compressed, Arrow, JSON arrays); the log says so.
Before anything is left behind, all of it is verified (``verify.py``).
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
import shutil
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ragtrain import report
from ragtrain.errors import ConfigError, DataError, IndexMismatchError
from ragtrain.index.encode import FORMAT, MANIFEST_FILE, VECTORS_FILE, VERSION, _versions, file_entry
from ragtrain.index.faiss_search import FAISS_FILE
from ragtrain.index.foreign import ForeignVectors, Found, Place, find, read_vectors
from ragtrain.index.passages import OFFSETS_FILE, PASSAGES_FILE
from ragtrain.index.search import DenseIndex, read_manifest
from ragtrain.prepare.encoders import encoder_entry, passage_encoder, resolve_device
from ragtrain.prepare.lines import Passages, read_ids, read_passages, reorder
from ragtrain.prepare.result import PrepareResult
from ragtrain.prepare.verify import ENCODE_AGAIN, Scan, Subject, Verification, verify
from ragtrain.records import write_json

if TYPE_CHECKING:
    from pathlib import Path

    from ragtrain.config.commands import PrepareConfig
    from ragtrain.models.encoder import TextEncoder

log = logging.getLogger("ragtrain")

#: Rows by which DPR's auxiliary dimension is recognised.
RECOGNISED = 65536


@dataclasses.dataclass(frozen=True)
class _Vectors:
    """Vectors as they will be opened: a file, and where in it they are."""

    array: np.ndarray
    path: Path
    place: Place
    auxiliary: bool = False


def run(config: PrepareConfig) -> PrepareResult:
    """Adopt the index of a configuration.

    Raises:
        ConfigError: the encoder cannot be loaded or is not given, or something else stands at the output path.
        DataError: index or passages cannot be read, or are of a kind that is refused.
        IndexMismatchError: vectors, passages and encoder do not belong together; every fault is called by its name.
    """
    started = time.monotonic()
    if config.index_path is None:
        raise ConfigError("there is no index to adopt", hint="give --index-path")
    # 1. What there is.
    own = _own(config)
    if own is not None:
        return _result(own, started, reused=True, skipped=0)
    found = find(config.index_path)
    output = config.output_dir or found.folder
    device = resolve_device(config.device)
    encoder = passage_encoder(config.encoder).to(device) if config.encoder.encoder or config.verify_samples else None
    entry = (
        encoder_entry(config.encoder, encoder, encoder.fingerprint()) if encoder else {"name": None, "unknown": True}
    )
    reused = _adopted(config, found, output, entry)
    if reused is not None:
        return _result(reused, started, reused=True, skipped=0)
    if config.index_type != "flat" and (output / FAISS_FILE).exists():
        raise ConfigError(
            f"{output / FAISS_FILE} is the other tool's, and --index-type {config.index_type} would replace it",
            hint="give an --output-dir of its own",
        )
    aside = output / f".adopt.tmp-{os.getpid()}"
    new = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        shutil.rmtree(aside, ignore_errors=True)  # process numbers come again
        aside.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written to ({error.strerror})", hint="give --output-dir") from error
    try:
        # 2. Passages and vectors where they lie, in one order.
        passages = read_passages(_passages_path(config, found), aside, skip_bad_lines=config.skip_bad_lines)
        source = read_vectors(found, passages=len(passages.store), dim=encoder.dim if encoder else None)
        encoder = _fitting(config, encoder, source)
        passages = reorder(passages, _ids(config, found, source), source, aside)
        _check_count(passages, source)
        vectors = _open(source, encoder, aside, found.path)

        # 3. Whether they belong together.
        subject = Subject(vectors.array, passages.store, source.metric, vectors.auxiliary, source.loss)
        verification, seen = verify(
            subject, encoder if config.verify_samples else None, samples=config.verify_samples, device=device,
            batch_size=config.encode_batch_size,
        )  # fmt: skip
        verification.show(f"Verification of {config.index_path}")
        verification.require(found.path)

        # 4. The manifest, and what had to be written, in place.
        metric = _metric(encoder, seen)
        if config.dry_run:
            seconds = time.monotonic() - started
            planned = {
                "output": str(output),
                "written": sorted(file.name for file in aside.iterdir()),
                "metric": metric,
            }
            report.panel("Plan", list(planned.items()))
            return PrepareResult(
                output, source.count, vectors.array.shape[1], metric, seconds, passages.read, passages.skipped,
                plan=planned, verification=verification.to_json(),
            )  # fmt: skip
        manifest = _manifest(source, vectors, passages, seen, output=output, aside=aside)
        manifest |= {"metric": metric, "encoder": entry, "verification": verification.to_json()}
        if config.ids_file is not None:
            manifest["source"]["ids_file"] = str(config.ids_file.resolve())
        _put_in_place(aside, output, manifest, overwrite=config.overwrite)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        _remove_empty(new)
    index = DenseIndex.open(output)
    seconds = time.monotonic() - started
    report.panel("Index", [
        ("path", output), ("adopted", f"{source.kind}, {source.path}"), ("passages", passages.described),
        ("count", index.count), ("dimensions", index.dim), ("metric", metric), ("seconds", round(seconds, 1)),
    ])  # fmt: skip
    return _result(index, started, reused=False, skipped=passages.skipped, verification=verification)


def _result(
    index: DenseIndex, started: float, *, reused: bool, skipped: int, verification: Verification | None = None
) -> PrepareResult:
    checks = verification.to_json() if verification else index.manifest.get("verification")
    return PrepareResult(
        index.path, index.count, index.dim, index.metric, time.monotonic() - started, index.count, skipped,
        reused=reused, verification=checks,
    )  # fmt: skip


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, up to the first in which something was left."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _own(config: PrepareConfig) -> DenseIndex | None:
    """Return the index at ``index_path`` if there is nothing to adopt: we encoded it, or only its folder is named."""
    path = config.index_path
    if path is None or not path.is_dir() or not (path / MANIFEST_FILE).is_file():
        return None
    manifest = read_manifest(path)
    if "adopted" in manifest["source"]:
        asked = (config.passages, config.ids_file, config.output_dir, config.encoder.encoder)
        if config.overwrite or any(value is not None for value in asked):
            return None
        log.info("%s was adopted already (same files and sizes): nothing to do", path)
        return DenseIndex.open(path)
    log.info("%s is an index of ragtrain already: nothing is adopted", path)
    return DenseIndex.open(path)


def _adopted(config: PrepareConfig, found: Found, output: Path, entry: dict[str, Any]) -> DenseIndex | None:
    """Return the index at the output path if it is this one, adopted before; None where there is room for it.

    Raises:
        ConfigError: another index is there, and must not be overwritten.
    """
    if config.overwrite or not (output / MANIFEST_FILE).is_file():
        return None
    try:
        index = DenseIndex.open(output)
    except DataError as error:
        raise ConfigError(
            f"{output} holds a {MANIFEST_FILE} that does not fit: {error}",
            hint="give --overwrite to adopt again, or --output-dir",
        ) from error
    before = index.manifest["source"].get("adopted", {})
    same_encoder = config.encoder.encoder is None or entry["fingerprint"] == index.manifest["encoder"].get(
        "fingerprint"
    )
    same_files = before.get("path") == str(found.path.resolve()) or _holds(index, found.path)
    if same_files and same_encoder:
        _refuse_others(config, index)
        log.info("%s was adopted already (same files, sizes and encoder): nothing to do", output)
        return index
    raise ConfigError(
        f"{output} holds another index", hint="give --overwrite to replace its manifest, or another --output-dir"
    )


def _holds(index: DenseIndex, path: Path) -> bool:
    """Return whether a file is one of an index's: its folder may have been moved since it was adopted."""
    return any(index.file(name).resolve() == path.resolve() for name in index.manifest["files"])


def _refuse_others(config: PrepareConfig, index: DenseIndex) -> None:
    """Refuse passages or an order other than those an index was adopted with.

    Raises:
        ConfigError: such are asked for.
    """
    source = index.manifest["source"]
    asked = {"passages": config.passages, "ids_file": config.ids_file}
    known = {"passages": {source["path"], str(index.passages.path.resolve())}, "ids_file": {source.get("ids_file")}}
    for name, path in asked.items():
        if path is not None and str(path.resolve()) not in known[name]:
            before = " or ".join(sorted(str(place) for place in known[name] if place)) or "none"
            raise ConfigError(
                f"{index.path} was adopted with another {name}: {before}, and {path} is asked for",
                hint="give --overwrite to adopt it again, or another --output-dir",
            )


def _passages_path(config: PrepareConfig, found: Found) -> Path:
    path = config.passages or found.passages()
    if path is None:
        raise DataError("no passages are beside this index", path=found.folder, hint="give them with --passages")
    return path


def _ids(config: PrepareConfig, found: Found, source: ForeignVectors) -> list[str] | np.ndarray | None:
    if config.ids_file is not None:
        return read_ids(config.ids_file)
    if source.ids is not None:
        return source.ids
    beside = found.ids()
    return read_ids(beside) if beside is not None else None


def _fitting(config: PrepareConfig, encoder: TextEncoder | None, source: ForeignVectors) -> TextEncoder | None:
    """Return the encoder if it is one of the index's dimension.

    Raises:
        ConfigError: none was given, and the built-in one is of another dimension.
        IndexMismatchError: the one that was given is of another dimension.
    """
    auxiliary = encoder is not None and source.metric == "l2" and source.width == encoder.dim + 1
    if encoder is None or source.width == encoder.dim or auxiliary:
        return encoder
    if config.encoder.encoder is None:
        raise ConfigError(
            f"{source.path} holds vectors of {source.width} dimensions, and the built-in encoder makes {encoder.dim}: "
            "the encoder of the passages must be known to verify them",
            hint="give --encoder FOLDER_OR_HUB_ID, or --verify-samples 0 to adopt the index unchecked",
        )
    raise IndexMismatchError(
        f"wrong dimension: vectors of {source.width} where the encoder {config.encoder.encoder} makes {encoder.dim}",
        path=source.path,
        hint="name the encoder that the passages were encoded with, or encode them again with this one",
    )


def _check_count(passages: Passages, source: ForeignVectors) -> None:
    count = len(passages.store)
    if count != source.count:
        few = "The index may have been cut, or made of pieces of the passages" if source.count != count else ""
        raise IndexMismatchError(
            f"count mismatch: {source.count:,} vectors for {count:,} passages of {passages.store.path}",
            path=source.path,
            hint=f"{few}; give the passages that were encoded (--passages), or their ids in order (--ids-file)",
        )


def _open(source: ForeignVectors, encoder: TextEncoder | None, aside: Path, path: Path) -> _Vectors:
    """Lay an array over the vectors where they are, or copy them out."""
    if source.place is not None:
        place, file = source.place, source.path
    else:
        file = aside / VECTORS_FILE
        log.info("%s: %s vectors cannot be read where they are; they are copied to %s", path, source.kind, file.name)
        place = _extract(source, file)
    dim = encoder.dim if encoder else None
    auxiliary = _has_auxiliary(source, place.open(file, source.count), dim)
    if auxiliary:
        place = dataclasses.replace(place, dim=place.width - 1)
        log.info("%s: the last of %d dimensions is DPR's auxiliary one; it is left out", path, place.width)
    return _Vectors(place.open(file, source.count), file, place, auxiliary)


def _extract(source: ForeignVectors, file: Path) -> Place:
    if source.blocks is None:
        raise DataError("its vectors cannot be read", path=source.path, hint=ENCODE_AGAIN)
    array = np.lib.format.open_memmap(file, mode="w+", dtype=source.dtype, shape=(source.count, source.width))
    done = 0
    bar: report.Progress[None] = report.progress(source.count, "Copying vectors")
    with bar:
        for block in source.blocks():
            array[done : done + len(block)] = block
            done += len(block)
            bar.advance(len(block))
    array.flush()
    if done != source.count:
        message = f"truncated file: {done:,} vectors came out of it where it says it holds {source.count:,}"
        raise DataError(message, path=source.path, hint=ENCODE_AGAIN)
    return Place(source.dtype, int(array.offset), source.width, source.width)


def _has_auxiliary(source: ForeignVectors, array: np.ndarray, dim: int | None) -> bool:
    """Return whether the last column is DPR's: it makes all vectors as long as the longest, and is not negative.

    Source: DPR, ``dpr/indexer/faiss_indexers.py``: aux = sqrt(max |v|^2 - |v|^2), searched with L2 and aux 0.
    """
    if source.metric != "l2" or source.width < 2:
        return False
    if dim is None and not source.path.name.endswith(".index.dpr"):
        return False
    if dim is not None and source.width != dim + 1:
        return False
    rows = np.array(array[:RECOGNISED], dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    if np.ptp(lengths) < 1e-3 * lengths.max() and (rows[:, -1] >= 0).all():
        return True
    raise IndexMismatchError(
        f"L2 for inner product: {source.width} dimensions are one more than the encoder's, but the last one is not the "
        f"auxiliary dimension that DPR adds: lengths go from {lengths.min():.4g} to {lengths.max():.4g}",
        path=source.path,
        hint=f"encode the passages again: {ENCODE_AGAIN}",
    )


def _metric(encoder: TextEncoder | None, seen: Scan) -> Literal["inner_product", "cosine"]:
    """Return what a score is: a cosine where the encoder (or, unknown, every vector) has unit length."""
    normal = bool(encoder.spec().get("normalize")) if encoder is not None else True
    return "cosine" if normal and seen.unit else "inner_product"


def _manifest(
    source: ForeignVectors, vectors: _Vectors, passages: Passages, seen: Scan, *, output: Path, aside: Path
) -> dict[str, Any]:
    """Return the manifest without what only the caller knows; files stay where they are and are named by path."""
    files: dict[str, dict[str, Any]] = {}

    def add(name: str, path: Path) -> str:
        if path.parent == aside:
            files[path.name] = file_entry(path)
            return path.name
        place = path.name if path.resolve().parent == output.resolve() else str(path.resolve())
        known = next((entry for entry in files.values() if entry.get("path", FAISS_FILE) == place), None)
        entry = {key: known[key] for key in ("size", "sha256")} if known else file_entry(path)
        files[name] = entry | ({} if place == name else {"path": place})
        return name

    same_order = source.metric in (None, "inner_product") or (seen.one_length and not vectors.auxiliary)
    if source.kind.startswith("faiss") and source.searchable and same_order:
        add(FAISS_FILE, source.path)  # as it stands, faiss can search it
    held = add("vectors", vectors.path)
    held_passages = add("passages", passages.store.path)
    add(OFFSETS_FILE, aside / OFFSETS_FILE)
    described = {"path": str(source.path.resolve()), "kind": source.kind, "loss": source.loss}
    return {
        "format": FORMAT,
        "version": VERSION,
        "count": source.count,
        "dim": vectors.place.dim,
        "storage": vectors.place.dtype,
        "max_norm": seen.longest,
        "passages_sha256": passages.sha256,
        "vectors_sha256": files[held]["sha256"],
        "splitting": {},
        "source": {
            "path": str(passages.source.resolve()), "index_path": str(source.path.resolve()), "format": passages.format, "passages": passages.read,
            "skipped": passages.skipped, "adopted": described,
        },
        "files": files,
        "vectors": {"file": held, "place": vectors.place.to_json()},
        **({"passages": {"file": held_passages, "form": passages.form.to_json()}} if passages.form else {}),
        "versions": _versions(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def _put_in_place(aside: Path, output: Path, manifest: dict[str, Any], *, overwrite: bool) -> None:
    before = read_manifest(output)["files"] if (output / MANIFEST_FILE).is_file() else {}
    for file in sorted(aside.iterdir()):
        target = output / file.name
        ours = file.name in before and "path" not in before[file.name]
        if target.exists() and file.name in (PASSAGES_FILE, VECTORS_FILE) and not (overwrite and ours):
            raise ConfigError(
                f"{target} is there already, and {file.name} would be written", hint="give another --output-dir"
            )
    (output / MANIFEST_FILE).unlink(missing_ok=True)
    for file in sorted(aside.iterdir()):
        file.replace(output / file.name)
    write_json(output / MANIFEST_FILE, manifest)
