"""The command line: flags and files become one configuration, one module is imported, one function is called."""

from __future__ import annotations

from ragtrain.cli.app import main

__all__ = ["main"]
