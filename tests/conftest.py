"""What every test has: no network, one thread, a fixed seed, and the way to the real data where it exists."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["NO_COLOR"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_report_header() -> str:
    import accelerate
    import torch
    import transformers

    return f"torch {torch.__version__}, transformers {transformers.__version__}, accelerate {accelerate.__version__}"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import numpy as np
    import torch

    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global generator is what some libraries draw from
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is read from or written to the caches of the person who runs the tests."""
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))


@pytest.fixture(autouse=True)
def _console(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that configures the console (the command line does) leaves it for the next one as it was."""
    from ragtrain import report

    monkeypatch.setattr(report, "_quiet", False)
    handlers, level, propagate = list(report.logger.handlers), report.logger.level, report.logger.propagate
    yield
    for handler in set(report.logger.handlers) - set(handlers):
        handler.close()
    report.logger.handlers[:] = handlers
    report.logger.setLevel(level)
    report.logger.propagate = propagate


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Public sets in their original formats; where the folder is absent the test is skipped."""
    if not REAL_DATA.is_dir():
        pytest.skip("the folder of real data sets is not on this machine")
    return REAL_DATA
