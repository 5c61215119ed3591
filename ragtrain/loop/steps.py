"""The loop: a generator of Steps that saves, resumes, evaluates, and ends well."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object, set_seed
from torch import nn

from ragtrain.errors import CheckpointError, Interrupted, NumericsError, RagtrainError
from ragtrain.loop import checkpoints, schedule
from ragtrain.loop.checkpoints import Checkpoint, State
from ragtrain.loop.evaluation import Evaluate, evaluation, judged
from ragtrain.loop.exchange import check_same, share_weights
from ragtrain.loop.feed import BatchSource, Feed, Portion, Slot, plan_fingerprint, portion, slots
from ragtrain.loop.frame import check_frame, frame
from ragtrain.loop.journal import Journal, Step, check_trackers
from ragtrain.loop.oom import Full, error_of, memory_explained
from ragtrain.loop.settings import Training, make_accelerator, resume_command
from ragtrain.loop.signals import Signals
from ragtrain.loop.update import Engine, LossFunction, Update, do_update
from ragtrain.models import weights
from ragtrain.runs import is_main_process

if TYPE_CHECKING:
    import signal
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from accelerate import Accelerator

    from ragtrain.loop.schedule import ParamGroup

logger = logging.getLogger("ragtrain")

MAX_SKIPPED = 25
"""fp16 overflows in a row after which the scale, halved each time, cannot be what is wrong."""


def steps(
    model: nn.Module,
    loss: LossFunction,
    source: BatchSource[Any],
    *,
    groups: Sequence[ParamGroup],
    training: Training,
    evaluate: Evaluate | None = None,
    accelerator: Accelerator | None = None,
) -> Iterator[Step]:
    """Train, and yield each optimizer step when it is done, evaluated where that was due, and saved.

    A step takes ``gradient_accumulation_steps * world`` consecutive micro-batches of the plan, rank r those at
    positions r, r + world, …; the last step of an epoch takes what is left. Where the run is already complete,
    nothing is yielded, and the model has the last checkpoint's weights.

    Args:
        model: What is trained; moved to the device and put into training mode.
        loss: ``loss(model, batch)`` with the model as prepared by Accelerate, which must be called, not reached into.
        source: Plans and micro-batches.
        groups: Every trainable parameter in exactly one named group.
        training: Configuration, optimizer, run folder, trackers.
        evaluate: Called with the bare model in evaluation mode without gradients, on every rank; what rank 0 gets
            counts. It cannot disturb the random generators of training.
        accelerator: What ``make_accelerator`` returned, where it was needed before.

    Raises:
        CheckpointError: The checkpoint to go on from does not fit this run.
        ConfigError: ``best_metric`` is none of what ``evaluate`` returns; a tracker or a precision is not to be had.
        DataError: There is nothing to train on.
        Interrupted: SIGINT or SIGTERM came; the state was saved.
        NumericsError: A loss or gradient is not finite.
        OutOfMemoryError: The device is full.
    """
    check_trackers(training.trackers)
    schedule.check_groups(model, groups)
    accelerator = accelerator or make_accelerator(training.config)
    with Signals() as signals, contextlib.ExitStack() as closing:
        loop = _Loop(source, training, evaluate, accelerator, signals)
        with memory_explained(training, accelerator, lambda: loop.micro_batch_size):
            loop.start(model, loss, groups, closing)
            yield from loop.run()


class _Loop:
    """The state of ``steps`` between two yields."""

    engine: Engine
    journal: Journal

    def __init__(
        self,
        source: BatchSource[Any],
        training: Training,
        evaluate: Evaluate | None,
        accelerator: Accelerator,
        signals: Signals,
    ) -> None:
        self.source, self.training, self.evaluate = source, training, evaluate
        self.accelerator, self.signals = accelerator, signals
        self.config, self.folder = training.config, training.run.checkpoints
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.size = self.config.gradient_accumulation_steps * self.world
        self.total = schedule.total_steps(self.config, len(source.plan(0)), self.world)
        self.warmup = schedule.warmup_steps(training.optim, self.total)
        self.state = State()
        self.stop: signal.Signals | None = None  # once all ranks know of it
        self.done = False
        self.skipped = 0  # fp16 overflows in a row
        self.saved_step: int | None = None  # whose weights are on the disk
        self.micro_batch_size = self.config.batch_size
        self._plan: tuple[int, str] | None = None

    # ---- from nothing or from a checkpoint to the first step

    def start(
        self, model: nn.Module, loss: LossFunction, groups: Sequence[ParamGroup], closing: contextlib.ExitStack
    ) -> None:
        """Find where to begin, load what is there, and place everything on the device."""
        self.accelerator.wait_for_everyone()  # the first process may still be making the run folder
        checkpoint = checkpoints.find(self.folder, self.config.resume)
        if checkpoint is not None:
            check_frame(checkpoint, self._frame(checkpoint.state.epoch))
            weights.load_weights(model, checkpoint.path)
        optimizer = schedule.make_optimizer(groups, self.training.optim, scaled=self.accelerator.scaler is not None)
        # Not wrapped for several processes: exchange.py adds their gradients up.
        prepared = self.accelerator.prepare_model(model, evaluation_mode=True)
        prepared_optimizer = self.accelerator.prepare_optimizer(optimizer)
        if self.world > 1:
            self._check_processes(model, groups, 0 if checkpoint is None else checkpoint.state.epoch)
            share_weights(model)
        # Accelerate replaces the model's forward; whoever exports the model afterwards gets it as it was.
        closing.callback(self.accelerator.unwrap_model, prepared, keep_fp32_wrapper=False)
        prepared.train()
        clip, run = self.training.optim.max_grad_norm, self.training.run
        divide = self.config.on_out_of_memory == "halve" and not self.training.indivisible
        retries = divide or self.training.relief is not None
        self.engine = Engine(self.accelerator, prepared, prepared_optimizer, loss, groups, clip, run, divide, retries)
        set_seed(self.config.seed, device_specific=True)
        if checkpoint is not None:
            self._restore(checkpoint)
        if is_main_process():
            run.truncate_metrics(self.state.step - (self.state.pending is not None))
            for name in checkpoints.clean(self.folder, self.state.step, self.state.best_step):
                logger.info("removed checkpoint %s: it comes after the one that is resumed", name)
        self.accelerator.wait_for_everyone()
        self.journal = Journal(run, self.training.trackers, self.state.step, self.total, self.config.logging_steps)
        closing.callback(self.journal.close)

    def _check_processes(self, model: nn.Module, groups: Sequence[ParamGroup], epoch: int) -> None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        check_same(
            {
                "training examples": (self.total, self._frame(epoch)["plan"]),
                "models": [(name, tuple(t.shape), str(t.dtype)) for name, t in model.state_dict().items()],
                "parameter groups": [(group.name, [names[id(p)] for p in group.parameters]) for group in groups],
            }
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        content = checkpoints.load_training(checkpoint.path)
        try:
            self.engine.optimizer.load_state_dict(content["optimizer"])
        except (ValueError, KeyError) as cause:
            raise CheckpointError(f"its optimizer does not fit: {cause}", path=checkpoint.path) from cause
        if self.accelerator.scaler is not None and content["scaler"]:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        self.state = checkpoint.state
        if self.state.best_step is not None and self.state.best_step not in checkpoints.listing(self.folder):
            logger.warning("the best checkpoint so far (step %d) is not in %s", self.state.best_step, self.folder)
            self.state.best_step = self.state.best_value = None
        if checkpoint.path.parent == self.folder.resolve():
            self.saved_step = self.state.step
        if checkpoint.frame["world"] == self.world:
            checkpoints.set_random_state(content["random"][self.rank], self.accelerator.device)
        patience = self.config.early_stopping_patience
        self.done = patience is not None and self.state.stale >= patience and self.state.pending is None
        logger.info("resuming from %s: step %d of %d", checkpoint.path, self.state.step, self.total)

    # ---- step after step

    def run(self) -> Iterator[Step]:
        """Yield the steps from here to the end."""
        if self.state.pending is not None:
            # The checkpoint was written before this step's evaluation, which is made up for.
            last = self.state.step >= self.total
            yield self._finish(dataclasses.replace(Step(**self.state.pending), is_last=last))
            self._end_if_stopped()
        elif self.done or self.state.step >= self.total:
            logger.info("nothing left to do: the run has done %d of %d steps", self.state.step, self.total)
            return
        places = slots(self.source, self.state.epoch, self.state.position, self.size)
        with contextlib.closing(Feed(places, self._portion)) as feed:
            while not self.done:
                step = self._advance(feed)
                if step is not None:
                    yield self._finish(step)
                self._end_if_stopped()

    def _portion(self, slot: Slot) -> Portion:
        return portion(self.source, slot, self.rank, self.world, self.state.halvings)

    def _advance(self, feed: Feed) -> Step | None:
        """Do one optimizer step; None where fp16 skipped it: its examples are spent, but no step is completed."""
        each = feed.next()
        began = time.perf_counter()
        state, slot = self.state, each.slot
        factor = schedule.lr_factor(self.training.optim.lr_scheduler, state.step, self.warmup, self.total)
        frozen = {group.name for group in self.engine.groups if state.step < group.frozen_steps}
        rates = {g.name: 0.0 if g.name in frozen else g.learning_rate * factor for g in self.engine.groups}
        update = self._updated(feed, each, rates, frozen)
        state.epoch, state.position = slot.next_epoch, slot.next_position
        self.stop, self.saved_step = update.stop, None
        if update.skipped:
            self._count_skipped()
            return None
        self.skipped = 0
        state.step += 1
        state.window_loss += update.loss * update.weight
        state.window_weight += update.weight
        seconds = time.perf_counter() - began
        return Step(
            index=state.step,
            epoch=slot.epoch + (slot.position + len(slot.micro_batches)) / slot.plan_length,
            loss=update.loss,
            parts=dict(update.parts),
            weight=update.weight,
            learning_rates=rates,
            grad_norm=update.grad_norm,
            group_grad_norms=dict(update.group_grad_norms),
            seconds=seconds,
            examples=update.examples,
            examples_per_s=update.examples / seconds,
            micro_batch_size=self.micro_batch_size,
            is_last=state.step >= self.total,
        )

    def _updated(self, feed: Feed, each: Portion, rates: Mapping[str, float], frozen: Collection[str]) -> Update:
        """Do the step of a portion; while a device is full, again in micro-batches of half the size."""
        device = self.accelerator.device
        before = checkpoints.random_state(device) if self.engine.retries else None
        while True:
            if each.halvings != self.state.halvings:  # it was collated before the last halving
                each = self._recut(feed, each)
            self.micro_batch_size = each.size
            update = do_update(self.engine, each, rates, frozen, self.signals.received)
            if isinstance(update, Update):
                return update
            if not self._relieved():
                self._halve(each, update)
            if before is not None:
                checkpoints.set_random_state(before, device)

    def _relieved(self) -> bool:
        """Free memory in the way that the recipe knows, where it knows one; the same step is then tried again."""
        done = self.training.relief() if self.training.relief is not None else ""
        if done and is_main_process():
            logger.warning(
                "step %d: %s has no memory left; %s; the step is the same",
                self.state.step + 1, self.accelerator.device, done,
            )  # fmt: skip
        return bool(done)

    def _recut(self, feed: Feed, each: Portion) -> Portion:
        """Return the same examples in smaller micro-batches."""
        smaller = feed.again(each.slot)
        if not math.isclose(smaller.weight, each.weight, rel_tol=1e-6):
            raise RagtrainError(
                f"micro-batches cannot be halved: the weights of the parts sum to {smaller.weight}, not {each.weight}",
                hint="--on-out-of-memory stop",
            )
        return smaller

    def _halve(self, each: Portion, full: Full) -> None:
        """Take micro-batches of half the size from here on, or raise where there are none."""
        if full.at_one or each.size == 1 or not self.engine.divide:
            raise error_of(self.training, self.accelerator, full.message, each.size if not full.at_one else 1)
        number = self.config.gradient_accumulation_steps * 2**self.state.halvings
        if is_main_process():
            logger.warning(
                "step %d: %s has no memory left; micro-batches of %d → %d, accumulation %d → %d; the step is the same",
                self.state.step + 1, self.accelerator.device, each.size, (each.size + 1) // 2, number, 2 * number,
            )  # fmt: skip
        self.state.halvings += 1

    def _count_skipped(self) -> None:
        self.skipped += 1
        logger.info("after step %d: fp16 overflow, the gradient scale is halved", self.state.step)
        if self.skipped >= MAX_SKIPPED:
            raise NumericsError(
                f"{self.skipped} fp16 overflows in a row after step {self.state.step}: gradients are not finite at "
                "any scale",
                hint="use --mixed-precision bf16 or no, or a smaller --learning-rate",
            )

    def _finish(self, step: Step) -> Step:
        """Evaluate, write down, save, each where it is due."""
        config, state, index = self.config, self.state, step.index
        save = step.is_last or (config.save_steps is not None and index % config.save_steps == 0)
        evaluate_now = step.is_last or (config.eval_steps is not None and index % config.eval_steps == 0)
        if self.evaluate is not None and (evaluate_now or state.pending is not None):
            if save or self._stopping():
                # Evaluations can be long: what is trained is safe first.
                state.pending = dataclasses.asdict(step)
                self._save()
            self._end_if_stopped()
            step = judged(step, evaluation(self.accelerator, self.engine.model, self.evaluate), state, config)
            save = save or step.is_best or step.is_last or state.pending is not None
        state.pending = None
        self.done = step.is_last
        self.journal.write(step, state.window_loss / state.window_weight)
        if self.journal.is_logged(step):
            state.window_loss = state.window_weight = 0.0
        if save:
            self._save()
        return step

    # ---- saving and ending

    def _frame(self, epoch: int) -> dict[str, Any]:
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, plan_fingerprint(self.source.plan(epoch)))
        return frame(
            self.training.run,
            size=self.size,
            world=self.world,
            precision=self.accelerator.mixed_precision,
            total=self.total,
            plan=self._plan[1],
        )

    def _save(self) -> None:
        """Write the checkpoint of the present step; where its weights are saved already, only the state."""
        state, folder = self.state, self.folder
        weights_are_there = self.saved_step == state.step
        self.saved_step = state.step
        everywhere = gather_object([None if weights_are_there else checkpoints.random_state(self.accelerator.device)])
        if is_main_process():
            if weights_are_there:
                checkpoints.write_state(folder / checkpoints.name_of(state.step), state, self._frame(state.epoch))
            else:
                checkpoints.write(folder, state.step, lambda path: self._fill(path, everywhere))
            checkpoints.set_links(folder, state.step, state.best_step)
            checkpoints.prune(folder, self.config.save_total_limit, state.best_step)
        self.accelerator.wait_for_everyone()

    def _fill(self, path: Path, random_states: list[Any]) -> None:
        weights.save_weights(self.accelerator.unwrap_model(self.engine.model), path)
        scaler = self.accelerator.scaler
        content = {
            "optimizer": self.engine.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": random_states,
        }
        torch.save(content, path / checkpoints.TRAINING)
        checkpoints.write_state(path, self.state, self._frame(self.state.epoch))

    def _stopping(self) -> bool:
        """Return whether a signal ends the run here; of several ranks, all say the same."""
        if self.world == 1 and self.signals.received is not None:
            self.stop = self.signals.received
        return self.stop is not None

    def _end_if_stopped(self) -> None:
        """Save and raise where a signal came."""
        if not self._stopping() or self.stop is None:
            return
        if self.saved_step != self.state.step:
            self._save()
        where = self.folder / checkpoints.name_of(self.state.step)
        command = resume_command(self.training.run, self.world)
        logger.info("saved %s; go on with: %s", where, command)
        raise Interrupted(
            f"{self.stop.name} after step {self.state.step} of {self.total}; everything is saved in {where}",
            signal_number=self.stop,
            hint=f"go on with: {command}",
        )
