"""From a question, or from names, to the entities of a graph: by the words first, then by vectors above a threshold."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from ragtrain.prepare.graph.mentions import NameTree, find_capitals, find_names, plain_title
from ragtrain.prepare.graph.vectors import NameVectors
from ragtrain.prepare.graph.words import Key, Usage, folded, key_of, words_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.graphs import KnowledgeGraph
    from ragtrain.models.encoder import TextEncoder

#: Entities that one name is linked to where several have it ("Brother (film)", "Brother (song)"); of more, none is meant.
MOST_MEANT = 5
#: Entity and score: 1 where the words are its name, else the cosine.
Link = tuple[int, float]


def link_entities(
    texts: Sequence[str], graph: KnowledgeGraph, encoder: TextEncoder | None = None, threshold: float = 0.7
) -> list[list[Link]]:
    """Return for each text the entities that it names, with scores.

    Args:
        texts: names, or whole questions.
        graph: whose entities.
        encoder: of names that the graph does not spell so; without it, these are not linked.
        threshold: least cosine of such a name and an entity.
    """
    vectors = None if encoder is None else NameVectors(graph.entities, encoder)
    return EntityLinker(graph, vectors, threshold).link(texts)


class EntityLinker:
    """Finds the entities of a graph in texts.

    Words are compared without regard to case, spacing, punctuation and, where that finds nothing, accents. The longest name
    at a place counts, and names within it do not. A name in capitals, or a whole text, that no entity has is compared with all by its
    vector. Entities without a triple and without a document (what is left of deleted passages) are not found.
    """

    def __init__(self, graph: KnowledgeGraph, vectors: NameVectors | None = None, threshold: float = 0.7) -> None:
        self.graph, self.threshold = graph, threshold
        self._vectors = vectors
        self._alive = np.zeros(graph.n_entities, dtype=bool)
        self._alive[graph.triples[:, [0, 2]].reshape(-1)] = True
        self._alive[graph.document_entities] = True
        self._exact: dict[Key, list[int]] = defaultdict(list)
        self._folded: dict[str, list[int]] = defaultdict(list)
        short: dict[Key, list[int]] = defaultdict(list)
        for number in np.flatnonzero(self._alive).tolist():
            name = graph.entities[number]
            key, plain = key_of(name), key_of(plain_title(name))
            if key:
                self._exact[key].append(number)
                self._folded[folded(name)].append(number)
            if plain and plain != key:
                short[plain].append(number)
        # A short form means those that have no entity of their own by that name.
        for key, numbers in short.items():
            self._exact.setdefault(key, numbers[: MOST_MEANT + 1])
        self._tree = NameTree(self._exact)
        self._folded_tree = NameTree(tuple(spelled.split()) for spelled in self._folded if spelled)
        self._usage = Usage(document.text for document in graph.documents)

    def link(self, texts: Sequence[str]) -> list[list[Link]]:
        """Return for each text its entities in the order in which it names them, each once, with scores."""
        found: list[dict[int, float]] = []
        unknown: list[tuple[int, str]] = []
        for place, text in enumerate(texts):
            links, names = self._by_words(text)
            found.append(links)
            unknown += [(place, name) for name in names]
        if self._vectors is not None and unknown:
            for (place, _), link in zip(unknown, self._by_vector([name for _, name in unknown]), strict=True):
                if link is not None:
                    found[place].setdefault(*link)
        return [list(links.items()) for links in found]

    def _by_words(self, text: str) -> tuple[dict[int, float], list[str]]:
        """Return entities whose names a text holds, and the names in it that no entity has."""
        whole = self._exact.get(key_of(text))
        if whole and len(whole) <= MOST_MEANT:
            return dict.fromkeys(whole, 1.0), []
        words = words_of(text)
        taken = bytearray(len(words))
        links: dict[int, float] = {}
        for mention in find_names(words, self._tree, self._usage):
            meant = self._exact[mention.key]
            taken[mention.start : mention.end] = b"\1" * (mention.end - mention.start)
            if len(meant) <= MOST_MEANT:
                links.update(dict.fromkeys(meant, 1.0))
        plain = words_of(folded(text))
        if len(plain) == len(words):  # the same words without accents, where they are still the same words
            for mention in find_names(plain, self._folded_tree, self._usage):
                meant = self._folded[" ".join(mention.key)]
                if not any(taken[mention.start : mention.end]) and len(meant) <= MOST_MEANT:
                    taken[mention.start : mention.end] = b"\1" * (mention.end - mention.start)
                    links.update(dict.fromkeys(meant, 1.0))
        names = [
            words.spelling(mention.start, mention.end)
            for mention in find_capitals(words, self._usage)
            if mention.kind == "name" and not any(taken[mention.start : mention.end])
        ]
        return links, names or ([text] if not links and len(words) <= 6 and text.strip() else [])

    def _by_vector(self, names: Sequence[str]) -> list[Link | None]:
        """Return the nearest entity of each name, or None where none is near enough."""
        vectors = self._vectors
        if vectors is None:
            return [None] * len(names)
        different = list(dict.fromkeys(names))
        # More than one: the nearest may be an entity that is no longer there.
        places, scores = vectors.nearest(vectors.encode(different), min(10, self.graph.n_entities))
        best: dict[str, Link] = {}
        for name, near, cosines in zip(different, places.tolist(), scores.tolist(), strict=True):
            for place, cosine in zip(near, cosines, strict=True):
                if place >= 0 and self._alive[place] and cosine >= self.threshold:
                    best[name] = (place, round(cosine, 6))
                    break
        return [best.get(name) for name in names]
