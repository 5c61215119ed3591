"""An evaluation on disk: where it goes, whether it is there already, and how it is written.

metrics.json        metrics as fractions with 95 % intervals, and everything they depend on
predictions.jsonl   one line a question: prediction, scores, the passages that were read

What an evaluation depends on is hashed to a fingerprint. The same one is not made twice, and another one is left alone
unless ``--overwrite`` is given.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ragtrain
from ragtrain.errors import ConfigError
from ragtrain.records import write_json, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ragtrain.config.commands import EvalConfig
    from ragtrain.evaluate.resolve import Subject

log = logging.getLogger("ragtrain")

METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.jsonl"
SUMMARY_FILE = "summary.json"
#: Of the replies of a judge, which stand beside the folder of the evaluation.
REPLIES_SUFFIX = ".judge.jsonl"
#: Folders that may stand in an evaluation's folder: evaluations of their own.
NESTED = frozenset({"closed-book", "gold", "retrieved", "gold+distractors", "distractors-only", "base"})
#: Answers of an evaluation that was interrupted, beside the folder that it is to have.
_UNDER_WAY = re.compile(r"\..+\.[0-9a-f]{16}\.part\.jsonl")
#: Those of sweeps: over the number of passages, and over the place of the gold one.
_SWEPT = re.compile(r"(retrieved|gold|gold\+distractors|distractors-only|n-docs)@\d+|gold-at-\d+")


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """An evaluation on disk.

    Attributes:
        path: folder of ``metrics.json`` and ``predictions.jsonl``.
        summary: what ``metrics.json`` holds.
        reused: nothing was done, because the folder held this evaluation already.
    """

    path: Path
    summary: dict[str, Any]
    reused: bool = False

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics as fractions, without those that have no questions."""
        return {name: self.summary[name] for name in self.summary["intervals"]}

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: the summary, and where it lies."""
        return {**self.summary, "path": str(self.path), "reused": self.reused}


@dataclasses.dataclass(frozen=True)
class ConditionsResult:
    """Evaluations under several conditions, or of a model and its base, by name (``retrieved``, ``base/retrieved``).

    Attributes:
        path: folder of ``summary.json``.
        summary: metrics of each evaluation, and the differences between them.
        evaluations: each of them.
    """

    path: Path
    summary: dict[str, Any]
    evaluations: dict[str, EvalResult]

    @property
    def reused(self) -> bool:
        """Whether nothing was done, because all of it was there."""
        return all(result.reused for result in self.evaluations.values())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**self.summary, "path": str(self.path), "reused": self.reused}


def output_folder(config: EvalConfig, subject: Subject) -> Path:
    """Return ``--output-dir``; else ``eval`` in the run; else beside ``--output-file``; else under ``runs``.

    On the contexts of another run it is ``eval-contexts-of-NAME`` in place of ``eval``.
    """
    if config.output_dir is not None:
        return config.output_dir
    name = "eval" if config.contexts_from is None else f"eval-contexts-of-{_called(config.contexts_from)}"
    if subject.run is not None:
        return subject.run.path / name
    if config.output_file is not None:
        return config.output_file.with_suffix("")
    model = "untrained" if subject.model_name is None else subject.model_name.strip("/.").replace("/", "--")
    return Path("runs") / model / name


def _called(run: Path) -> str:
    """Return the name of a run that is given as a folder, an evaluation in it, or a file of predictions."""
    path = run.resolve()
    if path.is_file():
        path = path.parent if path.name == PREDICTIONS_FILE else path.with_suffix("")
    names = path.parent.parent.name, path.parent.name, path.name
    if names[2] == "eval":
        return names[1]
    return f"{names[0]}-{names[2]}" if names[1] == "eval" else names[2]


def say_next(output: Path, config: EvalConfig) -> None:
    """Say where answers are and what may be compared next."""
    if config.contexts_from is not None:
        from ragtrain.evaluate.given import writes_answers

        if not writes_answers(config.contexts_from):  # of which attribution would be refused
            log.info(
                "answers and metrics in %s; next: ragtrain compare %s %s", output, config.model_dir or "RUN", output
            )
            return
        log.info("answers and metrics in %s; next: ragtrain compare %s %s --swapped %s", output, config.model_dir or "RUN",
                 config.contexts_from, output)  # fmt: skip
        return
    compared = output.parent if output.name == "eval" else output
    log.info("answers and metrics in %s; next: ragtrain compare OTHER_RUN %s", output, compared)


def versions() -> dict[str, str]:
    """Return the versions on which numbers may depend."""
    found = {"ragtrain": ragtrain.__version__}
    return found | {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")}


def fingerprint_of(defining: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of what an evaluation depends on."""
    text = json.dumps({**defining, "ragtrain": ragtrain.__version__}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def holds(output: Path, fingerprint: str) -> bool:
    """Return whether a folder holds this evaluation, whole."""
    file = output / METRICS_FILE
    return (
        file.is_file()
        and _read_summary(file).get("fingerprint") == fingerprint
        and (output / PREDICTIONS_FILE).is_file()
    )


def earlier(output: Path, fingerprint: str, *, overwrite: bool) -> dict[str, Any] | None:
    """Return the summary of the same evaluation in the output folder, or None if the folder may be written.

    Raises:
        ConfigError: the folder holds something else.
    """
    if not output.exists() or (output.is_dir() and not _own(output)):
        return None
    file = output / METRICS_FILE
    if not file.is_file():
        raise ConfigError(f"{output} exists and holds no evaluation", hint="choose another --output-dir")
    if overwrite:
        return None
    if holds(output, fingerprint):
        return _read_summary(file)
    raise ConfigError(
        f"{output} holds another evaluation (other weights, questions, index or settings)",
        hint="give --overwrite to replace it, or another --output-dir to keep both",
    )


def _own(output: Path) -> set[str]:
    """Return the names in a folder, without evaluations that lie inside it, have their own folders, or are under way."""
    names = {path.name for path in output.iterdir() if not _UNDER_WAY.fullmatch(path.name)}
    nested = {name for name in names if (name in NESTED or _SWEPT.fullmatch(name)) and (output / name).is_dir()}
    return {name for name in names - nested - {SUMMARY_FILE} if not name.endswith(REPLIES_SUFFIX)}


def check_document(path: Path | None, fingerprint: str, *, overwrite: bool) -> None:
    """Refuse to replace an ``--output-file`` that is not of this evaluation.

    Raises:
        ConfigError: it holds something else, and ``--overwrite`` was not given.
    """
    if path is None or overwrite or not path.exists():
        return
    if path.is_dir() or _read_summary(path).get("fingerprint") != fingerprint:
        raise ConfigError(f"{path} exists and is not of this evaluation",
                          hint="give --overwrite to replace it, or another --output-file")  # fmt: skip


def _read_summary(file: Path) -> dict[str, Any]:
    """Return a JSON object, or an empty one where the file holds something else."""
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return summary if isinstance(summary, dict) else {}


def read_predictions(output: Path) -> list[dict[str, Any]]:
    """Return the lines of an evaluation."""
    with (output / PREDICTIONS_FILE).open(encoding="utf-8") as file:  # not str.splitlines(): texts hold other line ends
        return [json.loads(line) for line in file]


def write(output: Path, summary: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the folder aside and put it in its place, so that what stands there is always one evaluation, whole.

    Evaluations that lie inside the folder stay there.
    """
    aside = output.with_name(f".{output.name}.tmp-{os.getpid()}")
    before = output.with_name(f".{output.name}.old-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        write_jsonl(aside / PREDICTIONS_FILE, rows)
        write_json(aside / METRICS_FILE, summary)
        if output.is_dir() and {path.name for path in output.iterdir()} != _own(output):
            for name in (PREDICTIONS_FILE, METRICS_FILE):
                (aside / name).replace(output / name)
            return
        if output.exists():
            output.replace(before)
        aside.replace(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if before.exists() and not output.exists():
            before.replace(output)
        shutil.rmtree(before, ignore_errors=True)
