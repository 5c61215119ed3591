"""The built-in demo set: a small encyclopaedia of real facts, in our own words.

Facts are kept as tables (chemical elements, countries, rivers, programming languages, ...) and told in passages of
at most sixty words. The passages of one entity share its title and tell different facts, so a retriever has to learn
which of them holds the one that is asked for. A question and the passages of its entity form a group, and a group
is never cut by the split: what is tested is reading about entities that no training question named.

Origin: facts are nobody's property; tables, sentences and questions were written for this project and come under
its licence (Apache-2.0).
"""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Literal

from ragtrain.data.demo.reading import Entity, kinds, read_table, read_templates
from ragtrain.data.demo.writing import Wording, stable_number
from ragtrain.records import Document, Passage, Question

LICENCE = "Apache-2.0"
ORIGIN = "Facts from general knowledge, tables and wording written for ragtrain"

#: The small models that the demo starts from; they have read about invented entities only.
ENCODER = Path(__file__).parent / "models" / "encoder"
GENERATOR = Path(__file__).parent / "models" / "generator"
CAUSAL = Path(__file__).parent / "models" / "causal"
#: Where the demo set goes when a command needs it and was told no place.
FOLDER = Path("data/demo")

_Split = Literal["train", "validation", "test"]
_TEST_SHARE, _VALIDATION_SHARE = 0.2, 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class DemoSet:
    """The questions of the three splits and the one passage list that all of them are answered from."""

    train: list[Question]
    validation: list[Question]
    test: list[Question]
    passages: list[Passage]


def build(seed: int = 0) -> DemoSet:
    """Write the demo set out of its tables.

    Args:
        seed: Decides which entities are in which split, and nothing else: passages, questions and their order are
            the same for every seed, so one index serves all.

    Returns:
        About 70 % of the entities of every kind under ``train``, 10 % under ``validation``, 20 % under ``test``.

    Raises:
        DataError: a table or template in the package is malformed.
    """
    entities = [entity for kind in kinds() for entity in read_table(kind)]
    # Mercury the planet, the element and the god: told apart in words, kept together in the split.
    shared = collections.Counter(entity.bare.casefold() for entity in entities)
    splits = _split(entities, seed)
    built = DemoSet([], [], [], [])
    questions: dict[_Split, list[Question]] = {
        "train": built.train,
        "validation": built.validation,
        "test": built.test,
    }
    for entity in entities:
        name = entity.bare.casefold()
        split = splits[name]
        wording = Wording(entity, read_templates(entity.kind), shared=shared[name] > 1)
        _write(entity, wording, split, built.passages, questions[split])
    return built


def _split(entities: list[Entity], seed: int) -> dict[str, _Split]:
    """Return the split of every name, drawn kind by kind; a name of several kinds is drawn with the first."""
    first_kind: dict[str, str] = {}
    for entity in entities:
        first_kind.setdefault(entity.bare.casefold(), entity.kind)
    by_kind: dict[str, list[str]] = collections.defaultdict(list)
    for name, kind in first_kind.items():
        by_kind[kind].append(name)
    splits: dict[str, _Split] = {}
    for kind, names in by_kind.items():
        names.sort(key=lambda name: stable_number("split", seed, kind, name))
        n_test, n_validation = round(len(names) * _TEST_SHARE), round(len(names) * _VALIDATION_SHARE)
        for place, name in enumerate(names):
            splits[name] = "test" if place < n_test else "validation" if place < n_test + n_validation else "train"
    return splits


def _write(entity: Entity, wording: Wording, split: _Split, passages: list[Passage], questions: list[Question]) -> None:
    """Append the passages and the questions of one entity."""
    group = f"{entity.kind}-{entity.slug}"
    for theme, relations in wording.templates.themes.items():
        text = wording.passage(theme)
        if not text:
            continue
        passage = Passage(f"demo-{group}-{theme}", wording.title, text)
        passages.append(passage)
        gold = Document(passage.id, passage.title, passage.text, is_gold=True)
        questions.extend(
            Question(
                id=f"demo-{group}-{relation}",
                question=wording.question(relation),
                answers=entity.facts[relation],
                dataset="demo",
                split=split,
                group=group,
                documents=(gold,),
                extra={"kind": entity.kind, "relation": relation},
            )
            for relation in relations
            if relation in entity.facts and wording.askable(relation)
        )
