"""The README's commands are valid, and its tree is the package's."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line.split(" > ")[0], comments=True)
    for block in re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if "ragtrain" in line
]
LAUNCHERS = ("$", "nohup", "accelerate", "launch", "--num_processes", "2", "-m", "ragtrain")


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 9


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: "-".join(words[2:4]))
def test_each_command_of_the_readme_is_valid(words: list[str]) -> None:
    arguments = words[next(i for i, word in enumerate(words) if word not in LAUNCHERS) :]
    done = subprocess.run(
        [sys.executable, "-m", "ragtrain", *arguments, "--print-config"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_tree_is_the_package() -> None:
    tree = re.search(r"```\nragtrain/\n(.*?)```", README, flags=re.DOTALL)
    assert tree
    named = {re.split(r"\s+", line[4:])[0].rstrip("/") for line in tree[1].splitlines()}
    there = {p.name for p in (ROOT / "ragtrain").iterdir() if not p.name.startswith("__") and p.name != "py.typed"}
    assert named == there
