"""``ragtrain index compress``: the memory vectors of a corpus, computed once and stored.

That is for compressors that read no question: with one, the vectors of a passage are others for every question, and such a run
is refused. Passages are compressed shard by shard; each shard is written aside, renamed and noted, so that a stopped command
goes on with the first that is missing. The manifest comes last.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain import report
from ragtrain.config.commands import PrepareConfig
from ragtrain.config.compression import CompressSettings
from ragtrain.data import caches
from ragtrain.errors import ConfigError, DataError, Interrupted
from ragtrain.index.passages import OFFSETS_FILE, PASSAGES_FILE, PassageStore, write_passages
from ragtrain.index.search import DenseIndex
from ragtrain.models.compress.export import read_sidecar
from ragtrain.models.folders import local_folder
from ragtrain.prepare.encoders import resolve_device
from ragtrain.prepare.journal import Journal
from ragtrain.prepare.memory import store
from ragtrain.prepare.memory.cost import break_even, sample_of
from ragtrain.prepare.memory.encode import Compressor
from ragtrain.prepare.memory.shards import Error, coded, write_shard, write_tensors
from ragtrain.prepare.memory.store import MemoryStore
from ragtrain.prepare.resume import LINE_EVERY_S, Stopped, stoppable
from ragtrain.prepare.source import Source, default_output
from ragtrain.records import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ragtrain.config.commands.store import StoreConfig
    from ragtrain.records import Passage

__all__ = ["MemoryStore", "StoreResult", "run"]

log = logging.getLogger("ragtrain")


@dataclasses.dataclass(frozen=True)
class StoreResult:
    """A store as it stands.

    Attributes:
        path: the folder.
        up_to_date: it stood there, made by the same request.
        manifest: what it says of itself.
    """

    path: Path
    up_to_date: bool
    manifest: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; files and shards one by one are in the manifest itself."""
        shown = {name: value for name, value in self.manifest.items() if name not in ("files", "shards")}
        return {"path": str(self.path), "up_to_date": self.up_to_date, **shown}


@dataclasses.dataclass(frozen=True)
class _Corpus:
    """The passages to compress, and what is written down of them."""

    passages: Sequence[Passage]
    count: int
    about: dict[str, Any]


def run(config: StoreConfig) -> StoreResult:
    """Compress the passages of a corpus and store their vectors.

    Raises:
        ConfigError: there is no such run, its vectors depend on the question, or the folder holds something else.
        DataError: passages or weights cannot be read.
        Interrupted: it was stopped; finished shards are kept.
        NumericsError: a vector does not fit the storage.
        OutOfMemoryError: one window alone does not fit on the device.
    """
    if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        raise ConfigError("a corpus is compressed by one process", hint="start it without a launcher")
    if config.passages is not None and config.index is not None:
        raise ConfigError("passages and index are both given", hint="compress one of them")
    folder, settings = _model(config)
    rate = config.compression_rate or settings.compression_rate
    settings.check_rate(rate)
    source, index = _source(config)
    path = config.output_dir or _default_path(source, index)
    request = _request(config, folder, source, index, rate)
    standing = _standing(path)
    if standing is not None and standing.manifest["request"] == request and not config.overwrite:
        log.info("%s is up to date", path)
        return _show(StoreResult(path, up_to_date=True, manifest=standing.manifest))
    _claim(path, request, overwrite=config.overwrite)
    with caches.locked(path, "compresses the same corpus"), stoppable():
        try:
            return _show(_made(config, path, request, _corpus(config, path, source, index), (folder, settings, rate)))
        except KeyboardInterrupt as interrupt:
            done = len(list(path.glob("shard-*.safetensors")))
            raise Interrupted(
                f"stopped; {done} finished shards are kept in {path}",
                signal_number=signal.SIGTERM if isinstance(interrupt, Stopped) else signal.SIGINT,
                hint="the same command goes on from there",
            ) from interrupt


def _model(config: StoreConfig) -> tuple[Path, CompressSettings]:
    """Return the folder of the model, and its numbers.

    Raises:
        ConfigError: none is given, or its vectors depend on the question.
    """
    if config.model_dir is None:
        raise ConfigError("there is no compressor", hint="give a run of `ragtrain train compress` with --model-dir")
    folder = local_folder(config.model_dir, kind="model")
    settings = CompressSettings.from_json(read_sidecar(folder)["settings"])
    if settings.query_dependent:
        raise ConfigError(
            f"the compressor of {config.model_dir} reads the question with each passage: its vectors are others for every "
            "question, and cannot be stored",
            hint="train one that does not: ragtrain train compress --no-query-dependent",
        )
    return folder, settings


def _source(config: StoreConfig) -> tuple[Source | None, DenseIndex | None]:
    if config.index is not None:
        inner = config.index / "index"
        is_dataset = not (config.index / store.MANIFEST_FILE).is_file() and (inner / store.MANIFEST_FILE).is_file()
        return None, DenseIndex.open(inner if is_dataset else config.index)
    prepared = PrepareConfig(
        passages=config.passages, passage_words=config.passage_words, overlap=0, skip_bad_lines=config.skip_bad_lines
    )
    return Source(prepared), None


