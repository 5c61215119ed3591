"""What a run tells of itself: the Step, its line in the log, its line in ``metrics.jsonl``, its place in trackers."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from typing import TYPE_CHECKING, Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from ragtrain.errors import ConfigError
from ragtrain.runs import RunFolder, is_main_process

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger("ragtrain")


@dataclasses.dataclass(frozen=True)
class Step:
    """One optimizer step, done.

    Attributes:
        index: Completed optimizer steps, this one included.
        epoch: Passes over the training examples after it, with their fraction.
        loss: Sum of losses over sum of weights, over all micro-batches and ranks of the step.
        parts: The other figures of the loss, each its own sum over its own weight.
        weight: What the loss was divided by.
        learning_rates: Of each parameter group, as used in this step.
        grad_norm: Norm of all gradients before clipping.
        group_grad_norms: Norm of each parameter group's gradients before clipping.
        seconds: Wall time of the step, without evaluation and checkpoints.
        examples: Examples in it, over all ranks.
        examples_per_s: Their rate.
        micro_batch_size: Examples of the largest micro-batch; smaller than configured after a device was full.
        evaluation: What ``evaluate`` returned, where an evaluation was due.
        is_best: This evaluation was the best one so far.
        is_last: No step follows: the number is reached, or patience ended.
    """

    index: int
    epoch: float
    loss: float
    parts: dict[str, float]
    weight: float
    learning_rates: dict[str, float]
    grad_norm: float
    group_grad_norms: dict[str, float]
    seconds: float
    examples: int
    examples_per_s: float
    micro_batch_size: int = 0
    evaluation: dict[str, float] | None = None
    is_best: bool = False
    is_last: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the line of ``metrics.jsonl``; ``step`` is the index."""
        row = dataclasses.asdict(self)
        return {"step": row.pop("index"), **row}


def check_trackers(names: Sequence[str]) -> None:
    """Raise unless Accelerate knows the trackers and their packages are installed.

    Raises:
        ConfigError: One is unknown or not installed.
    """
    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(map(str, LOGGER_TYPE_TO_CLASS)))
            raise ConfigError(f"run.trackers: there is no tracker {name!r}", hint=f"Accelerate knows {known}")
        if name not in available:
            raise ConfigError(f"run.trackers: the package of {name!r} is not installed", hint=f"pip install {name}")


class Journal:
    """Writes what each step was, in the first process only.

    Args:
        run: The folder.
        trackers: Accelerate's names; TensorBoard writes to ``runs``, others where they are used to.
        start: Step that this stretch of the run begins after; what TensorBoard has of later ones is hidden.
        total: Steps of the whole run.
        logging_steps: Steps between two log lines.
    """

    def __init__(self, run: RunFolder, trackers: Sequence[str], start: int, total: int, logging_steps: int) -> None:
        self._run, self._start, self._total, self._logging_steps = run, start, total, logging_steps
        self._began = time.monotonic()
        self._trackers: list[GeneralTracker] = []
        if not is_main_process():
            return
        for name in trackers:
            kind = LOGGER_TYPE_TO_CLASS[name]
            if name == "tensorboard":
                purge = {"purge_step": start + 1} if start else {}
                tracker = kind("", run.tensorboard, **purge)
            elif kind.requires_logging_directory:
                tracker = kind("ragtrain", run.path)
            else:
                tracker = kind("ragtrain")
            tracker.start()
            self._trackers.append(tracker)

    def is_logged(self, step: Step) -> bool:
        """Return whether the step gets a log line: the first of a stretch, every so many, and the last."""
        return step.index in (1, self._start + 1) or step.index % self._logging_steps == 0 or step.is_last

    def write(self, step: Step, smooth_loss: float) -> None:
        """Write a finished step everywhere; ``smooth_loss`` is the loss since the last log line."""
        self._run.append_metrics(step.to_json())
        if self._trackers:
            values = _scalars(step)
            for tracker in self._trackers:
                tracker.log(values, step=step.index)
        if self.is_logged(step):
            logger.info("%s", self._line(step, smooth_loss))
        if step.evaluation is not None:
            figures = "  ".join(f"{name} {value:.4g}" for name, value in step.evaluation.items())
            logger.info("evaluation after step %d: %s%s", step.index, figures, "  (best)" if step.is_best else "")

    def close(self) -> None:
        """Let every tracker finish."""
        for tracker in self._trackers:
            tracker.finish()

    def _line(self, step: Step, smooth_loss: float) -> str:
        rates = step.learning_rates
        if len(set(rates.values())) == 1:
            rate = f"lr {next(iter(rates.values())):.2e}"
        else:
            rate = "lr " + ", ".join(f"{name} {value:.2e}" for name, value in rates.items())
        parts = "".join(f"  {name} {value:.4g}" for name, value in step.parts.items() if math.isfinite(value))
        per_step = (time.monotonic() - self._began) / max(1, step.index - self._start)
        left = max(0, round((self._total - step.index) * per_step))
        eta = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        return (
            f"step {step.index}/{self._total}  epoch {step.epoch:.2f}  loss {smooth_loss:.4f}{parts}  {rate}  "
            f"grad norm {step.grad_norm:.3g}  {step.examples_per_s:.1f} examples/s  ETA {eta}"
        )


def _scalars(step: Step) -> dict[str, float]:
    """Return a step's figures under the names that TensorBoard groups by."""

    def under(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
        return {f"{prefix}/{name}": value for name, value in values.items() if math.isfinite(value)}

    evaluation = {name.removeprefix("eval_"): value for name, value in (step.evaluation or {}).items()}
    return {
        "train/loss": step.loss,
        "train/epoch": step.epoch,
        "train/examples_per_s": step.examples_per_s,
        "grad_norm/all": step.grad_norm,
        **under("train", step.parts),
        **under("learning_rate", step.learning_rates),
        **under("grad_norm", step.group_grad_norms),
        **under("eval", evaluation),
    }
