"""What ``ragtrain index prepare --graph`` gives back and shows."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ragtrain import report

if TYPE_CHECKING:
    from pathlib import Path

    from ragtrain.graphs import KnowledgeGraph


@dataclasses.dataclass(frozen=True)
class GraphResult:
    """A graph as it stands: made now, found finished (``reused``), changed, or planned only (``plan``).

    Attributes:
        path: its folder.
        how: where triples come from: ``openie``, ``llm`` or ``mentions``.
        fingerprint: of the graph.
        documents: all, also those without an entity.
        documents_without_entities: of these.
        entities: all, also those that only deleted passages had.
        relations: direct ones.
        triples: synonyms among them.
        passages_read: by this command.
        skipped: bad lines left out.
        seconds: it took.
        questions: counts by split, where questions were linked.
        about: counts of the making: synonyms by how they were found, answers of a language model, rows that were no triples.
        added: passages that were added.
        deleted: passages that were taken out.
        reused: nothing was done.
        plan: what would be done.
    """

    path: Path
    how: str
    fingerprint: str = ""
    documents: int = 0
    documents_without_entities: int = 0
    entities: int = 0
    relations: int = 0
    triples: int = 0
    passages_read: int = 0
    skipped: int = 0
    seconds: float = 0.0
    questions: dict[str, Any] = dataclasses.field(default_factory=dict)
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    added: int = 0
    deleted: int = 0
    reused: bool = False
    plan: dict[str, Any] | None = None

    @classmethod
    def of(cls, path: Path, graph: KnowledgeGraph, **more: Any) -> GraphResult:  # noqa: ANN401 - the other fields
        """Return the result of a graph in memory."""
        sizes = graph.document_offsets[1:] - graph.document_offsets[:-1]
        return cls(
            path, fingerprint=graph.fingerprint, documents=len(graph.documents),
            documents_without_entities=int((sizes == 0).sum()), entities=graph.n_entities, relations=graph.n_relations,
            triples=len(graph.triples), **more,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def show(result: GraphResult) -> None:
    """Show a graph that was made or changed."""
    pairs: list[tuple[str, object]] = [
        ("path", result.path), ("triples from", result.how), ("documents", result.documents),
        ("without entity", result.documents_without_entities), ("entities", result.entities),
        ("relations", result.relations), ("triples", result.triples),
    ]  # fmt: skip
    pairs += [(name, count) for name, count in (("added", result.added), ("deleted", result.deleted)) if count]
    pairs += [(name.replace("_", " "), _flat(value)) for name, value in result.about.items()]
    for split, counts in result.questions.items():
        text = (
            f"{counts['questions']}, {counts['unlinked']} without an entity, {counts['unsupported']} without a document"
        )
        pairs.append((f"{split} questions", text))
    pairs.append(("seconds", round(result.seconds, 1)))
    report.panel("Graph", pairs)


def _flat(value: object) -> object:
    return ", ".join(f"{count} {name}" for name, count in value.items()) if isinstance(value, dict) else value
