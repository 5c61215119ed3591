"""The loss of a micro-batch against one question at a time, term by term."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ragtrain.config.commands import CompressConfig
from ragtrain.config.load import load_config
from ragtrain.errors import RagtrainError
from ragtrain.train.compress.build import CompressParts, build, read
from ragtrain.train.compress.check import make_accelerator
from ragtrain.train.compress.objective import full_rows, loss_of

KD, RANK, TEMPERATURE = 0.7, 0.3, 2.0


@pytest.fixture(scope="module")
def parts(causal_lm: Callable[..., Path], corner: Path, tmp_path_factory: pytest.TempPathFactory) -> CompressParts:
    """A network that differs from its base, and rows with scores of which some are missing."""
    folder = tmp_path_factory.mktemp("scored")
    for name in ("train", "validation"):
        rows = [json.loads(line) for line in (corner / f"{name}.jsonl").read_text().splitlines()[:6]]
        for i, row in enumerate(rows):
            other = {**row["documents"][0], "id": f"other-{i}", "text": f"Nothing of use {i}.", "is_gold": False}
            row["documents"] += [other] * (i % 2)
            row["reranking_scores"] = [float(i)] + [None if i % 4 == 1 else -2.0] * (i % 2)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {
        "model_name_or_path": str(causal_lm("llama")), "train_data": folder, "num_layers": 1, "num_memory_tokens": 4,
        "compression_rate": 8, "lora_rank": 4, "lora_dropout": 0.0, "kd_weight": KD, "rank_weight": RANK,
        "kd_temperature": TEMPERATURE, "batch_size": 6,
    }  # fmt: skip
    config = load_config(CompressConfig, flags=flags).config
    made = build(config, read(config, folder), make_accelerator(config))
    torch.manual_seed(1)
    for name, parameter in made.model.named_parameters():
        if "lora_B" in name or "rank_head" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def slow_loss(parts: CompressParts, place: int) -> tuple[float, int]:
    """Return the loss of one question and its tokens, with nothing beside it."""
    batch = parts.train.evaluation([place])
    output = parts.model(batch)
    teacher = parts.model.base_logits(full_rows(batch))
    total = 0.0
    for t, token in enumerate(batch.targets.tolist()):
        total -= float(output.logits[t].log_softmax(-1)[token])
        p, q = ((each[t] / TEMPERATURE).softmax(-1) for each in (output.logits, teacher))
        total += KD * TEMPERATURE**2 * float((q * (q / p).log()).sum())
    assert output.memory.scores is not None
    for mine, wanted in zip(output.memory.scores.tolist(), batch.rank_targets.tolist(), strict=True):
        if wanted == wanted:
            total += RANK * len(batch.targets) * (mine - wanted) ** 2
    return total, len(batch.targets)


def test_the_loss_is_the_sum_of_each_questions_own(parts: CompressParts) -> None:
    config = load_config(
        CompressConfig, flags={"kd_weight": KD, "rank_weight": RANK, "kd_temperature": TEMPERATURE}
    ).config
    places = list(range(6))
    batch = parts.train.evaluation(places)
    assert batch.rank_targets.isnan().any()
    with torch.no_grad():
        whole = loss_of(config.objective, make_accelerator(config))(parts.model, batch)
        each = [slow_loss(parts, place) for place in places]
    assert whole.weight == sum(tokens for _, tokens in each)
    assert float(whole.total) == pytest.approx(sum(loss for loss, _ in each), rel=1e-4)
    assert {"nll", "kd", "rank", "token_accuracy", "rate"} == whole.parts.keys()


def test_the_teacher_is_the_base_and_learns_nothing(parts: CompressParts) -> None:
    config = load_config(CompressConfig, flags={"kd_weight": 1.0, "rank_weight": 0.0}).config
    batch = parts.train.evaluation([0, 1])
    parts.model.zero_grad()
    loss_of(config.objective, make_accelerator(config))(parts.model, batch).total.backward()
    trained = [p for p in parts.model.parameters() if p.requires_grad and p is not parts.model.tasks]
    assert all(p.grad is not None for p in trained if p not in set(parts.model.rank_head.parameters()))
    assert parts.model.memory.grad.abs().sum() > 0


def test_rows_without_their_full_text_are_refused(parts: CompressParts) -> None:
    import dataclasses

    batch = dataclasses.replace(parts.train.evaluation([0]), full=None)
    with pytest.raises(RagtrainError, match="tokens of the student"):
        full_rows(batch)
