"""Steps of supervised fine-tuning, ours against TRL's trainer and against RAG-FiT's own configuration.

Same random weights, same LoRA, same rows (real questions with their passages and answers), same optimizer, float32 on a
CPU. Each system trains in a process of its own, in turns; the first step is left out. What is compared is how many
answers (rows) and tokens are learnt from in a second, and the peak of memory.

    python benchmarks/sft_step.py --data data/squad --shape smollm2-135m --rows 96
    python benchmarks/sft_step.py --data data/squad --shape smollm2-135m --rows 96 --case shared
    python benchmarks/sft_step.py --startup

ours         ragtrain train sft, length grouping
ours-shared  the same with --shared-context
ours-packed  the same with --packing
trl          TRL's SFTTrainer tuned: no gradient checkpointing, length grouping, its default (fused) loss
trl-default  as it comes: gradient checkpointing, random order
trl-packed   tuned, packing best-fit-decreasing
rag-fit      one row at a time, two accumulated, logits of all tokens, as its configuration says (without the 8-bit base)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from ragtrain.data.formats import read_questions
from ragtrain.report import table

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Geometries as published; the vocabulary is the tokenizer's, trained here, in embeddings of the published size.
SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "tiny": (LlamaConfig, {"vocab_size": 4096, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4,
                           "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "smollm2-135m": (LlamaConfig, {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
                                   "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
                                   "tie_word_embeddings": True}),
    "qwen2.5-0.5b": (Qwen2Config, {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
                                   "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
                                   "tie_word_embeddings": True}),
}  # fmt: skip
SYSTEMS = {
    "fixed": ("ours", "trl", "trl-default", "rag-fit"),
    "shared": ("ours", "ours-shared", "trl", "trl-packed"),
}
RANK, RATE = 16, 2e-4


def main() -> None:
    """Measure and print a table (stderr) and one JSON document (stdout)."""
    given = parse()
    if given.startup:
        document = startup(given)
    elif given.system:
        warnings.simplefilter("ignore")
        result = WORKERS[given.system.partition("-")[0]](given)
        sys.stdout.write(json.dumps(result) + "\n")
        return
    else:
        document = compare(given)
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="dataset folder of `ragtrain data fetch` whose questions have passages"
    )
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--case", choices=SYSTEMS, default="fixed")
    parser.add_argument("--systems", nargs="*", help="some of those above; without it, those of the case")
    parser.add_argument("--rows", type=int, default=64, help="rows that are timed")
    parser.add_argument("--n-docs", type=int, default=3, help="passages of a row, in the case `fixed`")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3, help="how often each system is timed, in turns")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--startup", action="store_true", help="compare --help and the time to the first step instead")
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--system", help=argparse.SUPPRESS)
    return parser.parse_args()


# ---- what both train on


def prepare(given: argparse.Namespace) -> None:
    """Write the model, its tokenizer and the rows into the scratch folder."""
    questions = read_questions(given.data, split="train").questions
    questions = [question for question in questions if question.documents and question.answers]
    texts = sorted({document.text for question in questions for document in question.documents})
    kind, shape = SHAPES[given.shape]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=min(16384, shape["vocab_size"]), special_tokens=["<|end|>", "<|pad|>"])
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=bpe._tokenizer, eos_token="<|end|>", pad_token="<|pad|>", model_max_length=4096)
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(kind(**shape, max_position_embeddings=4096))
    model.save_pretrained(given.scratch / "model")
    tokenizer.save_pretrained(given.scratch / "model")
    rng = random.Random(0)
    first = given.batch_size * given.accumulate  # of the step that is not timed
    start = rng.randrange(max(1, len(questions) - given.rows - first))
    chosen = questions[start : start + given.rows + first]
    with (given.scratch / "rows.jsonl").open("w", encoding="utf-8") as file:
        for question in chosen:
            passages = [question.documents[0].text]
            if given.case == "fixed":
                passages += rng.sample(texts, given.n_docs - 1)
                rng.shuffle(passages)
            context = "\n\n".join(f"[{i}] {text}" for i, text in enumerate(passages, 1))
            prompt = f"Answer from the passages.\n\n{context}\n\nQuestion: {question.question}\nAnswer:"
            row = {"id": question.id, "prompt": prompt, "completion": f" {question.answers[0]}"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    (given.scratch / "template.txt").write_text("{query}{output}", encoding="utf-8")


# ---- the systems, each in a process of its own: seconds of each step but the first, rows and tokens in them, peak


def ours(given: argparse.Namespace) -> dict[str, Any]:
    """Train with the command's own function."""
    from ragtrain.config.commands import SftConfig
    from ragtrain.config.load import load_config
    from ragtrain.loop import journal
    from ragtrain.train import sft

    marks = Marks()
    written = journal.Journal.write

    def write(self: journal.Journal, step: journal.Step, smooth_loss: float) -> None:
        marks.done(step.seconds, step.examples)
        written(self, step, smooth_loss)

    journal.Journal.write = write  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as output:
        settings = {
            "model_name_or_path": str(given.scratch / "model"), "train_data": given.scratch / "rows.jsonl",
            "input_key": "prompt", "output_key": "completion", "instruction": None,
            "template": given.scratch / "template.txt", "max_length": given.max_length, "lora_rank": RANK,
            "batch_size": given.batch_size, "gradient_accumulation_steps": given.accumulate, "num_epochs": 1,
            "learning_rate": RATE, "mixed_precision": "no", "save_steps": None, "eval_samples": 0, "trackers": (),
            "output_dir": Path(output) / "run", "shared_context": given.system == "ours-shared",
            "packing": given.system == "ours-packed", "logging_steps": 1000,
        }  # fmt: skip
        sft.run(load_config(SftConfig, flags=settings).config)
    return marks.to_json()


