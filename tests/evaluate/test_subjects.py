"""What a run that has not ended says of its prompts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from ragtrain.config.commands import EvalConfig
from ragtrain.evaluate.resolve import subject_of
from ragtrain.evaluate.subjects import causal_of


def test_a_checkpoint_without_a_final_model_is_asked_with_the_prompts_of_its_run(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    """Its instruction file may be another one by now, and the date of its chat template is not today's."""
    instruction = tmp_path / "instruction.txt"
    instruction.write_text("Answer as it was trained.")
    run = shutil.copytree(trained(instruction=str(instruction)), tmp_path / "run", symlinks=True)
    shutil.rmtree(run / "final_model")
    about = json.loads((run / "data.json").read_text())
    about["prompt"]["date"] = "2020-02-29"
    (run / "data.json").write_text(json.dumps(about))
    instruction.unlink()
    causal = causal_of(subject_of(EvalConfig(model_dir=str(run), checkpoint="latest")))
    assert (causal.prompt.instruction, causal.prompt.date) == ("Answer as it was trained.", "2020-02-29")
    assert causal.unfinished
