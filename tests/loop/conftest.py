from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

TOY = Path(__file__).with_name("toy.py")


@dataclasses.dataclass(frozen=True)
class Ended:
    """What became of processes: the worst exit status (negative: killed by that signal) and all that they said."""

    returncode: int
    stderr: str


@pytest.fixture(scope="session")
def _toy_path() -> Iterator[None]:
    """Make ``import toy`` work here and in the processes that are started."""
    sys.path.insert(0, str(TOY.parent))
    yield
    sys.path.remove(str(TOY.parent))


@pytest.fixture(scope="session")
def toy(_toy_path: None) -> ModuleType:
    """The toy models and their data, as a module."""
    import toy as module

    return module


@pytest.fixture(scope="session")
def start(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ended]:
    """Run the toy script in processes of its own, forked from one that has imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toy"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TOY.parent), str(TOY.parents[2])]))
        context.Process(target=int).start()  # the server reads the environment when its first process is started

    def run(processes: int = 1, **options: Any) -> Ended:
        said = tmp_path_factory.mktemp("said") / "stderr"
        port = _free_port()
        text = json.dumps({**options, "out": str(options["out"])})
        children = [
            context.Process(target=toy.child, args=(text, str(said), rank, processes, port))
            for rank in range(processes)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(timeout=120)
            assert child.exitcode is not None, f"still running after two minutes: {said.read_text()}"
        codes = [child.exitcode or 0 for child in children]
        return Ended(next((code for code in codes if code), 0), said.read_text())

    return run


@pytest.fixture(scope="session")
def torchrun() -> Callable[..., Ended]:
    """Run the toy script under the real launcher."""

    def run(processes: int, **options: Any) -> Ended:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        text = json.dumps({**options, "out": str(options["out"])})
        environment = {**os.environ, "PYTHONPATH": str(TOY.parents[2])}
        done = subprocess.run(
            [*command, str(TOY), text], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        return Ended(done.returncode, done.stderr)

    return run


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
