"""What passages mention, without a language model: titles, names in capitals, numbers, and things that an article announces.

Titles are looked up word by word in a tree of all of them, so that the time does not depend on how many there are.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ragtrain.prepare.graph.words import FUNCTION_WORDS, Key, Usage, Words, key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Words that may stand inside a name between two capitals.
_PARTICLES = "of de la le du di da del della dos der den des van von zu y the al bin ibn"
_INSIDE = frozenset(_PARTICLES.split())
#: After these, up to two words written small name a thing.
_ANNOUNCING = frozenset(("a", "an", "the", "called", "named", "termed"))
_LONGEST_TERM = 2
_LONGEST_NAME = 12
#: Things (not names) in more than this share of the passages tell nothing.
_COMMON_TERM = 0.05


@dataclasses.dataclass(frozen=True, slots=True)
class Mention:
    """Words ``start`` to ``end`` of a text that name something.

    Attributes:
        start: first word.
        end: behind the last word.
        key: of the name.
        kind: ``title`` where it was looked up, else ``name``, ``number`` or ``term``.
    """

    start: int
    end: int
    key: Key
    kind: str


class NameTree:
    """Keys of names as a tree of words, in which the longest name at a place is found at one step a word."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._root: dict[str | None, object] = {}
        for key in keys:
            self.add(key)

    def add(self, key: Key) -> None:
        """Take a key; an empty one is no name."""
        node = self._root
        for word in key:
            node = node.setdefault(word, {})  # type: ignore[assignment]
        if key:
            node[None] = True

    def longest(self, words: Words, start: int) -> int:
        """Return behind which word the longest name ends that begins at ``start``; 0 where none does."""
        node: object = self._root
        found, place, keys = 0, start, words.keys
        while place < len(keys) and isinstance(node, dict) and (node := node.get(keys[place])) is not None:
            if place > start and words.first[place]:
                break
            place += 1
            if isinstance(node, dict) and None in node:
                found = place
        return found


def find_names(words: Words, tree: NameTree, usage: Usage) -> Iterator[Mention]:
    """Yield the names of a tree that a text mentions, the longest at each place, none within another."""
    place = 0
    while place < len(words):
        end = tree.longest(words, place)
        if end and _tells(words, place, end, usage):
            yield Mention(place, end, tuple(words.keys[place:end]), "title")
            place = end
        else:
            place += 1


def _tells(words: Words, start: int, end: int, usage: Usage) -> bool:
    """Return whether words that spell a name are likely to mean it: one common word, written small, is not."""
    if end - start > 1:
        return words.capital(end - 1) or not all(key in FUNCTION_WORDS for key in words.keys[start:end])
    key = words.keys[start]
    if not words.text[words.starts[start]].isupper() or words.first[start]:
        return not (usage.ordinary(key) and usage.common(key))
    return key not in FUNCTION_WORDS


def find_capitals(words: Words, usage: Usage) -> Iterator[Mention]:
    """Yield sequences of capitalised words, and numbers of three signs or more."""
    place = 0
    while place < len(words):
        letter = words.text[words.starts[place]]
        if letter.isupper() and not (words.first[place] and usage.ordinary(words.keys[place])):
            end = _name_end(words, place)
            alone = end - place == 1
            # One word that begins a sentence must be seen as a name elsewhere.
            known = usage.proper if words.first[place] else (lambda key: not usage.ordinary(key))
            if not alone or (known(words.keys[place]) and len(words.keys[place]) > 1):
                yield Mention(place, end, tuple(words.keys[place:end]), "name")
            place = end
            continue
        if letter.isnumeric() and words.ends[place] - words.starts[place] >= 3:
            yield Mention(place, place + 1, (words.keys[place],), "number")
        place += 1


def _name_end(words: Words, start: int) -> int:
    """Return behind which word the name ends that begins in a capital at ``start``."""
    end = place = start + 1
    while place < len(words) and place - start < _LONGEST_NAME and words.joined[place] and not words.first[place]:
        letter = words.text[words.starts[place]]
        if letter.isupper() or letter.isnumeric():
            end = place + 1
        elif words.keys[place] not in _INSIDE:
            break
        place += 1
    return end


def find_terms(words: Words) -> Iterator[Mention]:
    """Yield what an article or "called" announces in small letters: "is called a **cub**", "lives in a **den**"."""
    for place in range(1, len(words)):
        before = words.keys[place - 1]
        if before not in _ANNOUNCING or words.first[place] or not words.joined[place]:
            continue
        if before == "the" and words.first[place - 1]:  # "The city was founded": what was spoken of before
            continue
        end = place
        while end < len(words) and (end == place or (words.joined[end] and not words.first[end])):
            if words.keys[end] in FUNCTION_WORDS or not words.text[words.starts[end]].islower():
                break
            end += 1
        if 0 < end - place <= _LONGEST_TERM and len(words.keys[end - 1]) > 2 and not _goes_on(words, end):
            yield Mention(place, end, tuple(words.keys[place:end]), "term")


def _goes_on(words: Words, end: int) -> bool:
    """Return whether what follows at once makes a run of words no name of a thing.

    "The physicist Max Planck" names a person, and "the capital of Norway" says what relates to Norway.
    """
    if end >= len(words) or not words.joined[end] or words.first[end]:
        return False
    return words.capital(end) or words.keys[end] == "of"


def find_mentions(words: Words, tree: NameTree, usage: Usage) -> list[Mention]:
    """Return everything that a text mentions, in its order; of two that overlap the longer one, else the looked-up one."""
    order = {"title": 0, "name": 1, "number": 2, "term": 3}
    found = [*find_names(words, tree, usage), *find_capitals(words, usage), *find_terms(words)]
    found.sort(key=lambda mention: (mention.start - mention.end, order[mention.kind], mention.start))
    taken = bytearray(len(words))
    kept = []
    for mention in found:
        if not any(taken[mention.start : mention.end]):
            taken[mention.start : mention.end] = b"\1" * (mention.end - mention.start)
            kept.append(mention)
    return sorted(kept, key=lambda mention: mention.start)


def telling(mention: Mention, frequency: int, texts: int) -> bool:
    """Return whether a mention tells something: names do, things if they are in few texts, and several words in two at least.

    Of two words in small letters one is often a verb ("the family moved"); what is found once is left out for it.
    """
    if mention.kind != "term":
        return True
    return frequency <= max(20, _COMMON_TERM * texts) and (len(mention.key) == 1 or frequency > 1)


def plain_title(title: str) -> str:
    """Return a title without what tells it from others: "Brother (song)" is "Brother", "Publix#2" is "Publix"."""
    name, mark, number = title.rpartition("#")
    title = name if mark and name and number.isdecimal() else title
    if title.endswith((")", "）")):
        before = max(title.rfind("("), title.rfind("（"))
        if before > 0 and key_of(title[:before]):
            return title[:before].strip()
    return title.strip()
