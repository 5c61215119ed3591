"""Time of an answer from memory against the full passages, stage by stage, beside the operations that are counted.

    python benchmarks/compress_speed.py
    python benchmarks/compress_speed.py --shape smollm2-135m --documents 10 --repeats 20 --batch-sizes 1 8
    python benchmarks/compress_speed.py --shape mistral-7b --num-layers 8 --dtype bfloat16 --device cuda --batch-sizes 1 32
    python benchmarks/compress_speed.py RUN --picture speed.png

Weights are random: time and memory do not depend on them. Questions and passages are the demo set's words, cut to the lengths that
are asked for; with a run of `ragtrain train compress`, its own network reads them. What is timed is what `train compress` times
(`ragtrain.evaluate.compress.speed`): both arms in turn on the same questions, tokenising included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, MistralConfig, ModernBertConfig, Qwen2Config

from ragtrain.config.commands.compress import CompressConfig
from ragtrain.data import demo
from ragtrain.data.compress.prompts import CompressPrompter
from ragtrain.data.compress.records import CompressExample
from ragtrain.data.compress.windows import Windower
from ragtrain.evaluate.compress.cost import measure_cost
from ragtrain.evaluate.compress.plots import draw_speed
from ragtrain.evaluate.compress.speed import STAGES, measure_speed
from ragtrain.evaluate.compress.subject import Subject
from ragtrain.models.causal import positions_of
from ragtrain.models.compress.build import build_compress
from ragtrain.models.compress.export import load_compress
from ragtrain.models.folders import hushed
from ragtrain.records import Document
from ragtrain.report import table

#: Geometries as published; the demo's tokenizer has the first of their tokens.
SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "tiny": (LlamaConfig, {"vocab_size": 4096, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4,
                           "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "smollm2-135m": (LlamaConfig, {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
                                   "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
                                   "tie_word_embeddings": True}),
    "qwen2.5-0.5b": (Qwen2Config, {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
                                   "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
                                   "tie_word_embeddings": True}),
    "mistral-7b": (MistralConfig, {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
                                   "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                                   "sliding_window": None}),
}  # fmt: skip
ENCODERS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2},
    "modernbert-base": {},
}


def main() -> None:
    """Measure and print a table (stderr) and one JSON document (stdout)."""
    given = parse()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        subject = loaded(given) if given.run else made(given, Path(scratch))
    rows = questions(given, subject)
    speed = measure_speed(
        subject, rows, repeats=given.repeats, batch_sizes=given.batch_sizes, max_new_tokens=given.new_tokens,
        precision=given.precision,
    )  # fmt: skip
    cost = measure_cost(subject, rows, max_new_tokens=given.new_tokens)
    show(speed, cost)
    if given.picture:
        draw_speed(given.picture, speed)
    setting = {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()}
    json.dump({"setting": setting, "speed": speed, "cost": cost}, sys.stdout, indent=2)
    sys.stdout.write("\n")


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", nargs="?", help="run of `ragtrain train compress`; without it, a network of random weights"
    )
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="of the generator")
    parser.add_argument("--compressor-type", choices=("n_layers", "modernbert"), default="n_layers")
    parser.add_argument("--encoder", choices=ENCODERS, default="tiny", help="of the compressor `modernbert`")
    parser.add_argument("--num-layers", type=int, default=2, help="of the compressor `n_layers`")
    parser.add_argument("--num-memory-tokens", type=int, default=8)
    parser.add_argument("--compression-rate", type=int, default=16)
    parser.add_argument("--documents", type=int, default=5, help="passages of a question")
    parser.add_argument("--document-tokens", type=int, default=128, help="tokens of a passage")
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens of every answer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the generator"
    )
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="arithmetic, by autocast")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    parser.add_argument("--picture", type=Path, help="PNG file to draw the times into")
    return parser.parse_args()


def made(given: argparse.Namespace, scratch: Path) -> Subject:
    """Return a network of random weights."""
    make, shape = SHAPES[given.shape]
    generator, encoder = scratch / "generator", scratch / "encoder"
    tokenizer = AutoTokenizer.from_pretrained(demo.CAUSAL)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = make(**shape, **ends, max_position_embeddings=32768)
    network = _causal(config, given)
    with hushed():
        network.save_pretrained(generator)
    tokenizer.save_pretrained(generator)
    del network
    ids: dict[str, Any] = dict.fromkeys(
        ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0
    )
    ModernBertConfig(**ENCODERS[given.encoder], **ids).save_pretrained(encoder)
    asked: dict[str, Any] = {
        "model": {"model_name_or_path": str(generator), "dtype": given.dtype},
        "compressor": {
            "compressor_type": given.compressor_type, "num_layers": given.num_layers,
            "num_memory_tokens": given.num_memory_tokens, "compression_rate": given.compression_rate,
            **({"compressor_model": str(encoder)} if given.compressor_type == "modernbert" else {}),
        },
    }  # fmt: skip
    model, own, other = build_compress(CompressConfig(**asked), device=given.device)
    return Subject(
        model, own, Windower(other, model.settings), CompressPrompter(own, limit=positions_of(model.generator))
    )


def _causal(config: Any, given: argparse.Namespace) -> Any:  # noqa: ANN401 - any model of transformers
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    with torch.device(given.device):
        return auto.from_config(config, dtype=getattr(torch, given.dtype))


def loaded(given: argparse.Namespace) -> Subject:
    """Return the network of a run."""
    model, tokenizers, _ = load_compress(given.run, given.device)
    prompter = CompressPrompter(tokenizers.generator, limit=positions_of(model.generator))
    return Subject(model, tokenizers.generator, Windower(tokenizers.compressor, model.settings), prompter)


def questions(given: argparse.Namespace, subject: Subject) -> list[CompressExample]:
    """Return questions with passages of the length that is asked for, in the generator's tokens."""
    built, rng = demo.build(0), random.Random(0)
    texts = [passage.text for passage in built.passages]
    rows = []
    for question in built.test[: given.repeats * max(given.batch_sizes)]:
        documents = []
        for number in range(given.documents):
            ids: list[int] = []
            while len(ids) < given.document_tokens:
                ids += subject.tokenizer(" " + rng.choice(texts), add_special_tokens=False)["input_ids"]
            text = str(subject.tokenizer.decode(ids[: given.document_tokens]))
            documents.append(Document(f"{question.id}-{number}", "", text))
        answers = question.answers
        rows.append(CompressExample(question.id, question.question, answers, answers[:1], documents=tuple(documents)))
    return rows