def _default_path(source: Source | None, index: DenseIndex | None) -> Path:
    if index is not None:
        return index.path.parent / "memory"
    beside = default_output(source.path if source else Path())
    return beside.with_name(f"{beside.name.removesuffix('index')}memory")


def _request(
    config: StoreConfig, folder: Path, source: Source | None, index: DenseIndex | None, rate: int
) -> dict[str, Any]:
    """Return everything that decides the vectors."""
    corpus = index.manifest["passages_sha256"] if index is not None else source.request() if source else ""
    return {
        "model": store.model_mark(folder), "rate": rate, "storage": config.storage, "passages": corpus,
        "max_passages": config.max_passages, "shard_size": config.shard_size, "mixed_precision": config.mixed_precision,
    }  # fmt: skip


def _standing(path: Path) -> MemoryStore | None:
    """Return the finished store of a folder, if there is one and it is whole."""
    try:
        return MemoryStore(path)
    except DataError:
        return None


def _claim(path: Path, request: dict[str, Any], *, overwrite: bool) -> None:
    """See that the folder is free for this request, or holds what it has begun.

    Raises:
        ConfigError: it holds something else.
    """
    work = path / store.WORK_FILE
    if path.exists() and any(path.iterdir()) and not work.is_file():
        raise ConfigError(f"{path} exists and holds no store of vectors, so it is left alone",
                          hint="choose another place: --output-dir FOLDER")  # fmt: skip
    if work.is_file():
        try:
            before = json.loads(work.read_text(encoding="utf-8"))
        except ValueError:
            before = None
        if before == request and not overwrite:
            return
        if not overwrite:
            raise ConfigError(f"{path} holds the vectors of another request", hint="replace them: --overwrite")
        for file in list(_ours(path)):
            file.unlink()
    path.mkdir(parents=True, exist_ok=True)
    write_json(work, request)


def _ours(path: Path) -> Iterator[Path]:
    names = (store.MANIFEST_FILE, store.IDS_FILE, store.SHARDS_FILE, PASSAGES_FILE, OFFSETS_FILE)
    yield from (path / name for name in names if (path / name).is_file())
    yield from path.glob("shard-*.safetensors")


def _corpus(config: StoreConfig, path: Path, source: Source | None, index: DenseIndex | None) -> _Corpus:
    """Return the passages; those of a file are copied into the store, once.

    Raises:
        DataError: they cannot be read, one is empty, or two have the same id.
    """
    if index is not None:
        about = {"index": str(index.path.resolve()), "sha256": index.manifest["passages_sha256"]}
        return _Corpus(index.passages, min(index.count, config.max_passages or index.count), about)
    if source is None:
        raise DataError("there is no passage", path=path)
    journal = Journal(path / store.SHARDS_FILE)
    known = journal.get("passages")
    if known is None:
        pieces = report.progress(source.pieces(), "Reading passages", every_s=LINE_EVERY_S)
        written = write_passages(path, _first(pieces, config.max_passages))
        known = {"path": str(source.path.resolve()), "sha256": written.sha256, "count": written.count,
                 "read": source.read, "skipped": source.skipped, "format": source.format}  # fmt: skip
        journal.add({"passages": known})
    passages = PassageStore(path)
    return _Corpus(passages, len(passages), {name: value for name, value in known.items() if name != "count"})


def _first(pieces: Iterator[Passage] | report.Progress[Passage], most: int | None) -> Iterator[Passage]:
    for number, piece in enumerate(pieces):
        if most is not None and number >= most:
            return
        yield piece


