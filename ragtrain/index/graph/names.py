"""Which entities of a graph a text names, by words alone: the seeds of the lexical baseline."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from typing import TYPE_CHECKING

from ragtrain.index.bm25 import words_of

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Words of a name at most; longer ones are sentences that were taken for entities.
LONGEST = 12
#: Names that are no names where they stand alone.
_NEVER = frozenset(
    words_of(
        "a an and are as at be by did do does for from had has have he her his how in is it its of on or s she t that the "
        "their they this to was were what when where which who whom whose why will with"
    )
)


class EntityNames:
    """The words of every entity's name."""

    def __init__(self, names: Sequence[str]) -> None:
        """Take in names.

        Args:
            names: of entities, by id.
        """
        found: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, name in enumerate(names):
            words = _words(name)
            if 0 < len(words) <= LONGEST and not (len(words) == 1 and words[0] in _NEVER):
                found[words].append(number)
        self._ids = dict(found)
        self._longest = max(map(len, found), default=0)

    def mentions(self, text: str) -> tuple[int, ...]:
        """Return the ids of the entities that a text names as whole words, whatever their case, in order of place.

        Of two names of which one lies inside the other, the longer counts; of entities whose names have the same words, all do.
        """
        words = _words(text)
        found: dict[int, None] = {}
        covered = 0
        for start in range(len(words)):
            for stop in range(min(len(words), start + self._longest), start, -1):
                ids = self._ids.get(words[start:stop])
                if ids is not None:
                    # What ends no later than a name that began before lies inside it.
                    if stop > covered:
                        found.update(dict.fromkeys(ids))
                        covered = stop
                    break
        return tuple(found)


def _words(text: str) -> tuple[str, ...]:
    return tuple(words_of(unicodedata.normalize("NFC", text)))