def show(speed: dict[str, Any], cost: dict[str, Any]) -> None:
    """Print the tables."""
    where = (
        speed["device_name"]
        or f"{speed['device']}, {speed['threads']} threads, load average {speed['load_average']:.1f}"
    )
    for size, batch in speed["batches"].items():
        arms = {name: arm for name, arm in batch["arms"].items() if arm is not None}
        rows = []
        for name, arm in arms.items():
            seconds = arm["seconds"]
            rows.append(
                [name, f"{arm['prompt_tokens']:.0f}", *(f"{1000 * seconds[stage]['mean']:.1f}" for stage in STAGES),
                 f"{1000 * seconds['total']['p50']:.1f}", f"{1000 * seconds['total']['p90']:.1f}",
                 f"{arm['questions_per_s']:.2f}", f"{arm['cache_bytes'] / 2**20:.1f}", f"{arm['peak_bytes'] / 2**20:.1f}"]
            )  # fmt: skip
        table(
            f"ms a batch of {size}, {speed['new_tokens']} tokens written, {speed['repeats']} batches ({where}, {speed['dtype']})",
            ["arm", "positions", *STAGES, "p50", "p90", "questions/s", "cache, MiB", "peak, MiB"], rows,
        )  # fmt: skip
        ratios = batch["full_over_compressed"] or {}
        for name, ratio in ratios.items():
            sys.stderr.write(
                f"full / compressed, {name}: {ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]\n"
            )
    arms = cost["arms"]
    for name in ("full", "compressed", "truncated"):
        flops = arms[name]["flops"]
        sys.stderr.write(
            f"operations of a question, {name}: {flops['total'] / 1e9:.2f} · 10^9 (compress {flops['compress'] / 1e9:.2f}, "
            f"prefill {flops['prefill'] / 1e9:.2f}, decode {flops['decode'] / 1e9:.2f}); full / this {arms[name]['full_over_this']:.2f}\n"
        )


if __name__ == "__main__":
    main()
