"""One training step of RAG-Sequence, ours against transformers' ``RagRetriever`` + ``RagSequenceForGeneration``.

Same weights (the very same tensors), same index, same questions and passages, same precision, same AdamW. transformers is
used as its fine-tuning script used it: passages padded to 300 tokens, searched through faiss Flat, read from Arrow and
tokenised in the forward pass. The losses of a batch are compared first (no dropout), then both train in turns, with the
dropout of the configuration. Memory is measured in a process of its own for each.

    python benchmarks/train_step.py --data data/squad --size base --batch-size 4 --steps 3
    python benchmarks/train_step.py --data data/squad --size base --batch-size 1 --n-docs 50 --doc-chunk 5 --steps 1
    python benchmarks/train_step.py --data data/squad --size large --batch-size 16 --steps 10 --device cuda \
        --precision bf16

Weights are random. The generator has the geometry of BART, the question encoder that of DPR (BERT-base); the generator's
tokenizer is a byte-level BPE of at most 50,265 entries, trained on the passages. Vectors are random: what is found is
arbitrary, and as long as real passages are. The floor is the time of our multiplications at the rate of one large product.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from tokenizers import ByteLevelBPETokenizer, processors
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DPRConfig,
    DPRQuestionEncoder,
    PreTrainedTokenizerFast,
    RagConfig,
    RagRetriever,
    RagSequenceForGeneration,
)

from ragtrain.config.commands import RagConfig as TrainConfig
from ragtrain.config.load import load_config
from ragtrain.data import demo
from ragtrain.data.batches import BatchSettings, QuestionSource
from ragtrain.data.formats import iter_passages, read_questions
from ragtrain.index.encode import IndexWriter
from ragtrain.index.search import DenseIndex
from ragtrain.models.encoder import TextEncoder
from ragtrain.models.folders import EncoderSpec, load_tokenizer
from ragtrain.models.rag import RagModel, RagSettings
from ragtrain.report import table
from ragtrain.retrieve import Retriever
from ragtrain.train.rag.objective import loss_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ragtrain import losses
    from ragtrain.data.batches import RagBatch
    from ragtrain.records import Passage

#: BART: layers, width, heads, feed-forward. The question encoder is a BERT-base but in the smallest case.
GENERATORS = {"tiny": (2, 128, 2, 512), "base": (6, 768, 12, 3072), "large": (12, 1024, 16, 4096)}
ENCODERS = {"tiny": (2, 128, 2, 512), "base": (12, 768, 12, 3072), "large": (12, 768, 12, 3072)}
PADDED = 300  # RagConfig.max_combined_length
VOCABULARY = 50265
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@dataclasses.dataclass
class Case:
    """Both systems on the same weights."""

    given: argparse.Namespace
    model: RagModel
    source: QuestionSource
    batches: list[list[int]]
    loss: Callable[[Any, RagBatch], losses.LossOutput]
    hf: RagSequenceForGeneration
    optimizer: torch.optim.AdamW
    device: torch.device


def main() -> None:
    """Compare, measure and print a table (stderr) and one JSON document (stdout)."""
    given = parse()
    if given.memory_of:
        sys.stdout.write(json.dumps(peak(given)) + "\n")
        return
    with tempfile.TemporaryDirectory() as scratch:
        given.scratch = given.scratch or Path(scratch)
        prepare(given)
        timing = time_both(given)
        times: dict[str, list[float]] = timing.pop("seconds")
        memory = {name: memory_of(name, given.scratch) for name in times}
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    document = {
        "size": given.size, "batch_size": given.batch_size, "n_docs": given.n_docs, "doc_chunk": given.doc_chunk,
        "precision": given.precision, "passages": given.count, "tokens": given.tokens,
        "device": torch.cuda.get_device_name() if given.device.startswith("cuda") else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                     "python": platform.python_version()},
        **timing, "seconds": times,
        "examples_per_s": {name: given.batch_size / seconds for name, seconds in medians.items()},
        "ratio": medians["transformers"] / medians["ours"],
        "ratios": [b / a for a, b in zip(times["ours"], times["transformers"], strict=True)],
        "floor_s": timing["tflop_ours"] * 1e3 / timing["matmul_gflops"],
        "floor_share": timing["tflop_ours"] * 1e3 / timing["matmul_gflops"] / medians["ours"],
        "memory": memory,
        "memory_ratio": memory["ours"]["peak"] / memory["transformers"]["peak"],
        "memory_ratio_above_weights": memory["ours"]["above"] / max(1, memory["transformers"]["above"]),
    }  # fmt: skip
    show(document)
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def time_both(given: argparse.Namespace) -> dict[str, Any]:
    """Compare the losses, then time steps of both in turns."""
    case = build(given)
    difference = compare(case)
    flops, gflops = count_flops(case), matmul_gflops(case)
    seconds: dict[str, list[float]] = {name: [] for name in RUN}
    for name in RUN:
        step(case, name, 0)  # the first is slow
    for number in range(1, given.steps + 1):
        for name, measured in seconds.items():
            measured.append(timed(functools.partial(step, case, name, number), case.device))
    return {
        "parameters": sum(p.numel() for p in case.model.parameters()), "largest_loss_difference": difference,
        "tflop_ours": flops / 1e12, "matmul_gflops": gflops, "seconds": seconds,
    }  # fmt: skip


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="dataset folder; without it the demo")
    parser.add_argument("--size", choices=GENERATORS, default="tiny")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--n-docs", type=int, default=5)
    parser.add_argument("--doc-chunk", type=int, default=None, help="of ours")
    parser.add_argument("--count", type=int, default=20_000, help="passages in the index, repeated if need be")
    parser.add_argument("--steps", type=int, default=3, help="of each, in turns")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of both (autocast)")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves the default")
    parser.add_argument("--profile", action="store_true", help="print where the time of a step of each goes")
    parser.add_argument("--memory-of", choices=["ours", "transformers"], default=None, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, default=None, help="keep the indexes here")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    PartialState(cpu=given.device == "cpu")
    return given


def prepare(given: argparse.Namespace) -> None:
    """Write passages, random vectors and tokenizer in both systems' forms."""
    folder: Path = given.scratch
    if (folder / "hf.faiss").is_file():
        return
    real = list(iter_passages(given.data / "passages.jsonl")) if given.data else demo.build().passages
    real = [p for p in real if p.title.strip() and "  " not in p.text and '"' not in p.title[:1]]
    passages = [dataclasses.replace(real[i % len(real)], id=str(i)) for i in range(given.count)]
    dim = ENCODERS[given.size][1]
    vectors = np.random.default_rng(given.seed).standard_normal((given.count, dim), dtype=np.float32)
    tokenizer = ByteLevelBPETokenizer(add_prefix_space=False)
    tokenizer.train_from_iterator([f" {p.title} / {p.text}" for p in real], VOCABULARY, 2, special_tokens=SPECIAL)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ids
    )
    named = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer._tokenizer, **named).save_pretrained(folder / "tokenizer")
    write_ours(folder / "index", passages, vectors)
    rows = {
        "title": [p.title for p in passages],
        "text": [p.text.strip() for p in passages],
        "embeddings": list(vectors),
    }
    dataset = Dataset.from_dict(rows)
    dataset.save_to_disk(folder / "hf")
    import faiss

    dataset.add_faiss_index("embeddings", custom_index=faiss.IndexFlatIP(dim))
    dataset.get_index("embeddings").save(str(folder / "hf.faiss"))


