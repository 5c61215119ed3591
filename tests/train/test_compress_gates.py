"""Memory carries what passages say: gates on a world in which every passage tells one fact, who is where.

Nothing but the passage can answer, so memory must carry it. Names and places are single tokens, and the pairs of the evaluation
are none of training's, so that neither guessing nor remembering answers: chance is one in ``PLACES``.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from ragtrain.config.commands import CompressConfig
from ragtrain.config.load import load_config
from ragtrain.train import compress

PEOPLE = PLACES = 30
NAMES = [f"name{i}" for i in range(PEOPLE)]
SPOTS = [f"place{i}" for i in range(PLACES)]
WORDS = [
    "Where",
    "is",
    "?",
    "Question",
    ":",
    "Answer",
    "Query",
    "Document",
    "[",
    "]",
    "1",
    "2",
    "3",
    "the",
    "in",
    "lives",
    ".",
    "A",
    "n",
]


def write_rows(folder: Path, *, test: int = 100, passages: int = 1, scores: bool = False) -> Path:
    """Write training and validation rows.

    Args:
        folder: where they go.
        test: rows of the evaluation.
        passages: of each row; the first draw decides which one holds the person asked for.
        scores: a reranker's: 2 for the passage on the person asked for, -2 for others.
    """
    rng = random.Random(0)
    pairs = [(name, spot) for name in NAMES for spot in SPOTS]
    rng.shuffle(pairs)
    cut = len(pairs) * 3 // 4

    def row(place: int, name: str, spot: str) -> dict[str, object]:
        others = rng.sample([each for each in NAMES if each != name], passages - 1)
        facts = [(name, spot), *((other, rng.choice(SPOTS)) for other in others)]
        documents = [
            {"id": f"{place}-{i}", "title": "", "text": f"{who} lives in the {where} .", "is_gold": i == 0}
            for i, (who, where) in enumerate(facts)
        ]
        found: dict[str, object] = {
            "id": f"q{place}", "question": f"Where is {name} ?", "answers": [spot], "documents": documents,
        }  # fmt: skip
        if scores:
            found["reranking_scores"] = [2.0 if i == 0 else -2.0 for i in range(passages)]
        return found

    folder.mkdir(parents=True, exist_ok=True)
    for name, some in (("train", pairs[:cut]), ("validation", pairs[cut : cut + test])):
        rows = [row(i if name == "train" else i + cut, *pair) for i, pair in enumerate(some)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    return folder


def write_models(folder: Path) -> tuple[Path, Path]:
    """Write a random causal language model, and a random ModernBERT with the same embeddings; return their folders.

    Adapters of full rank stand in for training all weights; what stays as it is are embeddings, which are also the head:
    they are wide enough apart for sure answers.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS, *NAMES, *SPOTS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=512
    )
    torch.manual_seed(0)
    shape = {
        "vocab_size": len(vocabulary), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 256, "pad_token_id": 0, "eos_token_id": 1,
        "initializer_range": 0.1,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", bos_token_id=None, tie_word_embeddings=True, **shape)
    )
    embeddings = model.get_input_embeddings().weight.data.mul_(2.0)
    encoder = AutoModel.from_config(
        AutoConfig.for_model("modernbert", bos_token_id=1, cls_token_id=1, sep_token_id=1, local_attention=32, **shape)
    )
    encoder.get_input_embeddings().weight.data.copy_(embeddings)
    for name, network in (("generator", model), ("encoder", encoder)):
        network.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "generator", folder / "encoder"


#: What every run here has; an answer is one token and the end.
SETTINGS: dict[str, object] = {
    "num_memory_tokens": 2, "compression_rate": 8, "batch_size": 32, "gradient_accumulation_steps": 1, "num_layers": 1,
    "lora_rank": 32, "lora_alpha": 32, "lora_dropout": 0.0, "learning_rate": 5e-3, "compressor_learning_rate": 2e-3,
    "connector_learning_rate": 2e-3, "weight_decay": 0.0, "lr_scheduler": "linear",
    "arms": "none,compressed,random,shuffled", "full_context_steps": 0, "speed_repeats": 0, "eval_samples": 0,
    "max_new_tokens": 3, "eval_batch_size": 64, "save_steps": None, "trackers": (),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_models(folder)
    write_rows(folder / "data")
    return folder


def trained(world: Path, output: Path, data: str = "data", **changes: object) -> dict[str, Any]:
    """Train, and return the report."""
    flags = {
        **SETTINGS, "model_name_or_path": str(world / "generator"), "train_data": world / data, "output_dir": output, **changes,
    }  # fmt: skip
    compress.run(load_config(CompressConfig, flags=flags).config)
    report: dict[str, Any] = json.loads((output / "metrics_report.json").read_text())
    return report


@pytest.mark.parametrize("kind", ["n_layers", "modernbert"])
def test_memory_carries_facts(kind: str, world: Path, tmp_path: Path) -> None:
    """Through both kinds of compressors: pre-training, training, generation."""
    settings: dict[str, object] = {"compressor_type": kind, "pretrain_steps": 60, "max_steps": 100}
    if kind == "modernbert":  # it begins in a space of its own
        settings |= {"compressor_model": str(world / "encoder"), "pretrain_steps": 80, "max_steps": 150}
    report = trained(world, tmp_path / "run", **settings)
    em = {name: arm["em"] for name, arm in report["arms"].items()}
    assert em["compressed"] >= 0.95, em
    assert max(em["none"], em["random"], em["shuffled"]) <= 0.2, em
    assert (report["cut"]["fed"], report["cut"]["answers_split"]) == (1, 0)
    rows = [json.loads(line) for line in (tmp_path / "run" / "pretraining" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"] / 2


@pytest.mark.slow
def test_relevance_needs_the_question(tmp_path: Path) -> None:
    """Of three passages the head finds the one on the person asked for; without the question no head could."""
    write_models(tmp_path)
    write_rows(tmp_path / "data", passages=3, scores=True)
    errors = {}
    for dependent in (True, False):
        output = tmp_path / f"run-{dependent}"
        changes = {"arms": "compressed", "max_steps": 200, "rank_weight": 1.0, "query_dependent": dependent}
        trained(tmp_path, output, num_layers=2, **changes)
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        errors[dependent] = sum(row["parts"]["rank"] for row in rows[-20:]) / 20
    # Without the question the best guess is the mean, -2/3, whose squared error is the variance of the scores, 32/9.
    assert errors[False] == pytest.approx(32 / 9, rel=0.1)
    assert errors[True] < 0.3 * errors[False]