def trl(given: argparse.Namespace) -> dict[str, Any]:
    """Train with TRL's trainer."""
    import trl as theirs
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback

    marks = Marks()

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            marks.done(time.perf_counter() - self.began, given.batch_size * given.accumulate)

    rows = [json.loads(line) for line in (given.scratch / "rows.jsonl").open(encoding="utf-8")]
    data = Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])
    tuned = given.system != "trl-default"
    with tempfile.TemporaryDirectory() as output:
        arguments = theirs.SFTConfig(
            output_dir=output, per_device_train_batch_size=given.batch_size,
            gradient_accumulation_steps=given.accumulate, num_train_epochs=1, learning_rate=RATE, optim="adamw_torch",
            bf16=False, use_cpu=True, gradient_checkpointing=not tuned, max_length=given.max_length,
            packing=given.system == "trl-packed", disable_tqdm=True, report_to=[], save_strategy="no",
            logging_steps=1000, **({"train_sampling_strategy": "group_by_length"} if tuned else {}),
        )  # fmt: skip
        lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        model = AutoModelForCausalLM.from_pretrained(given.scratch / "model", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(given.scratch / "model")
        trainer = theirs.SFTTrainer(
            model, args=arguments, train_dataset=data, processing_class=tokenizer, peft_config=lora, callbacks=[Clock()]
        )
        if given.system == "trl-packed":  # a step holds packs of several rows
            per_step = len(rows) / max(1, len(trainer.train_dataset)) * given.batch_size * given.accumulate
            marks.scale = per_step / (given.batch_size * given.accumulate)
        trainer.train()
    return marks.to_json()


def rag(given: argparse.Namespace) -> dict[str, Any]:
    """Train as RAG-FiT's configuration says: a row at a time, two accumulated, logits of every token."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    marks = Marks()
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(given.scratch / "model", dtype=torch.float32)
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.1, use_rslora=True, target_modules="all-linear",
                      task_type="CAUSAL_LM")  # fmt: skip
    model = get_peft_model(model, lora).train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(given.scratch / "model")
    rows = [json.loads(line) for line in (given.scratch / "rows.jsonl").open(encoding="utf-8")]
    for start in range(0, len(rows), 2):
        began = time.perf_counter()
        for row in rows[start : start + 2]:
            prompt = tokenizer(row["prompt"])["input_ids"]
            ids = tokenizer(row["prompt"] + row["completion"])["input_ids"] + [tokenizer.eos_token_id]
            ids = ids[: given.max_length]
            labels = torch.tensor([[-100] * len(prompt) + ids[len(prompt) :]])
            loss = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), labels=labels).loss
            (loss / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        marks.done(time.perf_counter() - began, len(rows[start : start + 2]))
    return marks.to_json()


WORKERS = {"ours": ours, "trl": trl, "rag": rag}


class Marks:
    """Times of steps; memory is watched from the end of the first one."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.rows: list[int] = []
        self.held, self.scale = 0, 1.0

    def done(self, seconds: float, rows: int) -> None:
        """Take note of a step."""
        self.seconds.append(seconds)
        self.rows.append(rows)
        if len(self.seconds) == 1:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts anew
            self.held = status("VmRSS")

    def to_json(self) -> dict[str, Any]:
        """Return what was measured, without the first step."""
        return {"seconds": sum(self.seconds[1:]), "rows": sum(self.rows[1:]) * self.scale, "held": self.held,
                "peak": status("VmHWM"), "steps": len(self.seconds) - 1}  # fmt: skip


def status(field: str) -> int:
    """Return a field of the process's status in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found.group(1)) * 1024 if found else 0


# ---- the comparison


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """Time the systems in turns."""
    systems = given.systems or SYSTEMS[given.case]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    with tempfile.TemporaryDirectory() as scratch:
        given.scratch = given.scratch or Path(scratch)
        prepare(given)
        tokens = tokens_a_row(given)
        memory = {name: worker(given, name, memory=True) for name in systems}
        for number in range(given.rounds):
            for name in systems:
                results[name].append(worker(given, name))
                shown = results[name][-1]
                sys.stderr.write(f"round {number + 1}, {name}: {shown['rows'] / shown['seconds']:.2f} answers/s\n")
    rates = {name: [each["rows"] / each["seconds"] for each in some] for name, some in results.items()}
    base = next((name for name in systems if name == "trl"), systems[-1])
    document = {
        "shape": given.shape, "case": given.case, "rows": given.rows, "n_docs": given.n_docs,
        "batch_size": given.batch_size, "accumulate": given.accumulate, "tokens_a_row": tokens,
        "threads": given.threads, "device": platform.machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "answers_per_s": rates, "against": base,
        "ratio": {name: statistics.median(rate) / statistics.median(rates[base]) for name, rate in rates.items()},
        "ratios": {name: [a / b for a, b in zip(rate, rates[base], strict=True)] for name, rate in rates.items()},
        "peak": {name: each["peak"] for name, each in memory.items()},
        "held": {name: each["held"] for name, each in memory.items()},
    }  # fmt: skip
    show(document)
    return document


def worker(given: argparse.Namespace, name: str, *, memory: bool = False) -> dict[str, Any]:
    """Run a system in a process of its own, for its time or for its memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1"}
    if memory:
        # Large blocks go back to the system when they are freed, so that the peak is what was in use; it takes time.
        environment |= {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
    command = [sys.executable, __file__, *sys.argv[1:], "--scratch", str(given.scratch), "--system", name]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise SystemExit(f"{name} ended with {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def tokens_a_row(given: argparse.Namespace) -> float:
    """Return the mean tokens of a row."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.scratch / "model")
    rows = [json.loads(line) for line in (given.scratch / "rows.jsonl").open(encoding="utf-8")]
    ids = tokenizer([row["prompt"] + row["completion"] for row in rows])["input_ids"]
    return sum(map(len, ids)) / len(ids)


def show(document: dict[str, Any]) -> None:
    """Print the table on stderr."""
    rows = []
    for name, rates in document["answers_per_s"].items():
        rate, ratios = statistics.median(rates), document["ratios"][name]
        peak, held = document["peak"][name] / 1e9, document["held"][name] / 1e9
        rows.append([name, f"{rate:.2f}", f"{rate * document['tokens_a_row']:.0f}", f"{document['ratio'][name]:.2f}",
                     f"{min(ratios):.2f}-{max(ratios):.2f}", f"{peak:.2f}", f"{peak - held:.2f}"])  # fmt: skip
    title = (
        f"{document['shape']}, {document['case']}, {document['tokens_a_row']:.0f} tokens a row, batch "
        f"{document['batch_size']} x {document['accumulate']}, {document['threads']} threads"
    )
    against = f"against {document['against']}"
    table(title, ("system", "answers/s", "tokens/s", against, "spread", "peak GB", "above GB"), rows)


# ---- how soon they begin


def startup(given: argparse.Namespace) -> dict[str, Any]:
    """Compare --help, and the time from the start of the command to the end of the first step."""
    given.shape, given.rows = "tiny", 64
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        given.scratch = Path(scratch)
        prepare(given)
        commands = dict(first_steps(given))
        for number in range(given.rounds + 1):
            for name, (command, sign) in commands.items():
                taken = until(command, sign, Path(scratch))
                if number:  # the first fills the caches of the file system
                    seconds.setdefault(name, []).append(taken)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [[name, f"{medians[name]:.2f}", f"{min(t):.2f}-{max(t):.2f}"] for name, t in seconds.items()]
    table("from the start of the command", ("what", "s", "spread"), rows)
    return {"seconds": seconds, "medians": medians, "threads": given.threads}


def first_steps(given: argparse.Namespace) -> Iterator[tuple[str, tuple[list[str], str]]]:
    """Yield commands and what they print when they are there; an empty sign is their end."""
    here, tools = Path(given.scratch), Path(sys.executable).parent
    yield "ragtrain train sft --help", ([str(tools / "ragtrain"), "train", "sft", "--help"], "")
    yield "trl sft --help", ([str(tools / "trl"), "sft", "--help"], "")
    flags = {
        "model-name-or-path": here / "model", "train-data": here / "rows.jsonl", "input-key": "prompt",
        "output-key": "completion", "instruction": "null", "template": here / "template.txt", "max-steps": 1,
        "batch-size": 8, "gradient-accumulation-steps": 1, "eval-samples": 0, "overwrite": None,
        "output-dir": here / "run",
    }  # fmt: skip
    words = [word for k, v in flags.items() for word in ([f"--{k}"] if v is None else [f"--{k}", str(v)])]
    yield "ragtrain train sft, first step", ([str(tools / "ragtrain"), "train", "sft", *words], "step 1")
    theirs = {
        "model_name_or_path": here / "model", "dataset_name": here / "trl", "max_steps": 1, "use_peft": None,
        "per_device_train_batch_size": 8, "logging_steps": 1, "output_dir": here / "out", "use_cpu": "true",
        "bf16": "false", "report_to": "none", "gradient_checkpointing": "false", "save_strategy": "no",
    }  # fmt: skip
    (here / "trl").mkdir()
    (here / "trl" / "train.jsonl").write_bytes((here / "rows.jsonl").read_bytes())
    words = [word for k, v in theirs.items() for word in ([f"--{k}"] if v is None else [f"--{k}", str(v)])]
    yield "trl sft, first step", ([str(tools / "trl"), "sft", *words], "'loss'")


def until(command: list[str], sign: str, folder: Path) -> float:
    """Return the seconds from a command's start until it prints a sign, or to its end."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        said, taken = [], None
        for line in process.stdout or ():
            said.append(line)
            if sign and sign in line and taken is None:
                taken = time.perf_counter() - began
    if process.returncode or (sign and taken is None):
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(said[-30:])}")
    return time.perf_counter() - began if taken is None else taken


if __name__ == "__main__":
    main()
