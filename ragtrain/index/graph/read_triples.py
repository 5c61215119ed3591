"""Folders of ``train``, ``valid`` and ``test`` triples, as link prediction keeps them: three columns, tabs or spaces between.

Columns are head, relation, tail; some sets (Nations and Kinship of villmow/datasets_knowledge_embedding) have the relation
first. That is recognised where first and third column share no name at all while two others share most of theirs.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ragtrain.errors import DataError
from ragtrain.index.graph.builder import GraphBuilder
from ragtrain.index.graph.lines import BadLines, shown, text_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

log = logging.getLogger("ragtrain")

SUFFIXES = (".txt", ".tsv")
#: File names of the splits, the first that is there.
SPLITS = {
    "train": ("train",),
    "valid": ("valid", "validation", "dev", "val"),
    "test": ("test",),
}
#: Share of the smaller column's names that two columns have in common where both hold entities.
_SHARED = 0.5
_ORDERS = {(0, 2): (0, 1, 2), (1, 2): (1, 0, 2), (0, 1): (0, 2, 1)}


def split_files(folder: Path) -> dict[str, Path]:
    """Return the file of each split that a folder has."""
    found: dict[str, Path] = {}
    for split, names in SPLITS.items():
        for path in (folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES):
            if path.is_file() and split not in found:
                found[split] = path
    return found


def read_triples(files: dict[str, Path], bad: BadLines) -> tuple[GraphBuilder, list[Path], str]:
    """Return the graph of the files, still open, the files, and the order of their columns: ``hrt``, ``rht`` or ``htr``.

    Ids are given to the training triples first, then to the validation and the test triples.

    Args:
        files: by split; ``train`` is the graph, the others are held out.
        bad: what becomes of bad lines.

    Raises:
        DataError: there is no training file, or a file or line cannot be read.
    """
    if "train" not in files:
        there = ", ".join(str(path) for path in files.values()) or "nothing"
        raise DataError(f"there is no train.txt or train.tsv; there is {there}", hint="give a file of training triples")
    rows = {split: list(_rows(path, bad)) for split, path in files.items()}
    order = _columns(rows["train"])
    h, r, t = order
    name = "".join(letter for _, letter in sorted(zip(order, "hrt", strict=True)))
    if name != "hrt":
        log.info("%s: column %d holds the relation", files["train"], r + 1)
    builder = GraphBuilder()
    for row in rows["train"]:
        builder.triple(row[h], row[r], row[t])
    for split in [split for split in rows if split != "train"]:
        builder.held_out(split)
        for row in rows[split]:
            builder.triple(row[h], row[r], row[t], split)
    return builder, list(files.values()), name


def _rows(path: Path, bad: BadLines) -> Iterator[list[str]]:
    """Yield the three names of each line: separated by tabs if the first line has one, else by white space."""
    tabs: bool | None = None
    for number, line in text_lines(path):
        tabs = "\t" in line if tabs is None else tabs
        parts = [part.strip() for part in line.split("\t")] if tabs else line.split()
        if len(parts) != 3:
            between = "tabs" if tabs else "white space"
            message = f"expected 3 names with {between} between them, found {len(parts)}: {shown(line)}"
            bad.add(message, path, line=number)
        elif not all(parts):
            bad.add(f"name {parts.index('') + 1} of 3 is empty in {shown(line)}", path, line=number)
        else:
            yield parts


def _columns(rows: Sequence[Sequence[str]]) -> tuple[int, int, int]:
    """Return which columns are head, relation and tail."""
    names = [{row[i] for row in rows} for i in range(3)]
    if not rows or names[0] & names[2]:
        return 0, 1, 2
    shared = {(i, j): len(names[i] & names[j]) / min(len(names[i]), len(names[j])) for i, j in _ORDERS}
    best = max(shared, key=lambda pair: shared[pair])
    return _ORDERS[best] if shared[best] >= _SHARED else (0, 1, 2)
