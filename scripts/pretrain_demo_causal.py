"""Pre-train the demo's small causal language model on passages about invented entities and questions on them.

    python scripts/pretrain_demo_causal.py --output-dir models --minutes 70 --seed 0

writes ``models/causal`` (a plain Llama, safetensors in float16). A text of the training is one to five passages, the
right one among others of its kind, and a few questions, each answered in a whole sentence: the model learns to look
things up and to copy them, and never to answer in a word or two. Every batch is a function of (seed, step), so a run
that was stopped goes on where it stood.
"""

from __future__ import annotations

import argparse
import functools
import logging
import random
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import invented
import torch
from pretrain_demo import BOS, EOS, GENERATOR_VOCAB, PAD, Course, generator_tokenizer, save, tokenizer_in, train
from tokenizers import Tokenizer, processors
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

POSITIONS = 2048
TOKENS = 2500  # in a batch, about
TEXT_SHARE = 0.15  # of the tokens of passages and questions that are learned too, as plain text
TEXT_WEIGHT = 0.2
GUIDED = 2  # heads of the last layer that are told where the answer stands
POOL = 4  # batches that are cut, by length, out of one draw of texts


@dataclass(frozen=True)
class Answered:
    """One question of a text: where its reply is, where the answer is in it and in the passages (characters)."""

    reply: tuple[int, int]
    answer: tuple[int, int]
    source: int


@dataclass(frozen=True)
class Lesson:
    """How hard the texts of a stage are."""

    lookups: float  # share of texts that are plain lists of keys and values
    passages: int  # at most so many
    words: int  # a passage, at most


@dataclass
class CausalBatch:
    """Padded texts. All tensors are (B, L)."""

    tokens: Tensor  # int64
    weights: Tensor  # float32: how much the prediction of this token counts
    pointers: Tensor  # int64: where in the passages this token of an answer stands, -1 where it is none
    answers: Tensor  # int64: number of the answer that this token belongs to, -1 where it is none


def lesson(step: int) -> Lesson:
    """Short texts first: a model this small finds out how to copy in them, and keeps it in long ones."""
    if step < 480:
        return Lesson(0.5, 1, 20)
    if step < 960:
        return Lesson(0.2, 2, 35)
    return Lesson(0.02, 3, 50)


# ---------------------------------------------------------------- texts


def lookup_text(rng: random.Random) -> tuple[str, list[Answered]]:
    """Keys with values, then some of the keys asked for."""
    pairs = [pair.partition(" : ")[::2] for pair in invented.lookup_task(rng)[0].split(" ; ")]
    text = "\n".join(f"{key}: {value}" for key, value in pairs)
    asked = []
    for key, value in rng.sample(pairs, min(len(pairs), 4)):
        start = text.index(f"{key}: {value}") + len(key) + 2
        text += "\n\n"
        sentence, place = invented.put_reply(rng, value) if rng.random() < 0.5 else (f"{key}: {value}", len(key) + 2)
        text += f"Question: {key}\nAnswer: "
        begin = len(text)
        text += sentence
        asked.append(Answered((begin, len(text)), (begin + place, begin + place + len(value)), start))
    return text, asked


def passages(rng: random.Random, count: int, words: int) -> list[invented.InventedPassage]:
    """Passages of one entity, of others that tell the same relations, and of others still; in any order."""
    own = invented.entity(rng, min(count, rng.choice((1, 1, 2, 3))), words)
    told = list(own)
    while len(told) < count:
        told.append(
            invented.twin(rng, rng.choice(own), words) if rng.random() < 0.6 else invented.entity(rng, 1, words)[0]
        )
    rng.shuffle(told)
    return told


