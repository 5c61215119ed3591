"""``index prepare --graph --add`` and ``--delete-ids``: a graph that changes, without being made anew.

Entities and relations keep their ids for good. What only deleted passages had stays as a name without triples and documents
(a tombstone), is never linked or ranked, and comes back to life under its id when a passage with it is added. So questions
that were linked by name, and whatever was computed by id, stay valid, and a trained model, which knows relations by their text
and entities by their neighbours, gives what the change does not reach the scores it had. ``--overwrite`` makes the graph anew, without
tombstones. The folder changes in one moment: its description is renamed into place.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtrain import report
from ragtrain.errors import DataError
from ragtrain.index.graph.builder import assemble
from ragtrain.index.graph.read_openie import Extraction
from ragtrain.index.graph.store import open_graph, read_manifest
from ragtrain.prepare.graph import openie, plain, provenance
from ragtrain.prepare.graph.making import DECIDES, Made, Maker
from ragtrain.prepare.graph.openie import Names
from ragtrain.prepare.graph.result import show
from ragtrain.prepare.graph.words import Usage, folded, key_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from ragtrain.graphs import KnowledgeGraph
    from ragtrain.prepare.graph.provenance import Sources
    from ragtrain.prepare.graph.result import GraphResult
    from ragtrain.records import Passage

log = logging.getLogger("ragtrain")


@dataclasses.dataclass
class Parts:
    """A graph taken apart, to be changed: ids are places in these lists.

    Attributes:
        entities: ids by name; they only grow.
        relations: ids by name; they only grow.
        triples: with the places of the documents that say them.
        documents: by id, with their entities.
    """

    entities: dict[str, int]
    relations: dict[str, int]
    triples: dict[tuple[int, int, int], dict[str, None]]
    documents: dict[str, tuple[Passage, dict[int, None]]]
    held_out: dict[str, np.ndarray]

    @classmethod
    def of(cls, graph: KnowledgeGraph, sources: Sources) -> Parts:
        """Take a graph apart."""
        ids = [document.id for document in graph.documents]
        offsets = graph.document_offsets
        members = [graph.document_entities[a:b].tolist() for a, b in itertools.pairwise(offsets)]
        return cls(
            {name: number for number, name in enumerate(graph.entities)},
            {name: number for number, name in enumerate(graph.relations)},
            {(h, r, t): {ids[d]: None for d in said} for (h, r, t), said in zip(graph.triples.tolist(), sources, strict=True)},
            {d.id: (d, dict.fromkeys(held)) for d, held in zip(graph.documents, members, strict=True)},
            dict(graph.held_out),
        )  # fmt: skip

    def graph(self) -> tuple[KnowledgeGraph, Sources]:
        """Put the graph together again.

        Raises:
            DataError: nothing is left of it.
        """
        if not self.triples or not self.documents:
            raise DataError("nothing would be left of the graph", hint="remove the folder instead")
        places = {identifier: place for place, identifier in enumerate(self.documents)}
        graph = assemble(
            tuple(self.entities), tuple(self.relations), np.array(list(self.triples), dtype=np.int32),
            tuple(passage for passage, _ in self.documents.values()),
            [list(held) for _, held in self.documents.values()],
            {split: _others(rows, self.triples) for split, rows in self.held_out.items()},
        )  # fmt: skip
        return graph, [sorted(places[identifier] for identifier in said) for said in self.triples.values()]

    def alive(self) -> set[int]:
        """Return the entities that a document or a triple has."""
        held = {entity for _, members in self.documents.values() for entity in members}
        return held | {entity for head, _, tail in self.triples for entity in (head, tail)}

    def delete(self, ids: Collection[str]) -> None:
        """Take documents out, with what nobody else says."""
        touched: set[int] = set()
        for identifier in ids:
            touched.update(self.documents.pop(identifier)[1])
        gone = set(ids)
        for triple, said in list(self.triples.items()):
            if said and gone & set(said):
                kept = {identifier: None for identifier in said if identifier not in gone}
                self.triples[triple] = kept
                if not kept:
                    del self.triples[triple]
                    touched |= {triple[0], triple[2]}
        held = {entity for _, members in self.documents.values() for entity in members}
        held |= {entity for (head, _, tail), said in self.triples.items() if said for entity in (head, tail)}
        dead = touched - held
        # Synonyms, and triples of a source that does not say who says them, stay as long as both entities do.
        for triple in [t for t, said in self.triples.items() if not said and (t[0] in dead or t[2] in dead)]:
            del self.triples[triple]

    def add(self, extraction: Extraction, names: Names) -> None:
        """Take a document in, or what else a document that is there says."""
        passage = extraction.passage
        held = self.documents.setdefault(passage.id, (passage, {}))[1]
        for head, phrase, tail in extraction.triples:
            h, t = self._entity(names(head)), self._entity(names(tail))
            relation = names.relation(phrase)
            r = self.relations.setdefault(relation, len(self.relations))
            if h != t:
                self.triples.setdefault((h, r, t), {})[passage.id] = None
                held.update({h: None, t: None})
        held.update(dict.fromkeys(self._entity(names(name)) for name in extraction.entities))

    def _entity(self, name: str) -> int:
        return self.entities.setdefault(name, len(self.entities))


def _others(rows: np.ndarray, triples: Mapping[tuple[int, int, int], object]) -> np.ndarray:
    """Return the held-out triples that the graph does not have: what a passage now says is no longer held out."""
    return rows[[tuple(row) not in triples for row in rows.tolist()]] if len(rows) else rows


def run(maker: Maker) -> GraphResult:
    """Change the graph in ``output_dir``: passages are taken out first, then others added.

    Raises:
        ConfigError: the language model cannot be reached.
        DataError: there is no graph, an added passage has the id of another one, or nothing would be left.
    """
    config, path = maker.config, maker.path
    manifest = read_manifest(path)
    graph = open_graph(path)
    parts = Parts.of(graph, provenance.read(path, manifest["extra"].get("sources"), graph))
    gone = _ids_to_delete(config.graph_build.delete_ids, parts) if config.graph_build.delete_ids is not None else []
    given = _extracted(maker) if config.graph_build.add else {}
    new = _new([extraction.passage for extraction in given.values()], parts, gone)
    maker = _as_before(maker, manifest["extra"])
    encoder = manifest["extra"].get("encoder")
    if encoder and new and config.encoder.encoder is None:
        log.warning(
            "synonyms of this graph were found with %s: give --encoder for those of the new passages", encoder["name"]
        )
    if config.dry_run:
        plan = {"documents": len(parts.documents), "to delete": len(gone), "to add": len(new), "output": str(path)}
        report.panel("Plan", list(plan.items()))
        return maker.result(graph, plan=plan)
    if not gone and not new:
        log.info("%s: nothing to add and nothing to delete", path)
        linked, _ = maker.questions(graph, None)
        return maker.result(graph, reused=True, questions=linked)

    before = parts.alive()
    count = len(parts.entities)
    parts.delete(gone)
    living = parts.alive()
    names = list(parts.entities)
    gone_spellings = {folded(names[entity]) for entity in before - living}
    about: dict[str, Any] = {}
    if new:
        found = [given[passage.id] for passage in new]
        if maker.settings.openie is None:
            found, about = maker.extract(new, [passage for passage, _ in parts.documents.values()], graph.entities)
        _add(parts, found, mentions=maker.how == "mentions")
    changed, sources = parts.graph()
    fresh = {*range(count, changed.n_entities), *(parts.alive() - living)}
    # Synonyms by spelling hang on the first of them: where that is gone, the others are joined anew.
    fresh |= {entity for entity in living if gone_spellings and folded(names[entity]) in gone_spellings}
    vectors = maker.vectors(changed.entities)
    made = maker.join(Made(changed, sources, about), vectors, fresh)
    maker.save(made, None, _history(manifest["extra"], len(new), len(gone)))
    linked, _ = maker.questions(made.graph, vectors)
    log.info("%d entities are left without a passage", len(before - Parts.of(made.graph, made.sources).alive()))
    done = maker.result(made.graph, questions=linked, about=made.about, added=len(new), deleted=len(gone))
    show(done)
    return done


def _extracted(maker: Maker) -> dict[str, Extraction]:
    """Return the given passages by id, with what was extracted from them before, if it was."""
    passages = maker.passages()
    if maker.settings.openie is None:
        return {passage.id: Extraction(passage, (), ()) for passage in passages}
    found = openie.extractions(maker.settings.openie, passages, skip_bad_lines=maker.config.skip_bad_lines)
    return {extraction.passage.id: extraction for extraction in found}


def _add(parts: Parts, found: Sequence[Extraction], *, mentions: bool) -> None:
    """Take new passages in; without a language model, the passages there are looked through for the new titles."""
    old = [passage for passage, _ in parts.documents.values()]
    titles = {key_of(passage.title) for passage in old}
    names = Names(parts.entities, parts.relations)
    for extraction in found:
        parts.add(extraction, names)
    fresh = [e.passage.title for e in found if key_of(e.passage.title) and key_of(e.passage.title) not in titles]
    if mentions and fresh and old:
        usage = Usage(passage.text for passage, _ in parts.documents.values())
        for extraction in plain.mentioning(old, list(dict.fromkeys(fresh)), usage, list(parts.entities)):
            parts.add(extraction, names)


def _ids_to_delete(path: Path, parts: Parts) -> list[str]:
    """Return the ids in a file that the graph has; of others there is a warning, so that the same command may be repeated.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        ids = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", path=path, hint="check --delete-ids") from error
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8: {error}", path=path, hint="convert it to UTF-8") from error
    unknown = [identifier for identifier in ids if identifier not in parts.documents]
    if unknown:
        log.warning(
            "%s: %d of %d ids are in no document of the graph; the first: %s", path, len(unknown), len(ids), unknown[0]
        )
    return list(dict.fromkeys(identifier for identifier in ids if identifier in parts.documents))


