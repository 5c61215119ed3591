"""Looks at the loss of every step, whatever is trained, and tells when it goes wrong."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
import math
import statistics
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from ragtrain import loop
from ragtrain.errors import NumericsError
from ragtrain.runs import is_main_process
from ragtrain.train.alarms import known
from ragtrain.train.alarms.known import Alarm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ragtrain.config.training import RunConfig
    from ragtrain.runs import RunFolder

log = logging.getLogger("ragtrain")


@dataclasses.dataclass
class Trouble:
    """Whether one alarm is due: after ``patience`` bad looks in a row, and ``quiet`` good ones since it was told."""

    patience: int = 1
    quiet: int = 1
    streak: int = 0
    calm: int | None = None  # good looks since the last trouble; None before the first

    def is_due(self, bad: bool) -> bool:
        """Take note of a look, and say whether the alarm is to be told now."""
        if not bad:
            self.streak = 0
            self.calm = None if self.calm is None else self.calm + 1
            return False
        self.streak += 1
        if self.streak < self.patience:
            return False
        due = self.calm is None or self.calm >= self.quiet
        self.calm = 0
        return due


class LossWatch:
    """Looks at the loss of every step, and says when one of the alarms is due."""

    def __init__(self, run: RunFolder, config: RunConfig) -> None:
        """Watch a run; alarms go to its ``alarms.jsonl``."""
        self._run, self._stops = run, config.on_alarm == "stop"
        self._world = PartialState().num_processes
        self._began = False
        self._losses: collections.deque[float] = collections.deque(maxlen=known.LOSS_STEPS)
        self._troubles: dict[str, Trouble] = {}

    def after(self, step: loop.Step) -> list[Alarm]:
        """Return what has gone wrong by the end of a step, having logged it and written it into the run folder.

        Raises:
            NumericsError: an alarm ruins the run, and ``run.on_alarm`` is stop.
        """
        if not self._began:
            self._begin(step.index)
        alarms = self._seen(step)
        for alarm in alarms:
            self._tell(alarm)
        harmful = [alarm for alarm in alarms if alarm.is_harmful]
        if harmful and self._stops:
            raise self._refusal(harmful[0])
        return alarms

    def _seen(self, step: loop.Step) -> list[Alarm]:
        """Return the alarms of a step, the same on every process."""
        return list(self._of_loss(step))

    def _of_loss(self, step: loop.Step) -> Iterator[Alarm]:
        """Compare with the losses before it."""
        median = statistics.median(self._losses) if len(self._losses) >= known.LOSS_FIRST else math.inf
        self._losses.append(step.loss)
        exploded = step.loss > max(known.EXPLODED * median, median + known.LOSS_FLOOR)
        if self._trouble("exploding-loss", known.EXPLODED_STEPS, known.QUIET_STEPS).is_due(exploded):
            message = (
                f"the loss is {step.loss:.4g}, and for {known.EXPLODED_STEPS} steps more than {known.EXPLODED:g} times "
                f"its running median of {median:.4g}"
            )
            yield Alarm("exploding-loss", step.index, message, {"loss": step.loss, "median": median})
        first, last, rises = _trend(self._losses)
        if self._trouble("rising-loss", 1, known.QUIET_STEPS).is_due(rises):
            message = f"the loss rose steadily from {first:.4g} to {last:.4g} in the last {known.LOSS_STEPS} steps"
            yield Alarm("rising-loss", step.index, message, {"from": first, "to": last})

    def _trouble(self, name: str, patience: int = 1, quiet: int | None = None) -> Trouble:
        return self._troubles.setdefault(name, Trouble(patience, known.QUIET_WINDOWS if quiet is None else quiet))

    # ---- telling

    def _begin(self, first_step: int) -> list[dict[str, Any]]:
        """Before the first step: alarms of steps that are done again go; return those that stay."""
        self._began = True
        earlier = [row for row in self._run.read_alarms() if row["step"] < first_step]
        self._run.truncate_alarms(first_step - 1)
        return earlier

    def _tell(self, alarm: Alarm) -> None:
        if is_main_process():
            log.warning("alarm after step %d, %s: %s\n  %s", alarm.step, alarm.name, alarm.message, alarm.remedy)
            self._run.append_alarm(alarm.to_json())

    def _refusal(self, alarm: Alarm) -> NumericsError:
        """Return the error that ends the run; what was saved stays."""
        latest = self._run.checkpoints / "latest"
        command = f"{loop.resume_command(self._run, self._world)} --on-alarm warn"
        kept = (
            f"the last checkpoint is {latest.resolve().name}; to go on from it all the same: {command}"
            if latest.exists()
            else "no checkpoint was due yet (--save-steps)"
        )
        return NumericsError(
            f"stopped after step {alarm.step} by the alarm {alarm.name}: {alarm.message}",
            hint=f"{alarm.remedy}; {kept}",
        )


def _trend(before: Iterable[float]) -> tuple[float, float, bool]:
    """Return the medians of the first and the last part, and whether the parts rise one after the other to many times."""
    losses, size = list(before), known.LOSS_STEPS // known.LOSS_BLOCKS
    if len(losses) < known.LOSS_STEPS:
        return 0.0, 0.0, False
    medians = [statistics.median(losses[start : start + size]) for start in range(0, len(losses), size)]
    first, last = medians[0], medians[-1]
    rises = all(a < b for a, b in itertools.pairwise(medians))
    return first, last, rises and last > max(known.RISEN * first, first + known.LOSS_FLOOR)
