"""What files, arguments and flags say, before anything is checked against a model's bounds.

Each source gives ``Setting`` objects (a field, a value, where it was read) and ``Problem`` objects (what could not be
understood). Nothing is raised here: all problems are reported together by ``ragtrain.config.load``. Names of other
programs become fields here (``ragtrain.config.aliases``). Files are read by ``ragtrain.config.documents``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ragtrain.config import aliases, fields
from ragtrain.config.aliases import Alias, Copy, Give, Note
from ragtrain.config.base import Command

# As KEY=VALUE, with Hydra's + (add) and ++ (add or change) before it, which are the same here.
KEY_VALUE = re.compile(r"\+{0,2}[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*=")
# Hydra's ~KEY: without it, that is back to the default.
DELETE = re.compile(r"~[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*(=|$)")
COMMAND_LINE = "command line"
# OmegaConf's references to other keys and to resolvers, as ${experiment} or ${now:%Y}.
REFERENCE = re.compile(r"\$\{[^}]*\}")


class _Default:
    """Stands for a field's default, as the value of a setting that takes earlier ones back."""


DEFAULT_VALUE = _Default()


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """A field's value as some source gives it.

    Attributes:
        leaf: The field.
        value: As its shape has it, not yet validated.
        origin: ``file:line``, ``argument`` or ``flag``, and `` as KEY`` where another name was used.
        order: When it counts within its source: plain, strong, weak (``ragtrain.config.aliases``).
        unless: Holds for values that it does not replace.
    """

    leaf: fields.Leaf
    value: Any
    origin: str
    order: int = aliases.PLAIN
    unless: Callable[[object], bool] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong: which name, what was received, what was expected, where it stands."""

    subject: str
    origin: str
    message: str
    value: Any = dataclasses.field(default=None)
    has_value: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Typed:
    """A value as it was typed, and how a field of a shape reads it.

    Attributes:
        raw: A text, a list of texts, None for null; from Python whatever was given.
        read: Turns it into what pydantic validates.
        where: The file, or the command line, for notes.
    """

    raw: object
    read: Callable[[fields.Shape], object]
    where: str = COMMAND_LINE


@dataclasses.dataclass(slots=True)
class Found:
    """All that the sources said."""

    command: type[Command]
    settings: list[Setting] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    notes: list[Note] = dataclasses.field(default_factory=list)
    said: list[str] = dataclasses.field(default_factory=list)
    _begun: int = 0

    def begin(self) -> None:
        """Begin a source: what earlier ones said is complete."""
        self.settings[self._begun :] = sorted(self.settings[self._begun :], key=lambda setting: setting.order)
        self._begun = len(self.settings)

    def add(self, key: str, typed: Typed, origin: str, spelling: str = "") -> bool:
        """Store a value under the field that ``key`` names or stands for, or the problem with it.

        Args:
            key: Dotted or section-less, ours or a foreign name.
            typed: The value.
            origin: Where it stands.
            spelling: The key as it was typed, where that is not ``key``.

        Returns:
            Whether there is such a key.
        """
        leaf, message = resolve(self.command, key)
        alias = None if leaf is not None else aliases.find(self.command.aliases, _underscored(key))
        reference = REFERENCE.search(typed.raw) if isinstance(typed.raw, str) else None
        try:
            if reference is not None and (leaf is not None or alias is not None):
                self.fail(spelling or key, origin, f"{reference[0]} is not looked up here: write the value", typed.raw)
            elif leaf is not None:
                self._take(leaf, typed, origin)
            elif alias is not None:
                self._translate(alias, spelling or key, typed, origin)
            else:
                self.fail(spelling or key, origin, message, *([] if spelling and typed.raw is None else [typed.raw]))
        except aliases.Refused as error:
            self.fail(spelling or key, origin, str(error), typed.raw)
        return leaf is not None or alias is not None

    def fail(self, subject: str, origin: str, message: str, *value: object) -> None:
        """Store a problem, with the value received where there is one."""
        self.problems.append(Problem(subject, origin, message, value[0] if value else None, bool(value)))

    def reset(self, key: str, origin: str) -> None:
        """Take back what earlier sources said of a field, of all that a foreign key sets, or of a section."""
        table = fields.leaves(self.command)
        leaf, message = resolve(self.command, key)
        alias = aliases.find(self.command.aliases, _underscored(key))
        inside = [leaf] if leaf is not None else [item for item in table.values() if item.path[0] == key]
        inside = inside or [table[name] for name in (alias.fields if alias is not None else ())]
        if not inside and alias is None:
            self.fail(f"~{key}", origin, message)
        self.settings += [Setting(item, DEFAULT_VALUE, origin) for item in inside]

    def _take(self, leaf: fields.Leaf, typed: Typed, origin: str) -> None:
        """Store the value of one field, which may be written as other programs write it."""
        reading = self.command.readings.get(leaf.dotted)
        meaning = reading(typed.raw) if reading is not None else None
        if meaning is None:
            self.settings.append(Setting(leaf, typed.read(leaf.shape), origin))
        else:
            self._give(meaning.gives, origin)

    def _translate(self, alias: Alias, key: str, typed: Typed, origin: str) -> None:
        if aliases.is_null(typed.raw) and not alias.null:
            return
        remark, via = "", f"{origin} as {key}"
        if alias.convert is not None:
            meaning = alias.convert(typed.raw)
            self._give(meaning.gives, via)
            remark = meaning.remark
        elif alias.fields:
            self._take(fields.leaves(self.command)[alias.fields[0]], typed, via)
        self.notes.append(Note(typed.where, key, alias, remark))

    def _give(self, gives: Iterable[Give], origin: str) -> None:
        table = fields.leaves(self.command)
        for give in gives:
            leaf, value = table[give.field], give.value
            value = fields.parse_text(leaf.shape, value) if isinstance(value, str) else value
            self.settings.append(Setting(leaf, value, origin, give.order, give.unless))

    def settle(self) -> dict[str, Setting]:
        """Return the setting that counts for each field that was set, by dotted path."""
        self.begin()
        last: dict[str, Setting] = {}
        for setting in self.settings:
            name = setting.leaf.dotted
            if setting.value is DEFAULT_VALUE:
                last.pop(name, None)
            elif not (setting.unless is not None and name in last and setting.unless(last[name].value)):
                last[name] = setting
        table = fields.leaves(self.command)
        for name, setting in last.items():
            if isinstance(setting.value, Copy):
                other = setting.value.field
                value = last[other].value if other in last else table[other].default
                last[name] = dataclasses.replace(setting, value=value)
        return last


def _underscored(key: str) -> str:
    return key.replace("-", "_")


def resolve(command: type[Command], key: str) -> tuple[fields.Leaf | None, str]:
    """Find the field that a dotted or section-less name means; without one, say what is nearest.

    Dashes are read as underscores, so that a flag's spelling works in a file too.
    """
    name = _underscored(key)
    table = fields.leaves(command)
    if name in table:
        return table[name], ""
    if "." not in name:
        found = fields.by_name(command, name)
        if len(found) == 1:
            return found[0], ""
        if found:
            return None, f"ambiguous: say which of {', '.join(leaf.dotted for leaf in found)}"
        if name in fields.sections(command):
            inside = ", ".join(leaf.name for leaf in table.values() if leaf.path[0] == name)
            return None, f"is a section, not a value; its keys are {inside}"
    return None, _unknown(command, name)


def _unknown(command: type[Command], name: str) -> str:
    """Explain an unknown name: another section's field, or the nearest spelling of ours or of another program."""
    table = fields.leaves(command)
    section, _, last = name.rpartition(".")
    if last == "_target_":
        places = ", ".join(key for key in command.aliases if key.endswith("_target_"))
        return "ragtrain builds nothing by its name" + (f"; this key may stand at {places}" if places else "")
    elsewhere = [leaf for leaf in table.values() if leaf.name == last]
    if elsewhere:
        places = ", ".join(_place(leaf) for leaf in elsewhere)
        where = f"no such key in section {section!r}" if section in fields.sections(command) else "no such section"
        return f"{where}; {last} belongs to {places}"
    inside = {leaf.name: leaf.dotted for leaf in table.values() if section and ".".join(leaf.path[:-1]) == section}
    foreign = {key.rpartition(".")[2]: key for key in command.aliases if key.rpartition(".")[0] == section}
    everywhere = {leaf.name: leaf.dotted for leaf in table.values()}
    for names in (inside | foreign if section else {}, everywhere | foreign):
        close = fields.nearest(last, names)
        if close is not None:
            return f"unknown key; did you mean {names[close]}?"
    return "unknown key"