def _made(
    config: StoreConfig,
    path: Path,
    request: dict[str, Any],
    corpus: _Corpus,
    model: tuple[Path, CompressSettings, int],
) -> StoreResult:
    folder, settings, rate = model
    journal = Journal(path / store.SHARDS_FILE)
    total = -(-corpus.count // config.shard_size)
    missing = [number for number in range(total) if not _whole(path, journal, number)]
    compressor = Compressor(folder, rate, resolve_device(config.device), config.mixed_precision)
    if len(missing) < total:
        log.info("going on with shard %d of %d in %s", missing[0] + 1 if missing else total, total, path)
    bar: report.Progress[None] = report.progress(corpus.count, "Compressing passages", every_s=LINE_EVERY_S)
    with bar:
        bar.skip(sum(_stop(config, corpus, n) - n * config.shard_size for n in range(total) if n not in set(missing)))
        for number in missing:
            start, stop = number * config.shard_size, _stop(config, corpus, number)
            passages = [corpus.passages[place] for place in range(start, stop)]
            journal.add({f"shard {number}": _shard(config, path, number, (start, passages), compressor)})
            bar.advance(stop - start)
    shards = [journal.get(f"shard {number}") or {} for number in range(total)]
    ids = write_tensors(path / store.IDS_FILE, _id_table(corpus))
    manifest = _manifest(config, corpus, shards, compressor, settings) | {
        "request": request, "model": {"path": str(folder.resolve()), "sha256": request["model"]}, "rate": rate,
    }  # fmt: skip
    manifest["files"][store.IDS_FILE] = ids
    write_json(path / store.MANIFEST_FILE, manifest)
    return StoreResult(path, up_to_date=False, manifest=manifest)


def _stop(config: StoreConfig, corpus: _Corpus, number: int) -> int:
    return min(corpus.count, (number + 1) * config.shard_size)


def _whole(path: Path, journal: Journal, number: int) -> bool:
    """Say whether a shard was finished and is still as long."""
    entry, file = journal.get(f"shard {number}"), path / store.shard_name(number)
    return entry is not None and file.is_file() and file.stat().st_size == entry["size"]


def _shard(
    config: StoreConfig, path: Path, number: int, part: tuple[int, list[Passage]], compressor: Compressor
) -> dict[str, Any]:
    """Compress and write one shard, and return what is noted of it."""
    start, passages = part
    made = compressor(passages, config.batch_size)
    stored = coded(made.vectors, config.storage)
    error = Error.of(made.vectors, stored.decoded())
    entry = write_shard(path / store.shard_name(number), stored, made.counts, made.tokens)
    return {
        **entry, "passages": [start, start + len(passages)], "vectors": len(made.vectors), "tokens": sum(made.tokens),
        "cut": made.cut, "fed": made.fed, "width": int(made.vectors.shape[1]), "error": dataclasses.asdict(error),
    }  # fmt: skip


def _id_table(corpus: _Corpus) -> dict[str, np.ndarray]:
    """Return where each id stands, by its hash."""
    count = corpus.count
    hashes = np.fromiter((store.id_hash(corpus.passages[place].id) for place in range(count)), np.int64, count)
    places = np.argsort(hashes, kind="stable")
    return {"hashes": hashes[places], "places": places.astype(np.int64)}


def _manifest(
    config: StoreConfig,
    corpus: _Corpus,
    shards: list[dict[str, Any]],
    compressor: Compressor,
    settings: CompressSettings,
) -> dict[str, Any]:
    """Return what a store says of itself."""
    files = {store.shard_name(n): {k: entry[k] for k in ("size", "sha256")} for n, entry in enumerate(shards)}
    if isinstance(corpus.passages, PassageStore) and "index" not in corpus.about:
        own = (corpus.passages.folder / PASSAGES_FILE, corpus.passages.folder / OFFSETS_FILE)
        files |= {file.name: {"size": file.stat().st_size} for file in own}
    error = sum((Error(**entry["error"]) for entry in shards), Error())
    vectors = sum(entry["vectors"] for entry in shards)
    size = sum(entry["size"] for entry in shards)
    figures = break_even(compressor, sample_of(corpus.passages, corpus.count), size / corpus.count)
    return {
        "format": store.FORMAT, "version": store.VERSION, "count": corpus.count, "vectors": vectors,
        "width": shards[0]["width"], "storage": config.storage, "bytes": size,
        "tokens": {name: sum(entry[name] for entry in shards) for name in ("tokens", "cut", "fed")},
        "error": error.to_json(), "cost": figures, "passages": corpus.about, "settings": settings.to_json(),
        "shards": [{key: entry[key] for key in ("passages", "vectors", "tokens")} for entry in shards], "files": files,
    }  # fmt: skip


def _show(result: StoreResult) -> StoreResult:
    """Report what a store holds and when it pays."""
    manifest = result.manifest
    cost, error, tokens = manifest["cost"], manifest["error"], manifest["tokens"]
    uses = cost["break_even_uses"]
    rows: list[tuple[str, object]] = [
        ("passages", f"{manifest['count']:,}, {tokens['tokens']:,} tokens read by the compressor, {tokens['cut']:,} cut"),
        ("vectors", f"{manifest['vectors']:,} of {manifest['width']} numbers, {manifest['storage']}, rate {manifest['rate']}"),
        ("error", f"{100 * error['mean_relative']:.3g} % of a vector's length in the mean, "
                  f"{100 * error['worst_relative']:.3g} % at worst; mean cosine {error['mean_cosine']:.6f}"),
        ("bytes", f"{manifest['bytes']:,}; {cost['vector_bytes']:,.0f} a passage, {cost['times_text']:,.1f} times its text"),
        ("once", f"{cost['compress_flops']:.3g} operations to compress a passage; each reuse saves them, "
                 f"{cost['flops_per_stored_byte']:.3g} for a byte that is read"),
        ("each use", f"{cost['memory_flops']:.3g} operations instead of {cost['text_flops']:.3g} for its text"),
        ("paid", "never: the text costs no more" if uses is None else f"after {uses:.2g} uses of a passage"),
    ]  # fmt: skip
    report.panel(str(result.path), rows)
    return result
