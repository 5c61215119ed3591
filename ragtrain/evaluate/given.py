"""The passages that another run read, given to a model in place of those that it would find itself.

With one run's reader on the other's passages, ``ragtrain compare A B --swapped`` tells retrieval's part of a difference from the
reader's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from ragtrain.data.sft.records import Sample
from ragtrain.errors import ConfigError, DataError
from ragtrain.index.exact import Hits
from ragtrain.records import Document
from ragtrain.retrieve import Lookup, Retriever

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from ragtrain.config.commands import EvalConfig
    from ragtrain.data.sft.records import Example
    from ragtrain.index.search import DenseIndex
    from ragtrain.models.rag import RagModel

log = logging.getLogger("ragtrain")

#: Options that choose passages, which are given here.
_CHOOSING = ("n_docs", "recall_at", "retrieval", "search_index", "conditions", "n_docs_sweep", "gold_position_sweep")


@dataclasses.dataclass(frozen=True)
class Contexts:
    """What a run read.

    Attributes:
        name: the run, as it was named.
        path: its predictions.
        read: passages by question id, in the order in which they were read.
        ranks: rank of each of them, from 0 for the best: the highest is the first to give way in a prompt.
    """

    name: str
    path: Path
    read: Mapping[str, tuple[Document, ...]]
    ranks: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, given: Path) -> Contexts:
        """Read the passages of a run folder, an evaluation folder, or a file of predictions.

        Raises:
            DataError: there are none, or a line cannot be used.
        """
        path = _predictions(given)
        read: dict[str, tuple[Document, ...]] = {}
        ranks: dict[str, tuple[int, ...]] = {}
        for line, row in enumerate(_rows(path), 1):
            documents = row.get("documents") if isinstance(row, dict) else None
            if not isinstance(documents, list) or "id" not in row:
                raise DataError("says nothing of passages", path=path, line=line, field="documents",
                                hint="give a run that read passages, evaluated by ragtrain eval")  # fmt: skip
            made = [_document(each, path, line) for each in documents]
            identifier = str(row["id"])
            if identifier in read:
                raise DataError(f"question {identifier!r} is answered twice", path=path, line=line, field="id")
            read[identifier] = tuple(made)
            said = [each.get("rank") for each in documents]
            whole = sorted(rank for rank in said if isinstance(rank, int)) == list(range(len(said)))
            ranks[identifier] = tuple(said) if whole else tuple(range(len(said)))
        if not read:
            raise DataError("no predictions", path=path)
        return cls(str(given), path, read, ranks)

    def of_questions(self, ids: Sequence[str]) -> Contexts:
        """Return what was read for these questions alone.

        Raises:
            DataError: the run answered none of them, or not all, or read no passage for any.
        """
        missing = [each for each in ids if each not in self.read]
        if len(missing) == len(ids):
            raise DataError(f"answers none of the {len(ids)} questions, of which the first is {ids[0]!r}", path=self.path,
                            hint="evaluate both runs on the same questions: give the other's --test-data")  # fmt: skip
        if missing:
            raise DataError(
                f"does not answer {len(missing)} of the {len(ids)} questions, of which the first is {missing[0]!r}",
                path=self.path,
                hint=f"it answers {len(self.read)}: give the --num-samples and --seed of its evaluation, or evaluate it on all",
            )
        if not any(self.read[each] for each in ids):
            raise DataError(
                "read no passage for any of the questions", path=self.path, hint="give a run that reads some"
            )
        return dataclasses.replace(
            self, read={each: self.read[each] for each in ids}, ranks={each: self.ranks[each] for each in ids}
        )

    @property
    def most(self) -> int:
        """Passages that were read for a question, at most."""
        return max(len(documents) for documents in self.read.values())

    @property
    def sha256(self) -> str:
        """Hash of the passages that were read for each question, with their order."""
        digest = hashlib.sha256()
        for each, documents in sorted(self.read.items()):
            read = [[document.id, document.title, document.text] for document in documents]
            digest.update(json.dumps([each, read, self.ranks[each]]).encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what an evaluation says of them."""
        return {"run": self.name, "path": str(self.path), "sha256": self.sha256}

    def samples(self, examples: Sequence[Example]) -> list[Sample]:
        """Return a prompt for each row, with the passages that the run read in place of its own.

        Raises:
            ConfigError: rows bring finished prompts.
            DataError: the run does not say what stands in a passage.
        """
        if any(example.finished is not None for example in examples):
            raise ConfigError("rows with finished prompts hold their passages: no others can be given",
                              hint="give --test-data with questions")  # fmt: skip
        for example in examples:
            if empty := [document.id for document in self.read[example.id] if not document.text]:
                raise DataError(f"does not say what stands in the passage {empty[0]!r} of question {example.id!r}",
                                path=self.path, field="text")  # fmt: skip
        return [
            Sample(
                example.id, example.question, self.read[example.id], example.targets[0] if example.targets else "",
                ranks=self.ranks[example.id],
            )
            for example in examples
        ]  # fmt: skip

    def places(self, index: DenseIndex) -> dict[str, np.ndarray]:
        """Return positions in an index of the passages that were read for each question.

        A passage is the one of its id. The log says where an index has another text under it.

        Raises:
            DataError: the index has no such passage, or none was read for a question.
        """
        wanted: dict[str, set[str]] = {}
        for document in itertools.chain.from_iterable(self.read.values()):
            wanted.setdefault(document.id, set()).add(document.text)
        found: dict[str, int] = {}
        other = 0
        for position, passage in enumerate(index.passages):
            if passage.id in wanted:
                found[passage.id] = position
                other += bool(wanted[passage.id] - {"", passage.text})
        for each, documents in self.read.items():
            if not documents:
                raise DataError(
                    f"read no passage for question {each!r}, and a RAG model reads one at least", path=self.path
                )
            for document in documents:
                if document.id not in found:
                    raise DataError(
                        f"has no passage {document.id!r}, which {self.name} read for question {each!r}", path=index.path,
                        hint="give the index with --index-path that the other run searched",
                    )  # fmt: skip
        if other:
            log.warning("%d of %d passages have another text in %s than in %s: that of the index is read", other, len(wanted),
                        index.path, self.path)  # fmt: skip
        return {
            each: np.array([found[document.id] for document in documents], dtype=np.int64)
            for each, documents in self.read.items()
        }


