"""Keys of other programs, and what they mean here.

A command may declare (``Command.aliases``) that a foreign name, as ``train.optim``, is a field of its own, maybe in other
words; that it has no effect here; or that only some of its values can be accepted. ``Command.readings`` does the same
for values of the command's own fields that other programs write differently, as ``max_steps: -1``. Files, arguments and
flags all go through the same table, and each alias that was used is told in a line (``notes``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

PLAIN, STRONG, WEAK = 0, 1, 2
"""Order in which the settings of one source count: a strong one after the plain ones, a weak one last and conditionally."""

NULLS = ("null", "~", "")
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
MOST_LINES = 3
"""More aliases than this in one source are summed up in one line."""


class Refused(ValueError):
    """A value of a foreign key that has no counterpart here; the message says what is expected."""


@dataclasses.dataclass(frozen=True, slots=True)
class Copy:
    """A value that is read from another field when all sources are known."""

    field: str


def anything(_: object) -> bool:
    """Hold for every value: ``unless=anything`` gives way to whatever was given for the field."""
    return True


@dataclasses.dataclass(frozen=True, slots=True)
class Give:
    """One field of ours and its value.

    Attributes:
        field: Dotted path.
        value: Text, or what the field takes, or a ``Copy``.
        order: ``PLAIN``, ``STRONG`` or ``WEAK`` within its source.
        unless: Where the field was given a value for which this holds, that value stays.
    """

    field: str
    value: object
    order: int = PLAIN
    unless: Callable[[object], bool] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Meaning:
    """What a value means: fields to set, and where it is not obvious a remark on it."""

    gives: tuple[Give, ...] = ()
    remark: str = ""


Converter = Callable[[object], Meaning]
"""From a value as it was typed (a text, a list of texts, or None for null) to its meaning; raises ``Refused``."""
Reading = Callable[[object], Meaning | None]
"""The same for a field's own name; None where the value is an ordinary one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Alias:
    """A foreign key.

    Attributes:
        fields: Fields of ours that it sets; none for a key without effect.
        convert: How its value is read; without it, as the one field reads its own.
        remark: Why it has no effect, or which values are accepted.
        null: Whether null means something; else a null key is as good as absent.
        silent: Whether nothing need be said because everything is as asked.
    """

    fields: tuple[str, ...] = ()
    convert: Converter | None = None
    remark: str = ""
    null: bool = False
    silent: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Note:
    """An alias that was used: where (a file, or the command line), which key, and what became of it."""

    source: str
    key: str
    alias: Alias
    remark: str = ""


# --- declaring ---------------------------------------------------------------------------------------------------------


def rename(field: str) -> Alias:
    """Declare another name of a field, which takes the same values."""
    return Alias((field,))


def ignored(remark: str = "") -> Alias:
    """Declare a key that is accepted without effect."""
    return Alias(remark=remark)


def choice(field: str, values: Mapping[str, object]) -> Alias:
    """Declare a field whose values have other names there; what has no counterpart is refused by name."""

    def convert(value: object) -> Meaning:
        found = values.get(word(value))
        if found is None:
            raise Refused(f"is not among what ragtrain has: {', '.join(values)}")
        return Meaning((Give(field, found),))

    return Alias((field,), convert)


def only(*values: str, why: str) -> Alias:
    """Declare a key of which some values are what ragtrain does anyway; all others are refused, with the reason."""

    def convert(value: object) -> Meaning:
        if word(value) not in values:
            raise Refused(f"expected {' or '.join(values)}: {why}")
        return Meaning()

    return Alias(convert=convert, remark=f"only {' or '.join(values)}: {why}", silent=True)


def refused(why: str) -> Alias:
    """Declare a key that may only be null, false or empty."""
    return dataclasses.replace(only("false", "[]", "{}", "0", "0.0", "none", why=why), remark=f"may not be set: {why}")


# --- reading values ----------------------------------------------------------------------------------------------------


def word(value: object) -> str:
    """Return a value as one lower-case word; an empty list is ``[]``."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(str, value))}]"
    return str(value).strip().lower()


def words(value: object) -> list[str]:
    """Return the items of a list, or of a text with commas."""
    if isinstance(value, (list, tuple)):
        return [str(item).strip() for item in value]
    return [item.strip(" '\"") for item in str(value).strip("[] ").split(",") if item.strip(" '\"")]


def truth(value: object) -> bool:
    """Read true or false as YAML and command lines write it.

    Raises:
        Refused: It is neither.
    """
    found = as_truth(value)
    if found is None:
        raise Refused("expected true or false")
    return found


def as_truth(value: object) -> bool | None:
    """Return true or false, or None for anything else."""
    text = word(value)
    return True if text in TRUE else False if text in FALSE else None


def is_null(value: object) -> bool:
    """Return whether a value as it was typed stands for nothing."""
    return value is None or (isinstance(value, str) and value.strip().lower() in NULLS)


# --- what every command accepts ----------------------------------------------------------------------------------------


def _defaults(value: object) -> Meaning:
    if words(value) != ["_self_"]:
        raise Refused("files are not composed by a list of defaults: give each with --config, later ones win")
    return Meaning()


COMMON: Mapping[str, Alias] = {
    "defaults": Alias(convert=_defaults, silent=True),
    "hydra": ignored("ragtrain reads Hydra's spelling and is not started by Hydra"),
}
"""Blocks of Hydra that may stand in any command's file."""


def find(table: Mapping[str, Alias], name: str) -> Alias | None:
    """Return the alias of a dotted name (with underscores), if there is one."""
    return table.get(name) or COMMON.get(name.partition(".")[0] if name.startswith("hydra.") else name)


def parents(table: Mapping[str, Alias]) -> set[str]:
    """Return the sections that foreign names stand in, as ``train`` or ``model.lora``."""
    prefixes = (name.rpartition(".")[0] for name in table)
    return {prefix for prefix in prefixes if prefix}


# --- telling -----------------------------------------------------------------------------------------------------------


def tell(notes: Iterable[Note]) -> list[str]:
    """Return the lines that tell of the aliases used: one each, or one for all that need no remark where there are many."""
    by_source: dict[str, list[Note]] = {}
    for note in notes:
        by_source.setdefault(note.source, []).append(note)
    return [line for source, found in by_source.items() for line in _tell_source(source, found)]


def _tell_source(source: str, notes: Sequence[Note]) -> list[str]:
    told = [note for note in notes if not (note.alias.silent and not note.remark)]
    remarked = [note for note in told if note.remark]
    renamed = [note for note in told if not note.remark and note.alias.fields]
    without = [note for note in told if not note.remark and not note.alias.fields]
    lines = []
    if len(renamed) > MOST_LINES:
        first = next((note for note in renamed if _last(note.key) != _last(note.alias.fields[0])), renamed[0])
        lines.append(
            f"{source}: {len(renamed)} keys have other names here, as {first.key} is {first.alias.fields[0]}; "
            "--print-config shows each"
        )
    else:
        lines += [f"{source}: {note.key} is {' and '.join(note.alias.fields)} here" for note in renamed]
    if len(without) > MOST_LINES:
        lines.append(f"{source}: without effect here: {', '.join(note.key for note in without)}")
    else:
        reasons = {note.key: f" ({note.alias.remark})" if note.alias.remark else "" for note in without}
        lines += [f"{source}: {key} is without effect here{reason}" for key, reason in reasons.items()]
    return lines + [f"{source}: {note.key}: {note.remark}" for note in remarked]


def _last(key: str) -> str:
    return key.rpartition(".")[2]
