"""A two-parameter regression and a small network with dropout, and a script that trains them through the loop.

Run as ``python toy.py '{"out": ...}'`` it is what the tests interrupt, kill, and start on several processes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import signal
import sys
from pathlib import Path

import torch
import torch._dynamo  # torch's optimizers import it at their first step: here it is done once for all processes
from torch import nn

from ragtrain import loop, report
from ragtrain.config.training import LoopConfig, OptimConfig
from ragtrain.errors import RagtrainError
from ragtrain.losses import LossOutput
from ragtrain.runs import RunFolder, leave_processes


class Line(nn.Module):
    """y = a x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))
        self.b = nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a * x[:, 0] + self.b


class Net(nn.Module):
    """Two layers with dropout, a tied weight, and a layer that nothing uses."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Linear(3, 8)
        self.second = nn.Linear(8, 1)
        self.tied = self.first.weight
        self.unused = nn.Linear(2, 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.dropout(torch.tanh(self.first(x))))[:, 0]


@dataclasses.dataclass(frozen=True)
class ToyBatch:
    ids: tuple[str, ...]
    x: torch.Tensor
    y: torch.Tensor
    weights: torch.Tensor
    weight: float

    def to(self, device: torch.device) -> ToyBatch:
        return dataclasses.replace(self, x=self.x.to(device), y=self.y.to(device), weights=self.weights.to(device))


class Source:
    """``n`` examples of ragged weights (1 to 7, as answers have tokens), ``micro`` in a micro-batch."""

    def __init__(self, n: int = 24, micro: int = 4, seed: int = 0, bad: int | None = None) -> None:
        generator = torch.Generator().manual_seed(11)
        self.x = torch.randn(n, 3, generator=generator)
        self.y = 2 * self.x[:, 0] + 3 + 0.1 * torch.randn(n, generator=generator)
        self.weights = torch.randint(1, 8, (n,), generator=generator).float()
        if bad is not None:
            self.x[bad] = float("nan")
        self.n, self.micro, self.seed = n, micro, seed

    def plan(self, epoch: int) -> list[list[int]]:
        order = list(range(self.n))
        random.Random(f"{self.seed}-{epoch}").shuffle(order)
        return [order[i : i + self.micro] for i in range(0, self.n, self.micro)]

    def collate(self, indices: list[int], epoch: int) -> ToyBatch:
        weights = self.weights[indices]
        ids = tuple(f"q{i}" for i in indices)
        return ToyBatch(ids, self.x[indices], self.y[indices], weights, float(weights.sum()))


def loss(model: nn.Module, batch: ToyBatch) -> LossOutput:
    errors = batch.weights * (model(batch.x) - batch.y) ** 2
    per_example = (errors.detach().sum(), len(batch.ids))
    return LossOutput(errors.sum(), batch.weight, {"per_example": per_example})


class _FullBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def full_above(size: int, where: str = "forward", rank: int | None = None, call: int = 0):
    """Return a loss for which the device is full with more than ``size`` examples, on one rank or on all.

    It is full after the forward pass or in the backward pass, from the ``call``-th micro-batch on.
    """
    calls = 0

    def full(model: nn.Module, batch: ToyBatch) -> LossOutput:
        nonlocal calls
        calls += 1
        output = loss(model, batch)
        here = rank is None or int(os.environ.get("RANK", "0")) == rank
        if here and calls > call and len(batch.ids) > size:
            if where == "forward":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
            return LossOutput(_FullBackward.apply(output.total), output.weight, output.parts)
        return output

    return full


def parts_by_rank(model: nn.Module, batch: ToyBatch) -> LossOutput:
    """A loss whose figures differ from process to process."""
    output = loss(model, batch)
    rank = os.environ.get("RANK", "0")
    return LossOutput(output.total, output.weight, {**output.parts, f"of_rank_{rank}": (float(rank) + 1.0, 1.0)})


def groups(model: nn.Module, rate: float = 0.05) -> list[loop.ParamGroup]:
    if isinstance(model, Line):
        return [loop.ParamGroup("slope", [model.a], rate), loop.ParamGroup("offset", [model.b], 2 * rate)]
    return [
        loop.ParamGroup("first", list(model.first.parameters()), rate),
        loop.ParamGroup("rest", [*model.second.parameters(), *model.unused.parameters()], rate / 2),
    ]


def settings(out: Path, optim: dict | None = None, trackers: tuple[str, ...] = (), **config) -> loop.Training:
    """What the loop is told, with a run folder made for it."""
    config = {"max_steps": 6, "gradient_accumulation_steps": 2, "mixed_precision": "no", "save_steps": 2, **config}
    loop_config, optim_config = LoopConfig(**config), OptimConfig(**(optim or {}))
    whole = {"loop": loop_config.model_dump(), "optim": optim_config.model_dump()}
    run = RunFolder.create(out, "toy", whole, resume=loop_config.resume)
    return loop.Training(loop_config, optim_config, run, trackers)


def main(options: dict) -> None:
    """Train as told; ``kill_at``, ``signal_at`` and ``signal_in_evaluation`` say where it ends badly."""
    out = Path(options["out"])
    report.configure()
    logging.getLogger("ragtrain").info("started")
    training = settings(out, options.get("optim"), **options.get("config", {}))
    report.add_log_file(training.run.log_file)
    model = Line() if options.get("model") == "line" else Net(options.get("dropout", 0.3))
    n = options.get("n", 24) + options.get("more_by_rank", 0) * int(os.environ.get("RANK", "0"))
    source = Source(micro=options.get("micro", 4), bad=options.get("bad"), n=n)
    evaluations = 0

    def evaluate(bare: nn.Module) -> dict[str, float]:
        nonlocal evaluations
        evaluations += 1
        torch.rand(3)  # must not disturb training
        if options.get("signal_in_evaluation") == evaluations:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        value = sum(p.detach().abs().sum().item() for p in bare.parameters())
        return {"eval_loss": value}

    value = parts_by_rank if options.get("parts_by_rank") else loss
    if "full_above" in options:
        value = full_above(**options["full_above"])
    steps = loop.steps(
        model, value, source, groups=groups(model), training=training,
        evaluate=evaluate if options.get("evaluate") else None,
    )  # fmt: skip
    for step in steps:
        if step.index == options.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if step.index == options.get("signal_at"):
            rank = int(os.environ.get("RANK", "0"))
            if rank == options.get("signal_rank", 0):
                os.kill(os.getpid(), options.get("signal", signal.SIGTERM))
    if loop.is_main_process():
        torch.save(model.state_dict(), out / "end.pt")


def script(text: str) -> int:
    """Train as the JSON text says, show an error as the command line does, and return the exit status."""
    torch.set_num_threads(1)
    try:
        main(json.loads(text))
    except RagtrainError as err:
        report.error(err)
        return err.exit_code
    leave_processes()
    return 0


def child(text: str, said: str, rank: int, world: int, port: int) -> None:
    """Be one of ``world`` processes, as a launcher would start it, with stderr in the file ``said``."""
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    # pytest or the process server may have replaced it
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    if world > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    status = script(text)
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(script(sys.argv[1]))
