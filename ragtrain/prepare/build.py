"""``ragtrain index prepare``: passages to a verified dense index.

Passages are read in any known format, long texts are split, every piece is encoded, and vectors and passages are
written with a manifest of hashes. Asked again for what is there, it does nothing and says so.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragtrain import report
from ragtrain.errors import ConfigError, DataError
from ragtrain.index.encode import IndexWriter
from ragtrain.index.passages import PASSAGES_FILE
from ragtrain.index.search import DenseIndex
from ragtrain.index.shards import Job, WorkFolder, encode_shards
from ragtrain.prepare import adopt
from ragtrain.prepare.beside import check_dimensions, check_libraries, complete
from ragtrain.prepare.encoders import PassageCoder, encoder_entry, passage_encoder, resolve_device
from ragtrain.prepare.plan import plan
from ragtrain.prepare.ranks import Ranks
from ragtrain.prepare.result import PrepareResult
from ragtrain.prepare.resume import encode_with_progress, resumable, stoppable, store_passages
from ragtrain.prepare.source import Source, default_output

if TYPE_CHECKING:
    from ragtrain.config.commands import PrepareConfig
    from ragtrain.index.vectors import Metric

log = logging.getLogger("ragtrain")


def run(config: PrepareConfig) -> PrepareResult:
    """Make the index of a configuration.

    Under a launcher every process calls this: the first reads the passages and puts the index in place, and all encode.

    Raises:
        ConfigError: the encoder cannot be loaded, faiss is missing, something else stands at the output path, or
            another process is making this index.
        DataError: the passages cannot be read, or one of them has no usable vector.
        Interrupted: it was stopped; the same command goes on where it was.
    """
    with Ranks() as ranks:
        if config.index_path is None:
            return _make(config, ranks) if ranks.first else _help(config, ranks)
        if not ranks.first:
            raise ConfigError("an index is adopted by one process", hint="start it without a launcher")
        check_libraries(config)
        adopted = adopt.run(config)
        if not config.dry_run:
            complete(config, adopted.path)
        return adopted


def _make(config: PrepareConfig, ranks: Ranks) -> PrepareResult:
    started = time.monotonic()
    # 1. What there is to encode, and with what.
    check_libraries(config)
    source = Source(config)
    path = config.output_dir or default_output(source.path)
    device = resolve_device(config.device)
    encoder = passage_encoder(config.encoder).to(device)
    check_dimensions(config, encoder.dim)
    metric: Metric = "cosine" if encoder.spec().get("normalize") else "inner_product"

    def result(count: int, metric: str = metric, **more: Any) -> PrepareResult:  # noqa: ANN401 - fields of the result
        seconds = time.monotonic() - started
        return PrepareResult(path, count, encoder.dim, metric, seconds, source.read, source.skipped, **more)

    if config.dry_run:
        survey = source.survey()
        planned = plan(config, survey, source, encoder, path)
        report.panel("Plan", list(planned.items()))
        done = result(survey.count, plan=planned)
        ranks.tell({"done": done.to_json()})
        return done

    # 2. Nothing is done twice.
    fingerprint = encoder.fingerprint()
    found = _finished(config, path, source, fingerprint)
    if found is not None:
        complete(config, path)
        done = result(found.count, found.metric, reused=True)
        ranks.tell({"done": done.to_json()})
        return done

    # 3. Write aside: passages, vectors, manifest; then put in place.
    coder = PassageCoder(encoder, config.encode_batch_size, device)
    job = Job(coder, encoder.dim, config.storage, metric, config.shard_size, coder.prepare)
    request = source.request(fingerprint, config.storage, config.shard_size, coder.precision)
    with stoppable(), IndexWriter(path, overwrite=config.overwrite, request=request, processes=ranks.count) as writer:
        with resumable(writer, config.shard_size):
            written = store_passages(writer, source)
            finished = writer.allocate(job)
            log.info("%d passages read, %d pieces to encode on %s", source.read, written.count, device)
            ranks.tell({"encode": {"path": path, "work": writer.work.path, "metric": metric, "count": written.count}})
            encode_with_progress(writer, job, coder, finished)
        writer.commit(
            encoder=encoder_entry(config.encoder, encoder, fingerprint),
            source={
                "path": str(source.path), "format": source.format, "passages": source.read, "skipped": source.skipped,
            },
            splitting={"passage_words": config.passage_words, "overlap": config.overlap},
        )  # fmt: skip
    complete(config, path)
    done = result(written.count)
    report.panel("Index", [
        ("path", path), ("passages", source.read), ("skipped", source.skipped), ("pieces", written.count),
        ("dimensions", encoder.dim), ("metric", metric), ("seconds", round(done.seconds, 1)),
    ])  # fmt: skip
    return done


def _help(config: PrepareConfig, ranks: Ranks) -> PrepareResult:
    """Encode as one of several processes what the first one says."""
    started = time.monotonic()
    message = ranks.hear()
    if "done" in message:
        return PrepareResult(**{**message["done"], "path": Path(message["done"]["path"])})
    told = message["encode"]
    device = resolve_device(config.device)
    encoder = passage_encoder(config.encoder).to(device)
    coder = PassageCoder(encoder, config.encode_batch_size, device)
    job = Job(coder, encoder.dim, config.storage, told["metric"], config.shard_size, coder.prepare)
    work = WorkFolder(Path(told["work"]), ranks.rank, ranks.count)
    try:
        encode_shards(work, job)
    except (FileNotFoundError, DataError):
        if work.journal.is_dir():
            raise
        # The others have finished everything, and the index is in place already.
    finally:
        work.close()
    seconds = time.monotonic() - started
    return PrepareResult(Path(told["path"]), told["count"], encoder.dim, told["metric"], seconds, 0, 0)


def _finished(config: PrepareConfig, path: Path, source: Source, fingerprint: str) -> DenseIndex | None:
    """Return the index at the path if it is the one that is asked for, and None if there is room for it.

    Raises:
        ConfigError: another index is there, and must not be overwritten.
        DataError: a damaged index is there, and must not be overwritten.
    """
    if not (path / "manifest.json").is_file():
        return None
    lost = path.resolve() in source.path.resolve().parents and source.path.resolve() != (path / PASSAGES_FILE).resolve()
    if config.overwrite and lost:
        raise ConfigError(
            f"--overwrite replaces the folder {path}, and {source.path} would be lost with it",
            hint="move the passages out of the folder, or give another --output-dir",
        )
    try:
        index = DenseIndex.open(path)
    except DataError:
        if config.overwrite:
            return None
        raise
    manifest = index.manifest
    asked = {
        "passages": (manifest["passages_sha256"][:16], source.survey().sha256[:16]),
        "encoder": (manifest["encoder"].get("fingerprint"), fingerprint),
        "storage": (manifest["storage"], config.storage),
    }
    differences = [f"{name} ({there} there, {here} asked)" for name, (there, here) in asked.items() if there != here]
    if not differences:
        log.info(
            "%s holds this index already (same passages, encoder and settings): nothing to do for its vectors", path
        )
        return index
    if not config.overwrite:
        raise ConfigError(
            f"{path} holds another index, which differs in {', '.join(differences)}",
            hint="give --overwrite to replace it, or another --output-dir",
        )
    return None
