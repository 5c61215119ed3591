"""Thorough decoding, ours against transformers' ``RagSequenceForGeneration.generate``: same weights, same passages.

For each question of the demo set the demo's encoder finds passages (of the demo, or of a file). transformers gets them as
its ``RagRetriever`` would hand them over, once padded to 300 tokens, which is how it is used, and once padded only to the
longest of the question; it is not charged for retrieval. Ours encodes the question as well. transformers' beam search gets
the attention mask that it does not ask for, else it reads the padding. The answers are compared first, then both run in
turns.

    python benchmarks/decode.py --generator base --questions 4 --max-new-tokens 20
    python benchmarks/decode.py --generator demo --questions 64 --max-new-tokens 32

The floor is the time that the multiplications of ours would take at the rate of one large matrix product.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DPRConfig,
    DPRQuestionEncoder,
    RagSequenceForGeneration,
)

from ragtrain.data import demo
from ragtrain.data.formats import iter_passages
from ragtrain.data.prompts import assemble, bare_ids, layout_for, passage_string
from ragtrain.models.decoding import decode
from ragtrain.models.encoder import load_encoder
from ragtrain.models.rag import RagModel, RagSettings, Retrieved, load_generator

if TYPE_CHECKING:
    from collections.abc import Callable

#: Geometry of BART (Lewis et al. 2020, arXiv:1910.13461): layers, width, heads, feed-forward.
GEOMETRIES = {"small": (3, 512, 8, 2048), "base": (6, 768, 12, 3072), "large": (12, 1024, 16, 4096)}
PADDED = 300  # RagConfig.max_combined_length


@dataclasses.dataclass(frozen=True)
class Case:
    """Questions and what was found for them."""

    model: RagModel
    hf: Any
    question_ids: torch.Tensor
    question_mask: torch.Tensor
    retrieved: Retrieved
    scores: torch.Tensor
    device: torch.device


def main() -> None:
    """Compare, measure and print one JSON document; the table goes to stderr."""
    given = parse()
    case = build(given)
    rows = [measure(case, given, tokens) for tokens in given.max_new_tokens]
    lengths = case.retrieved.attention_mask.sum(1).float()
    report: dict[str, Any] = {
        "generator": given.generator, "parameters": sum(p.numel() for p in case.model.generator.parameters()),
        "questions": given.questions, "n_docs": given.n_docs, "num_beams": given.num_beams,
        "input_tokens": {"mean": lengths.mean().item(), "max": int(lengths.max())},
        "device": torch.cuda.get_device_name() if case.device.type == "cuda" else platform.machine(),
        "autocast": given.autocast, "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                     "python": platform.python_version()},
        "matmul_gflops": matmul_rate(case.device), "results": rows,
    }  # fmt: skip
    for row in rows:
        for name, flops in row["tflop_per_question"].items():
            floor = flops * 1e3 / report["matmul_gflops"]
            row["floor_share"] = row.get("floor_share", {}) | {name: floor / row["seconds_per_question"][name]}
    table(report)
    json.dump(report, sys.stdout, indent=2)
    sys.stdout.write("\n")


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="small", help="small, base, large (random weights), demo, or a folder")
    parser.add_argument("--passages", type=Path, default=None, help="passage file; without it those of the demo")
    parser.add_argument("--questions", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16, help="questions that we answer at a time")
    parser.add_argument("--n-docs", type=int, default=5)
    parser.add_argument("--num-beams", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, nargs="+", default=[20])
    parser.add_argument("--init-std", type=float, default=0.06, help="of random weights")
    parser.add_argument("--method", choices=["thorough", "fast"], default="thorough", help="ours; fast is not compared")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--autocast", choices=["bfloat16", "float16"], default=None, help="for both")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, in turns")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves the default")
    parser.add_argument("--skip-unpadded", action="store_true", help="do not run transformers without padding to 300")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    return given


def build(given: argparse.Namespace) -> Case:
    """Make the models and find the passages."""
    torch.manual_seed(given.seed)
    device = torch.device(given.device)
    generator, tokenizer = load_generator(
        demo.GENERATOR if given.generator in {*GEOMETRIES, "demo"} else given.generator
    )
    if given.generator in GEOMETRIES:
        layers, width, heads, ffn = GEOMETRIES[given.generator]
        generator = BartForConditionalGeneration(
            BartConfig(
                encoder_layers=layers, decoder_layers=layers, d_model=width, encoder_ffn_dim=ffn, decoder_ffn_dim=ffn,
                encoder_attention_heads=heads, decoder_attention_heads=heads, init_std=given.init_std,
                forced_eos_token_id=None,
            )
        )  # fmt: skip
    encoder = load_encoder(demo.ENCODER, role="question")
    settings = RagSettings(target_style="hf", n_docs=given.n_docs, score_temperature=0.05)
    model = RagModel(encoder, generator, tokenizer, settings).to(device).train(mode=False)
    hf_encoder = DPRQuestionEncoder(DPRConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    hf: Any = RagSequenceForGeneration(question_encoder=hf_encoder, generator=generator)
    hf.to(device).eval()
    hf.config.n_docs = given.n_docs

    data = demo.build()
    questions = [data.test[i * len(data.test) // given.questions].question for i in range(given.questions)]
    passages = list(iter_passages(given.passages)) if given.passages else data.passages
    asked = encoder.tokenize_questions(questions, settings.max_question_tokens).to(device)
    with torch.no_grad():
        query = encoder(asked["input_ids"], asked["attention_mask"])
        found = encoder.encode_passages([(passage.title, passage.text) for passage in passages], batch_size=64)
        vectors = torch.as_tensor(found).to(device)
        ids = (query.float() @ vectors.float().T).topk(given.n_docs).indices
    layout = layout_for(tokenizer)
    texts = [passage_string(passages[i].title, passages[i].text) for i in ids.flatten().tolist()]
    input_ids, attention_mask = assemble(
        [np.asarray(part) for part in bare_ids(tokenizer, texts)],
        [np.asarray(part) for part in bare_ids(tokenizer, [f" {question}" for question in questions])],
        layout, PADDED,
    )  # fmt: skip
    retrieved = Retrieved(
        vectors=vectors[ids].float(), mask=torch.ones_like(ids, dtype=torch.bool), ids=ids,
        input_ids=torch.from_numpy(input_ids).to(device), attention_mask=torch.from_numpy(attention_mask).to(device),
    )  # fmt: skip
    scores = model.scores(query, retrieved)
    return Case(model, hf, asked["input_ids"], asked["attention_mask"], retrieved, scores, device)


def handed(found: Retrieved, _: torch.Tensor) -> Retrieved:
    """Return what was found already, whatever the question vectors are."""
    return found


def ours(case: Case, given: argparse.Namespace, tokens: int) -> list[tuple[int, ...]]:
    """Answer all questions, some at a time."""
    answers = []
    for start in range(0, given.questions, given.batch_size):
        rows = slice(start, start + given.batch_size)
        inner = slice(start * given.n_docs, (start + given.batch_size) * given.n_docs)
        found = case.retrieved
        part = dataclasses.replace(
            found, vectors=found.vectors[rows], mask=found.mask[rows], ids=found.ids[rows],
            input_ids=found.input_ids[inner], attention_mask=found.attention_mask[inner],
        )  # fmt: skip
        answers += decode(
            case.model, case.question_ids[rows], case.question_mask[rows], partial(handed, part),
            num_beams=given.num_beams, max_new_tokens=tokens, method=given.method,
        )  # fmt: skip
    given.candidates = statistics.fmean(answer.candidates for answer in answers)
    return [answer.token_ids for answer in answers]


def theirs(case: Case, given: argparse.Namespace, tokens: int, *, padded: bool) -> list[tuple[int, ...]]:
    """Answer all questions as transformers' users do: one call, in which it takes them one by one."""
    pad = case.model.pad_token_id
    generator = case.hf.generator
    generate = type(generator).generate

    def masked(input_ids: torch.Tensor, **options: Any) -> Any:  # noqa: ANN401
        return generate(generator, input_ids, **{**options, "attention_mask": input_ids.ne(pad).long()})

    generator.generate = masked
    answers = []
    n = given.n_docs
    for question in range(given.questions):
        ids = case.retrieved.input_ids[question * n : question * n + n]
        mask = case.retrieved.attention_mask[question * n : question * n + n]
        longest = int(mask.sum(1).max())
        ids, mask = ids[:, :longest], mask[:, :longest]
        if padded:
            # The demo's generator has room for fewer.
            more = min(PADDED, getattr(generator.config, "max_position_embeddings", PADDED)) - longest
            ids = torch.nn.functional.pad(ids, (0, more), value=pad)
            mask = torch.nn.functional.pad(mask, (0, more))
        row = case.hf.generate(
            context_input_ids=ids, context_attention_mask=mask, doc_scores=case.scores[question : question + 1],
            num_beams=given.num_beams, max_new_tokens=tokens, do_deduplication=True,
        )[0].tolist()  # fmt: skip
        while row[-1] == pad:
            row.pop()
        answers.append(tuple(row[1:]))
    del generator.generate
    return answers


