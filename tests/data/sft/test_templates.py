"""Instructions by name and template files: what they may hold, and the errors that name the file."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ragtrain.data.sft.templates import bundled_instructions, parse_template, read_instruction, read_template
from ragtrain.errors import ConfigError

NAMES = ["cot", "cot-fewshot", "qa", "qa-short", "reason_before_answer", "yes-no", "yes-no-maybe"]
VALUES = {
    "query": "Q{x}", "output": "O", "instruction": "I", "context": "C", "passages": "C", "question": "q", "shots": "S",
    "documents": (), "bos_token": "<s>", "eos_token": "</s>",
}  # fmt: skip


def test_bundled_instructions() -> None:
    assert bundled_instructions() == NAMES
    texts = [read_instruction(name) for name in NAMES]
    assert all(text and text == text.strip() for text in texts)
    assert len(set(texts)) == len(NAMES)
    for name in ("cot", "cot-fewshot", "reason_before_answer"):
        assert "<ANSWER>:" in str(read_instruction(name))
    assert read_instruction(None) is None
    assert read_instruction("") is None


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("qa-yes-no", "yes-no"), ("qa-yes-no-maybe", "yes-no-maybe"), ("reason-before-answer", "reason_before_answer"),
        ("cot_fewshot", "cot-fewshot"), ("QA", "qa"),
    ],
)  # fmt: skip
def test_other_spellings(spelling: str, name: str) -> None:
    assert read_instruction(spelling) == read_instruction(name)


def test_paths(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("\ufeffDo it.\n", encoding="utf-8")
    assert read_instruction("mine.txt") == "Do it."
    with caplog.at_level(logging.INFO, logger="ragtrain"):
        assert read_instruction("ragfit/processing/prompts/prompt_instructions/qa.txt") == read_instruction("qa")
    assert "taking the bundled instruction 'qa'" in caplog.text
    (tmp_path / "qa.txt").write_text("Mine.")
    assert read_instruction("qa.txt") == "Mine."
    assert read_instruction("qa") != "Mine."
    with pytest.raises(ConfigError, match=r"there is no file other\.txt") as caught:
        read_instruction("other.txt")
    assert "qa-short" in str(caught.value.hint)
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_instruction("bad.txt")


@pytest.mark.parametrize(
    ("text", "prompt", "completion"),
    [
        ("{query}\n{output}", "Q{x}\n", "O"),
        ("{instruction}|{context}|{question} -> {output} .", "I|C|q ->", " O ."),
        ('{{"q": "{question}", "a": "{output}"}}', '{"q": "q", "a": "', 'O"}'),
        ('{"q": "{question}", "a": "{output}"}', '{"q": "q", "a": "', 'O"}'),
        ("{{a}} { b } {query}{output}", "{a} { b } Q{x}", "O"),
        ("{shots}{passages} {question}  {output}", "SC q", "  O"),
        ("{{ query }}\n{{ output }}", "Q{x}\n", "O"),
        ("{%- if question %}{{question}}{% endif %} {{ output | upper }}!", "q", " O!"),
        ("{# none #}{{ bos_token }}{{query}}{% if output %}{{ output }}{% endif %}{{ eos_token }}", "<s>Q{x}", "O</s>"),
    ],
)
def test_rendering(text: str, prompt: str, completion: str) -> None:
    assert parse_template(text).render(VALUES) == (prompt, completion)


def test_uses() -> None:
    for text in ("{query}{output}", "{{ query }}{{ output }}"):
        template = parse_template(text)
        assert template.uses("query")
        assert not template.uses("instruction")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{query}", r"has no \{output\}"),
        ("{query} {output} {output}", "has 2 times"),
        ("{query} {answer} {output}", r"unknown placeholder \{answer\}"),
        ("{query!r} {output}", r"unknown placeholder \{query!r\}"),
        ("{0} {output}", r"unknown placeholder \{0\}"),
        ("{} {output}", r"unknown placeholder \{\}"),
        ("{instruction} {output}", "no place for the question"),
        ("{{ query }}", r"has no \{\{ output \}\}"),
        ("{{ query }}{{ output }}{{ other }}", "unknown variable 'other'"),
        ("{{ query }}{% if %}{{ output }}", r"template\.txt:1"),
        ("{{ output }}", "no place for the question"),
    ],
)
def test_errors_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "template.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_template(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ query }}{{ output }}{{ output }}", "twice"),
        ("{{ query }}{% if not output %}{{ output }}{% endif %}", "not at all"),
        ("{{ output | length }}{{ query }}{{ output }}", "another prompt"),
        ("{{ query.missing.deeper }}{{ output }}", "cannot be rendered"),
        ("{{ ''.__class__.__mro__ }}{{ query }}{{ output }}", "cannot be rendered"),  # the sandbox
    ],
)
def test_jinja_that_cannot_be_split_or_run(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_template(text).render({**VALUES, "output": "longer"})


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"{query}\r\n{output}\r\n")
    assert read_template(path) in ("{query}\r\n{output}", "{query}\n{output}")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_template(tmp_path / "none.txt")
