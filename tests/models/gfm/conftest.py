"""Slow twins of the graph network, for every test in this folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def twins() -> ModuleType:
    """Return ``twins.py`` beside this file, which is no test and so on no path."""
    path = Path(__file__).with_name("twins.py")
    spec = importlib.util.spec_from_file_location("twins", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
