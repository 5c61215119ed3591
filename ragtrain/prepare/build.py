"""``ragtrain index prepare``: passages to a verified dense index.

Passages are read in any known format, long texts are split, every piece is encoded, and vectors and passages are
written with a manifest of hashes. Asked again for what is there, it does nothing and says so.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import TYPE_CHECKING, Any

from ragtrain import report
from ragtrain.errors import ConfigError, DataError
from ragtrain.index.encode import IndexWriter, Metric
from ragtrain.index.search import DenseIndex
from ragtrain.prepare.beside import check_libraries, complete
from ragtrain.prepare.encoders import encode, encoder_entry, passage_encoder, resolve_device
from ragtrain.prepare.plan import plan
from ragtrain.prepare.source import Source, default_output

if TYPE_CHECKING:
    from pathlib import Path

    from ragtrain.config.commands import PrepareConfig

log = logging.getLogger("ragtrain")

#: Batches handed to the encoder at a time: enough to sort by length, few enough to show progress.
BATCHES = 16


@dataclasses.dataclass(frozen=True)
class PrepareResult:
    """An index as it stands: made now, found finished (``reused``), or planned only (``plan``)."""

    path: Path
    count: int
    dim: int
    metric: str
    seconds: float
    passages_read: int
    skipped: int
    reused: bool = False
    plan: dict[str, Any] | None = None
    verification: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def run(config: PrepareConfig) -> PrepareResult:
    """Make the index of a configuration.

    Raises:
        ConfigError: the encoder cannot be loaded, faiss is missing, or something else stands at the output path.
        DataError: the passages cannot be read, or one of them has no usable vector.
    """
    if config.index_path is not None:
        from ragtrain.prepare import adopt  # which makes a PrepareResult itself

        check_libraries(config)
        adopted = adopt.run(config)
        if not config.dry_run:
            complete(config, adopted.path)
        return adopted
    started = time.monotonic()
    # 1. What there is to encode, and with what.
    check_libraries(config)
    source = Source(config)
    path = config.output_dir or default_output(source.path)
    device = resolve_device(config.device)
    encoder = passage_encoder(config.encoder).to(device)
    metric: Metric = "cosine" if encoder.spec().get("normalize") else "inner_product"
    if config.dry_run:
        survey = source.survey()
        planned = plan(config, survey, source, encoder, path)
        report.panel("Plan", list(planned.items()))
        seconds = time.monotonic() - started
        return PrepareResult(
            path, survey.count, encoder.dim, metric, seconds, source.read, source.skipped, plan=planned
        )

    # 2. Nothing is done twice.
    fingerprint = encoder.fingerprint()
    found = _finished(config, path, source, fingerprint)
    if found is not None:
        complete(config, path)
        seconds = time.monotonic() - started
        return PrepareResult(
            path, found.count, found.dim, found.metric, seconds, source.read, source.skipped, reused=True
        )

    # 3. Write aside: passages, vectors, manifest; then put in place.
    with IndexWriter(path, overwrite=config.overwrite) as writer:
        written = writer.write_passages(report.progress(source.pieces(), "Reading passages"))
        log.info("%d passages read, %d pieces to encode on %s", source.read, written.count, device)
        bar: report.Progress[None] = report.progress(written.count, "Encoding passages")
        with bar:
            writer.write_vectors(
                lambda pairs: encode(encoder, pairs, config.encode_batch_size, device),
                dim=encoder.dim, storage=config.storage, metric=metric, chunk=config.encode_batch_size * BATCHES,
                progress=bar.advance,
            )  # fmt: skip
        writer.commit(
            encoder=encoder_entry(config.encoder, encoder, fingerprint),
            source={
                "path": str(source.path), "format": source.format, "passages": source.read, "skipped": source.skipped,
            },
            splitting={"passage_words": config.passage_words, "overlap": config.overlap},
        )  # fmt: skip
    complete(config, path)
    seconds = time.monotonic() - started
    report.panel("Index", [
        ("path", path), ("passages", source.read), ("skipped", source.skipped), ("pieces", written.count),
        ("dimensions", encoder.dim), ("metric", metric), ("seconds", round(seconds, 1)),
    ])  # fmt: skip
    return PrepareResult(path, written.count, encoder.dim, metric, seconds, source.read, source.skipped)


def _finished(config: PrepareConfig, path: Path, source: Source, fingerprint: str) -> DenseIndex | None:
    """Return the index at the path if it is the one that is asked for, and None if there is room for it.

    Raises:
        ConfigError: another index is there, and must not be overwritten.
        DataError: a damaged index is there, and must not be overwritten.
    """
    if not (path / "manifest.json").is_file():
        return None
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