def write_ours(path: Path, passages: list[Passage], vectors: np.ndarray) -> None:
    """Write our index of these vectors."""
    rows = iter(np.array_split(vectors, range(4096, len(vectors), 4096)))
    with IndexWriter(path) as writer:
        writer.write_passages(passages)
        writer.write_vectors(lambda _: next(rows), dim=vectors.shape[1], storage="float32", chunk=4096)
        writer.commit(encoder={"name": None})


def build(given: argparse.Namespace) -> Case:
    """Build both systems around the same networks."""
    torch.manual_seed(given.seed)
    device, folder = torch.device(given.device), given.scratch
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    layers, width, heads, ffn = GENERATORS[given.size]
    generator = BartForConditionalGeneration(
        BartConfig(
            encoder_layers=layers, decoder_layers=layers, d_model=width, encoder_ffn_dim=ffn, decoder_ffn_dim=ffn,
            encoder_attention_heads=heads, decoder_attention_heads=heads, vocab_size=VOCABULARY,
        )
    )  # fmt: skip
    layers, width, heads, ffn = ENCODERS[given.size]
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": ffn}
    question_tokenizer = load_tokenizer(demo.ENCODER, "demo")
    dpr = DPRQuestionEncoder(DPRConfig.from_dict({**shape, "pad_token_id": question_tokenizer.pad_token_id}))
    encoder = TextEncoder(dpr, question_tokenizer, EncoderSpec(name="dpr", pooling="pooler", max_tokens=512))
    settings = RagSettings(target_style="hf", n_docs=given.n_docs, max_input_tokens=PADDED)
    model = RagModel(encoder, generator, tokenizer, settings).to(device)
    model.doc_chunk = given.doc_chunk

    questions = read_questions(given.data / "train.jsonl").questions if given.data else demo.build().train
    need = given.batch_size * (given.steps + 1)
    chosen = np.random.default_rng(given.seed).permutation(len(questions))[:need]
    # transformers' retriever reads the question back from the question encoder's tokens.
    asked = question_tokenizer([questions[i].question for i in chosen])["input_ids"]
    texts = question_tokenizer.batch_decode(asked, skip_special_tokens=True)
    source = QuestionSource(
        [dataclasses.replace(questions[i], question=text) for i, text in zip(chosen, texts, strict=True)],
        question_tokenizer, tokenizer,
        BatchSettings(batch_size=given.batch_size, unscored_tokens=1, answer_choice="first"),
    )  # fmt: skip
    retriever = Retriever.for_model(DenseIndex.open(folder / "index"), model, device=device)
    config = load_config(TrainConfig, flags={"n_docs": given.n_docs, "target_style": "hf"}).config
    config_hf = RagConfig.from_question_encoder_generator_configs(
        dpr.config, generator.config, n_docs=given.n_docs, max_combined_length=PADDED, index_name="custom",
        passages_path=str(folder / "hf"), index_path=str(folder / "hf.faiss"), retrieval_vector_size=width,
        use_dummy_dataset=False,
    )  # fmt: skip
    retriever_class: Any = RagRetriever
    theirs = retriever_class(config_hf, question_encoder_tokenizer=question_tokenizer, generator_tokenizer=tokenizer)
    hf = RagSequenceForGeneration(config=config_hf, question_encoder=dpr, generator=generator, retriever=theirs)
    torch.nn.Module.to(hf, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    sample = np.random.default_rng(1).integers(0, given.count, 512)
    lengths = np.array([len(row) for row in retriever.tokens.gather(sample)])
    given.tokens = {"passage_mean": float(lengths.mean()), "passage_p95": float(np.quantile(lengths, 0.95))}
    order = source.ordered()
    return Case(given, model, source, order, loss_of(config, retriever, model), hf, optimizer, device)


def run_theirs(case: Case, batch: RagBatch) -> torch.Tensor:
    """Return the summed loss of a batch, as a user of transformers computes it."""
    labels = batch.targets.masked_fill(batch.targets == -100, case.model.pad_token_id)
    output = case.hf(
        input_ids=batch.question_ids, attention_mask=batch.question_mask, labels=labels, reduce_loss=True,
        n_docs=case.given.n_docs,
    )  # fmt: skip
    loss: torch.Tensor = output.loss
    return loss


RUN = {"ours": lambda case, batch: case.loss(case.model, batch).total, "transformers": run_theirs}


def compare(case: Case) -> float:
    """Return the largest relative difference of the losses of a batch, without dropout; refuse one above 1e-4."""
    for system in (case.model, case.hf):
        torch.nn.Module.eval(system)
    worst = 0.0
    with torch.no_grad():
        for indices in case.batches[:2]:
            batch = case.source.collate(indices, 0).to(case.device)
            ours, theirs = (float(run(case, batch)) for run in RUN.values())
            worst = max(worst, abs(ours - theirs) / abs(theirs))
    if worst > 1e-4:
        raise SystemExit(f"the losses differ by {worst:.2e}: nothing is measured")
    case.model.train()
    case.hf.train()
    return worst


def step(case: Case, name: str, number: int) -> None:
    """Do one training step, from the questions' tokens to the new weights."""
    case.optimizer.zero_grad()
    batch = case.source.collate(case.batches[number % len(case.batches)], 0).to(case.device)
    with torch.autocast(case.device.type, torch.bfloat16, enabled=case.given.precision == "bf16"):
        loss = RUN[name](case, batch)
    torch.autograd.backward(loss / batch.weight)
    case.optimizer.step()


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def count_flops(case: Case) -> float:
    """Return the floating-point operations of our products in a step."""
    with FlopCounterMode(display=False) as counter:
        step(case, "ours", 1)
    return float(counter.get_total_flops())


def matmul_gflops(case: Case) -> float:
    """Return the rate of one large product in this precision, best of five."""
    n = 2048 if case.device.type == "cpu" else 8192
    dtype = torch.bfloat16 if case.given.precision == "bf16" else torch.float32
    a, b = torch.randn(n, n, device=case.device, dtype=dtype), torch.randn(n, n, device=case.device, dtype=dtype)
    seconds = min(timed(lambda: torch.mm(a, b), case.device) for _ in range(5))
    return 2 * n**3 / seconds / 1e9


def memory_of(name: str, scratch: Path) -> dict[str, int]:
    """Measure the memory of a system in a process of its own."""
    # Large blocks go back to the system when they are freed, so that the peak is what was in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--scratch", str(scratch), "--memory-of", name],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
    )
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


