"""A checkpoint is a folder that is whole or is not there.

checkpoints/
├── step-000100/
│   ├── model.safetensors   all weights (tied ones once); where some are frozen, only what is trained (models/weights.py)
│   ├── training.pt         optimizer, gradient scaler, random states of every rank (loads with weights_only)
│   └── state.json          place in the plan, best metric, and what must agree for the run to go on
├── best -> step-000100
└── latest -> step-000100

A folder is filled under a name that begins with a dot, synced to disk and renamed; links are made aside and renamed
too. So a kill at any moment leaves at most a dotted leftover, which the next start removes. Files are read with
safetensors and ``torch.load(weights_only=True)``: a checkpoint from elsewhere can run no code.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ragtrain.errors import CheckpointError
from ragtrain.models import weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FORMAT = 1
MODEL, TRAINING, STATE = weights.FILE, "training.pt", "state.json"
_NAME = re.compile(r"step-(\d{6,})")


@dataclasses.dataclass
class State:
    """What the loop itself knows besides weights, optimizer and random states.

    Attributes:
        step: Completed optimizer steps.
        epoch: Epoch in which the next step begins.
        position: Micro-batch of that epoch with which it begins.
        best_value: Best value of ``best_metric`` so far.
        best_step: Step that reached it first.
        stale: Evaluations since then.
        window_loss: Sum of the losses since the last line of the log.
        window_weight: Sum of their weights.
        pending: The step's figures, where its evaluation was still to come when the checkpoint was written.
        halvings: How often micro-batches were halved because a device was full.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    best_value: float | None = None
    best_step: int | None = None
    stale: int = 0
    window_loss: float = 0.0
    window_weight: float = 0.0
    pending: dict[str, Any] | None = None
    halvings: int = 0


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's ``state.json``: the loop's state and the frame it belongs to.

    ``frame`` holds kind, config, config_hash, micro_batches_per_step, world, precision, total_steps, plan.
    """

    path: Path
    state: State
    frame: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read ``state.json`` and see that the other files are there.

        Raises:
            CheckpointError: A file or a key is missing, or the format is another one.
        """
        hint = "--resume never starts afresh; --resume PATH takes another checkpoint"
        for name in (STATE, MODEL, TRAINING):
            if not (path / name).is_file():
                raise CheckpointError(f"not a whole checkpoint: {name} is missing", path=path, hint=hint)
        try:
            content = json.loads((path / STATE).read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise CheckpointError(
                    f"format {content['format']}, and this version reads {FORMAT}", path=path, hint=hint
                )
            return cls(path.resolve(), State(**content["state"]), content["frame"])
        except (json.JSONDecodeError, KeyError, TypeError) as cause:
            raise CheckpointError(f"{STATE} cannot be read: {cause!r}", path=path, hint=hint) from cause


def name_of(step: int) -> str:
    """Return the folder's name, which sorts by step."""
    return f"step-{step:06d}"


def listing(checkpoints: Path) -> dict[int, Path]:
    """Return the checkpoints of a run by step, oldest first."""
    found = {}
    if checkpoints.is_dir():
        for path in checkpoints.iterdir():
            if (match := _NAME.fullmatch(path.name)) and path.is_dir() and not path.is_symlink():
                found[int(match[1])] = path
    return dict(sorted(found.items()))


def find(checkpoints: Path, resume: str) -> Checkpoint | None:
    """Return the checkpoint that ``resume`` means, or None where a run begins.

    ``latest`` is the newest folder rather than what the link says: a kill may come between the two.

    Raises:
        CheckpointError: It was asked for by name and is not there, or is not whole.
    """
    if resume == "never":
        return None
    if resume not in ("auto", "latest", "best"):
        path = Path(resume)
        if (path / "checkpoints").is_dir():
            path = path / "checkpoints" / "latest"
        if not path.is_dir():
            raise CheckpointError("there is no such checkpoint", path=path, hint=_choices(checkpoints))
        return Checkpoint.read(path)
    steps = listing(checkpoints)
    if not steps:
        if resume == "auto":
            return None
        raise CheckpointError(
            f"there is no checkpoint to resume with --resume {resume}", path=checkpoints, hint="--resume never starts"
        )
    newest = Checkpoint.read(steps[max(steps)])
    if resume != "best":
        return newest
    if newest.state.best_step not in steps:
        raise CheckpointError(
            "no evaluation has chosen a best checkpoint", path=checkpoints, hint=_choices(checkpoints)
        )
    return Checkpoint.read(steps[newest.state.best_step])


def _choices(checkpoints: Path) -> str:
    names = ", ".join(path.name for path in listing(checkpoints).values())
    return f"{checkpoints} holds {names or 'none'}"


def clean(checkpoints: Path, newest: int, best: int | None) -> list[str]:
    """Remove dotted leftovers and the checkpoints after ``newest``, which are done again; set the links right.

    Returns:
        The names of the checkpoints that were removed.
    """
    if not checkpoints.is_dir():
        return []
    for path in checkpoints.glob(".*.tmp"):
        _remove(path)
    removed = []
    for step, path in listing(checkpoints).items():
        if step > newest:
            _drop(path)
            removed.append(path.name)
    set_links(checkpoints, newest, best)
    return removed


def write(checkpoints: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """Make the folder of a step: ``fill`` writes into it under another name, and then it is there at once."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    target = checkpoints / name_of(step)
    aside = checkpoints / f".{target.name}.tmp"
    _remove(aside)
    aside.mkdir()
    fill(aside)
    for path in aside.iterdir():
        _sync(path)
    _sync(aside)
    if target.exists():
        _drop(target)
    aside.rename(target)
    _sync(checkpoints)
    return target


def write_state(folder: Path, state: State, frame: Mapping[str, Any]) -> None:
    """Write ``state.json`` into a checkpoint, aside and then renamed."""
    aside = folder / f".{STATE}.tmp"
    content = {"format": FORMAT, "state": dataclasses.asdict(state), "frame": dict(frame)}
    aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _sync(aside)
    aside.replace(folder / STATE)


def set_links(checkpoints: Path, latest: int, best: int | None) -> None:
    """Point ``latest`` and ``best`` at their folders, each by renaming a new link over the old one."""
    for name, step in (("latest", latest), ("best", best)):
        link = checkpoints / name
        if step is None or not (checkpoints / name_of(step)).is_dir():
            link.unlink(missing_ok=True)
            continue
        aside = checkpoints / f".{name}.tmp"
        aside.unlink(missing_ok=True)
        aside.symlink_to(name_of(step))
        aside.replace(link)


def prune(checkpoints: Path, keep: int | None, best: int | None) -> None:
    """Remove all but the ``keep`` newest checkpoints and the best one."""
    if keep is None:
        return
    for step, path in list(listing(checkpoints).items())[:-keep]:
        if step != best:
            _drop(path)


def _drop(path: Path) -> None:
    # Renamed first, so that a kill in between leaves no checkpoint that is half removed.
    aside = path.with_name(f".{path.name}.old.tmp")
    _remove(aside)
    path.rename(aside)
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_training(folder: Path) -> dict[str, Any]:
    """Read optimizer, scaler and random states.

    Raises:
        CheckpointError: The file cannot be read or lacks one of them.
    """
    try:
        content: dict[str, Any] = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
    except Exception as cause:  # torch.load raises what pickle, zipfile and the file system raise
        raise CheckpointError(f"{TRAINING} cannot be read: {cause}", path=folder) from cause
    for key in ("optimizer", "scaler", "random"):
        if key not in content:
            raise CheckpointError(f"{TRAINING} lacks {key!r}", path=folder)
    return content


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of all random generators of this process, as values that load with weights_only."""
    version, internal, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - libraries draw from the global generator
    inner = numpy_state["state"]
    state = {
        "python": [version, list(internal), gauss],
        "numpy": {
            "key": [int(word) for word in inner["key"]],
            "pos": int(inner["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "device": None,
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state().cpu()
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put every random generator of this process where ``random_state`` found it."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy_state = state["numpy"]
    key = np.array(numpy_state["key"], dtype=np.uint32)
    legacy = ("MT19937", key, numpy_state["pos"], numpy_state["has_gauss"], numpy_state["gauss"])
    np.random.set_state(legacy)  # noqa: NPY002 - libraries draw from the global generator
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and state["device"] is not None:
        torch.get_device_module(device).set_rng_state(state["device"])
