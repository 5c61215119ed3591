"""Endless text about invented entities: passages, questions and answers that hold no fact of the real world.

The demo models are pre-trained on this text only. Every name is spelled by :func:`pseudo_word` from letters, every
fact is drawn at random, so nothing of the demo's encyclopaedia can leak into the models: what they can learn here is
the skill alone (find the passage of a name, find the phrase that was asked for, copy it).
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Draw = Callable[[random.Random], str]


@dataclass(frozen=True)
class Fact:
    """One relation of one entity: how it is told, how it is asked, what the answer is."""

    statement: str  # holds {V} or {V^} (capital) once, {S} {s} subject, {P} {p} possessive, {n} name
    questions: tuple[str, ...]  # hold {E}
    answer: str
    theme: str
    kind: str  # of the answer, a key of _TYPES
    statements: tuple[str, ...]  # every way to tell it, ``statement`` among them


@dataclass(frozen=True)
class Subject:
    """Who or what a passage is about."""

    name: str
    kind: str
    pronoun: str


@dataclass(frozen=True)
class InventedQuestion:
    """A question with its answer and the place of that answer in the passage's text (characters)."""

    question: str
    answer: str
    start: int
    fact: Fact
    subject: Subject


@dataclass(frozen=True)
class InventedPassage:
    """A titled passage and the questions that it answers."""

    title: str
    text: str
    questions: tuple[InventedQuestion, ...]


_TABLES: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
WORDS: dict[str, list[str]] = {name: text.split() for name, text in _TABLES["words"].items()}
_ACCENTS = {
    "a": "áàâäãåāă",
    "c": "çćč",
    "e": "éèêëēęě",
    "i": "íîïī",
    "l": "ł",
    "n": "ñńň",
    "o": "óôöõøō",
    "r": "ř",
    "s": "šşś",
    "u": "úûüūů",
    "y": "ý",
    "z": "žźż",
}
#: All sentences and questions, as templates.
TEMPLATES: list[list[str]] = [
    *_TABLES["sentences"].values(),
    *(frame[part] for frame in _TABLES["verb_frames"] + _TABLES["loose"] for part in ("statements", "questions")),
]
_POSSESSIVES = {"it": "its", "he": "his", "she": "her", "they": "their"}
_SENTENCES: dict[str, list[str]] = _TABLES["sentences"]
HEADERS: list[str] = _SENTENCES["headers"]


# ---------------------------------------------------------------- names spelled from letters


def pseudo_word(rng: random.Random, syllables: int | None = None) -> str:
    """An invented word of one to four syllables in lower case."""
    count = syllables or rng.choices((1, 2, 3, 4), (22, 52, 22, 4))[0]
    if rng.random() < 0.06:  # letters at random: spellings that no grammar of syllables would give
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 9)))
    word = rng.choice(WORDS["vowels"]) if rng.random() < 0.2 else ""
    for index in range(count):
        word += rng.choice(WORDS["onsets"]) + rng.choice(WORDS["vowels"])
        if rng.random() < (0.25 if index < count - 1 else 0.4):
            word += rng.choice(WORDS["codas"])
    if rng.random() < 0.45:
        word = word.rstrip("aeiouy") + rng.choice(WORDS["endings"])
    return word if len(word) > 2 else word + rng.choice(("ra", "lon", "mek"))


def proper(rng: random.Random, syllables: int | None = None) -> str:
    """An invented proper name of one word, now and then with an accent, a hyphen or an apostrophe."""
    name = pseudo_word(rng, syllables).capitalize()
    form = rng.random()
    if form < 0.06:
        plain = rng.choice([letter for letter in name.lower() if letter in _ACCENTS] or ["?"])
        return name.replace(plain, rng.choice(_ACCENTS.get(plain, "?")), 1)
    if form < 0.09:
        return f"{name}-{pseudo_word(rng, 1).capitalize()}"
    if form < 0.10:
        return f"{name}-{rng.choice(('la', 'le', 'sur', 'am', 'de'))}-{pseudo_word(rng, 1).capitalize()}"
    if form < 0.115:
        return f"{rng.choice(('O', 'D', 'Al', 'N'))}'{name}"
    return name