def _place(leaf: fields.Leaf) -> str:
    return leaf.dotted if len(leaf.path) > 1 else f"the top level ({leaf.dotted})"


# --- KEY=VALUE arguments, bare words and flags ---------------------------------------------------------------------


def read_words(found: Found, words: Sequence[str]) -> None:
    """Read KEY=VALUE arguments, also as Hydra writes them; other words fill the command's positional field."""
    found.begin()
    bare: list[str] = []
    for word in words:
        if KEY_VALUE.match(word):
            key, _, text = word.lstrip("+").partition("=")
            found.add(key, _typed_text(text), "argument")
        elif DELETE.match(word):
            key, equals, _ = word[1:].partition("=")
            if equals:
                found.fail(word, "argument", f"write ~{key} to go back to the default")
            else:
                found.reset(key, "argument")
        else:
            bare.append(word)
    if bare:
        _read_bare(found, bare)


def _typed_text(text: str) -> Typed:
    """Return a value of the command line; quotes around the whole of it make it a text, as in YAML and Hydra."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in text[1:-1]
    if quoted:
        inner = text[1:-1]
        return Typed(inner, lambda shape: [inner] if shape.many else inner)
    return Typed(text, lambda shape: fields.parse_text(shape, text))


def _read_bare(found: Found, bare: Sequence[str]) -> None:
    field = found.command.positional
    if field is None:
        for word in bare:
            hint = f"; for a file write --config {word}" if word.endswith((".yaml", ".yml")) else ""
            found.fail(word, "argument", f"expected KEY=VALUE or a flag{hint}")
        return
    leaf = fields.leaves(found.command)[field]
    if leaf.shape.choices and len(bare) > 1:
        found.fail(field, "argument", f"one {leaf.name} at a time is expected", " ".join(bare))
        return
    value = list(bare) if leaf.shape.many else " ".join(bare)
    found.settings.append(Setting(leaf, value, "argument"))


def read_flags(found: Found, flags: Mapping[str, Any], known_flags: Iterable[str]) -> None:
    """Read flags by field name; texts are parsed, other values (from Python) are taken as they are.

    A name that begins with a dash is a flag that the command line did not know: another program's, or unknown.
    """
    positional = found.command.positional
    by_word = {setting.leaf.name for setting in found.settings if setting.origin == "argument"}
    found.begin()
    for name, given in flags.items():
        if name.startswith("-"):
            _read_unknown(found, name, given, known_flags)
            continue
        leaf, _ = resolve(found.command, name)
        if leaf is not None and leaf.name == positional and leaf.name in by_word:
            found.fail(leaf.dotted, "flag", f"given twice: as an argument and as {leaf.flag}", given)
            continue
        found.add(name, _typed_flag(given), "flag")


def _read_unknown(found: Found, flag: str, given: object, known_flags: Iterable[str]) -> None:
    name = _underscored(flag.lstrip("-"))
    table = found.command.aliases
    if flag.startswith("--") and aliases.find(table, name) is not None:
        found.add(name, _typed_flag("true" if given is None else given), "flag", flag)
    elif given is None and name.startswith("no_") and aliases.find(table, name[3:]) is not None:
        found.add(name[3:], _typed_flag("false"), "flag", flag)
    else:
        found.fail(flag, "flag", _unknown_flag(found.command, flag, known_flags), *([] if given is None else [given]))


def _typed_flag(given: object) -> Typed:
    return Typed(given, lambda shape: _flag_value(shape, given))


def _flag_value(shape: fields.Shape, given: object) -> object:
    if isinstance(given, str):
        return fields.parse_text(shape, given)
    if shape.many and isinstance(given, (list, tuple)):
        # Alone ``none`` is the empty list; beside others it can only be the name of something.
        alone = len(given) == 1
        return [
            part
            for item in given
            for part in (fields.parse_list(item, empty=alone) if isinstance(item, str) else [item])
        ]
    return given


def _unknown_flag(command: type[Command], name: str, known_flags: Iterable[str]) -> str:
    table = fields.leaves(command).values()
    names = {leaf.flag.lstrip("-"): leaf.flag for leaf in table}
    negative = {f"no-{leaf.flag[2:]}": f"--no-{leaf.flag[2:]}" for leaf in table if leaf.shape.scalar is bool}
    names |= negative | {flag.lstrip("-"): flag for flag in known_flags}
    foreign = (key.replace("_", "-") for key in command.aliases if "." not in key)
    names |= {key: f"--{key}" for key in foreign if key not in names}
    close = fields.nearest(name.lstrip("-").rpartition(".")[2], names)
    return "unknown flag" + (f"; did you mean {names[close]}?" if close is not None else "")