def peak(given: argparse.Namespace) -> dict[str, int]:
    """Return the bytes held before a step (weights, gradients, optimizer, index) and at the peak of one."""
    case = build(given)
    case.model.train()
    case.hf.train()
    step(case, given.memory_of, 0)
    cuda = case.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts anew
        held = _status("VmRSS")
    step(case, given.memory_of, 1)
    highest = torch.cuda.max_memory_allocated() if cuda else _status("VmHWM")
    if given.profile:
        profile(case)
    return {"held": held, "peak": highest, "above": highest - held}


def profile(case: Case) -> None:
    """Print the operators that take most of a step's time."""
    for name in RUN:
        with torch.profiler.profile() as recorded:
            step(case, name, 1)
        sys.stderr.write(f"{name}\n{recorded.key_averages().table(sort_by='self_cpu_time_total', row_limit=15)}\n")


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found.group(1)) * 1024 if found else 0


def show(document: dict[str, Any]) -> None:
    """Print the table on stderr."""
    gigabytes = {name: {k: v / 1e9 for k, v in row.items()} for name, row in document["memory"].items()}
    rows = [
        [name, f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f}-{max(seconds):.2f}",
         f"{document['examples_per_s'][name]:.2f}", f"{gigabytes[name]['peak']:.2f}", f"{gigabytes[name]['above']:.2f}"]
        for name, seconds in document["seconds"].items()
    ]  # fmt: skip
    rows.append(
        ["ratio", f"{document['ratio']:.2f}", f"{min(document['ratios']):.2f}-{max(document['ratios']):.2f}",
         f"{document['ratio']:.2f}", f"{document['memory_ratio']:.2f}", f"{document['memory_ratio_above_weights']:.2f}"]
    )  # fmt: skip
    title = (
        f"{document['size']}, {document['batch_size']} questions x {document['n_docs']} passages, "
        f"{document['precision']}, {document['threads']} threads; floor {document['floor_s']:.2f} s, "
        f"{document['floor_share']:.0%} of it reached"
    )
    table(title, ("system", "s/step", "spread", "examples/s", "peak GB", "above weights GB"), rows)


if __name__ == "__main__":
    main()
