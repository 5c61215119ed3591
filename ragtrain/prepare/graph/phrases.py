"""Relations without a language model: the words between two mentions of a sentence, or before one."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from ragtrain.prepare.graph.words import FUNCTION_WORDS, spelled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ragtrain.prepare.graph.mentions import Mention
    from ragtrain.prepare.graph.words import Key, Words

#: Relations of which the text says nothing in a few words.
TOGETHER, MENTIONS, CALLED = "is mentioned with", "mentions", "is also called"
_LONGEST = 5
#: Words between two mentions beyond which they say nothing of both.
_FAR = 8
_AND = frozenset(("and", "or", "as", "well"))
_FIRST = """and or but the a an which that who whom whose it he she they this these those there also then where when while its his
    her their one such"""
_LEADING = frozenset(_FIRST.split())
_LAST = "s the a an its his her their this that these those and or"
_TRAILING = frozenset(_LAST.split())


def relate(
    words: Words, mentions: Sequence[Mention], titles: frozenset[Key]
) -> Iterator[tuple[Key | None, str, Key | None]]:
    """Yield triples of the mentions of a passage: head, relation, tail, where None is the passage's title.

    Two neighbours in a sentence are related by what stands between them; the title is related to each mention by what
    stands before it. In a list ("A, B and C") all stand in the relation of the first.

    Args:
        words: of the passage.
        mentions: in their order.
        titles: keys by which the passage's own title is mentioned; empty for a passage without one.
    """
    for sentence in _sentences(words, mentions):
        before: Mention | None = None
        phrase = ""
        for mention in sentence:
            start = before.end if before else _sentence_start(words, mention.start)
            between = words.keys[start : mention.start]
            if not (before and all(key in _AND for key in between)):
                phrase = _phrase(between)
            own, head = mention.key in titles, None if before and before.key in titles else before
            if before and head and not own:
                yield head.key, _between(words, head, between), mention.key
            if before and own and head:
                yield head.key, _between(words, head, between), None
            elif titles and not own and before and head is None:
                yield None, _between(words, before, between, phrase), mention.key
            elif titles and not own:
                yield None, phrase or MENTIONS, mention.key
            before = mention


def _sentences(words: Words, mentions: Sequence[Mention]) -> Iterator[list[Mention]]:
    number, at = 0, 0
    numbers = []
    for mention in mentions:
        number += sum(words.first[at : mention.start + 1])
        at = mention.start + 1
        numbers.append(number)
    for _, group in itertools.groupby(zip(numbers, mentions, strict=True), key=lambda pair: pair[0]):
        yield [mention for _, mention in group]


def _sentence_start(words: Words, place: int) -> int:
    while place and not words.first[place]:
        place -= 1
    return place


def _phrase(keys: Sequence[str]) -> str:
    """Return the words next to a mention, at most five, without articles and the like at either end; "" if none is left."""
    kept = list(keys)
    while kept and kept[-1] in _TRAILING:
        kept.pop()
    kept = kept[-_LONGEST:]
    while kept and kept[0] in _LEADING:
        kept.pop(0)
    return spelled(kept)


def _between(words: Words, head: Mention, keys: Sequence[str], phrase: str | None = None) -> str:
    """Return the relation of a mention to the next one.

    What the head is a part of is put first: "the capital of Norway is Oslo" gives "capital of is".
    """
    found = _phrase(keys) if phrase is None else phrase
    if len(keys) > _FAR:
        return TOGETHER if phrase is None else found or MENTIONS
    before = _part_of(words, head)
    whole = f"{before} {found}".strip() if before and len(found.split()) < _LONGEST else found
    return whole or TOGETHER


def _part_of(words: Words, head: Mention) -> str:
    """Return "capital of" where "the capital of (the)" is before a mention, else ""."""
    place = head.start - 1
    if place >= 1 and words.keys[place] in ("the", "a", "an") and not words.first[place]:
        place -= 1
    if place < 1 or words.keys[place] != "of" or words.first[place]:
        return ""
    start = place
    while start > 0 and place - start < 2 and not words.first[start] and words.keys[start - 1] not in FUNCTION_WORDS:
        start -= 1
    return spelled(words.keys[start : place + 1]) if start < place else ""
