"""The acts of making a graph: reading, extracting, joining, writing, linking questions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain import report
from ragtrain.data import demo
from ragtrain.errors import DataError
from ragtrain.index.graph.builder import assemble
from ragtrain.index.graph.store import save_graph
from ragtrain.prepare.encoders import encoder_entry, passage_encoder, resolve_device
from ragtrain.prepare.graph import llm, openie, plain, provenance, questions, synonyms
from ragtrain.prepare.graph.link import EntityLinker
from ragtrain.prepare.graph.result import GraphResult
from ragtrain.prepare.graph.vectors import NameVectors
from ragtrain.prepare.source import Source, default_output
from ragtrain.records import sha256_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from ragtrain.config.commands import PrepareConfig
    from ragtrain.graphs import KnowledgeGraph
    from ragtrain.index.graph.read_openie import Extraction
    from ragtrain.models.encoder import TextEncoder
    from ragtrain.prepare.graph.provenance import Sources
    from ragtrain.records import Passage

log = logging.getLogger("ragtrain")

#: Changes whenever the same passages would give another graph.
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Made:
    """A graph, which documents say which triple, and what is to be said of its making."""

    graph: KnowledgeGraph
    sources: Sources
    about: dict[str, Any]


class Maker:
    """Makes the graph of a configuration, act by act; ``change`` uses the same acts."""

    def __init__(self, config: PrepareConfig) -> None:
        self.config, self.settings = config, config.graph_build
        self.started = time.monotonic()
        whole = config.model_copy(update={"passage_words": None, "overlap": 0})  # a document is retrieved as a whole
        changes = self.settings.add or self.settings.delete_ids is not None
        given = config.passages is not None or (self.settings.openie is None and not changes)
        self.source = Source(whole) if given else None
        self.path = config.output_dir or _default_path(config, self.source)
        self._encoder: TextEncoder | None = None

    @property
    def how(self) -> str:
        """Where triples come from: ``openie``, ``llm`` or ``mentions``."""
        return "openie" if self.settings.openie is not None else "llm" if self.settings.llm is not None else "mentions"

    def passages(self) -> list[Passage]:
        """Return the passages; none where an extraction brings its own."""
        return [] if self.source is None else list(report.progress(self.source.pieces(), "Reading passages"))

    def encoder(self) -> TextEncoder | None:
        """Return the encoder of names; None where none was named: the demo's knows no synonyms."""
        if self._encoder is None and self.config.encoder.encoder is not None:
            self._encoder = passage_encoder(self.config.encoder).to(resolve_device(self.config.device))
        return self._encoder

    def vectors(self, names: Sequence[str]) -> NameVectors | None:
        """Return the vectors of names, or None without an encoder."""
        encoder = self.encoder()
        return None if encoder is None else NameVectors(names, encoder, batch_size=self.config.encode_batch_size)

    def request(self, passages: Sequence[Passage]) -> str:
        """Return a short name of everything that decides the graph."""
        digest = hashlib.sha256()
        for passage in passages:
            digest.update(json.dumps([passage.id, passage.title, passage.text]).encode())
        encoder = self.encoder()
        decides = self.settings.model_dump(mode="json", include=DECIDES[self.how])
        files = _hashes(self.settings.openie) if self.settings.openie is not None else []
        mark = None if encoder is None else encoder.fingerprint()
        parts = [VERSION, self.how, digest.hexdigest(), decides, files, mark]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]

    def make(self, passages: Sequence[Passage]) -> Made:
        """Return the graph of passages, without synonyms.

        Raises:
            DataError: nothing is mentioned in them, or an extraction cannot be read.
        """
        if self.settings.openie is not None:
            graph, sources, malformed = openie.read(
                self.settings.openie, passages, skip_bad_lines=self.config.skip_bad_lines
            )
            return Made(graph, sources, {"malformed": malformed})
        found, about = self.extract(passages)
        try:
            graph, sources = openie.graph_of(found)
        except DataError as error:
            raise DataError(
                "the passages mention nothing that could be an entity", path=self.config.passages,
                hint="give passages with titles, or have triples extracted with --llm",
            ) from error  # fmt: skip
        return Made(graph, sources, about)

    def extract(
        self, passages: Sequence[Passage], known: Sequence[Passage] = (), names: Sequence[str] = ()
    ) -> tuple[list[Extraction], dict[str, Any]]:
        """Return what a language model, or the passages themselves, say, and what is to be said of that.

        Args:
            passages: to extract from.
            known: other passages of the same graph.
            names: of its entities.
        """
        if self.settings.llm is not None:
            return llm.extract(passages, self.settings, self.path, device=self.config.device)
        limits = {"max_mentions": self.settings.max_mentions, "min_documents": self.settings.min_entity_documents}
        return plain.extract(passages, known=known, names=names, **limits), {}

    def join(self, made: Made, vectors: NameVectors | None, fresh: Iterable[int] | None = None) -> Made:
        """Add synonyms, with one of the entities ``fresh`` where that is given."""
        new = None if fresh is None else frozenset(fresh)
        graph = made.graph
        # What only deleted passages had is joined with nothing: it would come back by that.
        alive = frozenset([*graph.triples[:, [0, 2]].reshape(-1).tolist(), *graph.document_entities.tolist()])
        pairs = dict.fromkeys(synonyms.by_spelling(graph.entities, new, alive), "spelling")
        if vectors is not None:
            near = synonyms.by_vector(
                graph.entities,
                vectors,
                threshold=self.settings.synonym_threshold,
                most=self.settings.max_synonyms,
                fresh=new,
            )
            pairs.update((pair, "vectors") for pair in near if pair not in pairs and alive.issuperset(pair))
        joined, added = with_synonyms(graph, list(pairs))
        kinds = {kind: sum(of == kind for of in pairs.values()) for kind in ("spelling", "vectors")}
        return Made(joined, [*made.sources, *([] for _ in range(added))], {**made.about, "synonyms": kinds})

    def save(self, made: Made, request: str | None, before: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write the graph and who says what, and return the manifest.

        Args:
            made: what to write.
            request: the name of what was asked for; None for a graph that was changed, which no configuration makes.
            before: what the manifest of the graph that is changed says of its making; it stays.
        """
        entry = provenance.write(self.path, made.graph.fingerprint, made.sources)
        encoder = self.encoder()
        extra = {
            "how": self.how, "request": request, "sources": entry, **made.about,
            "settings": self.settings.model_dump(mode="json", include=DECIDES[self.how]),
            "passages": str(self.source.path) if self.source else None,
            "openie": str(self.settings.openie) if self.settings.openie else None,
            "encoder": encoder_entry(self.config.encoder, encoder, encoder.fingerprint()) if encoder else None,
        }  # fmt: skip
        if before is not None:
            extra = {**extra, **before, "request": None, "sources": entry}
        manifest = save_graph(made.graph, self.path, extra)
        provenance.clean(self.path, entry)
        return manifest

    def questions(self, graph: KnowledgeGraph, vectors: NameVectors | None) -> tuple[dict[str, Any], bool]:
        """Link the questions and return counts by split, and whether they were linked before."""
        asked = questions.find(self._question_files())
        if not asked:
            if questions.stale(self.path, graph):
                log.warning(
                    "%s: its questions were linked to another state of the graph; give --graph-questions again",
                    self.path,
                )
            return {}, True
        named = vectors or self.vectors(graph.entities)
        mark = None if named is None else named.encoder.fingerprint()
        return questions.link_questions(
            asked, graph, self.path, lambda: EntityLinker(graph, named, self.settings.link_threshold),
            [self.settings.link_threshold, mark], skip_bad_lines=self.config.skip_bad_lines,
        )  # fmt: skip

    def _question_files(self) -> tuple[Path, ...]:
        """Return the files asked for; of the demo set, its own."""
        is_demo = self.source is not None and self.config.passages is None
        beside = self.source.path.parent if self.source is not None else None
        if not self.settings.graph_questions and is_demo and beside is not None and (beside / "train.jsonl").is_file():
            return (beside,)
        changes = self.settings.add or self.settings.delete_ids is not None
        if changes and not self.settings.graph_questions:
            return questions.recorded(self.path)
        return self.settings.graph_questions

    def result(self, graph: KnowledgeGraph, **more: Any) -> GraphResult:  # noqa: ANN401 - fields of the result
        """Return what the command gives back."""
        seconds = round(time.monotonic() - self.started, 3)
        source = self.source
        return GraphResult.of(
            self.path, graph, how=self.how, seconds=seconds, passages_read=source.read if source else 0,
            skipped=source.skipped if source else 0, **more,
        )  # fmt: skip


#: Settings that decide a graph, by where triples come from.
_JOIN = {"synonym_threshold", "max_synonyms"}
DECIDES: dict[str, set[str]] = {
    "openie": _JOIN,
    "llm": {*_JOIN, "llm", "llm_model"},
    "mentions": {*_JOIN, "max_mentions", "min_entity_documents"},
}


def with_synonyms(graph: KnowledgeGraph, pairs: Sequence[tuple[int, int]]) -> tuple[KnowledgeGraph, int]:
    """Return a graph with more triples: each pair as (lower id, equivalent, higher id), behind all others; and how many.

    A pair that the source itself joins so is left as it is.
    """
    relations = graph.relations
    if synonyms.EQUIVALENT not in relations:
        if not pairs:
            return graph, 0
        relations = (*relations, synonyms.EQUIVALENT)
    number = relations.index(synonyms.EQUIVALENT)
    known = {(h, t) for h, r, t in graph.triples.tolist() if r == number}
    new = [(a, number, b) for a, b in pairs if (a, b) not in known and (b, a) not in known]
    triples = np.concatenate([graph.triples, np.array(new, dtype=np.int32).reshape(-1, 3)])
    offsets = graph.document_offsets
    members = [part.tolist() for part in np.split(graph.document_entities, offsets[1:-1])] if len(offsets) > 1 else []
    return assemble(graph.entities, relations, triples, graph.documents, members, graph.held_out), len(new)


def _default_path(config: PrepareConfig, source: Source | None) -> Path:
    if source is None:
        path = config.graph_build.openie or demo.FOLDER
        return path / "graph" if path.is_dir() else path.parent / "graph"
    beside = default_output(source.path)
    return beside.with_name(f"{beside.name.removesuffix('index')}graph")


def _hashes(path: Path) -> list[tuple[str, str]]:
    files = (
        sorted(p for p in path.rglob("*.*") if p.suffix in (".json", ".txt", ".csv", ".tsv"))
        if path.is_dir()
        else [path]
    )
    return [(file.name, sha256_file(file)) for file in files if file.is_file()]