def passage_text(rng: random.Random, at_most: int, words: int) -> tuple[str, list[Answered]]:
    """Passages and then questions, each with a reply in a whole sentence."""
    told = passages(rng, rng.randint((at_most + 1) // 2, at_most), rng.randint(min(20, words), words))
    layout = rng.choice(_LAYOUTS)
    text = f"{rng.choice(invented.HEADERS)}\n\n" if rng.random() < 0.5 else ""
    known: list[tuple[invented.InventedQuestion, int]] = []
    for rank, passage in enumerate(told, 1):
        text += layout[0].format(rank=rank, title=passage.title)
        known += [(question, len(text) + question.start) for question in passage.questions]
        text += passage.text + layout[1]
    ask, answer = rng.choice(_DIALOGUES)
    asked = []
    for question, start in rng.sample(known, min(len(known), 2 + 2 * len(told))):
        text += f"{ask}{question.question}{answer}"
        sentence, place = invented.reply(rng, question)
        begin = len(text)
        text += sentence
        asked.append(Answered((begin, len(text)), (begin + place, begin + place + len(question.answer)), start))
    return text, asked


_LAYOUTS = [
    ("[{rank}] {title}\n", "\n\n"),
    ("[{rank}] {title}\n", "\n\n"),
    ("{rank}. {title}: ", "\n"),
    ("{title}\n", "\n\n"),
    ("{title} / ", "\n"),
    ("Title: {title}\nText: ", "\n"),
]
_DIALOGUES = [
    ("\nQuestion: ", "\nAnswer: "),
    ("\nQuestion: ", "\nAnswer: "),
    ("\nQ: ", "\nA: "),
    ("\nSomeone asks: ", "\nThe reply: "),
    ("\n- ", "\n- "),
]


# ---------------------------------------------------------------- batches


@dataclass(frozen=True)
class Row:
    """One text in tokens; the lists are as long as ``tokens``."""

    tokens: list[int]
    weights: list[float]
    pointers: list[int]
    answers: list[int]


def row(rng: random.Random, tokenizer: Tokenizer, text: str, asked: list[Answered]) -> Row:
    """Tokens of a text with an end of text after each reply, and what is to be learned from each."""
    encoded = tokenizer.encode(text, add_special_tokens=False)
    ends = [end for _, end in encoded.offsets]
    spelled = encoded.ids
    made = Row([BOS], [0.0], [-1], [-1])
    done = 0

    def add(upto: int, weight: float, pointer: int = -1, answer: int = -1) -> None:
        nonlocal done
        for place in range(done, upto):
            learned = weight or TEXT_WEIGHT / TEXT_SHARE * (rng.random() < TEXT_SHARE)
            made.tokens.append(spelled[place])
            made.weights.append(learned)
            made.pointers.append(pointer + place - done if pointer >= 0 else -1)
            made.answers.append(answer)
        done = upto

    for number, item in enumerate(asked):
        # Tokens before the first reply stand one place later than in ``encoded``: the text opens with <s>.
        reply, begin, end, stop = (bisect_right(ends, at) for at in (item.reply[0], *item.answer, item.reply[1]))
        source = bisect_right(ends, item.source)
        add(reply, 0.0)
        add(begin, 0.5)
        same = spelled[source : source + end - begin] == spelled[begin:end]
        add(end, 1.0, source + 1 if same else -1, number)
        add(stop, 0.5)
        made.tokens.append(EOS)
        made.weights.append(0.5)
        made.pointers.append(-1)
        made.answers.append(-1)
    return made


@functools.lru_cache(maxsize=1)
def _pool(tokenizer: Tokenizer, seed: int, number: int) -> list[list[Row]]:
    """The next batches: texts of one draw, those of about one length together."""
    stage = lesson(number * POOL)
    rng = random.Random(f"causal-{seed}-{number}")
    rows: list[Row] = []
    while sum(len(made.tokens) for made in rows) < POOL * TOKENS:
        draw = lookup_text(rng) if rng.random() < stage.lookups else passage_text(rng, stage.passages, stage.words)
        rows.append(row(rng, tokenizer, *draw))
    rows.sort(key=lambda made: len(made.tokens))
    batches: list[list[Row]] = [[]]
    for made in rows:
        if sum(len(other.tokens) for other in batches[-1]) >= TOKENS and len(batches) < POOL:
            batches.append([])
        batches[-1].append(made)
    while len(batches) < POOL:
        batches.append(batches[-1])
    rng.shuffle(batches)
    return batches


def causal_batch(tokenizer: Tokenizer, seed: int, step: int) -> CausalBatch:
    """The batch of one step, a function of (seed, step)."""
    rows = _pool(tokenizer, seed, step // POOL)[step % POOL]
    width = max(len(made.tokens) for made in rows)
    numbers, answers = 0, []
    for made in rows:
        answers.append([numbers + number if number >= 0 else -1 for number in made.answers])
        numbers += 1 + max(made.answers)

    def pad(values: list[list[int]] | list[list[float]], value: int) -> Tensor:
        return torch.tensor([[*line, *([value] * (width - len(line)))] for line in values])

    return CausalBatch(
        pad([made.tokens for made in rows], PAD),
        pad([made.weights for made in rows], 0),
        pad([made.pointers for made in rows], -1),
        pad(answers, -1),
    )


# ---------------------------------------------------------------- the model


def new_model(vocab_size: int, width: int, layers: int, heads: int, inner: int) -> LlamaForCausalLM:
    """A small Llama with tied embeddings."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        initializer_range=width**-0.5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:  # each branch starts small beside what passes it by
            for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
                part.weight.mul_((2 * layers) ** -0.5)
        # What all embeddings share moves no softmax over tied ones, but gives attention to a place something to
        # start from, and so the first layer starts with heads that look one, two and three tokens back.
        signs = torch.randn(width).sign()
        embeddings = model.model.embed_tokens.weight
        embeddings.copy_(width**-0.5 * (0.8 * embeddings / embeddings.std() + 0.6 * signs))
        for head in range(min(3, heads - 1)):
            look_back(model, head, head + 1, signs)
    return model


def look_back(model: LlamaForCausalLM, head: int, distance: int, signs: Tensor) -> None:
    """Let a head of the first layer look so many tokens back, whatever they are, by its three fastest rotations."""
    attention = model.model.layers[0].self_attn
    size = attention.head_dim
    rates = model.model.rotary_emb.inv_freq[:3]
    direction = signs / len(signs)  # a normed embedding has about 0.6 along it
    query, key = torch.zeros(size), torch.zeros(size)
    query[:3] = 7.7
    key[:3], key[size // 2 : size // 2 + 3] = 7.7 * (rates * distance).cos(), 7.7 * (rates * distance).sin()
    for part, vector in ((attention.q_proj, query), (attention.k_proj, key)):
        part.weight[head * size : (head + 1) * size] = vector[:, None] * direction / 0.6


@functools.lru_cache(maxsize=64)
def _future(length: int, dtype: torch.dtype) -> Tensor:
    return torch.full((length, length), -torch.inf, dtype=dtype).triu(1)


def plain_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **settings: object
) -> tuple[Tensor, None]:
    """Causal attention by plain products of (B, H, L, size): on a processor its backward is twice as fast as torch's."""
    batch, heads, length, size = query.shape
    flat = (batch * heads, length, size)
    mask = _future(length, query.dtype).expand(batch * heads, length, length)
    scores = torch.baddbmm(mask, query.reshape(flat), key.reshape(flat).transpose(1, 2), alpha=size**-0.5)
    mixed = torch.bmm(scores.softmax(-1), value.reshape(flat)).view(batch, heads, length, size)
    return mixed.transpose(1, 2), None


AttentionInterface.register("plain", plain_attention)


def looked_at(model: LlamaForCausalLM, states: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """Log of the attention of the last layer's first heads, from (row, place), over all places: (N, GUIDED, L)."""
    layer = model.model.layers[-1]
    size = layer.self_attn.head_dim
    normed = layer.input_layernorm(states)  # (B, L, d)
    cut = GUIDED * size
    query = (normed @ layer.self_attn.q_proj.weight[:cut].T).unflatten(2, (GUIDED, size)).transpose(1, 2)
    key = (normed @ layer.self_attn.k_proj.weight[:cut].T).unflatten(2, (GUIDED, size)).transpose(1, 2)
    positions = torch.arange(states.shape[1])[None]
    query, key = apply_rotary_pos_emb(query, key, *model.model.rotary_emb(states, positions))
    scores = torch.einsum("nhd,nhld->nhl", query[rows, :, places], key[rows]).float() * size**-0.5
    later = torch.arange(states.shape[1])[None, None] > places[:, None, None]
    logs: Tensor = scores.masked_fill(later, -torch.inf).log_softmax(-1)
    return logs


def causal_loss(model: nn.Module, batch: dict[str, Tensor], progress: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of the weighted tokens, plus that of two attention heads against the answer's place.

    As for the generator (see :func:`pretrain_demo.generator_loss`), heads of the last layer are told where to look,
    less and less; two of them, since one of this size copies a token in seven out of ten cases only. Returns (objective, cross-entropy per token of the answers, share of answers right by teacher-forced
    argmax).
    """
    guide = max(0.3, 1.0 - progress / 0.8)
    tokens, weights, pointers, answers = (batch[name] for name in ("tokens", "weights", "pointers", "answers"))
    output = model.model(input_ids=tokens, use_cache=False, output_hidden_states=True)  # type: ignore[operator]
    rows, places = weights[:, 1:].gt(0).nonzero(as_tuple=True)
    logits = model.lm_head(output.last_hidden_state[rows, places]).float()  # type: ignore[operator]
    labels, number = tokens[rows, places + 1], answers[rows, places + 1]
    weight = weights[rows, places + 1]
    losses = F.cross_entropy(logits, labels, reduction="none")
    objective = (losses * weight).sum() / weight.sum()
    told = number >= 0
    wrong = torch.zeros(int(answers.max()) + 1).index_add(0, number[told], (logits.argmax(-1) != labels)[told].float())
    rows, places = pointers[:, 1:].ge(0).nonzero(as_tuple=True)
    looked = looked_at(model, output.hidden_states[-2], rows, places)  # type: ignore[arg-type]
    right = pointers[rows, places + 1][:, None, None].expand(-1, GUIDED, 1)
    objective = objective - guide * looked.gather(2, right).mean()
    return objective, losses[told].mean().detach(), wrong.eq(0).float().mean()


def muon(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers (Jordan et al. 2024), AdamW at a quarter of its rate for the rest."""
    inner = [value for name, value in model.named_parameters() if value.ndim == 2 and ".layers." in name]
    others = [value for name, value in model.named_parameters() if value.ndim != 2 or ".layers." not in name]
    return [
        torch.optim.Muon(inner, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate / 4, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def causal_tokenizer(seed: int, folder: Path) -> PreTrainedTokenizerFast:
    """The generator's tokenizer, but with ``<s>`` before a text and nothing after it, as causal models have it."""
    tokenizer = tokenizer_in(folder / "generator", lambda: generator_tokenizer(seed, GENERATOR_VOCAB))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", BOS)]
    )
    tokenizer.model_max_length = POSITIONS
    return tokenizer


def causal_course(seed: int, folder: Path) -> tuple[Course, PreTrainedTokenizerFast]:
    """The causal model: among passages find the one that tells what was asked for, and say it in a sentence."""
    torch.manual_seed(seed)
    tokenizer = causal_tokenizer(seed, folder)
    backend = tokenizer.backend_tokenizer
    held_out = [vars(causal_batch(backend, seed + 1, 100_000 + POOL * step)) for step in range(4)]
    model = new_model(len(tokenizer), 128, 5, 4, 352)
    model.set_attn_implementation("plain")

    def batches(step: int) -> CausalBatch:
        return causal_batch(backend, seed, step)

    return Course("causal", model, batches, held_out, causal_loss, 8e-3, muon), tokenizer


def main() -> None:
    """Read the arguments, train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder to write causal/ into")
    parser.add_argument("--minutes", type=float, default=70.0, help="time to train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    work = arguments.output_dir / "checkpoints"
    work.mkdir(parents=True, exist_ok=True)
    course, tokenizer = causal_course(arguments.seed, work)
    figures = train(course, 60 * arguments.minutes, work)
    save(course.model, tokenizer, arguments.output_dir / "causal", figures)


if __name__ == "__main__":
    main()
