from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOY = Path(__file__).with_name("toy.py")


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The toy models and their data, as a module."""
    spec = importlib.util.spec_from_file_location("toy", TOY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def start():
    """Run the toy script in processes of its own and return what became of it."""

    def run(processes: int = 1, **options: Any) -> subprocess.CompletedProcess[str]:
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(TOY.parents[2]),
            "ACCELERATE_USE_CPU": "true",
        }
        options["out"] = str(options["out"])
        return subprocess.run(
            [*launcher, str(TOY), json.dumps(options)], env=environment, capture_output=True, text=True, timeout=120
        )

    return run
