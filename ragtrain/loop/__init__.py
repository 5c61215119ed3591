"""THE training loop, for every trainer: a generator that yields one frozen Step per optimizer step.

``for step in loop.steps(model, loss, source, groups=…, training=loop.Training(…), evaluate=…): …``

feed.py         plan → one rank's micro-batches of each step, collated ahead
update.py       one optimizer step: accumulate, agree, exchange, measure, clip, update
schedule.py     number of steps, learning rate, precision, optimizer
checkpoints.py  folders that are whole or are not there; exact resume
frame.py        what must agree between a checkpoint and the run that goes on from it
signals.py      SIGINT and SIGTERM end a run after the step in progress
evaluation.py   in the middle of training: the best checkpoint, and patience
exchange.py     what the processes tell each other: figures, full devices, gradients
oom.py          a full device: smaller micro-batches, or an error that names what to change
journal.py      Step, log line, metrics.jsonl, trackers
settings.py     what a stretch of training is told
steps.py        the generator that holds them together
"""

from ragtrain.loop.feed import Batch, BatchSource
from ragtrain.loop.journal import Step
from ragtrain.loop.schedule import ParamGroup, resolve_precision, total_steps
from ragtrain.loop.settings import Training, check_packages, make_accelerator, resume_command
from ragtrain.loop.steps import steps
from ragtrain.loop.update import LossFunction
from ragtrain.models.weights import load_weights
from ragtrain.runs import is_main_process

__all__ = [
    "Batch",
    "BatchSource",
    "LossFunction",
    "ParamGroup",
    "Step",
    "Training",
    "check_packages",
    "is_main_process",
    "load_weights",
    "make_accelerator",
    "resolve_precision",
    "resume_command",
    "steps",
    "total_steps",
]
