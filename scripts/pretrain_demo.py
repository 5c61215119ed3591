"""Pre-train the two small models of the demo, a text encoder and a generator, on text about invented entities.

    python scripts/pretrain_demo.py --output-dir models --minutes 60 --seed 0

writes ``models/encoder`` (a plain BERT with sentence-transformers files) and ``models/generator`` (a plain BART), both
safetensors in float16. Every batch is a function of (seed, step), so a run that was stopped goes on where it stood.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import multiprocessing
import random
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import invented
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ragtrain.records import write_json

log = logging.getLogger("pretrain_demo")

BOS, PAD, EOS, UNK = 0, 1, 2, 3
SOURCE_TOKENS = 160
ENCODER_TOKENS = 160
EXAMPLES = 64  # in a batch of the generator
GENERATOR_VOCAB = 2048
ENCODER_VOCAB = 3072
WIDTH = 128
TOKENIZER_TEXTS = 6000
ENTITIES = 64  # entities in a batch of the encoder; each brings two or three passages


# ---------------------------------------------------------------- tokenizers


def sample_texts(seed: int, count: int) -> Iterator[str]:
    """Texts from which the tokenizers learn their pieces."""
    rng = random.Random(seed)
    for _ in range(count):
        yield " ".join(rng.sample(invented.WORDS["general"], 12))
        for passage in invented.entity(rng, 2):
            yield f"{passage.title} / {passage.text}"
            yield " ".join(question.question for question in passage.questions)


def generator_tokenizer(seed: int, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE; a word in the middle of a passage and the same word at the start of an answer are the same pieces.

    Digits go in pairs from the left, so a number is spelled the same way wherever it stands.
    """
    tokenizer = Tokenizer(models.BPE())
    # One space is put before every text, so that an answer is spelled as it is within a passage.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Prepend(" ")])
    words = Regex(r"'s| ?\d{1,2}| ?\p{L}+| ?[^\s\p{L}\p{N}]|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    digits = [f"{i:02d}" for i in range(100)], [f"{i}" for i in range(100)], [f"{i:02d}" for i in range(10)]
    pairs = " ".join(f" {pair}" for group in digits for pair in group) + " " + "".join(digits[0])
    tokenizer.train_from_iterator([*sample_texts(seed, TOKENIZER_TEXTS), *[pairs] * 50], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=None,
        model_max_length=SOURCE_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def encoder_tokenizer(seed: int, vocab_size: int) -> PreTrainedTokenizerFast:
    """Uncased WordPiece: a name is the same pieces in a question, a title and a passage."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=specials, show_progress=False)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?+-/()'\"&%"
    spelled = [" ".join(letters), letters, *(f"a{letter}" for letter in letters)] * 20
    tokenizer.train_from_iterator([*sample_texts(seed + 1, TOKENIZER_TEXTS), *spelled], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=ENCODER_TOKENS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


# ---------------------------------------------------------------- batches


@dataclass
class GeneratorBatch:
    """Padded examples of the generator."""

    source: Tensor  # (B, L) int64
    labels: Tensor  # (B, T) int64, -100 where padded
    pointers: Tensor  # (B, T) int64: where in the source the target token stands, -1 where unknown


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *([value] * (width - len(row)))] for row in rows])


def generator_examples(
    rng: random.Random, count: int, lessons: tuple[float, float], max_words: int
) -> list[tuple[str, str, str, int]]:
    """Examples (passage, question, answer, start of the answer), a share of them simple lessons (copy, look up)."""
    examples: list[tuple[str, str, str, int]] = []
    while len(examples) < count:
        form = rng.random()
        if form < lessons[0]:
            text, answer, start = invented.copy_task(rng)
            examples.append((text, "copy", answer, start))
        elif form < lessons[0] + lessons[1]:
            examples.append(invented.lookup_task(rng))
        else:
            (passage,) = invented.entity(rng, 1, max_words)
            for asked in rng.sample(passage.questions, min(2, len(passage.questions))):
                offset = len(passage.title) + 3
                examples.append(
                    (f"{passage.title} / {passage.text}", asked.question, asked.answer, offset + asked.start)
                )
    return examples[:count]


def generator_batch(
    tokenizer: Tokenizer, seed: int, step: int, lessons: tuple[float, float], max_words: int = 60, count: int = EXAMPLES
) -> GeneratorBatch:
    """The batch of one step, a function of (seed, step): examples of about one length."""
    rng = random.Random(f"generator-{seed}-{step}")
    examples = generator_examples(rng, 4 * count, lessons, max_words)
    examples.sort(key=lambda example: len(example[0]) + len(example[1]))
    part = rng.randrange(4)
    examples = examples[part * count : (part + 1) * count]
    passages = tokenizer.encode_batch([example[0] for example in examples], add_special_tokens=False)
    questions = tokenizer.encode_batch([f"// {example[1]}" for example in examples], add_special_tokens=False)
    answers = tokenizer.encode_batch([example[2] for example in examples], add_special_tokens=False)
    sources, labels, pointers = [], [], []
    for (_, _, _, start), passage, question, answer in zip(examples, passages, questions, answers, strict=True):
        room = SOURCE_TOKENS - 2 - len(question.ids)
        at = next((k for k, (_, end) in enumerate(passage.offsets) if end > start), None)
        if at is None or at + len(answer.ids) > room:
            continue
        sources.append([BOS, *passage.ids[:room], *question.ids, EOS])
        # BART's own convention, and that of the trainer's targets: the tokenizer's special tokens, <s> first.
        labels.append([BOS, *answer.ids, EOS])
        same = passage.ids[at : at + len(answer.ids)] == answer.ids
        pointers.append([-1, *range(at + 1, at + 1 + len(answer.ids)), -1] if same else [-1] * (len(answer.ids) + 2))
    return GeneratorBatch(_pad(sources, PAD), _pad(labels, -100), _pad(pointers, -1))


@dataclass
class EncoderBatch:
    """Questions and passages: question i is answered by passage ``gold[i]``; all other passages are negatives."""

    questions: Tensor  # (Q, L)
    passages: Tensor  # (P, L)
    passage_types: Tensor  # (P, L) token types: 0 title, 1 text
    gold: Tensor  # (Q,)


def encoder_batch(tokenizer: Tokenizer, seed: int, step: int, entities: int = ENTITIES) -> EncoderBatch:
    """The batch of one step, a function of (seed, step): entities with two or three passages each."""
    rng = random.Random(f"encoder-{seed}-{step}")
    passages: list[tuple[str, str]] = []
    asked: list[str] = []
    gold: list[int] = []
    for _ in range(entities):
        for passage in invented.entity(rng, rng.choice((2, 3)), 45):
            for question in rng.sample(passage.questions, min(1, len(passage.questions))):
                asked.append(question.question)
                gold.append(len(passages))
            passages.append((passage.title, passage.text))
    told = tokenizer.encode_batch(passages)
    questions = tokenizer.encode_batch(asked)
    return EncoderBatch(
        _pad([row.ids[:ENCODER_TOKENS] for row in questions], 0),
        _pad([row.ids[:ENCODER_TOKENS] for row in told], 0),
        _pad([row.type_ids[:ENCODER_TOKENS] for row in told], 0),
        torch.tensor(gold),
    )


def _produce(
    queue: Any,  # noqa: ANN401 - multiprocessing's queues have no public type
    make: Callable[[int], Any],
    first: int,
) -> None:
    torch.set_num_threads(1)
    step = first
    while True:
        batch = make(step)
        queue.put({name: value.numpy() for name, value in vars(batch).items()})
        step += 1


def stream(make: Callable[[int], Any], first: int) -> Generator[dict[str, Tensor], None, None]:
    """Batches of steps first, first + 1, …, made ahead in another process."""
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue(maxsize=16)
    worker = context.Process(target=_produce, args=(queue, make, first), daemon=True)
    worker.start()
    try:
        while True:
            yield {name: torch.from_numpy(value) for name, value in queue.get().items()}
    finally:
        worker.kill()


# ---------------------------------------------------------------- models


def sinusoids(positions: int, width: int) -> Tensor:
    """Sinusoidal position vectors (positions, width): a start from which "the token before" is easily learned."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def new_generator(vocab_size: int, width: int, layers: int) -> BartForConditionalGeneration:
    """A small BART: scaled embeddings, a wide initialisation and sinusoidal starting positions."""
    config = BartConfig(
        vocab_size=vocab_size,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_position_embeddings=SOURCE_TOKENS,
        scale_embedding=True,
        init_std=0.06,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        bos_token_id=BOS,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_eos_token_id=None,
    )
    model = BartForConditionalGeneration(config)
    model.set_attn_implementation("eager")  # the loss reads the attention
    with torch.no_grad():
        for stack in (model.model.encoder, model.model.decoder):
            weight = stack.embed_positions.weight
            weight.copy_(sinusoids(weight.shape[0], weight.shape[1]))
    return model


def generator_loss(model: nn.Module, batch: dict[str, Tensor], progress: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy per token, plus that of one cross-attention head against the answer's place.

    Since the text is made, the place of each answer token is known: the first head of the last decoder layer is told
    where to look (Mi et al. 2016, "Supervised attentions for neural machine translation"), less and less as the
    training goes on. Returns (objective, cross-entropy, share of answers right by teacher-forced argmax).
    """
    guide = max(0.0, 1.0 - progress / 0.8)
    source, labels, pointers = batch["source"], batch["labels"], batch["pointers"]
    inputs = F.pad(labels.clamp(min=0), (1, 0), value=EOS)[:, :-1]
    inputs = torch.where(F.pad(labels, (1, 0), value=0)[:, :-1] == -100, PAD, inputs)
    output = model(
        input_ids=source, attention_mask=source.ne(PAD).long(), decoder_input_ids=inputs, output_attentions=guide > 0
    )
    logits = output.logits.float()
    token_loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    right = ((logits.argmax(-1) == labels) | (labels == -100)).all(1).float().mean()
    objective = token_loss
    if guide > 0:
        looked = output.cross_attentions[-1][:, 0].float()  # (B, T, L)
        there = looked.gather(2, pointers.clamp(min=0)[..., None])[..., 0]
        known = pointers.ge(0)
        objective = token_loss - guide * there[known].clamp(min=1e-6).log().mean()
    return objective, token_loss, right


def new_encoder(vocab_size: int, width: int, layers: int) -> BertModel:
    """A small BERT whose first output vector stands for the text."""
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=ENCODER_TOKENS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.05,
        pad_token_id=0,
    )
    model = BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        weight = model.embeddings.position_embeddings.weight
        weight.copy_(0.05 * sinusoids(weight.shape[0], weight.shape[1]))
    return model


def encoder_loss(model: nn.Module, batch: dict[str, Tensor], progress: float) -> tuple[Tensor, Tensor, Tensor]:
    """InfoNCE over all passages of the batch with the plain inner product as logit.

    No temperature: the vectors themselves learn the length at which softmax(q . p) is calibrated, which is what
    RAG-Sequence takes as its prior. Returns (objective, the same detached, share ranked first).
    """
    questions, passages = batch["questions"], batch["passages"]
    asked = model(input_ids=questions, attention_mask=questions.ne(0).long()).last_hidden_state[:, 0].float()
    told = (
        model(input_ids=passages, attention_mask=passages.ne(0).long(), token_type_ids=batch["passage_types"])
        .last_hidden_state[:, 0]
        .float()
    )
    scores = asked @ told.T
    loss = F.cross_entropy(scores, batch["gold"])
    return loss, loss.detach(), (scores.argmax(1) == batch["gold"]).float().mean()


# ---------------------------------------------------------------- training


def rate(progress: float, step: int, top: float) -> float:
    """Warm-up over 200 steps, constant for half of the time, then a cosine to a fiftieth."""
    warm = min(1.0, (step + 1) / 200)
    fall = min(1.0, max(0.0, (progress - 0.5) / 0.5))
    return top * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fall)))


Batches = Callable[[int], Any]
Loss = Callable[[nn.Module, dict[str, Tensor], float], tuple[Tensor, Tensor, Tensor]]
Optimizers = Callable[[nn.Module, float], list[torch.optim.Optimizer]]


def adamw(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """One AdamW for all weights."""
    return [torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)]


@dataclass
class Course:
    """What differs between the trainings."""

    name: str
    model: PreTrainedModel
    batches: Batches  # step -> batch
    held_out: Sequence[dict[str, Tensor]]
    loss: Loss  # (model, batch, progress) -> (objective, cross-entropy, accuracy)
    learning_rate: float
    optimizers: Optimizers = adamw


def examine(course: Course) -> dict[str, float]:
    """Held-out cross-entropy and accuracy."""
    with torch.no_grad():
        rows = [course.loss(course.model, batch, 1.0) for batch in course.held_out]
    return {name: sum(float(row[k]) for row in rows) / max(1, len(rows)) for k, name in ((1, "loss"), (2, "accuracy"))}


def train(course: Course, seconds: float, folder: Path, max_steps: int | None = None) -> dict[str, float]:
    """Train for so many seconds (those of an interrupted run counted), with a checkpoint every two minutes."""
    model = course.model
    optimizers = course.optimizers(model, course.learning_rate)
    tops = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    checkpoint = folder / f"{course.name}.pt"
    step, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, stored in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        step, spent = state["step"], state["spent"]
    source = stream(course.batches, step)
    began, saved, shown = time.monotonic() - spent, time.monotonic(), spent
    mean = math.nan
    while True:
        spent = time.monotonic() - began
        over = spent >= seconds or step == max_steps
        if over or time.monotonic() - saved > 120:
            stored = [optimizer.state_dict() for optimizer in optimizers]
            state = {"model": model.state_dict(), "optimizers": stored, "step": step, "spent": spent}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            saved = time.monotonic()
        if over or spent - shown > 30:
            shown = spent
            figures = {"steps": step, "seconds": spent, "training_loss": mean, **examine(course)}
            log.info("%s %s", course.name, json.dumps({name: round(value, 3) for name, value in figures.items()}))
        if over:
            source.close()
            return figures
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, top in zip(groups, tops, strict=True):
            group["lr"] = rate(spent / seconds, step, top)
        with torch.autocast("cpu", torch.bfloat16):
            objective, loss, _ = course.loss(model, next(source), spent / seconds)
        model.zero_grad()
        objective.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        mean = loss.item() if math.isnan(mean) else 0.99 * mean + 0.01 * loss.item()


# ---------------------------------------------------------------- the two courses


def tokenizer_in(folder: Path, make: Callable[[], PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """The tokenizer of an interrupted run, or a new one (WordPiece breaks ties differently every time)."""
    if not (folder / "tokenizer.json").exists():
        make().save_pretrained(folder)
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return loaded


def generator_course(seed: int, folder: Path) -> tuple[Course, PreTrainedTokenizerFast]:
    """The generator: find what was asked in a passage and copy it."""
    torch.manual_seed(seed)
    tokenizer = tokenizer_in(folder / "generator", lambda: generator_tokenizer(seed, GENERATOR_VOCAB))
    backend = tokenizer.backend_tokenizer

    def batches(step: int) -> GeneratorBatch:
        lessons = (0.1, 0.2) if step < 2000 else (0.02, 0.08)
        return generator_batch(backend, seed, step, lessons, 25 if step < 1500 else 60)

    held_out = [vars(generator_batch(backend, seed + 1, step, (0.0, 0.0))) for step in range(6)]
    model = new_generator(len(tokenizer), WIDTH, 2)
    return Course("generator", model, batches, held_out, generator_loss, 2e-3), tokenizer


def encoder_course(seed: int, folder: Path) -> tuple[Course, PreTrainedTokenizerFast]:
    """The encoder: among many passages find the one of the entity and theme asked for."""
    torch.manual_seed(seed)
    tokenizer = tokenizer_in(folder / "encoder", lambda: encoder_tokenizer(seed, ENCODER_VOCAB))
    backend = tokenizer.backend_tokenizer

    def batches(step: int) -> EncoderBatch:
        return encoder_batch(backend, seed, step)

    held_out = [vars(encoder_batch(backend, seed + 1, step)) for step in range(4)]
    model = new_encoder(len(tokenizer), WIDTH, 2)
    return Course("encoder", model, batches, held_out, encoder_loss, 1e-3), tokenizer


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, figures: dict[str, float]) -> None:
    """Write a model in float16 with its tokenizer, and the figures of its training."""
    half = copy.deepcopy(model)
    half.to(torch.float16)  # type: ignore[arg-type]
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for name in ("is_local", "local_files_only"):
        settings.pop(name, None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 knows too
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if isinstance(model, BertModel):
        modules = [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]
        pooling = {
            "word_embedding_dimension": model.config.hidden_size,
            "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False,
        }
        sentence = {"max_seq_length": ENCODER_TOKENS, "do_lower_case": False}
        (folder / "1_Pooling").mkdir(exist_ok=True)
        # ragtrain encodes a passage as DPR does, title and text as two segments, where the folder says so.
        spec = {"name": "demo", "model_class": "BertModel", "pooling": "cls", "normalize": False, "query_prompt": "",
                "passage_prompt": "", "passage_format": "pair", "max_tokens": ENCODER_TOKENS, "lower_case": False}  # fmt: skip
        write_json(folder / "ragtrain.json", {"encoder": spec})
        files = {"modules.json": modules, "1_Pooling/config.json": pooling, "sentence_bert_config.json": sentence}
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    log.info("%s: %s", folder, json.dumps(figures))


def main() -> None:
    """Read the arguments, train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder to write encoder/ and generator/ into")
    parser.add_argument("--minutes", type=float, default=60.0, help="time to train, of each model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=("both", "encoder", "generator"), default="both")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    work = arguments.output_dir / "checkpoints"
    work.mkdir(parents=True, exist_ok=True)
    for name, course_of in (("encoder", encoder_course), ("generator", generator_course)):
        if arguments.part in ("both", name):
            course, tokenizer = course_of(arguments.seed, work)
            figures = train(course, 60 * arguments.minutes, work)
            save(course.model, tokenizer, arguments.output_dir / name, figures)


if __name__ == "__main__":
    main()
