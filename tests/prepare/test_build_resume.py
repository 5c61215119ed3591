"""Preparing an index in stretches and by several processes gives the index that one uninterrupted process gives."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ragtrain import prepare
from ragtrain.config.commands import PrepareConfig
from ragtrain.errors import ConfigError, DataError, Interrupted, RagtrainError
from ragtrain.index.passages import PassageStore
from ragtrain.index.search import DenseIndex
from ragtrain.index.shards import WorkFolder
from ragtrain.prepare import encoders
from ragtrain.prepare.ranks import Ranks
from ragtrain.records import write_jsonl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COUNT, SHARD = 60, 10


class CountingEncoder:
    """A vector tells which passage it is of; ``before`` is called with every shard."""

    dim = 4

    def __init__(self) -> None:
        self.shards: list[list[str]] = []
        self.before: Callable[[Sequence[tuple[str, str]]], None] = lambda pairs: None

    def to(self, device: torch.device) -> CountingEncoder:
        return self

    def fingerprint(self) -> str:
        return "counting"

    def spec(self) -> dict[str, Any]:
        return {"name": "x", "pooling": "mean", "normalize": False, "model_class": "Counting"}

    def passage_batches(self, pairs: Sequence[tuple[str, str]], *_: object) -> Sequence[tuple[str, str]]:
        return pairs

    def encode_passages(self, pairs: Sequence[tuple[str, str]], *_: object, **__: object) -> np.ndarray:
        self.before(pairs)
        self.shards.append([title for title, _ in pairs])
        return np.array([[int(title[1:]) + 1, 0.5, -1, 2] for title, _ in pairs], np.float32)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> CountingEncoder:
    counting = CountingEncoder()
    monkeypatch.setattr(encoders, "load_encoder", lambda *_, **__: counting)
    return counting


@pytest.fixture
def config(tmp_path: Path) -> PrepareConfig:
    write_jsonl(tmp_path / "p.jsonl", ({"id": f"p{i}", "title": f"t{i}", "text": "x y"} for i in range(COUNT)))
    return PrepareConfig(passages=tmp_path / "p.jsonl", shard_size=SHARD)


def stop_in(shard: int, error: BaseException) -> Callable[[Sequence[tuple[str, str]]], None]:
    def before(pairs: Sequence[tuple[str, str]]) -> None:
        if pairs[0][0] == f"t{shard * SHARD}":
            raise error

    return before


def work_folders(config: PrepareConfig) -> list[Path]:
    return sorted(config.passages.parent.glob(".index.work-*"))


def is_whole(path: Path) -> bool:
    index = DenseIndex.open(path)
    wanted = np.arange(COUNT) + 1
    return [p.id for p in index.passages] == [f"p{i}" for i in range(COUNT)] and (index.vectors[:, 0] == wanted).all()


def test_goes_on_after_an_interruption(
    encoder: CountingEncoder, config: PrepareConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder.before = stop_in(3, KeyboardInterrupt())
    with pytest.raises(Interrupted, match="3 of 6 shards are encoded") as caught:
        prepare.run(config)
    assert caught.value.exit_code == 130
    assert caught.value.hint == "the same command goes on from there"
    assert not (config.passages.parent / "index").exists()
    encoder.before, encoder.shards = lambda pairs: None, []
    with caplog.at_level(logging.INFO, "ragtrain"):
        # What does not decide the vectors may change: a full device wants smaller batches.
        result = prepare.run(config.model_copy(update={"encode_batch_size": 8}))
    assert "going on at shard 4 of 6" in caplog.text
    assert "30 pieces are encoded already" in caplog.text
    assert [shard[0] for shard in encoder.shards] == ["t30", "t40", "t50"], "nothing twice"
    assert (result.count, result.passages_read, result.skipped) == (COUNT, COUNT, 0)
    assert is_whole(result.path)
    assert sorted(path.name for path in result.path.iterdir()) == [
        "manifest.json", "passages.idx.npy", "passages.jsonl", "vectors.npy",
    ]  # fmt: skip
    assert DenseIndex.open(result.path).manifest["max_norm"] == pytest.approx(np.linalg.norm([60, 0.5, -1, 2]))
    assert work_folders(config) == []


def test_shards_of_vectors_that_are_gone_are_encoded_again(encoder: CountingEncoder, config: PrepareConfig) -> None:
    encoder.before = stop_in(3, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        prepare.run(config)
    (work_folders(config)[0] / "vectors.npy").unlink()
    encoder.before = lambda pairs: None
    assert is_whole(prepare.run(config).path)


def test_sigterm_interrupts_too(encoder: CountingEncoder, config: PrepareConfig) -> None:
    before = signal.getsignal(signal.SIGTERM)
    encoder.before = lambda pairs: os.kill(os.getpid(), signal.SIGTERM) if pairs[0][0] == "t20" else None
    with pytest.raises(Interrupted, match="2 of 6 shards") as caught:
        prepare.run(config)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_stopped_while_reading_leaves_nothing(
    encoder: CountingEncoder, config: PrepareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ragtrain.index.encode.write_passages", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare.run(config)
    assert work_folders(config) == []


def test_errors_keep_finished_shards_unless_the_passages_are_at_fault(
    encoder: CountingEncoder, config: PrepareConfig, caplog: pytest.LogCaptureFixture
) -> None:
    encoder.before = stop_in(2, OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space"):
        prepare.run(config)
    assert "2 finished shards are kept" in caplog.text
    encoder.before, encoder.shards = stop_in(3, DataError("a passage")), []
    with pytest.raises(DataError):
        prepare.run(config)
    assert encoder.shards == [[f"t{i}" for i in range(20, 30)]]
    assert work_folders(config) == []


def test_what_another_request_left_is_not_used(
    encoder: CountingEncoder, config: PrepareConfig, caplog: pytest.LogCaptureFixture
) -> None:
    encoder.before = stop_in(3, KeyboardInterrupt())
    for changes in ({}, {"storage": "float32"}, {"passage_words": 50}):
        with pytest.raises(Interrupted):
            prepare.run(config.model_copy(update=changes))
    assert len(work_folders(config)) == 3
    os.utime(config.passages, ns=(1, 1))  # perhaps another content
    encoder.before, encoder.shards = lambda pairs: None, []
    held = WorkFolder(work_folders(config)[0])
    held.lock()
    with caplog.at_level(logging.INFO, "ragtrain"):
        result = prepare.run(config)
    assert len(encoder.shards) == 6
    assert "left by another request" in caplog.text
    assert work_folders(config) == [held.path], "a live process is left alone"
    held.close()
    assert is_whole(result.path)


@pytest.mark.parametrize("damage", ["shard", "passages", "record", "vectors"])
def test_damaged_leftovers_are_made_again(encoder: CountingEncoder, config: PrepareConfig, damage: str) -> None:
    encoder.before = stop_in(3, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        prepare.run(config)
    (work,) = work_folders(config)
    if damage == "shard":
        with (work / "vectors.npy").open("r+b") as file:
            file.seek(128 + 15 * 8)  # header, row 15 of 4 float16
            file.write(b"\x01\x02")
    elif damage == "passages":
        (work / "passages.jsonl").write_bytes(b"{}" + (work / "passages.jsonl").read_bytes()[2:])
    elif damage == "record":
        (work / ".journal" / "shards" / "000001.json").unlink()
    else:
        (work / "vectors.npy").unlink()
    encoder.before, encoder.shards = lambda pairs: None, []
    assert is_whole(prepare.run(config).path)
    again = {"shard": [1, 3, 4, 5], "record": [1, 3, 4, 5]}.get(damage, [0, 1, 2, 3, 4, 5])
    assert [shard[0] for shard in encoder.shards] == [f"t{number * SHARD}" for number in again]


def test_one_process_at_a_time(encoder: CountingEncoder, config: PrepareConfig) -> None:
    caught: list[ConfigError] = []

    def second(pairs: object) -> None:
        if not caught:
            with pytest.raises(
                ConfigError, match=rf"being written by another process \(process {os.getpid()}\)"
            ) as info:
                prepare.run(config)
            caught.append(info.value)

    encoder.before = second
    assert is_whole(prepare.run(config).path)
    assert "goes on where it was" in str(caught[0].hint)


def test_a_shard_belongs_to_one_process(tmp_path: Path) -> None:
    """Record locks are between processes, so another one has to ask."""
    work = WorkFolder(tmp_path / "work")
    work.lock()
    assert work.claim(3)
    assert work.claim(3)
    ask = (
        "import sys; from pathlib import Path; from ragtrain.index.shards import WorkFolder; "
        "work = WorkFolder(Path(sys.argv[1])); print(work.claim(3), work.claim(4))"
    )

    def asked() -> str:
        return subprocess.run([sys.executable, "-c", ask, str(work.path)], capture_output=True, text=True).stdout

    assert asked() == "False True\n"
    work.close()
    assert asked() == "True True\n", "a claim ends with its process"


def test_alone_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with Ranks() as ranks:
        assert (ranks.rank, ranks.count, ranks.first) == (0, 1, True)
        with pytest.raises(RagtrainError, match="alone"):
            ranks.hear()
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="RANK=1 of WORLD_SIZE=2"):
        Ranks()


def start(*arguments: str, processes: int = 1) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "ragtrain", "index", "prepare", *arguments, "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_killed_and_gone_on_with_by_two_processes_equals_one_run(tmp_path: Path) -> None:
    """kill -9 in the middle, then two processes: no passage lost or doubled, every byte as in one stretch."""
    path, count = tmp_path / "p.jsonl", 480
    words = [f"word{i}" for i in range(97)]
    write_jsonl(path, (
        {"id": f"p{i}", "title": f"T {i}", "text": " ".join(words[(i * 7 + j * j) % 97] for j in range(4 + i % 60))}
        for i in range(count)
    ))  # fmt: skip
    flags = ["--passages", str(path), "--output-dir", str(tmp_path / "index"), "--shard-size", "20"]
    process = start(*flags)
    shards = f"{count // 20}"
    while not (finished := list(tmp_path.glob(".index.work-*/.journal/shards/00000[3-9].json"))):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    assert finished
    assert not (tmp_path / "index").exists(), "killed in the middle"
    process = start(*flags, processes=2)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert f"of {shards} in " in err, err
    assert "going on at shard" in err
    assert json.loads(out)["count"] == count, "one process writes one result"
    prepare.run(PrepareConfig(passages=path, output_dir=tmp_path / "whole", shard_size=20))
    for name in ("vectors.npy", "passages.jsonl", "passages.idx.npy"):
        assert (tmp_path / "index" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert [p.id for p in PassageStore(tmp_path / "index")] == [f"p{i}" for i in range(count)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index", "p.jsonl", "whole"]
