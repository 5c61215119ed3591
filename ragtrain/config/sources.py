"""What files, arguments and flags say, before anything is checked against a model's bounds.

Each source gives ``Setting`` objects (a field, a value, where it was read) and ``Problem`` objects (what could not be
understood). Nothing is raised here: all problems are reported together by ``ragtrain.config.load``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ragtrain.config import fields
from ragtrain.config.base import Command

KEY_VALUE = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*=")
TRAINER_COMMAND = "train "


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """A field's value as some source gives it. ``origin`` is ``file:line``, ``argument`` or ``flag``."""

    leaf: fields.Leaf
    value: Any
    origin: str


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong: which name, what was received, what was expected, where it stands."""

    subject: str
    origin: str
    message: str
    value: Any = dataclasses.field(default=None)
    has_value: bool = False


@dataclasses.dataclass(slots=True)
class Found:
    """All that the sources said."""

    command: type[Command]
    settings: list[Setting] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)

    def add(self, key: str, value: object, origin: str) -> fields.Leaf | None:
        """Store ``value`` under the field that ``key`` names, or the problem that there is no such field."""
        leaf, message = resolve(self.command, key)
        if leaf is None:
            self.fail(key, origin, message, value)
        else:
            self.settings.append(Setting(leaf, value, origin))
        return leaf

    def fail(self, subject: str, origin: str, message: str, *value: object) -> None:
        """Store a problem, with the value received where there is one."""
        self.problems.append(Problem(subject, origin, message, value[0] if value else None, bool(value)))


def resolve(command: type[Command], key: str) -> tuple[fields.Leaf | None, str]:
    """Find the field that a dotted or section-less name means; without one, say what is nearest.

    Dashes are read as underscores, so that a flag's spelling works in a file too.
    """
    name = key.replace("-", "_")
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
    """Explain an unknown name: another section's field, or the nearest spelling."""
    table = fields.leaves(command)
    section, _, last = name.rpartition(".")
    elsewhere = [leaf for leaf in table.values() if leaf.name == last]
    if elsewhere:
        places = ", ".join(_place(leaf) for leaf in elsewhere)
        where = f"no such key in section {section!r}" if section in fields.sections(command) else "no such section"
        return f"{where}; {last} belongs to {places}"
    inside = {leaf.name: leaf for leaf in table.values() if section and ".".join(leaf.path[:-1]) == section}
    close = fields.nearest(last, inside)
    if close is not None:
        return f"unknown key; did you mean {inside[close].dotted}?"
    everywhere = {leaf.name: leaf for leaf in table.values()}
    close = fields.nearest(last, everywhere)
    return "unknown key" + (f"; did you mean {everywhere[close].dotted}?" if close is not None else "")


def _place(leaf: fields.Leaf) -> str:
    return leaf.dotted if len(leaf.path) > 1 else f"the top level ({leaf.dotted})"


# --- KEY=VALUE arguments, bare words and flags ---------------------------------------------------------------------


def read_words(found: Found, words: Sequence[str]) -> None:
    """Read KEY=VALUE arguments; other words fill the command's positional field."""
    bare: list[str] = []
    for word in words:
        if KEY_VALUE.match(word):
            key, _, text = word.partition("=")
            leaf, _ = resolve(found.command, key)
            found.add(key, text if leaf is None else fields.parse_text(leaf.shape, text), "argument")
        else:
            bare.append(word)
    if bare:
        _read_bare(found, bare)


def _read_bare(found: Found, bare: Sequence[str]) -> None:
    field = found.command.positional
    if field is None:
        for word in bare:
            hint = f"; for a file write --config {word}" if word.endswith((".yaml", ".yml")) else ""
            found.fail(word, "argument", f"expected KEY=VALUE or a flag{hint}")
        return
    leaf = fields.leaves(found.command)[field]
    if leaf.shape.many:
        found.add(field, list(bare), "argument")
    elif leaf.shape.choices and len(bare) > 1:
        found.fail(field, "argument", f"one {leaf.name} at a time is expected", " ".join(bare))
    else:
        found.add(field, " ".join(bare), "argument")


