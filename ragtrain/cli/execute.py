"""One command from its request to its exit code: resolve, import, call, report.

| code    | meaning                                     |
|---------|---------------------------------------------|
| 0       | done                                        |
| 1       | internal: an error nobody foresaw           |
| 2       | a flag, a YAML key, a missing package       |
| 3       | data: a file, a line, a field               |
| 4       | numerics: a loss that is not finite         |
| 5       | out of memory                               |
| 6       | a gate that was not met                     |
| 130/143 | interrupted, after the state was saved      |
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import json
import logging
import os
import sys
import traceback as traceback_module
from typing import TYPE_CHECKING, Any, Protocol, cast

import ragtrain
from ragtrain.config import bundled, fields
from ragtrain.config.load import Resolved, load_config
from ragtrain.errors import ConfigError, DataError, GateError, Interrupted, OutOfMemoryError, RagtrainError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ragtrain.config.base import Command

INTERRUPTED, BROKEN_PIPE = 130, 141
EXTRAS: Mapping[str, str] = {
    "faiss": "pip install 'ragtrain[cpu]'  (on Linux with CUDA: pip install 'ragtrain[gpu]')",
}
"""Modules that an extra installs, and how to get them."""

USERS_FILES = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
)
"""Errors of the file system that are no fault of the program."""

MEMORY_REMEDIES: Mapping[str, str] = {
    "batch_size": "halve --batch-size (now {})",
    "gradient_accumulation_steps": "double --gradient-accumulation-steps (now {}) to keep the step the same",
    "encode_batch_size": "halve --encode-batch-size (now {})",
    "gradient_checkpointing": "set --gradient-checkpointing (now {})",
    "n_docs": "lower --n-docs (now {})",
    "num_beams": "lower --num-beams (now {})",
    "max_input_tokens": "lower --max-input-tokens (now {})",
    "passage_words": "lower --passage-words (now {})",
    "device": "run on the CPU: --device cpu",
}
"""What takes memory, the most effective first; the first three that the command has are named."""


class Result(Protocol):
    """What every command's function returns.

    One that has an ``exit_code`` ends the process with it; one that has a ``text`` has it written to stdout.
    """

    def to_json(self) -> dict[str, Any]:
        """Return the result as one JSON object."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What was typed: the command, its sources of values, and the options that every command has."""

    command: type[Command]
    target: str
    files: Sequence[Path] = ()
    words: Sequence[str] = ()
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    known_flags: Sequence[str] = ()
    config_path: Path | None = None
    config_name: str | None = None
    print_config: bool = False
    print_schema: bool = False
    json: bool = False
    quiet: bool = False
    traceback: bool = False


def execute(request: Request) -> int:
    """Carry out a request and return the exit code; no exception leaves this function but SystemExit."""
    from ragtrain import report

    config: Command | None = None
    try:
        report.configure(quiet=request.quiet)
        if request.print_schema:
            _print_schema(request)
            return 0
        resolved = _resolve(request)
        config = resolved.config
        for line in resolved.notes:
            logging.getLogger("ragtrain").info("%s", line)
        if request.print_config:
            _print_config(resolved, as_json=request.json)
            return 0
        try:
            result = _call(request.target, config)
        except GateError as unmet:
            if request.json and unmet.result is not None:
                report.json_out(cast("Result", unmet.result).to_json())
            raise
        if request.json:
            report.json_out(result.to_json())
        elif is_first_process():
            sys.stdout.write(getattr(result, "text", ""))
        sys.stdout.flush()
        return int(getattr(result, "exit_code", 0))
    except BrokenPipeError:
        # Whoever read us is gone: nothing more can be said to them, not even by the interpreter at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt as interrupt:
        error: RagtrainError = Interrupted("interrupted")
        return _fail(error, interrupt, show=request.traceback)
    except Exception as exception:  # noqa: BLE001 - the outermost floor turns every error into an exit code
        return _fail(explain(exception, config), exception, show=request.traceback)


def _resolve(request: Request) -> Resolved[Command]:
    files = list(request.files)
    if request.config_name is not None:
        files.insert(0, bundled.choose(request.config_path, request.config_name))
    elif request.config_path is not None:
        raise ConfigError(
            f"--config-path {request.config_path} names a folder only", hint="say which file with --config-name NAME"
        )
    return load_config(request.command, files, request.words, request.flags, known_flags=request.known_flags)