# ---------------------------------------------------------------- values


def person(rng: random.Random) -> str:
    """An invented person, mostly with two names."""
    form = rng.random()
    if form < 0.62:
        return f"{proper(rng)} {proper(rng)}"
    if form < 0.80:
        return proper(rng)
    if form < 0.88:
        return f"{proper(rng)} {rng.choice('ABCDEFGHJKLMNPRSTVW')}. {proper(rng)}"
    if form < 0.95:
        return f"{proper(rng)} {rng.choice(('van', 'de', 'von', 'al', 'del', 'ibn', 'da'))} {proper(rng)}"
    return f"{proper(rng)} {proper(rng)} {proper(rng)}"


def place(rng: random.Random) -> str:
    """An invented place."""
    form = rng.random()
    if form < 0.68:
        return proper(rng)
    if form < 0.84:
        head = rng.choice(WORDS["place_heads"])
        return f"{head} {proper(rng)}"
    if form < 0.94:
        tail = rng.choice(WORDS["place_tails"])
        return f"{proper(rng)} {tail}"
    return f"{proper(rng)} {proper(rng)}"


def title(rng: random.Random) -> str:
    """An invented title of a song, a ship, a feast."""
    form = rng.random()
    if form < 0.4:
        return proper(rng)
    if form < 0.65:
        return f"The {rng.choice(WORDS['adjectives']).capitalize()} {rng.choice(WORDS['common']).capitalize()}"
    if form < 0.8:
        return f"{rng.choice(WORDS['common']).capitalize()} of {proper(rng)}"
    return f"{proper(rng)} {rng.choice(WORDS['common']).capitalize()}"


def year(rng: random.Random) -> str:
    """A year, mostly of the last three centuries."""
    return str(rng.randint(1700, 2024) if rng.random() < 0.85 else rng.randint(900, 1700))


def number(rng: random.Random) -> str:
    """A number of any size, with thousands separators."""
    size = rng.random()
    if size < 0.4:
        return str(rng.randint(1, 120))
    if size < 0.6:
        return str(rng.randint(100, 999))
    if size < 0.8:
        return f"{rng.randint(1000, 99999):,}"
    if size < 0.9:
        return f"{rng.uniform(0.1, 99):.{rng.choice((1, 1, 2))}f}"
    return f"{rng.uniform(1, 90):.{rng.choice((0, 1))}f} {rng.choice(('million', 'thousand'))}"


def measure(rng: random.Random) -> str:
    """A number with a unit."""
    return f"{number(rng)} {rng.choice(WORDS['units'])}"


def symbol(rng: random.Random) -> str:
    """One or two letters."""
    first = rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return first if rng.random() < 0.3 else first + rng.choice("abcdefghijklmnopqrstuvwxyz")