def _new(passages: Iterable[Passage], parts: Parts, gone: Collection[str]) -> list[Passage]:
    """Return the passages that the graph does not have.

    Raises:
        DataError: another passage has the id of one of them.
    """
    new, deleted = [], set(gone)
    for passage in passages:
        there = parts.documents.get(passage.id) if passage.id not in deleted else None
        if there is None:
            new.append(passage)
        elif (there[0].title, there[0].text) != (passage.title, passage.text):
            raise DataError(
                f"the graph has another passage with the id {passage.id!r}", field="id",
                hint="to replace it, name its id in --delete-ids of the same command",
            )  # fmt: skip
    return new


def _as_before(maker: Maker, extra: dict[str, Any]) -> Maker:
    """Return a maker with the settings that the graph was made with, where others are not asked for."""
    how = extra.get("how", "mentions")
    if maker.settings.add and maker.how != how:
        log.warning("the triples of this graph come from %s, those of the new passages from %s", how, maker.how)
    kept = {name: value for name, value in (extra.get("settings") or {}).items() if name in DECIDES["mentions"]}
    default = type(maker.settings)()
    update = {name: value for name, value in kept.items() if getattr(maker.settings, name) == getattr(default, name)}
    maker.settings = maker.settings.model_copy(update=update)
    return maker


def _history(extra: dict[str, Any], added: int, deleted: int) -> dict[str, Any]:
    """Return what the manifest says of earlier making, and of all changes since."""
    before = extra.get("changes") or {"added": 0, "deleted": 0, "times": 0}
    changes = {"added": before["added"] + added, "deleted": before["deleted"] + deleted, "times": before["times"] + 1}
    return {**extra, "changes": changes}
