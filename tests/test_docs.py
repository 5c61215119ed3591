"""The reference pages are what the commands are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ragtrain.cli.app import COMMANDS
from ragtrain.config import fields

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "build_docs.py"


def build(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "40"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def test_pages_are_fresh():
    done = build("--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["cli.md", "config.md"])
def test_a_stale_page_is_found(page, tmp_path):
    assert build("--docs", str(tmp_path)).returncode == 0
    assert build("--check", "--docs", str(tmp_path)).returncode == 0
    path = tmp_path / page
    path.write_text(path.read_text().replace("ragtrain", "ragtrian", 1))
    done = build("--check", "--docs", str(tmp_path))
    assert done.returncode == 1
    assert page in done.stderr
    path.unlink()
    assert build("--check", "--docs", str(tmp_path)).returncode == 1


def test_every_field_and_flag_is_there():
    cli = (ROOT / "docs" / "cli.md").read_text()
    config = (ROOT / "docs" / "config.md").read_text()
    for command in COMMANDS:
        assert f"## ragtrain {command.name}\n" in cli
        section = config.split(f"\n## {command.name}\n")[1].split("\n## ")[0]
        for leaf in fields.leaves(command).values():
            assert f"| `{leaf.dotted}` | `{leaf.flag}` |" in section
            assert leaf.flag in cli or f"--[no-]{leaf.flag[2:]}" in cli


def test_tables_have_as_many_cells_as_heads():
    rows = 0
    for page in ("cli.md", "config.md"):
        width = 0
        for line in (ROOT / "docs" / page).read_text().splitlines():
            cells = line.replace("\\|", "").count("|") if line.startswith("|") else 0
            assert cells in (0, width) or width == 0, line
            width, rows = cells, rows + bool(cells)
    assert rows > 100
