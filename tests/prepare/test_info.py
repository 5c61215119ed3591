from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ragtrain.cli import main
from ragtrain.config.commands import InfoConfig, PrepareConfig
from ragtrain.errors import DataError
from ragtrain.prepare import info, run

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("faiss", reason="the extra [cpu] is not installed")


def test_an_index_of_another_tool_is_explained(foreign, capsys) -> None:
    folder = foreign()
    result = info(InfoConfig(index_path=folder))
    assert result.facts["kind"] == "index of another tool, not adopted: faiss Flat"
    assert (result.facts["count"], result.facts["dimensions"], result.facts["metric"]) == (200, 128, "inner_product")
    assert result.next_step.startswith(f"ragtrain index prepare --index-path {folder} --passages")
    assert result.exit_code == 0
    assert set(folder.iterdir()) == {folder / "index.faiss", folder / "passages.jsonl"}


def test_an_adopted_index_is_explained(foreign, capsys) -> None:
    folder = foreign()
    run(PrepareConfig(index_path=folder, verify_samples=8, device="cpu"))
    capsys.readouterr()
    assert main(["index", "info", str(folder / "index.faiss"), "--check-hashes", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["kind"] == "adopted: faiss Flat"
    assert said["encoder"] == "built-in demo encoder"
    assert said["verification"]["status"] == "ok"
    assert {check["name"]: check["status"] for check in said["verification"]["checks"]}["hashes"] == "ok"
    content = (folder / "passages.jsonl").read_bytes()
    (folder / "passages.jsonl").write_bytes(content[:-2] + b" \n")
    result = info(InfoConfig(index_path=folder, check_hashes=True))
    assert result.exit_code == 3
    assert "passages" in next(c["message"] for c in result.checks["checks"] if c["name"] == "hashes")


def test_our_own_index_is_explained(passages, tmp_path: Path, capsys) -> None:
    (tmp_path / "passages.jsonl").write_text("".join(json.dumps(p.to_json()) + "\n" for p in passages))
    run(PrepareConfig(passages=tmp_path / "passages.jsonl", output_dir=tmp_path / "index", device="cpu"))
    result = info(InfoConfig(index_path=tmp_path / "index"))
    assert result.facts["kind"] == "index of ragtrain"
    assert result.facts["splitting"] == {"passage_words": 100, "overlap": 0}
    assert result.checks["status"] == "ok"
    vectors = np.load(tmp_path / "index" / "vectors.npy")
    vectors[3] = np.nan
    np.save(tmp_path / "index" / "vectors.npy", vectors)
    result = info(InfoConfig(index_path=tmp_path / "index"))
    assert (result.exit_code, result.checks["status"]) == (3, "failed")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file or folder"):
        info(InfoConfig(index_path=tmp_path / "nowhere"))
