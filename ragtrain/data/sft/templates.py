"""What a user may write about prompts: instructions, by name or as a file, and template files.

A template holds the whole text of an example. Placeholders:

    {output}        what is learnt; it stands in a template exactly once
    {query}         passages and question, as a chat model's user turn has them
    {instruction}   the instruction; without this placeholder it stands before the query
    {context}       the passages alone, also {passages}
    {question}      the question alone
    {shots}         solved examples; without it they stand before the query

Only a name in braces is a placeholder: ``{"a": 1}`` is text, and ``{{`` and ``}}`` are one brace, as in ``str.format``. A file
with ``{% … %}`` or ``{{ query }}`` is a jinja template, rendered in jinja's sandbox, with the same names as variables and
``documents`` (each with ``title`` and ``text``), ``bos_token`` and ``eos_token`` besides.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ragtrain.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jinja2 import Template

log = logging.getLogger("ragtrain")

INSTRUCTIONS = Path(__file__).parent / "instructions"
FIELDS = ("query", "output", "instruction", "context", "passages", "question", "shots")
OTHER_NAMES = ("documents", "bos_token", "eos_token")
"""Of jinja templates only."""

_JINJA = re.compile(r"\{%|\{#|\{\{-?\s*(?:" + "|".join((*FIELDS, *OTHER_NAMES)) + r")\b")
_PIECES = re.compile(r"(\{\{|\}\}|\{[\w.!\[\]:]*\})")
_PROBE = "\ue000\ue001\ue000"
"""Stands for the target while a jinja template is looked at; no text holds it and no filter changes it."""


def bundled_instructions() -> list[str]:
    """Return the names of the instructions that come with the package."""
    return sorted(path.stem for path in INSTRUCTIONS.glob("*.txt"))


def _bundled(name: str) -> Path | None:
    """Return the bundled file of a name, in RAG-FiT's spelling or close to it (``qa-yes-no``, ``reason-before-answer``)."""
    key = name.lower().replace("_", "-")
    by_key = {path.stem.replace("_", "-"): path for path in INSTRUCTIONS.glob("*.txt")}
    return by_key.get(key) or by_key.get(key.removeprefix("qa-"))


def read_instruction(name: str | None) -> str | None:
    """Return the text of an instruction, without the spaces at its ends; ``None`` for none.

    Args:
        name: of a bundled instruction, or the path of a file. A path that does not exist but ends in the name of a bundled
            one stands for it, because RAG-FiT's configurations name files of its own source tree.

    Raises:
        ConfigError: there is neither such a name nor such a file, or the file is no text.
    """
    if not name:
        return None
    bundled = _bundled(name)
    if bundled is not None:
        return bundled.read_text(encoding="utf-8").strip()
    path = Path(name).expanduser()
    if path.is_file():
        return _read(path, "instruction").strip() or None
    bundled = _bundled(path.stem)
    if bundled is not None and path.name != name:
        log.info("instruction: there is no file %s; taking the bundled instruction %r", name, bundled.stem)
        return bundled.read_text(encoding="utf-8").strip()
    names = ", ".join(bundled_instructions())
    raise ConfigError(f"instruction: there is no file {name}", hint=f"name a text file, or one of {names}")


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as err:
        raise ConfigError(f"{what}: {path} cannot be read: {err.strerror or err}") from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"{what}: {path} is not UTF-8 text: {err}") from err


class TextTemplate(Protocol):
    """The whole text of an example, with places for its parts."""

    def uses(self, name: str) -> bool:
        """Return whether the template has a place for a part."""
        ...

    def render(self, values: Mapping[str, Any]) -> tuple[str, str]:
        """Return the prompt, and what follows it: the output and whatever comes after it in the template."""
        ...


def read_template(path: Path) -> str:
    """Return the text of a template file after a look at it; one line break at its end does not count.

    Raises:
        ConfigError: as ``parse_template``, or the file cannot be read.
    """
    text = _read(path, "template").removesuffix("\n").removesuffix("\r")
    parse_template(text, str(path))
    return text


def parse_template(text: str, name: str = "template") -> TextTemplate:
    """Return a template by its text.

    Args:
        text: of the file.
        name: what errors call it: the path.

    Raises:
        ConfigError: ``output`` is missing or there twice, a placeholder is not known, or jinja cannot read it.
    """
    return _JinjaTemplate(text, name) if _JINJA.search(text) else _FormatTemplate(text, name)