def read_flags(found: Found, flags: Mapping[str, Any], known_flags: Iterable[str]) -> None:
    """Read flags by field name; texts are parsed, other values (from Python) are taken as they are."""
    positional = found.command.positional
    by_word = {setting.leaf.name for setting in found.settings if setting.origin == "argument"}
    for name, given in flags.items():
        if name.startswith("-"):
            found.fail(
                name, "flag", _unknown_flag(found.command, name, known_flags), *([] if given is None else [given])
            )
            continue
        leaf, message = resolve(found.command, name)
        if leaf is None:
            found.fail(name, "flag", message, given)
            continue
        if leaf.name == positional and leaf.name in by_word:
            found.fail(leaf.dotted, "flag", f"given twice: as an argument and as {leaf.flag}", given)
            continue
        found.settings.append(Setting(leaf, _flag_value(leaf.shape, given), "flag"))


def _flag_value(shape: fields.Shape, given: object) -> object:
    if isinstance(given, str):
        return fields.parse_text(shape, given)
    if shape.many and isinstance(given, (list, tuple)):
        return [part for item in given for part in (fields.parse_list(item) if isinstance(item, str) else [item])]
    return given


def _unknown_flag(command: type[Command], name: str, known_flags: Iterable[str]) -> str:
    table = fields.leaves(command).values()
    names = {leaf.flag.lstrip("-"): leaf.flag for leaf in table}
    negative = {f"no-{leaf.flag[2:]}": f"--no-{leaf.flag[2:]}" for leaf in table if leaf.shape.scalar is bool}
    names |= negative | {flag.lstrip("-"): flag for flag in known_flags}
    close = fields.nearest(name.lstrip("-").rpartition(".")[2], names)
    return "unknown flag" + (f"; did you mean {names[close]}?" if close is not None else "")


# --- YAML files ----------------------------------------------------------------------------------------------------


def read_file(found: Found, path: Path) -> None:
    """Read a YAML file; a folder stands for the ``config.yaml`` in it.

    The text of a scalar is kept and its field decides what it means, so that 1e-4 is a number and ``no`` a word where
    words are expected. Tags that build objects are refused.
    """
    path = path / "config.yaml" if path.is_dir() else path
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a UTF-8 text file"
        found.fail(str(path), "--config", f"cannot be read: {reason}")
        return
    try:
        root = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        found.fail("YAML", where, getattr(error, "problem", None) or str(error))
        return
    finally:
        loader.dispose()
    if root is not None:
        _FileReader(found, path, loader).read(root)


