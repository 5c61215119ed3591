"""A corpus of a few passages, of which every entity and relation can be told by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ragtrain.records import Passage

PASSAGES = (
    Passage("oslo", "Oslo", "Oslo is the capital of Norway. The city was founded in 1040 by Harald Hardrada."),
    Passage("norway", "Norway", "Norway is a kingdom in Europe. Its flag was designed by Fredrik Meltzer in 1821."),
    Passage("brother", "Brother (song)", "Brother was recorded by Pearl Jam in Seattle, Oslo and Bergen."),
    Passage("cat", "Cat", "The young of the cat is called a kitten. It lives with people."),
    Passage("lower", "", "nothing of note is here"),
)


@pytest.fixture
def passages() -> tuple[Passage, ...]:
    return PASSAGES


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Write the passages and return the file."""
    path = tmp_path / "passages.jsonl"
    path.write_text("".join(json.dumps(passage.to_json()) + "\n" for passage in PASSAGES), encoding="utf-8")
    return path


@pytest.fixture
def asked(tmp_path: Path) -> Callable[..., Path]:
    """Write questions of ours and return the file."""

    def write(*rows: dict[str, object], name: str = "train.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
