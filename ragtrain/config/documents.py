"""YAML files: which fields they set, and on which line.

The text of a scalar is kept and its field decides what it means, so that 1e-4 is a number and ``no`` a word where words
are expected. Tags that build objects are refused.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from ragtrain.config import aliases, bundled, fields
from ragtrain.config.sources import Found, Typed, resolve

TRAINER_COMMAND = "train "


def read_file(found: Found, path: Path) -> None:
    """Read a YAML file; a folder stands for the ``config.yaml`` in it, and a name that is no file for a bundled one."""
    found.begin()
    path = path / "config.yaml" if path.is_dir() else path
    preset = bundled.find(path)
    shown = str(path) if preset is None else bundled.label(preset)
    if preset is not None and bundled.path_of(str(path)) is None:
        found.said.append(f"{path} is not there: ragtrain's own is read ({shown})")
    try:
        loader = yaml.SafeLoader((path if preset is None else preset).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a UTF-8 text file"
        close = bundled.nearest(path)
        hint = f"; did you mean the bundled {close}?" if close is not None and not path.exists() else ""
        found.fail(str(path), "--config", f"cannot be read: {reason}{hint}")
        return
    try:
        root = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{shown}:{mark.line + 1}" if mark is not None else shown
        found.fail("YAML", where, getattr(error, "problem", None) or str(error))
        return
    finally:
        loader.dispose()
    if root is not None:
        _FileReader(found, shown, loader).read(root)


class _FileReader:
    """Walks the nodes of one file, knowing lines and the fields met so far."""

    def __init__(self, found: Found, path: str, loader: yaml.SafeLoader) -> None:
        self.found, self.path, self.loader = found, path, loader
        self.lines: dict[str, int] = {}
        self.sections = set(fields.sections(found.command)) | aliases.parents(found.command.aliases)

    def read(self, root: yaml.Node) -> None:
        """Read the top level, where ``kind`` (of a run folder's file) may stand beside the sections."""
        if not isinstance(root, yaml.MappingNode):
            if not (isinstance(root, yaml.ScalarNode) and root.tag.endswith(":null")):
                self.found.fail("YAML", self.where(root), "a mapping of keys to values is expected at the top level")
            return
        self.read_mapping(self.reshaped(root), ())

    def reshaped(self, root: yaml.MappingNode) -> yaml.MappingNode:
        """Return the file in keys that this command knows, or has aliases of."""
        reshape = self.found.command.reshape
        if reshape is None:
            return root
        ours: yaml.MappingNode = reshape(root, lambda name, node, why: self.found.fail(name, self.where(node), why))
        return ours

    def where(self, node: yaml.Node) -> str:
        return f"{self.path}:{node.start_mark.line + 1}"

    def read_mapping(self, node: yaml.MappingNode, prefix: tuple[str, ...]) -> None:
        for name, (key, value) in self.unique(node, prefix).items():
            dotted = ".".join((*prefix, name))
            if dotted == "kind":
                self.check_kind(value)
            elif isinstance(value, yaml.MappingNode) and dotted in self.sections:
                self.read_mapping(value, (*prefix, name))
            elif not (dotted in self.sections and _is_null(value) and not self.is_key(dotted)):
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

    def is_key(self, dotted: str) -> bool:
        command = self.found.command
        return resolve(command, dotted)[0] is not None or aliases.find(command.aliases, dotted) is not None

    def check_kind(self, value: yaml.Node) -> None:
        name = self.found.command.name
        kind = str(value.value)
        if name.startswith(TRAINER_COMMAND) and kind != name.removeprefix(TRAINER_COMMAND):
            message = f"this file configures a run of another kind; ragtrain {name} expects "
            self.found.fail("kind", self.where(value), message + repr(name.removeprefix(TRAINER_COMMAND)), kind)

    def read_leaf(self, dotted: str, key: yaml.Node, value: yaml.Node) -> None:
        where = self.where(key)
        leaf, message = resolve(self.found.command, dotted)
        if leaf is None and aliases.find(self.found.command.aliases, dotted) is None:
            if isinstance(value, yaml.MappingNode) and "." not in dotted:
                close = fields.nearest(dotted, self.sections)
                self.found.fail(dotted, where, "unknown section" + (f"; did you mean {close}?" if close else ""))
            else:
                self.found.fail(
                    dotted, where, message, *([] if isinstance(value, yaml.MappingNode) else [_plain(value)])
                )
            return
        foreign = _foreign_tag(value)
        if foreign is not None:
            self.found.fail(dotted, where, f"the YAML tag {foreign} is refused: plain values only")
        elif leaf is not None and isinstance(value, yaml.MappingNode):
            self.found.fail(leaf.dotted, where, f"a mapping where {fields.expected(leaf.shape)} is expected")
        else:
            before = len(self.found.settings)
            typed = Typed(None if _is_null(value) else _plain(value), lambda shape: _typed(shape, value), self.path)
            self.found.add(dotted if leaf is None else leaf.dotted, typed, where)
            self.check_twice(before, key, where)

    def check_twice(self, before: int, key: yaml.Node, where: str) -> None:
        """Refuse a second plain value of a field, of those settings that came after the first ``before``."""
        kept = self.found.settings[:before]
        for setting in self.found.settings[before:]:
            dotted = setting.leaf.dotted
            if setting.order != aliases.PLAIN:
                kept.append(setting)
            elif dotted in self.lines:
                message = f"given twice in this file, first on line {self.lines[dotted]}"
                self.found.fail(dotted, where, message, setting.value)
            else:
                self.lines[dotted] = key.start_mark.line + 1
                kept.append(setting)
        self.found.settings[:] = kept


def _name(key: yaml.Node) -> str:
    return str(key.value).replace("-", "_") if isinstance(key, yaml.ScalarNode) else "?"


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")


def _plain(node: yaml.Node) -> object:
    """Return texts as they stand in the file, for messages and for keys of other programs."""
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return "{...}" if node.value else "{}"
    return node.value


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