class _FileReader:
    """Walks the nodes of one file, knowing lines and the fields met so far."""

    def __init__(self, found: Found, path: Path, loader: yaml.SafeLoader) -> None:
        self.found, self.path, self.loader = found, path, loader
        self.lines: dict[str, int] = {}

    def read(self, root: yaml.Node) -> None:
        """Read the top level, where ``kind`` (of a run folder's file) may stand beside the sections."""
        if not isinstance(root, yaml.MappingNode):
            if not (isinstance(root, yaml.ScalarNode) and root.tag.endswith(":null")):
                self.found.fail("YAML", self.where(root), "a mapping of keys to values is expected at the top level")
            return
        self.read_mapping(root, ())

    def where(self, node: yaml.Node) -> str:
        return f"{self.path}:{node.start_mark.line + 1}"

    def read_mapping(self, node: yaml.MappingNode, prefix: tuple[str, ...]) -> None:
        for name, (key, value) in self.unique(node, prefix).items():
            dotted = ".".join((*prefix, name))
            if dotted == "kind":
                self.check_kind(value)
            elif isinstance(value, yaml.MappingNode) and self.is_section(dotted):
                self.read_mapping(value, (*prefix, name))
            elif not (dotted in fields.sections(self.found.command) and _is_null(value) and not self.is_leaf(dotted)):
                self.read_leaf(dotted, key, value)

    def unique(self, node: yaml.MappingNode, prefix: tuple[str, ...]) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return the entries of a mapping by name; a name given twice is a problem, unless a merge key (<<) brought it."""
        entries: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        own = [entry for entry in node.value if not entry[0].tag.endswith(":merge")]
        if len(own) < len(node.value):
            self.loader.flatten_mapping(node)
            entries = {_name(key): (key, value) for key, value in node.value}
        seen: dict[str, int] = {}
        for key, value in own:
            name = _name(key)
            if name in seen:
                dotted = ".".join((*prefix, name))
                self.found.fail(dotted, self.where(key), f"given twice in this file, first on line {seen[name]}")
            else:
                seen[name] = key.start_mark.line + 1
                entries[name] = (key, value)
        return entries

    def is_section(self, dotted: str) -> bool:
        return dotted in fields.sections(self.found.command)

    def is_leaf(self, dotted: str) -> bool:
        return resolve(self.found.command, dotted)[0] is not None

    def check_kind(self, value: yaml.Node) -> None:
        name = self.found.command.name
        kind = str(value.value)
        if name.startswith(TRAINER_COMMAND) and kind != name.removeprefix(TRAINER_COMMAND):
            message = f"this file configures a run of another kind; ragtrain {name} expects "
            self.found.fail("kind", self.where(value), message + repr(name.removeprefix(TRAINER_COMMAND)), kind)

    def read_leaf(self, dotted: str, key: yaml.Node, value: yaml.Node) -> None:
        where = self.where(key)
        leaf, message = resolve(self.found.command, dotted)
        plain = _plain(value)
        if leaf is None and isinstance(value, yaml.MappingNode) and "." not in dotted:
            close = fields.nearest(dotted, fields.sections(self.found.command))
            self.found.fail(dotted, where, "unknown section" + (f"; did you mean {close}?" if close else ""))
            return
        if leaf is None:
            self.found.fail(dotted, where, message, *([] if isinstance(value, yaml.MappingNode) else [plain]))
            return
        if leaf.dotted in self.lines:
            self.found.fail(
                leaf.dotted, where, f"given twice in this file, first on line {self.lines[leaf.dotted]}", plain
            )
            return
        self.lines[leaf.dotted] = key.start_mark.line + 1
        foreign = _foreign_tag(value)
        if foreign is not None:
            self.found.fail(leaf.dotted, where, f"the YAML tag {foreign} is refused: plain values only")
        elif isinstance(value, yaml.MappingNode):
            self.found.fail(leaf.dotted, where, f"a mapping where {fields.expected(leaf.shape)} is expected")
        else:
            self.found.settings.append(Setting(leaf, _typed(leaf.shape, value), where))


def _name(key: yaml.Node) -> str:
    return str(key.value).replace("-", "_") if isinstance(key, yaml.ScalarNode) else "?"


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")


def _plain(node: yaml.Node) -> object:
    """Return texts as they stand in the file, for messages."""
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    return node.value if isinstance(node, yaml.ScalarNode) else "{...}"


def _typed(shape: fields.Shape, node: yaml.Node) -> object:
    """Turn a node into what pydantic validates, guided by the field's shape."""
    if isinstance(node, yaml.SequenceNode):
        single = dataclasses.replace(shape, many=False)
        return [_typed(single, item) for item in node.value]
    if not isinstance(node, yaml.ScalarNode):
        return "{...}"
    if _is_null(node):
        return [] if shape.many else None
    quoted = node.style in ("'", '"', "|", ">")
    if quoted:
        return [node.value] if shape.many else node.value
    return fields.parse_text(shape, node.value)


def _foreign_tag(node: yaml.Node) -> str | None:
    """Return the first tag that is not one of YAML's plain types."""
    core = {"null", "bool", "int", "float", "str", "seq", "map", "timestamp"}
    prefix, _, last = node.tag.rpartition(":")
    if prefix != "tag:yaml.org,2002" or last not in core:
        return str(node.tag)
    children = node.value if isinstance(node, yaml.SequenceNode) else ()
    return next((tag for tag in map(_foreign_tag, children) if tag is not None), None)
