"""``ragtrain index prepare`` and ``ragtrain index search``: passages to a verified dense index, and a look into it.

Passages are read in any known format, long texts are split, every piece is encoded, and vectors and passages are
written with a manifest of hashes. Asked again for what is there, it does nothing and says so.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ragtrain import report
from ragtrain.config.commands import EncoderConfig, FetchConfig
from ragtrain.data import demo, formats
from ragtrain.errors import ConfigError, DataError, IndexMismatchError, OutOfMemoryError
from ragtrain.index.encode import IndexWriter, Metric, add_faiss
from ragtrain.index.faiss_flat import FAISS_FILE, import_faiss
from ragtrain.index.passages import PassageDigest, split_passages
from ragtrain.index.search import DenseIndex
from ragtrain.models.encoder import load_encoder
from ragtrain.models.folders import hushed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ragtrain.config.commands import PrepareConfig, SearchConfig
    from ragtrain.models.encoder import TextEncoder
    from ragtrain.records import Passage

log = logging.getLogger("ragtrain")

DEMO_PASSAGES = demo.FOLDER / "passages.jsonl"
#: Pieces that a plan is measured on.
SAMPLE = 64
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

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


@dataclasses.dataclass(frozen=True)
class Survey:
    """What reading and splitting gives, without writing it: numbers, the hash of the store, a sample of pieces."""

    count: int
    size: int
    words: int
    sha256: str
    sample: list[Passage]


class Source:
    """The passages of a configuration, read and split as often as asked."""

    def __init__(self, config: PrepareConfig) -> None:
        self.config = config
        self.path, self._built_in = _passages_path(config)
        self.read, self.skipped, self.format = 0, 0, "demo"

    def pieces(self) -> Iterator[Passage]:
        """Yield the pieces; afterwards ``read``, ``skipped`` and ``format`` tell of the reading."""
        return split_passages(self._passages(), self.config.passage_words, self.config.overlap)

    def _passages(self) -> Iterator[Passage]:
        self.read = 0
        if self._built_in is not None:
            for passage in self._built_in:
                self.read += 1
                yield passage
            return
        reader = formats.iter_passages(self.path, skip_bad_lines=self.config.skip_bad_lines)
        for passage in reader:
            self.read += 1
            yield passage
        self.skipped, self.format = reader.skipped, reader.format

    def survey(self) -> Survey:
        """Read everything once."""
        digest, words, sample = PassageDigest(), 0, []
        generator = random.Random(0)
        for number, piece in enumerate(report.progress(self.pieces(), "Reading passages")):
            digest.add(piece)
            words += len(piece.text.split())
            if number < SAMPLE:
                sample.append(piece)
            elif (place := generator.randrange(number + 1)) < SAMPLE:
                sample[place] = piece
        written = digest.written()
        if not written.count:
            raise DataError("there is no passage", path=self.path, hint="give a file with at least one passage")
        return Survey(written.count, written.size, words, written.sha256, sample)


def run(config: PrepareConfig) -> PrepareResult:
    """Make the index of a configuration.

    Raises:
        ConfigError: the encoder cannot be loaded, faiss is missing, or something else stands at the output path.
        DataError: the passages cannot be read, or one of them has no usable vector.
    """
    started = time.monotonic()
    # 1. What there is to encode, and with what.
    if config.index_type == "faiss-flat":
        import_faiss()
    source = Source(config)
    path = config.output_dir or _default_output(source.path)
    device = resolve_device(config.device)
    encoder = load_encoder(config.encoder.encoder or demo.ENCODER, config=config.encoder, role="passage").to(device)
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
                lambda pairs: _encode(encoder, pairs, config.encode_batch_size, device),
                dim=encoder.dim, storage=config.storage, metric=metric, chunk=config.encode_batch_size * BATCHES,
                progress=bar.advance,
            )  # fmt: skip
        writer.commit(
            encoder=_encoder_entry(config.encoder, encoder, fingerprint),
            source={
                "path": str(source.path), "format": source.format, "passages": source.read, "skipped": source.skipped,
            },
            splitting={"passage_words": config.passage_words, "overlap": config.overlap},
            faiss=config.index_type == "faiss-flat",
        )  # fmt: skip
    seconds = time.monotonic() - started
    report.panel("Index", [
        ("path", path), ("passages", source.read), ("skipped", source.skipped), ("pieces", written.count),
        ("dimensions", encoder.dim), ("metric", metric), ("seconds", round(seconds, 1)),
    ])  # fmt: skip
    return PrepareResult(path, written.count, encoder.dim, metric, seconds, source.read, source.skipped)


def plan(config: PrepareConfig, survey: Survey, source: Source, encoder: TextEncoder, path: Path) -> dict[str, Any]:
    """Return what making the index would take; time and tokens are measured on a sample of the pieces."""
    pairs = [(piece.title, piece.text) for piece in survey.sample]
    limit = encoder.max_tokens("passage")
    with hushed():  # of texts that are longer than the encoder reads: that is what is counted
        lengths = [int(encoder.tokenize_passages([pair], 10**6)["attention_mask"].sum()) for pair in pairs]
    device = resolve_device(config.device)
    _encode(encoder, pairs[: config.encode_batch_size], config.encode_batch_size, device)  # the first is slow
    started = time.perf_counter()
    _encode(encoder, pairs, config.encode_batch_size, device)
    each = (time.perf_counter() - started) / len(pairs)
    vectors = survey.count * encoder.dim * np.dtype(config.storage).itemsize
    faiss = survey.count * encoder.dim * 4 if config.index_type == "faiss-flat" else 0
    return {
        "passages": source.read,
        "skipped": source.skipped,
        "pieces": survey.count,
        "words": survey.words,
        "tokens_estimated": round(survey.count * float(np.mean(lengths))),
        "pieces_cut_estimated": f"{np.mean([length > limit for length in lengths]):.0%} (over {limit} tokens)",
        "dimensions": encoder.dim,
        "bytes": vectors + faiss + survey.size + 8 * (survey.count + 1),
        "device": str(device),
        "seconds_estimated": round(survey.count * each, 1),
        "output": str(path),
    }


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a question found, best first."""

    question: str
    index_path: Path
    encoder: str
    metric: str
    hits: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**dataclasses.asdict(self), "index_path": str(self.index_path), "hits": list(self.hits)}