def measure(case: Case, given: argparse.Namespace, tokens: int) -> dict[str, Any]:
    """Check that the answers are the same, then time both in turns."""
    runs: dict[str, Callable[[], list[tuple[int, ...]]]] = {
        "ours": lambda: ours(case, given, tokens),
        "transformers, padded to 300": lambda: theirs(case, given, tokens, padded=True),
    }
    if not given.skip_unpadded:
        runs["transformers, unpadded"] = lambda: theirs(case, given, tokens, padded=False)
    flops, answers = {}, {}
    for name, run in runs.items():
        counter = FlopCounterMode(display=False)
        with counter, within(case, given):
            answers[name] = run()
        flops[name] = counter.get_total_flops() / given.questions / 1e12
    same = [sum(a == b for a, b in zip(answers["ours"], answers[name], strict=True)) for name in list(runs)[1:]]
    if given.method == "thorough" and not given.autocast and min(same) < given.questions:
        sys.exit(f"the answers differ: {same} of {given.questions} are the same")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(given.repeats):
        for name, run in runs.items():
            with within(case, given):
                started = time.perf_counter()
                run()
                if case.device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name].append((time.perf_counter() - started) / given.questions)
    ratios = {
        name: [theirs / mine for theirs, mine in zip(values, seconds["ours"], strict=True)]
        for name, values in seconds.items()
        if name != "ours"
    }
    return {
        "max_new_tokens": tokens,
        "answer_tokens": statistics.fmean(len(answer) for answer in answers["ours"]),
        "candidates": given.candidates,
        "answers_equal": same,
        "seconds_per_question": {name: statistics.median(values) for name, values in seconds.items()},
        "tflop_per_question": flops,
        "ratio": {name: {"median": statistics.median(r), "min": min(r), "max": max(r)} for name, r in ratios.items()},
    }


def within(case: Case, given: argparse.Namespace) -> torch.autocast:
    """Return the precision to run in."""
    kind = getattr(torch, given.autocast or "bfloat16")
    return torch.autocast(case.device.type, dtype=kind, enabled=given.autocast is not None)


def matmul_rate(device: torch.device) -> float:
    """Return GFLOP/s of a float32 matrix product of 2048 x 2048."""
    a, b = torch.randn(2, 2048, 2048, device=device)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        (a @ b)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return float(2 * 2048**3 / best / 1e9)


def table(report: dict[str, Any]) -> None:
    """Write the results as a table."""
    lines = [
        "| new tokens | who | s/question | TFLOP/question | share of the floor | ratio (min to max) |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["results"]:
        for name, value in row["seconds_per_question"].items():
            ratio = row["ratio"].get(name)
            said = "" if ratio is None else f"{ratio['median']:.1f} ({ratio['min']:.1f} to {ratio['max']:.1f})"
            lines.append(f"| {row['max_new_tokens']} | {name} | {value:.3f} | {row['tflop_per_question'][name]:.3f} | "
                         f"{row['floor_share'][name]:.0%} | {said} |")  # fmt: skip
    sys.stderr.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
