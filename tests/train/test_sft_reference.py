"""Fine-tuning beside TRL's trainer: the same rows, the same adapters at the start, the same steps."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ragtrain.config.commands import SftConfig
from ragtrain.config.load import load_config
from ragtrain.train import sft

STEPS, BATCH, ACCUMULATED, RATE = 6, 2, 2, 2e-3


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished prompts and what follows them; more of them than the steps need."""
    words = ["lake", "river", "hill", "town", "north", "south", "old", "new", "stone", "bridge", "church", "mill"]
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    with path.open("w") as file:
        for i in range(STEPS * BATCH * ACCUMULATED):
            prompt = f"The {words[i % 12]} of the {words[(i * 5 + 1) % 12]} lies " + "far " * (i % 4) + "to the"
            answer = f" {words[(i * 7 + 2) % 12]} and the {words[(i * 3) % 12]}"
            file.write(json.dumps({"id": str(i), "prompt": prompt, "completion": answer}) + "\n")
    return path


def config_of(model: Path, rows: Path, output: Path, **changes: object) -> SftConfig:
    template = rows.parent / "template.txt"
    template.write_text("{query}{output}")
    settings = {
        "model_name_or_path": str(model), "train_data": rows, "input_key": "prompt", "output_key": "completion",
        "instruction": None, "template": template, "shuffle": False, "length_grouping": False, "max_length": 64,
        "lora_rank": 4, "lora_alpha": 8, "batch_size": BATCH, "gradient_accumulation_steps": ACCUMULATED,
        "max_steps": STEPS, "learning_rate": RATE, "lr_scheduler": "cosine", "warmup_ratio": 0.3, "weight_decay": 0.1,
        "logging_steps": 1, "save_steps": None, "output_dir": output, "trackers": (), "eval_samples": 0, **changes,
    }  # fmt: skip
    return load_config(SftConfig, flags=settings).config


def by_trl(
    model: Path, rows: Path, start: dict[str, torch.Tensor], output: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train with TRL from given adapters; return its log of steps and the adapters at the end."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trl = pytest.importorskip("trl", reason="TRL is the reference")
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    data = Dataset.from_list([{"prompt": line["prompt"], "completion": line["completion"]} for line in lines])
    arguments = trl.SFTConfig(
        output_dir=str(output), per_device_train_batch_size=BATCH, gradient_accumulation_steps=ACCUMULATED,
        max_steps=STEPS, learning_rate=RATE, lr_scheduler_type="cosine", warmup_steps=0.3, weight_decay=0.1,
        optim="adamw_torch", logging_steps=1, use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=64,
        train_sampling_strategy="sequential", disable_tqdm=True, report_to=[], save_strategy="no", max_grad_norm=1.0,
    )  # fmt: skip
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), args=arguments, train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(model), peft_config=lora,
    )  # fmt: skip
    state = trainer.model.state_dict()
    for name, tensor in start.items():
        state[name.replace(".weight", ".default.weight")].copy_(tensor)
    trainer.train()
    log = [row for row in trainer.state.log_history if "loss" in row]
    return log, get_peft_model_state_dict(trainer.model)


@pytest.mark.reference
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_steps_are_those_of_trl(kind: str, causal_lm: Callable[[str], Path], rows: Path, tmp_path: Path) -> None:
    """Loss, gradient norm and learning rate of every step within 1e-5, adapters at the end within 1e-6."""
    model = causal_lm(kind)
    sft.run(config_of(model, rows, tmp_path / "none", max_steps=1, learning_rate=1e-30))
    start = load_file(tmp_path / "none" / "final_model" / "adapter_model.safetensors")
    sft.run(config_of(model, rows, tmp_path / "ours"))
    ours = [json.loads(line) for line in (tmp_path / "ours" / "metrics.jsonl").read_text().splitlines()]
    after = load_file(tmp_path / "ours" / "final_model" / "adapter_model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, adapters = by_trl(model, rows, start, tmp_path / "trl")
    assert len(ours) == len(theirs) == STEPS
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5, abs=1e-5)
        assert a["learning_rates"]["model"] == pytest.approx(b["learning_rate"], rel=1e-9)
    assert ours[0]["learning_rates"]["model"] == 0.0
    assert after.keys() == adapters.keys()
    for name, tensor in adapters.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)
    assert max(float((after[name] - start[name]).abs().max()) for name in start) > 1e-3
