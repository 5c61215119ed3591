"""A knowledge graph of passages without a language model: titles, what passages mention, and the words between mentions.

Entities are titles, names in capitals, numbers and announced things (``mentions``); relations are the words that stand
between two of them in a sentence (``phrases``). A title with something in brackets is also known without it. The result depends
on the passages and their order alone.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING

from ragtrain import report
from ragtrain.index.graph.read_openie import Extraction
from ragtrain.prepare.graph.mentions import Mention, NameTree, find_mentions, plain_title, telling
from ragtrain.prepare.graph.phrases import CALLED, TOGETHER, relate
from ragtrain.prepare.graph.words import Key, Usage, Words, key_of, words_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ragtrain.records import Passage


def extract(
    passages: Sequence[Passage],
    *,
    max_mentions: int,
    min_documents: int,
    known: Sequence[Passage] = (),
    names: Sequence[str] = (),
) -> list[Extraction]:
    """Return entities and triples of passages.

    Args:
        passages: in their order.
        max_mentions: entities of a passage besides its title, the rarest first.
        min_documents: passages in which a name must be, unless it is a title.
        known: other passages of the same graph, whose titles are looked up and whose words are counted as well.
        names: entities that the graph has, in its spelling; they may be in fewer passages.
    """
    corpus = _Corpus(passages, known, max_mentions, min_documents)
    corpus.respect(names)
    return corpus.extractions()


def mentioning(
    passages: Sequence[Passage], titles: Sequence[str], usage: Usage, names: Sequence[str]
) -> Iterator[Extraction]:
    """Yield, of passages of a graph that mention one of its new titles, the triples that relate these to what it has.

    Args:
        passages: those that were there before.
        titles: new ones.
        usage: of the words of all passages.
        names: entities of the graph.
    """
    fresh = {key for title in titles for key in (key_of(plain_title(title)), key_of(title)) if key}
    spelling = {key: name for name in reversed(names) if (key := key_of(name))}
    tree = NameTree([*fresh, *(key for passage in passages for key in own_keys(passage))])
    for passage in passages:
        words, own = words_of(passage.text), own_keys(passage)
        found = [
            mention for mention in find_mentions(words, tree, usage) if mention.key in spelling or mention.key in own
        ]
        new = {mention.key for mention in found} & fresh - own
        if not new:
            continue
        triples = [
            (spelling[head] if head else passage.title, phrase, spelling[tail] if tail else passage.title)
            for head, phrase, tail in relate(words, found, own)
            if {head, tail} & new
        ]
        yield Extraction(passage, tuple(spelling[key] for key in sorted(new)), tuple(triples))


def own_keys(passage: Passage) -> frozenset[Key]:
    """Return the keys by which a passage's title is mentioned."""
    return frozenset(key for key in (key_of(passage.title), key_of(plain_title(passage.title))) if key)


class _Corpus:
    """The passages, read twice: for the words' use and titles, then for what each mentions."""

    def __init__(
        self, passages: Sequence[Passage], known: Sequence[Passage], max_mentions: int, min_documents: int
    ) -> None:
        self.passages, self.known = passages, known
        self.max_mentions, self.min_documents = max_mentions, min_documents
        everything = list(itertools.chain(known, passages))
        self.usage = Usage(passage.text for passage in report.progress(everything, "Reading words"))
        self.spelling: dict[Key, str] = {}
        for passage in everything:
            for title in (passage.title.strip(), plain_title(passage.title)):
                if key := key_of(title):
                    self.spelling.setdefault(key, " ".join(title.split()))
        self.titles = frozenset(self.spelling)
        self.tree = NameTree(self.spelling)
        self.there: set[Key] = set(self.titles)
        self.frequency: Counter[Key] = Counter()

    def respect(self, names: Sequence[str]) -> None:
        """Take the spelling of entities that there are."""
        for name in names:
            if key := key_of(name):
                self.spelling[key] = name
                self.there.add(key)

    def extractions(self) -> list[Extraction]:
        """Return what each passage mentions, and how."""
        found: list[list[Mention]] = []
        for passage in report.progress(self.passages, "Finding mentions"):
            words = words_of(passage.text)
            mentions = self._mentions(passage, words)
            self.frequency.update({mention.key for mention in mentions})
            for mention in mentions:
                self.spelling.setdefault(mention.key, words.spelling(mention.start, mention.end))
            found.append(mentions)
        return [self._extraction(passage, mentions) for passage, mentions in zip(self.passages, found, strict=True)]

    def _mentions(self, passage: Passage, words: Words) -> list[Mention]:
        """Return the mentions of a text; a part of its title by itself ("Taylor" of "John Taylor") stands for the title."""
        own = own_keys(passage)
        parts = {part for key in own for part in key if len(key) > 1}
        title = key_of(passage.title)
        return [
            Mention(m.start, m.end, title, "title") if m.kind == "name" and len(m.key) == 1 and m.key[0] in parts else m
            for m in find_mentions(words, self.tree, self.usage)
        ]

    def _extraction(self, passage: Passage, mentions: Sequence[Mention]) -> Extraction:
        own = own_keys(passage)
        rarest = sorted(
            {mention.key for mention in mentions if mention.key not in own and self._counts(mention)},
            key=lambda key: (key not in self.titles, self.frequency[key], key),
        )
        chosen = {*own, *rarest[: self.max_mentions]}
        kept = [mention for mention in mentions if mention.key in chosen]
        title = self.spelling[key_of(passage.title)] if key_of(passage.title) else ""
        short = self.spelling.get(key_of(plain_title(passage.title)), title)
        triples: dict[tuple[str, str, str], None] = {}
        if short != title:
            triples[title, CALLED, short] = None
        for head, phrase, tail in relate(words_of(passage.text), kept, own):
            triple = (self.spelling[head] if head else title, phrase, self.spelling[tail] if tail else title)
            if triple[0] != triple[2]:
                triples[triple] = None
        names = dict.fromkeys([name for name in (title, short) if name] + [self.spelling[m.key] for m in kept])
        if not triples and len(names) > 1:
            first, *others = names
            triples = dict.fromkeys((first, TOGETHER, other) for other in others)
        return Extraction(passage, tuple(names), tuple(triples))

    def _counts(self, mention: Mention) -> bool:
        frequency = self.frequency[mention.key]
        if mention.key not in self.there and frequency < self.min_documents:
            return False
        return telling(mention, frequency, len(self.passages) + len(self.known))