def search(config: SearchConfig) -> SearchResult:
    """Search an index with one question and show what it found.

    Raises:
        ConfigError: there is no question, or no encoder for it.
        DataError: the index is damaged.
        IndexMismatchError: question encoder and index have different dimensions.
    """
    if not config.question.strip():
        raise ConfigError("there is no question", hint='ragtrain index search "capital of Norway"')
    index = DenseIndex.open(config.index_path)
    device = resolve_device(config.device)
    encoder = question_encoder(index, config.encoder).to(device)
    vectors = torch.from_numpy(encoder.encode_questions([config.question], device=device))
    found = index.searcher(device).search(vectors, config.n_docs)
    rows: list[dict[str, Any]] = []
    for position, score in zip(found.ids[0].tolist(), found.scores[0].tolist(), strict=True):
        if position >= 0:
            passage = index.passages[position]
            rows.append({**passage.to_json(), "rank": len(rows) + 1, "score": score, "position": position})
    report.table(
        f"{config.question}  ({index.count} passages, {index.metric})", ["rank", "score", "id", "title", "text"],
        [[row["rank"], f"{row['score']:.3f}", row["id"], row["title"], _shortened(row["text"])] for row in rows],
    )  # fmt: skip
    name = config.encoder or index.question_encoder or "built-in demo encoder"
    return SearchResult(config.question, config.index_path, str(name), index.metric, tuple(rows))


def question_encoder(index: DenseIndex, name: str | Path | None = None) -> TextEncoder:
    """Load the encoder of questions to an index: the one named, or else the one that the index was made for.

    Args:
        index: the index.
        name: encoder folder, hub id or run folder.

    Raises:
        ConfigError: it cannot be loaded.
        IndexMismatchError: its vectors have another dimension than the index.
    """
    if name is not None:
        encoder = load_encoder(name, role="question")
    else:
        encoder = load_encoder(index.question_encoder or demo.ENCODER, config=index.encoder_config, role="question")
    if encoder.dim != index.dim:
        raise IndexMismatchError(
            f"holds vectors of {index.dim} dimensions, and the question encoder makes {encoder.dim}",
            path=index.path,
            hint="name the question encoder that belongs to the index, or prepare the index with this one",
        )
    return encoder


def resolve_device(name: str | None) -> torch.device:
    """Return the device of that name; without one, a GPU if there is one.

    Raises:
        ConfigError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: there is no {name!r} here", hint="use cpu, cuda or cuda:N") from error
    return device


def _passages_path(config: PrepareConfig) -> tuple[Path, list[Passage] | None]:
    """Return the path of the passages, and the passages themselves where a plan must not fetch them."""
    if config.passages is not None:
        return config.passages, None
    if DEMO_PASSAGES.is_file():
        return DEMO_PASSAGES, None
    if config.dry_run:
        return DEMO_PASSAGES, demo.build().passages
    from ragtrain.data import fetch

    log.info("no passages were given: the built-in demo set is written to %s", DEMO_PASSAGES.parent)
    fetch.run(FetchConfig())
    return DEMO_PASSAGES, None


def _default_output(passages: Path) -> Path:
    """Return ``index`` beside the passages, or a sibling of a folder that is nothing but passages."""
    if not passages.is_dir():
        return passages.parent / "index"
    if any((passages / name).is_file() for name in ("passages.jsonl", "passages.jsonl.gz", "dataset.json")):
        return passages / "index"
    # Inside, the next reading of the folder would take the index's files for passages.
    return passages.resolve().with_name(f"{passages.resolve().name}-index")


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
        if config.index_type == "faiss-flat" and FAISS_FILE not in manifest["files"]:
            log.info("%s holds this index already; only %s is added", path, FAISS_FILE)
            add_faiss(path, manifest)
        else:
            log.info("%s holds this index already (same passages, encoder and settings): nothing to do", path)
        return index
    if not config.overwrite:
        raise ConfigError(
            f"{path} holds another index, which differs in {', '.join(differences)}",
            hint="give --overwrite to replace it, or another --output-dir",
        )
    return None


def _encoder_entry(config: EncoderConfig, encoder: TextEncoder, fingerprint: str) -> dict[str, Any]:
    """Return what the manifest says of the encoder; the built-in one has no name, since it has no fixed place."""
    name = config.encoder
    if name is not None and Path(name).is_dir():
        name = str(Path(name).resolve())
    spec = {key: value for key, value in encoder.spec().items() if key != "name"}
    asked = config.model_dump(mode="json", exclude={"encoder"}, exclude_none=True)
    return {"name": name, "fingerprint": fingerprint, "spec": spec, "config": asked}


def _encode(
    encoder: TextEncoder, pairs: Sequence[tuple[str, str]], batch_size: int, device: torch.device
) -> np.ndarray:
    try:
        return encoder.encode_passages(pairs, batch_size=batch_size, device=device)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{device} has no memory left for {batch_size} passages at a time",
            hint=f"try --encode-batch-size {max(1, batch_size // 2)}",
        ) from error


def _shortened(text: str, limit: int = 100) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