def code(rng: random.Random) -> str:
    """A code with a sign: ``+47``-like, ``.no``-like, three capitals, letters with digits."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    form = rng.random()
    if form < 0.25:
        return f"+{rng.randint(2, 999)}"
    if form < 0.5:
        return "." + "".join(rng.choice(letters) for _ in range(rng.choice((2, 2, 2, 3, 1))))
    if form < 0.8:
        return "".join(rng.choice(letters) for _ in range(rng.choice((2, 3, 3)))).upper()
    return f"{rng.choice(letters).upper()}{rng.choice('- ')}{rng.randint(1, 99)}"


def date(rng: random.Random) -> str:
    """A day and month, or a month and year."""
    if rng.random() < 0.5:
        return f"{rng.randint(1, 28)} {rng.choice(WORDS['months'])}"
    return f"{rng.choice(WORDS['months'])} {year(rng)}"


def phrase(rng: random.Random) -> str:
    """A few everyday words, as answers that are no names have them."""
    form = rng.random()
    if form < 0.25:
        return f"{rng.choice(WORDS['adjectives'])} {rng.choice(WORDS['general'])}"
    if form < 0.4:
        return f"{rng.choice(('the', 'a'))} {rng.choice(WORDS['adjectives'])} {rng.choice(WORDS['general'])}"
    if form < 0.6:
        return f"{rng.choice(('the', 'a'))} {rng.choice(WORDS['common'] + WORDS['general'])}"
    if form < 0.7:
        return f"the {rng.choice(WORDS['general'])} of {proper(rng)}"
    if form < 0.85:
        return f"{rng.choice(WORDS['general'])} {rng.choice(WORDS['general'])}"
    return rng.choice(WORDS["general"] + WORDS["common"])


def _one_of(words: Sequence[str]) -> Draw:
    return lambda rng: rng.choice(words)


def _thing(rng: random.Random) -> str:
    return f"{rng.choice(WORDS['colours'])} {rng.choice(rng.choice((WORDS['animals'], WORDS['trees'], WORDS['common'], WORDS['foods'])))}"


def _capital_word(rng: random.Random) -> str:
    return proper(rng)


_TYPES: dict[str, Draw] = {
    "person": person,
    "place": place,
    "title": title,
    "year": year,
    "number": number,
    "measure": measure,
    "symbol": symbol,
    "code": code,
    "date": date,
    "colour": _one_of(WORDS["colours"]),
    "material": _one_of(WORDS["materials"]),
    "animal": _one_of(WORDS["animals"]),
    "food": _one_of(WORDS["foods"]),
    "tree": _one_of(WORDS["trees"]),
    "craft": _one_of(WORDS["crafts"]),
    "weather": _one_of(WORDS["weather"]),
    "instrument": _one_of(WORDS["instruments"]),
    "shape": _one_of(WORDS["shapes"]),
    "day": _one_of(WORDS["days"]),
    "thing": _thing,
    "word": pseudo_word,
    "phrase": phrase,
    "name": _capital_word,
}

# ---------------------------------------------------------------- relations

_THEMES: dict[str, list[str]] = _TABLES["themes"]
_THEME_OF = {kind: theme for theme, kinds in _THEMES.items() for kind in kinds}
_RELATION_NOUNS = [(noun.replace("-", " "), kind) for kind, nouns in _TABLES["nouns"].items() for noun in nouns.split()]
_ANY_WORD = [word for name in ("general", "common", "verbs", "crafts") for word in WORDS[name]]
_BY_THEME = {theme: [(noun, kind) for noun, kind in _RELATION_NOUNS if _THEME_OF[kind] == theme] for theme in _THEMES}


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]


def noun_fact(rng: random.Random, theme: str, palette: Sequence[str]) -> Fact:
    """A fact told through a noun: "the winter harbour of X is V".

    In half of them the noun is any word, or none that exists, and the value is of a type in the palette: then neither
    what the noun means nor the form of the value tells where the answer is, only the noun found again.
    """
    noun, kind = rng.choice(_BY_THEME[theme])
    form = rng.random()
    if form < 0.5:
        noun = rng.choice(_ANY_WORD) if form < 0.35 else pseudo_word(rng, rng.choice((1, 2, 2, 3)))
        kind = rng.choice(palette)
    if rng.random() < 0.45:
        noun = f"{rng.choice(WORDS['adjectives'])} {noun}"
    elif rng.random() < 0.15:
        noun = f"{noun} of {rng.choice(_ANY_WORD)}"
    told = tuple(text.replace("{N}", noun).replace("{N^}", _cap(noun)) for text in _SENTENCES["noun_statements"])
    statement = rng.choice(told)
    who = "who" if kind == "person" else rng.choice(("what", "what", "which"))
    questions = tuple(
        text.replace("{N}", noun).replace("{W}", _cap(who)).replace("{w}", who)
        for text in rng.sample(_SENTENCES["noun_questions"], 2)
    )
    return Fact(statement, questions, _TYPES[kind](rng), theme, kind, told)


def verb_fact(rng: random.Random) -> Fact:
    """A fact told through a verb: by whom, when, where, with what, how often."""
    frame = rng.choice(_TABLES["verb_frames"])
    verb = rng.choice(WORDS["verbs"]) if rng.random() < 0.7 else f"{pseudo_word(rng, rng.choice((1, 2)))}ed"
    asked = tuple(text.replace("{R}", verb) for text in frame["questions"])
    told = tuple(text.replace("{R}", verb) for text in frame["statements"])
    statement = rng.choice(told)
    return Fact(statement, asked, _TYPES[frame["kind"]](rng), frame["theme"], frame["kind"], told)


def loose_fact(rng: random.Random) -> Fact:
    """A fact whose question shares few words with its statement."""
    frame = rng.choice(_TABLES["loose"])
    told = tuple(frame["statements"])
    statement = rng.choice(told)
    return Fact(statement, tuple(frame["questions"]), _TYPES[frame["kind"]](rng), frame["theme"], frame["kind"], told)


def draw_facts(rng: random.Random, theme: str, count: int) -> list[Fact]:
    """Facts of one theme for the most part, with distinct answers and distinct questions."""
    facts: list[Fact] = []
    palette = rng.sample(tuple(_TYPES), rng.choice((1, 2, 3)))
    while len(facts) < count:
        form = rng.random()
        if form < 0.45:
            fact = noun_fact(rng, theme if rng.random() < 0.8 else rng.choice(tuple(_THEMES)), palette)
        else:
            fact = verb_fact(rng) if form < 0.62 else loose_fact(rng)
            if fact.theme != theme and rng.random() < 0.6:
                continue
        if any(fact.answer == other.answer or fact.questions[0] == other.questions[0] for other in facts):
            continue
        facts.append(fact)
    return facts


def entity_name(rng: random.Random) -> str:
    """The name of an invented entity, one to three words."""
    form = rng.random()
    if form < 0.54:
        return proper(rng)
    if form < 0.68:
        return person(rng)
    if form < 0.82:
        return place(rng)
    if form < 0.91:
        return title(rng)
    everyday = WORDS[rng.choice(("animals", "trees", "common", "instruments", "materials", "foods", "general"))]
    word = rng.choice(everyday).capitalize()
    return word if rng.random() < 0.5 else f"{rng.choice(WORDS['general']).capitalize()} {word.lower()}"


def _tell(rng: random.Random, fact: Fact, subject: Subject, named: bool) -> str:
    """The statement with its subject filled in, {V} or {V^} left open."""
    name, kind = subject.name, subject.kind
    if named:
        short, own = rng.choice((name, name, f"the {kind} {name}")), f"{name}'s"
    else:
        short = rng.choice((subject.pronoun, f"the {kind}", f"this {kind}"))
        own = rng.choice((_POSSESSIVES[subject.pronoun], f"the {kind}'s"))
    text = fact.statement.replace("{S}", _cap(short) if fact.statement.startswith("{S}") else short)
    return text.replace("{s}", short).replace("{P}", _cap(own)).replace("{p}", own).replace("{n}", name)


def _put(sentence: str, value: str) -> tuple[str, int]:
    """The sentence with the value in its place, capital where it opens the sentence, and that place."""
    before, _, after = sentence.replace("{V^}", "{V}").partition("{V}")
    return before + (_cap(value) if "{V^}" in sentence else value) + after, len(before)


def filler(rng: random.Random) -> str:
    """A sentence that answers nothing."""
    if rng.random() < 0.3:
        return rng.choice(_SENTENCES["fillers"])
    words = " ".join(rng.choice(WORDS["general"]) for _ in range(rng.randint(3, 8)))
    return f"{_cap(words)}."


def _write(
    rng: random.Random, subject: Subject, facts: Sequence[Fact], max_words: int, stranger: Fact | None
) -> InventedPassage:
    """Join facts into a passage and note where each answer stands."""
    name, kind = subject.name, subject.kind
    pieces: list[tuple[str, Fact | None]] = []
    if rng.random() < 0.7:
        opener = (
            rng.choice(_SENTENCES["openers"])
            .replace("{K}", kind)
            .replace("{A}", rng.choice(WORDS["adjectives"]))
            .replace("{E}", name)
        )
        pieces.append((opener, None))
    for fact in facts:
        pieces.append((_tell(rng, fact, subject, named=not pieces or rng.random() < 0.35), fact))
    if stranger is not None:
        other = Subject(entity_name(rng), kind, subject.pronoun)
        told = _put(_tell(rng, stranger, other, named=True), stranger.answer)[0]
        if other.name in told:  # a distractor must say whom it is about
            pieces.insert(rng.randint(1, len(pieces)), (told, None))
    if rng.random() < 0.4:
        pieces.insert(rng.randint(1, len(pieces)), (filler(rng), None))
    text = ""
    questions: list[InventedQuestion] = []
    for piece, told_fact in pieces:
        if len(text.split()) + len(piece.split()) > max_words and questions:
            break
        if text:
            text += " "
        if told_fact is None:
            text += piece
            continue
        sentence, start = _put(piece, told_fact.answer)
        about = name if rng.random() < 0.8 else f"the {kind} {name}"
        asked = rng.choice(told_fact.questions).replace("{E}", about)
        questions.append(InventedQuestion(asked, told_fact.answer, len(text) + start, told_fact, subject))
        text += sentence
    return InventedPassage(name, text, tuple(questions))


def entity(rng: random.Random, n_passages: int, max_words: int = 60) -> list[InventedPassage]:
    """All passages of one new entity: one theme each, one title."""
    subject = Subject(entity_name(rng), rng.choice(WORDS["kinds"]), rng.choice(("it", "it", "it", "he", "she", "they")))
    passages = []
    for theme in rng.sample(tuple(_THEMES), n_passages):
        facts = draw_facts(rng, theme, rng.randint(2, 6))
        stranger = None
        if rng.random() < 0.15:  # the same relation of someone else
            twin = rng.choice(facts)
            value = rng.choice(draw_facts(rng, theme, 3)).answer
            stranger = replace(twin, answer=value)
        passages.append(_write(rng, subject, facts, max_words, stranger))
    return passages


def twin(rng: random.Random, passage: InventedPassage, max_words: int = 60) -> InventedPassage:
    """A passage of another entity of the same kind that tells mostly the same relations with other values."""
    asked = passage.questions
    subject = replace(asked[0].subject, name=entity_name(rng))
    kept = rng.sample(asked, rng.randint(1, len(asked)))
    facts = [replace(q.fact, answer=_TYPES[q.fact.kind](rng), statement=rng.choice(q.fact.statements)) for q in kept]
    facts += [
        fact
        for fact in draw_facts(rng, facts[0].theme, rng.randint(1, 2))
        if all(fact.questions[0] != other.questions[0] for other in facts)
    ]
    rng.shuffle(facts)
    return _write(rng, subject, facts, max_words, None)


def reply(rng: random.Random, question: InventedQuestion) -> tuple[str, int]:
    """A whole sentence that answers a question, and where the answer stands in it (characters)."""
    if rng.random() < 0.25:
        told = replace(question.fact, statement=rng.choice(question.fact.statements))
        return _put(_tell(rng, told, question.subject, named=True), question.answer)
    return put_reply(rng, question.answer)


def put_reply(rng: random.Random, answer: str) -> tuple[str, int]:
    """A sentence that says no more than an answer, and where the answer stands in it (characters)."""
    return _put(rng.choice(_SENTENCES["replies"]), answer)


def copy_task(rng: random.Random) -> tuple[str, str, int]:
    """The first lesson: ``words`` and the same words. Returns (source, answer, start)."""
    draw = _TYPES[rng.choice(tuple(_TYPES))]
    answer = " ".join(draw(rng) for _ in range(rng.randint(1, 2)))
    return answer, answer, 0


def lookup_task(rng: random.Random) -> tuple[str, str, str, int]:
    """The second lesson: ``key: value; key: value`` and a key. Returns (source, key, answer, start)."""
    keys: dict[str, str] = {}
    count = rng.randint(2, 6)
    while len(keys) < count:
        noun, kind = rng.choice(_RELATION_NOUNS)
        key = noun if rng.random() < 0.7 else pseudo_word(rng, 2)
        keys.setdefault(key, _TYPES[kind](rng))
    asked = rng.choice(tuple(keys))
    text, start = "", 0
    for key, value in keys.items():
        text += f" ; {key} : " if text else f"{key} : "
        if key == asked:
            start = len(text)
        text += value
    return text, asked, keys[asked], start
