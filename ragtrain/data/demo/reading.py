"""Reads the tables of facts and the templates that turn them into language.

A kind of entity (``country``) has two files. ``tables/country.tsv`` has one entity a line: the first column is the
name as it stands in running text, every other column is a relation, an empty cell is a fact that is not told, and
``|`` separates spellings of one answer, the first of which is the one that the passage shows. A column ``pronoun``
(``he``, ``she``, ``they``) is not a relation. ``templates/country.txt`` says how the facts are told and asked for:

    mention the country {name}      how a question names the entity when another kind has the same name
    always                          ... and in every question of this kind
    also the country                how later sentences of a passage may call it
    include person                  take the relations of another file too
    theme land: region highest      one passage, and the relations that it tells
    fill {N} is shown on every map. a sentence without a fact
    capital                         a relation; then its sentences (s) and questions (q), indented
      s The capital of {N} is {V}.
      q What is the capital of {N}?

``{N}`` is the entity by name or noun, ``{E}`` the same where a pronoun may stand (a subject), ``{E's}`` its
possessive, ``{V}`` the answer, ``{aV}`` the answer after ``a`` or ``an``.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import re
import unicodedata
from typing import TYPE_CHECKING

from ragtrain.errors import DataError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


@dataclasses.dataclass(slots=True)
class Templates:
    """How one kind of entity is told and asked about."""

    mention: str = "{name}"
    always: bool = False
    also: list[str] = dataclasses.field(default_factory=list)
    themes: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    fillers: list[str] = dataclasses.field(default_factory=list)
    sentences: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    questions: dict[str, list[str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Entity:
    """One line of a table: ``name`` in running text (``the Nile``) and the answers by relation."""

    kind: str
    name: str
    pronoun: str
    facts: dict[str, tuple[str, ...]]

    @functools.cached_property
    def bare(self) -> str:
        """The name as the title of an article: without its article, first letter upper case."""
        bare = self.name.removeprefix("the ")
        return bare[:1].upper() + bare[1:]

    @functools.cached_property
    def slug(self) -> str:
        """The name as part of an identifier."""
        spelled = self.bare.casefold().replace("+", "p").replace("#", "-sharp")
        plain = "".join(c for c in unicodedata.normalize("NFKD", spelled) if not unicodedata.combining(c))
        return re.sub(r"[\W_]+", "-", plain).strip("-")


def _folder(name: str) -> Traversable:
    return importlib.resources.files(__package__) / name


def kinds() -> list[str]:
    """Return the names of all tables, sorted."""
    return sorted(file.name.removesuffix(".tsv") for file in _folder("tables").iterdir() if file.name.endswith(".tsv"))


@functools.cache
def read_table(kind: str) -> tuple[Entity, ...]:
    """Return the entities of one kind in the order of the file.

    Raises:
        DataError: a line has more cells than the header has columns.
    """
    path = _folder("tables") / f"{kind}.tsv"
    lines = path.read_text(encoding="utf-8").splitlines()
    header = lines[0].split("\t")
    entities = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) > len(header):
            raise DataError(f"{len(cells)} cells, expected at most {len(header)}", path=path, line=number)
        row = {key: cell.strip() for key, cell in zip(header, cells, strict=False)}
        name, pronoun = row.pop("name"), row.pop("pronoun", "it")
        facts = {key: tuple(part.strip() for part in cell.split("|")) for key, cell in row.items() if cell}
        entities.append(Entity(kind, name, pronoun, facts))
    return tuple(entities)


@functools.cache
def read_templates(kind: str) -> Templates:
    """Return the templates of one kind.

    Raises:
        DataError: a line that is none of those described at the top of this module.
    """
    path = _folder("templates") / f"{kind}.txt"
    found = Templates()
    relation = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        word, _, rest = line.strip().partition(" ")
        if not word:
            continue
        if line.startswith(" "):
            if not relation or word not in ("s", "q") or not rest:
                raise DataError("expected 's SENTENCE' or 'q QUESTION' under a relation", path=path, line=number)
            place = found.sentences if word == "s" else found.questions
            place.setdefault(relation, []).append(rest)
        elif not rest and word != "always":
            relation = word
        else:
            _keyword(found, word, rest, DataError(f"{word!r} is not a keyword", path=path, line=number))
    return found


def _keyword(found: Templates, word: str, rest: str, unknown: DataError) -> None:
    match word:
        case "mention":
            found.mention = rest
        case "always":
            found.always = True
        case "also":
            found.also.append(rest)
        case "fill":
            found.fillers.append(rest)
        case "theme":
            name, _, relations = rest.partition(":")
            found.themes[name] = tuple(relations.split())
        case "include":
            other = read_templates(rest)
            found.fillers.extend(other.fillers)
            found.sentences.update({key: list(texts) for key, texts in other.sentences.items()})
            found.questions.update({key: list(texts) for key, texts in other.questions.items()})
        case _:
            raise unknown