def _split_at_spaces(prompt: str, completion: str) -> tuple[str, str]:
    """Move spaces from the end of the prompt to the beginning of what follows.

    Most tokenizers join a space to the word after it, so that a prompt that ends in one is not the beginning of the
    example's tokens. The whole text, and the tokens that are trained, stay the same.
    """
    bare = prompt.rstrip(" ")
    return bare, prompt[len(bare) :] + completion


def _check_question(template: TextTemplate, name: str) -> None:
    if not (template.uses("query") or template.uses("question")):
        raise ConfigError(
            f"template: {name} has no place for the question", hint="write {query} or {question} where it belongs"
        )


class _FormatTemplate:
    """A template with ``{query}`` and ``{output}``."""

    def __init__(self, text: str, name: str) -> None:
        self._pieces: list[tuple[bool, str]] = []  # (is a placeholder, its name or the text)
        for piece in _PIECES.split(text):
            if piece in ("{{", "}}"):
                self._pieces.append((False, piece[0]))
            elif _PIECES.fullmatch(piece):
                self._pieces.append((True, self._field(piece, name)))
            elif piece:
                self._pieces.append((False, piece))
        n_outputs = sum(is_field and piece == "output" for is_field, piece in self._pieces)
        if n_outputs != 1:
            found = "has no {output}" if not n_outputs else f"has {n_outputs} times {{output}}"
            raise ConfigError(f"template: {name} {found}", hint="write {output} once, where the text to learn belongs")
        _check_question(self, name)

    @staticmethod
    def _field(piece: str, name: str) -> str:
        field = piece[1:-1]
        if field not in FIELDS:
            known = ", ".join(f"{{{known}}}" for known in FIELDS)
            raise ConfigError(
                f"template: {name} has the unknown placeholder {piece}",
                hint=f"known are {known}; write {{{{ and }}}} for braces that are text",
            )
        return field

    def uses(self, name: str) -> bool:
        return (True, name) in self._pieces

    def render(self, values: Mapping[str, Any]) -> tuple[str, str]:
        at = self._pieces.index((True, "output"))
        texts = [str(values[piece]) if is_field else piece for is_field, piece in self._pieces]
        return _split_at_spaces("".join(texts[:at]), "".join(texts[at:]))


class _JinjaTemplate:
    """A template with ``{{ query }}`` and ``{{ output }}``."""

    def __init__(self, text: str, name: str) -> None:
        from jinja2 import StrictUndefined, TemplateError, meta
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        self._name = name
        try:
            self._names = meta.find_undeclared_variables(environment.parse(text))
            self._template: Template = environment.from_string(text)
        except TemplateError as err:
            line = getattr(err, "lineno", None)
            raise ConfigError(f"template: {name}{f':{line}' if line else ''}: {err}") from err
        unknown = sorted(self._names - {*FIELDS, *OTHER_NAMES})
        if unknown:
            known = ", ".join((*FIELDS, *OTHER_NAMES))
            raise ConfigError(f"template: {name} has the unknown variable {unknown[0]!r}", hint=f"known are {known}")
        if "output" not in self._names:
            raise ConfigError(
                f"template: {name} has no {{{{ output }}}}", hint="write it once, where the text to learn belongs"
            )
        _check_question(self, name)

    def uses(self, name: str) -> bool:
        return name in self._names

    def render(self, values: Mapping[str, Any]) -> tuple[str, str]:
        probed = self._rendered({**values, "output": _PROBE})
        prompt, found, after = probed.partition(_PROBE)
        if not found or _PROBE in after:
            raise ConfigError(
                f"template: {self._name} writes {{{{ output }}}} {'twice' if found else 'not at all'}",
                hint="write it once, where the text to learn belongs",
            )
        whole = self._rendered(values)
        if not whole.startswith(prompt):
            raise ConfigError(f"template: {self._name} writes another prompt where the output is another")
        return _split_at_spaces(prompt, whole[len(prompt) :])

    def _rendered(self, values: Mapping[str, Any]) -> str:
        from jinja2 import TemplateError

        try:
            return self._template.render(values)
        except (TemplateError, TypeError, ValueError, ArithmeticError) as err:
            raise ConfigError(f"template: {self._name} cannot be rendered: {err}") from err