def contexts_of(config: EvalConfig, ids: Sequence[str]) -> Contexts | None:
    """Return what ``--contexts-from`` names, of the questions to answer; None where it is not given.

    Raises:
        ConfigError: options beside it choose passages.
        DataError: it cannot be read, or is of other questions.
    """
    if config.contexts_from is None:
        return None
    if given := [f"--{name.replace('_', '-')}" for name in _CHOOSING if name in config.model_fields_set]:
        raise ConfigError(f"{', '.join(given)} beside --contexts-from, which says what is read", hint="leave it out")
    contexts = Contexts.of(config.contexts_from).of_questions(ids)
    log.info(
        "every question is answered from the passages that %s read for it, %d at most", contexts.name, contexts.most
    )
    return contexts


def writes_answers(given: Path) -> bool:
    """Return whether what ``--contexts-from`` names wrote answers, as graph models do not."""
    return all(isinstance(row, dict) and "prediction" in row for row in _rows(_predictions(given))[:1])


def _predictions(given: Path) -> Path:
    """Return the file of predictions that a path means.

    Raises:
        DataError: there is none.
    """
    if given.is_file():
        return given
    for folder in (given, given / "eval"):
        if (folder / "predictions.jsonl").is_file():
            return folder / "predictions.jsonl"
    inside = sorted(file.parent for folder in (given / "eval", given) for file in folder.glob("*/predictions.jsonl"))
    if inside:
        raise DataError(f"holds {len(inside)} evaluations", path=given,
                        hint=f"give one of {', '.join(map(str, inside))}")  # fmt: skip
    what = "there is no such run" if not given.exists() else "no predictions.jsonl in it or in its eval/"
    raise DataError(what, path=given, hint=f"ragtrain eval --model-dir {given}")


def _rows(path: Path) -> list[Any]:
    try:
        with path.open(encoding="utf-8") as file:
            if path.suffix == ".json":
                document = json.load(file)
                rows = document.get("predictions") if isinstance(document, dict) else document
            else:
                rows = [json.loads(line) for line in file if line.strip()]
    except ValueError as error:
        raise DataError(f"not JSON: {error}", path=path) from error
    if not isinstance(rows, list):
        raise DataError("no predictions", path=path, field="predictions")
    return rows


def _document(value: object, path: Path, line: int) -> Document:
    if not isinstance(value, dict) or value.get("id") in (None, ""):
        raise DataError("a passage without an id", path=path, line=line, field="documents")
    return Document(str(value["id"]), str(value.get("title") or ""), str(value.get("text") or ""))


@dataclasses.dataclass(frozen=True)
class GivenRetriever(Retriever):
    """A retriever that returns given passages of each question, in their order, with the model's own scores.

    Attributes:
        places: positions of passages by question id.
    """

    places: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @classmethod
    def giving(
        cls, places: Mapping[str, np.ndarray], index: DenseIndex, model: RagModel, device: torch.device, n_docs: int
    ) -> Self:
        """Return a retriever that feeds a model from an index, whose vectors score what is given."""
        found = Retriever.for_model(index, model, device=device, n_docs=n_docs)
        parts = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
        return cls(**parts, places=places)

    def for_questions(
        self,
        question_tokens: Sequence[np.ndarray],
        *,
        n_docs: int | None = None,
        depth: int | None = None,
        texts: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
    ) -> Lookup:
        """Return the ``retrieve`` of one batch, whose questions are known by their ids; ``depth`` is that of what is given."""
        width = n_docs or self.n_docs
        given = np.full((len(question_tokens), width), -1, dtype=np.int64)
        for row, each in enumerate(ids or ()):
            places = self.places[each][:width]
            given[row, : len(places)] = places
        return GivenLookup(self, question_tokens, width, given)


class GivenLookup(Lookup):
    """Given passages for one batch of questions."""

    def __init__(
        self, retriever: GivenRetriever, question_tokens: Sequence[np.ndarray], n_docs: int, given: np.ndarray
    ) -> None:
        super().__init__(retriever, question_tokens, n_docs, None)
        self.given = given

    def search(self, queries: Tensor) -> Hits:
        """Return what is given, with inner products of the question vectors (batch, dim)."""
        searcher = self.retriever.searcher
        ids = torch.from_numpy(self.given).to(searcher.device)
        with torch.no_grad():
            return Hits(ids, searcher.score(queries.detach().float(), ids), ids >= 0)