def _call(target: str, config: Command) -> Result:
    """Import the one module that the command needs and call its function."""
    module, _, function = target.partition(":")
    from ragtrain.runs import leave_processes

    try:
        result = cast("Result", getattr(importlib.import_module(module), function)(config))
    except Interrupted:  # which all processes agree on
        leave_processes()
        raise
    leave_processes()
    return result


def _print_config(resolved: Resolved[Command], *, as_json: bool) -> None:
    from ragtrain import report
    from ragtrain.config.dump import dump_yaml

    if as_json:
        values = resolved.config.model_dump(mode="json")
        report.json_out({"config": values, "origins": dict(resolved.origins)})
    elif is_first_process():
        sys.stdout.write(dump_yaml(resolved.config, resolved.origins))
        sys.stdout.flush()


def _print_schema(request: Request) -> None:
    from ragtrain.config.dump import json_schema

    sys.stdout.write(json.dumps(json_schema(request.command), indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def is_first_process() -> bool:
    """Return whether this is the only process, or the first of those that a launcher started."""
    return int(os.environ.get("RANK", "0") or 0) == 0


def _fail(error: RagtrainError, cause: BaseException, *, show: bool) -> int:
    from ragtrain import report

    # Every process of a launcher reads the same flags: one of them says what is wrong with them.
    said_elsewhere = isinstance(error, ConfigError) and not is_first_process()
    if not said_elsewhere:
        if show:
            traceback_module.print_exception(cause, file=sys.stderr)
        report.error(error)
    if not isinstance(cause, (RagtrainError, KeyboardInterrupt)):
        _log_traceback(cause)
    return error.exit_code


def _log_traceback(cause: BaseException) -> None:
    """Keep the traceback in the run's log, where there is one: the console shows one screen, the file everything."""
    logger = logging.getLogger("ragtrain")
    text = "".join(traceback_module.format_exception(cause))
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), None)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(record)


def explain(exception: Exception, config: Command | None) -> RagtrainError:
    """Turn any exception into an error with a message for a person, a remedy and an exit code."""
    if isinstance(exception, RagtrainError):
        return exception
    if _is_out_of_memory(exception):
        return OutOfMemoryError(_memory_message(exception), hint=_memory_hint(config))
    if isinstance(exception, ImportError):
        missing = (exception.name or "").partition(".")[0]
        if missing in EXTRAS:
            return ConfigError(f"this needs the package {missing}, which is not installed", hint=EXTRAS[missing])
        if isinstance(exception, ModuleNotFoundError) and missing != "ragtrain":
            hint = "pip install ragtrain brings every package it needs; ragtrain doctor lists what is missing"
            return ConfigError(f"the package {missing or exception} is not installed", hint=hint)
    if isinstance(exception, OSError) and exception.errno in USERS_FILES and exception.filename is not None:
        return DataError(exception.strerror or str(exception), path=exception.filename)
    message = f"unexpected {type(exception).__name__}: {str(exception) or 'no message'}{_where(exception)}"
    return RagtrainError(message, hint="this is a fault of ragtrain; the same command with --traceback shows where")


def _where(exception: Exception) -> str:
    """Name the last line of ours, the command line's own aside, that the exception passed through."""
    folder = os.path.dirname(ragtrain.__file__)  # noqa: PTH120 - frames know their files as texts
    frames = traceback_module.extract_tb(exception.__traceback__)
    places = [f"ragtrain{f.filename.removeprefix(folder)}:{f.lineno}" for f in frames if f.filename.startswith(folder)]
    places = [place.replace(os.sep, "/") for place in places]
    ours = [place for place in places if not place.startswith("ragtrain/cli/")]
    return f" ({ours[-1]})" if ours else ""


def _is_out_of_memory(exception: Exception) -> bool:
    """Recognise torch's errors by name and text: torch may not be imported, and must not be for this."""
    if isinstance(exception, MemoryError) or type(exception).__name__ == "OutOfMemoryError":
        return True
    text = str(exception).lower()
    return isinstance(exception, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def _memory_message(exception: Exception) -> str:
    said = str(exception).strip().partition("\n")[0] or type(exception).__name__
    message = f"out of memory: {said}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
        message += f" (peak {peak / 2**30:.1f} of {total / 2**30:.1f} GiB)"
    return message


def _memory_hint(config: Command | None) -> str | None:
    if config is None:
        return None
    leaves = {leaf.name: leaf for leaf in fields.leaves(type(config)).values()}
    remedies = []
    for name, words in MEMORY_REMEDIES.items():
        if name in leaves:
            value: Any = config
            for part in leaves[name].path:
                value = getattr(value, part)
            remedies.append(words.format(fields.show(value)))
    return "; ".join(remedies[:3]) or None
