"""Texts as words with places: sentences, names in capitals, and what a corpus says of each word.

Nothing here knows a language's grammar. Capitals are judged by the corpus: a word that begins a sentence in a capital is a
name only if the corpus does not write it small elsewhere. Scripts without spaces become a word a letter, so that names are
found in them as well.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

import regex

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A word of the key of a name; a key is what two spellings of a name share.
Key = tuple[str, ...]

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# Signs behind a word belong to it: C, C++ and C# are three names.
_WORD = regex.compile(rf"\p{{N}}+(?:[.,]\p{{N}}+)+|[{_UNSPACED}]\p{{M}}*|[^\W_{_UNSPACED}][[\w\p{{M}}]--[_{_UNSPACED}]]*[+#]*",
                      regex.V1)  # fmt: skip
_UNSPACED_START = regex.compile(rf"[{_UNSPACED}]", regex.V1)
_UNSPACED_END = regex.compile(rf"[{_UNSPACED}]\p{{M}}*$", regex.V1)
_END = regex.compile(r"[!?。！？…\n]|\.(?=[\s\"'”’)\]]|$)")
_JOINED = frozenset({" ", "\u00a0", "-", "‐", "–", "'", "’", "", "."})
_SHORTENED = "st dr mr mrs ms jr sr mt ft no gen lt col capt sgt prof rev hon vs"
_TITLES = frozenset(_SHORTENED.split())
#: English words that tell nothing by themselves; corpora of other languages are judged by their own counts alone.
_ENGLISH = """a about above after again against all also am among an and any are as at be became because become been before being
    below between both but by can could did do does during each either few for from further had has have having he her here
    hers him himself his how however i if in into is it its itself just least less like many may me might more most much must
    my neither no nor not of off often on once one only or other others our out over own per quite rather same several shall
    she should since so some such than that the their them themselves then there these they this those though through thus to
    together too toward towards under until up upon us used very was we well were what when where whether which while who
    whom whose why will with within without would yet you your"""
FUNCTION_WORDS = frozenset(_ENGLISH.split())


@dataclasses.dataclass(slots=True)
class Words:
    """The words of a text.

    Attributes:
        text: composed (NFC).
        starts: where each word begins in ``text``.
        ends: where it ends.
        keys: words without regard to case.
        first: whether a word begins a sentence.
        joined: whether nothing but a space, a hyphen, an apostrophe or an initial's full stop is before a word.
    """

    text: str
    starts: list[int]
    ends: list[int]
    keys: list[str]
    first: list[bool]
    joined: list[bool]

    def __len__(self) -> int:
        return len(self.keys)

    def capital(self, place: int) -> bool:
        """Return whether a word begins with a capital."""
        return self.text[self.starts[place]].isupper()

    def spelling(self, start: int, end: int) -> str:
        """Return the words ``start`` to ``end`` as they stand, on one line."""
        return " ".join(self.text[self.starts[start] : self.ends[end - 1]].split())


def words_of(text: str) -> Words:
    """Return the words of a text."""
    text = unicodedata.normalize("NFC", text)
    words = Words(text, [], [], [], [], [])
    before = 0
    for match in _WORD.finditer(text):
        start, end = match.span()
        gap = text[before:start]
        initial = bool(words.keys) and _abbreviated(words) and match.group().casefold() not in FUNCTION_WORDS
        starts_sentence = not words.keys or bool(_END.search(gap) and not (initial and gap == ". "))
        words.joined.append(bool(words.keys) and (gap in _JOINED or (initial and gap == ". ")))
        words.first.append(starts_sentence)
        words.starts.append(start)
        words.ends.append(end)
        words.keys.append(match.group().casefold())
        before = end
    return words


def _abbreviated(words: Words) -> bool:
    """Return whether a full stop behind the last word says nothing of a sentence: "J. R. R. Tolkien", "St. Louis"."""
    return (words.ends[-1] - words.starts[-1] == 1 and words.capital(-1)) or words.keys[-1] in _TITLES


def key_of(name: str) -> Key:
    """Return the key of a name: its words without regard to case, spacing and punctuation between them."""
    return tuple(words_of(name).keys)


def spelled(keys: Iterable[str]) -> str:
    """Return words as one text: with spaces between them, but for scripts that are written without."""
    text = ""
    for key in keys:
        close = text and _UNSPACED_END.search(text) and _UNSPACED_START.match(key)
        text += key if close or not text else f" {key}"
    return text


def folded(name: str) -> str:
    """Return a name without accents, case and punctuation; "" where nothing of it would be left.

    Only to compare names with: marks of scripts in which they are vowels are kept.
    """
    apart = unicodedata.normalize("NFD", " ".join(key_of(name)))
    kept = regex.sub(r"(?<=[\p{Latin}\p{Greek}\p{Cyrillic}]\p{M}*)\p{M}", "", apart)
    return unicodedata.normalize("NFC", kept)


class Usage:
    """How a corpus writes its words.

    Attributes:
        texts: number of texts.
        small: occurrences of a word that begin small.
        capital: occurrences that begin with a capital, not at the beginning of a sentence.
        frequency: texts that hold a word.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts = 0
        self.small: Counter[str] = Counter()
        self.capital: Counter[str] = Counter()
        self.frequency: Counter[str] = Counter()
        for text in texts:
            self.add(words_of(text))

    def add(self, words: Words) -> None:
        """Count the words of a text."""
        self.texts += 1
        self.frequency.update(set(words.keys))
        for place, key in enumerate(words.keys):
            letter = words.text[words.starts[place]]
            if letter.islower():
                self.small[key] += 1
            elif letter.isupper() and not words.first[place]:
                self.capital[key] += 1

    def ordinary(self, key: str) -> bool:
        """Return whether a word is written small more often than not; a capital then tells nothing by itself."""
        return key in FUNCTION_WORDS or self.small[key] > self.capital[key]

    def proper(self, key: str) -> bool:
        """Return whether a word is seen to be a name: in a capital within a sentence, more often than small."""
        return key not in FUNCTION_WORDS and self.capital[key] > self.small[key]

    def common(self, key: str) -> bool:
        """Return whether a word is in so many texts that, written small, it names nothing."""
        return key in FUNCTION_WORDS or self.frequency[key] > max(20, self.texts // 100)
