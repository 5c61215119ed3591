"""The passages of a configuration: read, split, counted, as often as asked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import random
from typing import TYPE_CHECKING

from ragtrain import report
from ragtrain.config.commands import FetchConfig
from ragtrain.data import demo, formats
from ragtrain.errors import DataError
from ragtrain.index.passages import PassageDigest, split_passages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ragtrain.config.commands import PrepareConfig
    from ragtrain.records import Passage

log = logging.getLogger("ragtrain")

DEMO_PASSAGES = demo.FOLDER / "passages.jsonl"
#: Changes whenever what a work folder holds changes, so that no version goes on where another one stopped.
REQUEST = 1
#: Pieces that a plan is measured on.
SAMPLE = 64


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
        self.path, self._built_in = passages_path(config)
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

    def request(self, *settings: object) -> str:
        """Return a short name of everything that decides an index: these files as they are, how they are split, and more.

        Args:
            settings: what else decides it.
        """
        files = sorted(path for path in self.path.rglob("*") if path.is_file()) if self.path.is_dir() else [self.path]
        stamps = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        split = (self.config.passage_words, self.config.overlap, self.config.skip_bad_lines)
        text = json.dumps([REQUEST, stamps, split, settings], default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

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


def passages_path(config: PrepareConfig) -> tuple[Path, list[Passage] | None]:
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


def default_output(passages: Path) -> Path:
    """Return ``index`` beside the passages, or a sibling of a folder that is nothing but passages."""
    if not passages.is_dir():
        return passages.parent / "index"
    if any((passages / name).is_file() for name in ("passages.jsonl", "passages.jsonl.gz", "dataset.json")):
        return passages / "index"
    # Inside, the next reading of the folder would take the index's files for passages.
    return passages.resolve().with_name(f"{passages.resolve().name}-index")
