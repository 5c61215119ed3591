"""What must agree between a checkpoint and the run that goes on from it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ragtrain.errors import CheckpointError
from ragtrain.runs import RunFolder, config_difference, config_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ragtrain.loop.checkpoints import Checkpoint

logger = logging.getLogger("ragtrain")

START_AFRESH = "--resume never starts afresh; another --output-dir leaves that run alone"


def frame(run: RunFolder, *, size: int, world: int, precision: str, total: int, plan: str) -> dict[str, Any]:
    """Return what is written beside the state.

    Args:
        run: The run: its kind and configuration.
        size: Micro-batches in a step, over accumulation and ranks.
        world: Ranks.
        precision: Arithmetic, as resolved on this machine.
        total: Steps of the whole run.
        plan: Fingerprint of the plan of the epoch in which the next step begins.
    """
    return {
        "kind": run.kind,
        "config": run.config,
        "config_hash": config_hash(run.config),
        "micro_batches_per_step": size,
        "world": world,
        "precision": precision,
        "total_steps": total,
        "plan": plan,
    }


def check_frame(checkpoint: Checkpoint, here: Mapping[str, Any]) -> None:
    """Raise unless going on from the checkpoint meets the same examples in the same steps; warn of lesser changes.

    Raises:
        CheckpointError: Naming what differs.
    """
    there, path = checkpoint.frame, checkpoint.path
    missing = here.keys() - there.keys()
    if missing:
        raise CheckpointError(f"its state lacks {', '.join(sorted(missing))}", path=path, hint=START_AFRESH)
    if there["kind"] != here["kind"]:
        raise CheckpointError(
            f"it is of a {there['kind']} run, and this is {here['kind']}", path=path, hint=START_AFRESH
        )
    if there["config_hash"] != here["config_hash"]:
        lines = "\n".join(f"  {line}" for line in config_difference(there["config"], here["config"]))
        raise CheckpointError(f"it belongs to another configuration:\n{lines}", path=path, hint=START_AFRESH)
    size = there["micro_batches_per_step"]
    if size != here["micro_batches_per_step"]:
        raise CheckpointError(
            f"its steps have {size} micro-batches (on {there['world']} processes), and these have "
            f"{here['micro_batches_per_step']} (on {here['world']}): the examples would meet in other steps",
            path=path,
            hint=f"choose --gradient-accumulation-steps so that its product with the number of processes is {size}, "
            "or start afresh with --resume never",
        )
    if there["plan"] != here["plan"]:
        raise CheckpointError(
            f"the training examples of epoch {checkpoint.state.epoch}, or their order, are not those it was made with",
            path=path,
            hint=START_AFRESH,
        )
    if there["world"] != here["world"]:
        logger.warning("resuming on %s processes instead of %s: dropout differs", here["world"], there["world"])
    if there["precision"] != here["precision"]:
        logger.warning("resuming in precision %s instead of %s", here["precision"], there["precision"])
    if there["total_steps"] != here["total_steps"]:
        logger.warning(
            "the run now has %s steps instead of %s: from here on the learning rate follows the new schedule, which an "
            "uninterrupted run would have followed from its start",
            here["total_steps"],
            there["total_steps"],
        )
