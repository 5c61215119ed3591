"""A run folder explains itself: what was asked, with what, on what, and how it went.

RUN/
├── config.yaml     ``kind`` first, then the resolved configuration
├── env.json        versions, device, seed, git revision
├── data.json       what was read, with hashes
├── metrics.jsonl   one line a step
├── train.log       what the console said
├── alarms.jsonl    only where training showed a way of going wrong: one line an alarm
├── nonfinite.json  only after a loss that was not finite: the batch it came from
├── runs/           TensorBoard
├── checkpoints/    step-000100/ …, ``latest`` and ``best`` (relative links)
└── final_model/    loads without ragtrain
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ragtrain
from ragtrain.errors import ConfigError, DataError
from ragtrain.records import write_json

logger = logging.getLogger("ragtrain")

NOT_DEFINING = frozenset(
    {
        # where a run goes and who is told of it
        "kind", "output_dir", "overwrite", "trackers", "dry_run", "logging_steps",
        # how long it goes on and what is kept of it: a run may be prolonged
        "max_steps", "num_epochs", "early_stopping_patience", "eval_steps", "save_steps", "save_total_limit", "resume",
        # k micro-batches on one device are k/2 on two; that the product stays the same is checked at the checkpoint
        "gradient_accumulation_steps",
        # where it runs, and how the same step is cut when a device is full
        "device",
        "on_out_of_memory",
        # what is written besides the model
        "save_pretrained",
        # whether an alarm ends the run, not what it computes
        "on_alarm",
    }
)  # fmt: skip
"""Fields that may differ between two stretches of the same run (field names are unique within a command)."""

PACKAGES = (
    "torch", "transformers", "accelerate", "datasets", "evaluate", "peft", "tokenizers", "safetensors", "numpy",
    "pydantic", "faiss-cpu", "faiss-gpu",
)  # fmt: skip

# What may lie in a folder that was just made, before config.yaml is.
_HARMLESS = frozenset({"train.log"})


def is_main_process() -> bool:
    """Return whether this is the only process or the first one of a launcher; only it writes files."""
    return int(os.environ.get("RANK", "0") or 0) == 0


def leave_processes() -> None:
    """Leave the group of processes that a launcher started, if there is one.

    Left to the interpreter's end, the group's threads are torn down in any order, which can abort the process.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration as JSON values: paths become strings, tuples lists."""
    result: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return result


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``section.field: value`` for every field that defines the run."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name in NOT_DEFINING:
            continue
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def config_hash(config: Mapping[str, Any]) -> str:
    """Return a short hash of what defines a run; the fields in ``NOT_DEFINING`` leave it as it is."""
    text = json.dumps(_flat(_plain(config)), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def config_difference(
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    *,
    where: tuple[str, str] = ("there", "here"),
    shared: bool = False,
) -> list[str]:
    """Return one ``field: value there, value here`` for each defining field in which two configurations differ.

    Args:
        there: one configuration.
        here: the other.
        where: what is said of the two.
        shared: leave out fields that only one of them has, as of two commands.
    """
    a, b = _flat(_plain(there)), _flat(_plain(here))
    return [
        f"{name}: {json.dumps(a[name]) if name in a else 'absent'} {where[0]}, "
        f"{json.dumps(b[name]) if name in b else 'absent'} {where[1]}"
        for name in sorted(a.keys() & b.keys() if shared else a.keys() | b.keys())
        if name not in a or name not in b or a[name] != b[name]
    ]


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run's folder. In processes other than the first the writing methods do nothing."""

    path: Path
    kind: str
    config: dict[str, Any]

    @classmethod
    def check(
        cls, path: Path, kind: str, config: Mapping[str, Any], *, overwrite: bool = False, resume: str = "auto"
    ) -> None:
        """Raise what ``create`` would raise, and write nothing.

        Raises:
            ConfigError: The path holds another run, or files that are no run.
        """
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file, and a run needs a folder", hint="choose another --output-dir")
        if not (path / "config.yaml").is_file():
            strangers = [p.name for p in path.iterdir() if p.name not in _HARMLESS and p.name[0] != "."] if (
                path.is_dir()
            ) else []  # fmt: skip
            if strangers:
                raise ConfigError(
                    f"{path} holds {min(strangers)!r} and {len(strangers) - 1} other entries, but no run",
                    hint="choose another --output-dir; a folder that is not a run is never overwritten",
                )
            return
        explicit = resume not in ("auto", "never")
        if resume == "never" or (overwrite and not explicit):
            return
        there = cls.open(path)
        differences = config_difference(there.config, config)
        if there.kind != kind:
            differences.insert(0, f"kind: {there.kind} there, {kind} here")
        if differences:
            shown = "\n".join(f"  {line}" for line in differences[:8])
            more = f"\n  and {len(differences) - 8} more" if len(differences) > 8 else ""
            raise ConfigError(
                f"{path} holds another run, which differs in\n{shown}{more}",
                hint="--resume never starts afresh and sets the old run aside; --overwrite starts afresh and removes "
                "the old run; another --output-dir leaves it alone",
            )

    @classmethod
    def create(
        cls, path: Path, kind: str, config: Mapping[str, Any], *, overwrite: bool = False, resume: str = "auto"
    ) -> RunFolder:
        """Make a run folder, or open the one that holds the same run, and write its ``config.yaml``.

        Args:
            path: The folder.
            kind: Which trainer: the word after ``ragtrain train``.
            config: Resolved configuration, ``model_dump()`` of the command's model.
            overwrite: Remove the run that the folder holds; with an explicit ``resume`` it is what is resumed.
            resume: ``never`` sets a run that the folder holds aside as ``NAME.old-1``; every other value continues
                the folder's run, which must have the same configuration.

        Raises:
            ConfigError: The path holds another run, or files that are no run. Nothing was written.
        """
        run = cls(Path(path), kind, {k: v for k, v in _plain(config).items() if k != "kind"})
        if not is_main_process():
            return run
        cls.check(run.path, kind, config, overwrite=overwrite, resume=resume)
        if (run.path / "config.yaml").is_file():
            if resume == "never":
                _set_aside(run.path)
            elif overwrite and resume == "auto":
                # Renamed first, so that a kill in between leaves no folder that is half a run.
                doomed = run.path.with_name(f".{run.path.name}.removed-{os.getpid()}")
                run.path.rename(doomed)
                shutil.rmtree(doomed)
        run.path.mkdir(parents=True, exist_ok=True)
        run._write_config()
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run.

        Raises:
            DataError: There is no ``config.yaml``, or it is not one of a run.
        """
        import yaml

        path = Path(path)
        file = path / "config.yaml"
        if not file.is_file():
            raise DataError("not a run folder: it has no config.yaml", path=path, hint="give the --output-dir of a run")
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as cause:
            raise DataError(f"not readable as YAML: {cause}", path=file) from cause
        if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
            raise DataError("not the configuration of a run: it has no kind", path=file)
        return cls(path, content.pop("kind"), content)

    @property
    def checkpoints(self) -> Path:
        """Folder of ``step-000100`` …, ``latest`` and ``best``."""
        return self.path / "checkpoints"

    @property
    def final_model(self) -> Path:
        """Folder of the exported model."""
        return self.path / "final_model"

    @property
    def tensorboard(self) -> Path:
        """Folder that TensorBoard reads."""
        return self.path / "runs"

    @property
    def log_file(self) -> Path:
        """What the console said."""
        return self.path / "train.log"

    @property
    def metrics_file(self) -> Path:
        """One JSON line a step."""
        return self.path / "metrics.jsonl"

    @property
    def alarms_file(self) -> Path:
        """One JSON line an alarm; not there where there was none."""
        return self.path / "alarms.jsonl"

    def _write_config(self) -> None:
        import yaml

        text = yaml.safe_dump({"kind": self.kind, **self.config}, sort_keys=False, allow_unicode=True, width=120)
        aside = self.path / f".config.yaml.tmp-{os.getpid()}"
        aside.write_text(text, encoding="utf-8")
        aside.replace(self.path / "config.yaml")

    def write_env(self, *, device: str | None = None, seed: int | None = None, **more: object) -> None:
        """Write ``env.json``: what else decides the numbers besides configuration and data."""
        if not is_main_process():
            return
        versions = {}
        for name in PACKAGES:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        write_json(
            self.path / "env.json",
            {
                "ragtrain": ragtrain.__version__, "python": platform.python_version(), "platform": platform.platform(),
                "cpus": os.cpu_count(), "device": device, "seed": seed, "git_revision": _git_revision(),
                "command": shlex.join(sys.argv), "process": _process_here(), "packages": versions, **more,
            },
        )  # fmt: skip

    def write_data(self, info: Mapping[str, Any]) -> None:
        """Write ``data.json``: what was read, with hashes and counts."""
        if is_main_process():
            write_json(self.path / "data.json", _plain(info))

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one JSON line to ``metrics.jsonl``; numbers that are not finite become null."""
        if not is_main_process():
            return
        _append_line(self.metrics_file, row)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl``; a last line that a kill cut short is left out.

        Raises:
            DataError: A line that is not the last one is not JSON.
        """
        return _read_lines(self.metrics_file)

    def truncate_metrics(self, last_step: int) -> None:
        """Keep the lines of ``metrics.jsonl`` up to ``last_step``: what comes after them is done again."""
        if is_main_process():
            _truncate_lines(self.metrics_file, last_step)

    def append_alarm(self, row: Mapping[str, Any]) -> None:
        """Append one JSON line to ``alarms.jsonl``; numbers that are not finite become null."""
        if is_main_process():
            _append_line(self.alarms_file, row)

    def read_alarms(self) -> list[dict[str, Any]]:
        """Return the lines of ``alarms.jsonl``, empty where there was no alarm.

        Raises:
            DataError: A line that is not the last one is not JSON.
        """
        return _read_lines(self.alarms_file)

    def truncate_alarms(self, last_step: int) -> None:
        """Keep the lines of ``alarms.jsonl`` up to ``last_step``: what comes after them is done again."""
        if is_main_process():
            _truncate_lines(self.alarms_file, last_step)


def _append_line(path: Path, row: Mapping[str, Any]) -> None:
    clean = json.loads(json.dumps(dict(row), default=str), parse_constant=lambda _: None)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(clean, ensure_ascii=False) + "\n")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of steps; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as cause:
            if number < len(lines):
                raise DataError("not a JSON line", path=path, line=number) from cause
    return rows


def _truncate_lines(path: Path, last_step: int) -> None:
    if not path.exists():
        return
    kept = [row for row in _read_lines(path) if row.get("step", 0) <= last_step]
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    aside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
    aside.replace(path)


def _set_aside(path: Path) -> None:
    number = 1
    while (old := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    path.rename(old)
    logger.info("the run in %s was set aside as %s", path, old)


def _process_here() -> dict[str, Any]:
    """Return what tells this process from others: its number, its machine, and when it began (seconds since 1970)."""
    import psutil

    return {"pid": os.getpid(), "host": platform.node(), "began": psutil.Process().create_time()}


def _git_revision() -> str | None:
    """Return the revision of the checkout that this package is tracked in, with ``+`` where it was changed."""
    package = Path(ragtrain.__file__).parent

    def git(*arguments: str) -> str:
        # S603/S607 do not apply: fixed arguments, no shell
        done = subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
