"""Every error that ragtrain raises on purpose, and the exit code it ends the process with.

RagtrainError            1  internal: a state that should not occur
├── ConfigError          2  a flag, a YAML key, a missing extra
├── DataError            3  a file, a line, a field; also an index or a checkpoint that does not fit
│   ├── IndexMismatchError
│   └── CheckpointError
├── NumericsError        4  a loss or a gradient that is not finite
├── OutOfMemoryError     5  the device is full
├── GateError            6  a comparison that did not meet its gate
└── Interrupted    130/143  SIGINT/SIGTERM, after the state was saved

A message says what happened with which value and what was expected; ``hint`` says what to do about it and is
printed on a line of its own.
"""

from __future__ import annotations

import signal


class RagtrainError(Exception):
    """An error with an exit code and, where there is one, a remedy."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(RagtrainError):
    """A flag, a YAML key or a combination of them that cannot be run."""

    exit_code = 2


class DataError(RagtrainError):
    """A file that cannot be used as it stands, located as closely as it can be."""

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        path: object = None,
        line: int | None = None,
        field: str | None = None,
        hint: str | None = None,
    ) -> None:
        where = "" if path is None else str(path)
        if line is not None:
            where += f":{line}"
        if field is not None:
            where += f": field {field!r}" if where else f"field {field!r}"
        super().__init__(f"{where}: {message}" if where else message, hint=hint)
        self.path, self.line, self.field = path, line, field


class IndexMismatchError(DataError):
    """An index that does not belong to the encoder, the passages or the metric it is used with."""


class CheckpointError(DataError):
    """A checkpoint that is incomplete or belongs to another configuration."""


class NumericsError(RagtrainError):
    """A loss or gradient that is not finite."""

    exit_code = 4


class OutOfMemoryError(RagtrainError):
    """The device has no memory left for what the configuration asks."""

    exit_code = 5


class GateError(RagtrainError):
    """A comparison that did not meet its gate; ``result`` is the comparison, which is complete."""

    exit_code = 6

    def __init__(self, message: str, *, hint: str | None = None, result: object = None) -> None:
        super().__init__(message, hint=hint)
        self.result = result


class Interrupted(RagtrainError):
    """A run stopped by a signal after its state was saved."""

    def __init__(self, message: str, *, signal_number: int = signal.SIGINT, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + int(signal_number)
