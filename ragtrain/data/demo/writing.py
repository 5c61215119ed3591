"""Writes passages and questions about one entity from its facts and the templates of its kind.

Every choice is taken by a hash of what it is taken for, so the same fact is worded the same on every machine, in
every Python and whatever else is in the tables.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragtrain.data.demo.reading import Entity, Templates

_POSSESSIVE = {"it": "its", "he": "his", "she": "her", "they": "their"}
_FEW_WORDS, _MANY_WORDS = 25, 38


def stable_number(*key: object) -> int:
    """Return a 64-bit number that depends on the key alone."""
    text = "/".join(map(str, key))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def pick(options: Sequence[str], *key: object) -> str:
    """Return the option that the key falls on."""
    return options[stable_number(*key) % len(options)]


def contains_words(text: str, words: str) -> bool:
    """Say whether the words stand in the text, case aside, not as a part of longer words."""
    text, words = text.casefold(), words.casefold()
    return words in text and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _genitive(name: str) -> str:
    return f"{name}'" if name.endswith("s") else f"{name}'s"


def _fill(template: str, *, subject: str, possessive: str, noun: str, value: str = "") -> str:
    """Put words into a template; the replaced names hold no braces, so the order does not matter."""
    article = "an" if value[:1].casefold() in "aeio" and value else "a"
    text = (
        template.replace("{E's}", possessive)
        .replace("{E}", subject)
        .replace("{N}", noun)
        .replace("{aV}", f"{article} {value}")
        .replace("{V}", value)
    )
    return _upper_first(text[:-1] if text.endswith("..") else text)


class Wording:
    """How one entity is written about.

    Args:
        entity: The entity and its facts.
        templates: Those of its kind.
        shared: Whether an entity of another kind has the same name, so that it must be told apart.
    """

    def __init__(self, entity: Entity, templates: Templates, *, shared: bool) -> None:
        self.entity, self.templates = entity, templates
        self.title = f"{entity.bare} ({entity.kind.replace('_', ' ')})" if shared else entity.bare
        mention = templates.mention.format(name=entity.name)
        self.in_passage = mention if shared else entity.name
        self.in_question = mention if shared or templates.always else entity.name

    def passage(self, theme: str) -> str:
        """Return the text of one theme, or nothing where the entity has no fact of it."""
        key = (self.entity.kind, self.entity.slug, theme)
        relations = [name for name in self.templates.themes[theme] if name in self.entity.facts]
        if not relations:
            return ""
        relations.sort(key=lambda name: stable_number("order", *key, name))
        parts: list[tuple[str, str]] = [(self._template(name, key), self.entity.facts[name][0]) for name in relations]
        fillers = sorted(self.templates.fillers, key=lambda text: stable_number("fill", *key, text))
        text = self._join(parts, key)
        while fillers:
            length = len(text.split())
            if length >= _FEW_WORDS and (length >= _MANY_WORDS or stable_number(length, *key) % 3):
                break
            filler = fillers.pop()
            parts.insert(1 + stable_number("place", *key, filler) % len(parts), (filler, ""))
            text = self._join(parts, key)
        return text

    def _join(self, parts: Sequence[tuple[str, str]], key: tuple[str, ...]) -> str:
        """Write the sentences one after the other, each a template and its answer."""
        text, clear = "", False
        for n, (template, value) in enumerate(parts):
            text += " " * (n > 0) + self._sentence(template, value, (*key, str(n)), clear)
            clear = template.startswith(("{E}", "{E's}"))
        return text

    def _template(self, relation: str, key: tuple[str, ...]) -> str:
        """Choose a sentence; none that begins with the answer where upper case would change the answer."""
        options = self.templates.sentences[relation]
        if self.entity.facts[relation][0][:1].islower():
            options = [option for option in options if not option.startswith("{V}")]
        return pick(options, "s", *key, relation)

    def _sentence(self, template: str, value: str, key: tuple[str, ...], clear: bool) -> str:
        """Write a sentence, with a pronoun for its subject only where the sentence before makes clear who is meant."""
        name = self.in_passage
        noun = name if key[-1] == "0" else pick([name, *self.templates.also], "noun", *key)
        subject, possessive = noun, _genitive(noun)
        if clear and stable_number("pronoun", *key) % 4:
            subject, possessive = self.entity.pronoun, _POSSESSIVE[self.entity.pronoun]
        return _fill(template, subject=subject, possessive=possessive, noun=noun, value=value)

    def question(self, relation: str) -> str:
        """Return the question that asks for one relation."""
        template = pick(self.templates.questions[relation], "q", self.entity.kind, self.entity.slug, relation)
        name = self.in_question
        return _fill(template, subject=name, possessive=_genitive(name), noun=name)

    def askable(self, relation: str) -> bool:
        """Say whether the fact can be asked for: neither title nor question gives the answer away."""
        answer = self.entity.facts[relation][0]
        return not any(contains_words(text, answer) for text in (self.title, self.question(relation)))
