"""The network: compressor, connector, and the generator that reads what they make."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ragtrain.errors import ConfigError, DataError
from ragtrain.models.adapters import adapters_off, has_lora
from ragtrain.models.causal import bits, label_logits, selected_logits
from ragtrain.models.compress.connector import make_connector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from ragtrain.models.causal import TokenRows
    from ragtrain.models.compress.rows import MemoryRows, WindowRows
    from ragtrain.models.compress.settings import CompressSettings

#: What ``slot`` says of a place that holds a task instead of a vector.
RECONSTRUCT, CONTINUE = -2, -3


@dataclasses.dataclass(frozen=True)
class Names:
    """Folders or hub ids that the networks were made from; empty where there is none."""

    generator: str = ""
    compressor: str = ""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Passages as vectors.

    Attributes:
        vectors: (M, generator's width), window by window.
        scores: (documents,) float32 relevance of each passage to the question, or None where nothing tells it. Of a
            passage of several windows it is the best one's.
    """

    vectors: Tensor
    scores: Tensor | None


@dataclasses.dataclass(frozen=True)
class CompressOutput:
    """What a micro-batch gives.

    Attributes:
        logits: (trained, vocabulary) float32, in the order of ``targets``.
        memory: what they were computed from.
    """

    logits: Tensor
    memory: Memory


class CompressModel(nn.Module):
    """A generator, and a compressor that writes memory for it.

    Attributes:
        generator: causal language model, with adapters in it or trained as a whole.
        compressor: network without head; float32 weights, all of them trained.
        connector: see ``make_connector``.
        memory: (``max_memory`` + 1, compressor's embeddings) learnt tokens; the last one is the rank token.
        tasks: (2, generator's embeddings) learnt tokens that ask for reconstruction and for continuation.
        rank_head: from a state to a relevance score.
        settings: the numbers.
        names: where the networks come from.
    """

    def __init__(
        self,
        generator: PreTrainedModel,
        compressor: PreTrainedModel,
        settings: CompressSettings,
        names: Names | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.names = names or Names()
        self.generator = generator
        self.compressor = compressor
        read, written = embedding_width(compressor), embedding_width(generator)
        width = output_width(compressor)
        own = settings.compressor_type == "n_layers"
        self.connector = make_connector(width, written, settings.connector_hidden, identity=own)
        self.memory = nn.Parameter(torch.zeros(settings.max_memory + 1, read))
        self.tasks = nn.Parameter(torch.zeros(2, written))
        self.rank_head = nn.Linear(width, 1)
        # Some networks multiply what they are given as embeddings; what is given is divided by that first.
        self._scale = input_scale(generator) if own else 1.0

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.memory.device

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Return the trained parameters by what their learning rates are set for, empty parts left out."""
        heads = [self.memory, self.tasks, *self.connector.parameters(), *self.rank_head.parameters()]
        groups = {
            "compressor": list(self.compressor.parameters()),
            "connector": heads,
            "generator": list(self.generator.parameters()),
        }
        trained = {name: [p for p in group if p.requires_grad] for name, group in groups.items()}
        return {name: group for name, group in trained.items() if group}

    def compress(self, windows: WindowRows) -> Memory:
        """Return the memory of all windows of a batch, in one pass over them.

        Raises:
            DataError: places and counts of the windows do not agree.
        """
        if not len(windows.input_ids):
            return Memory(self.tasks[:0], None)
        embedded = cast("Tensor", self.compressor.get_input_embeddings()(windows.input_ids))
        learnt = self.memory.to(embedded.dtype)[windows.place.clamp(min=0)]
        inputs: dict[str, Any] = {"inputs_embeds": torch.where((windows.place >= 0)[..., None], learnt, embedded)}
        if self.settings.compressor_type == "modernbert":
            inputs["attention_mask"] = windows.attention_mask
        else:
            # No token sees what comes after it, so that padding on the right needs no mask.
            inputs["use_cache"] = False
        states: Tensor = self.compressor(**inputs).last_hidden_state
        pooled = self._means(states, windows) if self.settings.pooling == "mean" else self._places(states, windows)
        vectors = self.connector(pooled)
        return Memory(vectors if self._scale == 1.0 else vectors / self._scale, self._scores(states, windows))

    def forward(self, batch: MemoryRows) -> CompressOutput:
        """Return the logits of the trained tokens of prompts that hold memory."""
        memory = self.compress(batch.windows)
        inputs = {"inputs_embeds": self.embed(batch.input_ids, batch.slot, memory.vectors)}
        logits = selected_logits(self.generator, inputs, batch.predictors, batch.input_ids.numel())
        return CompressOutput(logits, memory)

    def embed(self, input_ids: Tensor, slot: Tensor, vectors: Tensor) -> Tensor:
        """Return (B, L, width) what the generator reads: embeddings of tokens, and vectors in their places.

        Args:
            input_ids: (B, L).
            slot: (B, L), see ``MemoryRows``.
            vectors: (M, width).
        """
        embedded = cast("Tensor", self.generator.get_input_embeddings()(input_ids))
        tasks = self.tasks.to(embedded.dtype)[(RECONSTRUCT - slot).clamp(0, 1)]
        embedded = torch.where((slot <= RECONSTRUCT)[..., None], tasks, embedded)
        if not len(vectors):
            return embedded
        return torch.where((slot >= 0)[..., None], vectors.to(embedded.dtype)[slot.clamp(min=0)], embedded)

    @torch.no_grad()
    def base_logits(self, rows: TokenRows) -> Tensor:
        """Return (trained, vocabulary) float32 logits of the generator as it was before training, on prompts of text.

        Raises:
            ConfigError: the generator has no adapters that could be switched off.
        """
        with self.untrained(), evaluating(self.generator):
            return label_logits(self.generator, rows)

    @contextlib.contextmanager
    def untrained(self) -> Iterator[None]:
        """Let the generator compute without its adapters inside the context, exactly as its base does.

        Raises:
            ConfigError: the generator has none, since it is trained as a whole.
        """
        if not has_lora(self.generator):
            raise ConfigError(
                "the untrained generator is gone: it is trained as a whole (lora_rank 0)",
                hint="train adapters (--lora-rank 16), or leave --kd-weight and the arms of the base out",
            )
        with adapters_off(self.generator):
            yield

    def _places(self, states: Tensor, windows: WindowRows) -> Tensor:
        """Return (M, width) states of memory tokens, window by window."""
        wanted = (windows.place >= 0) & (windows.place < self.settings.max_memory)
        return states[wanted]

    def _means(self, states: Tensor, windows: WindowRows) -> Tensor:
        """Return (M, width) means over stretches, window by window."""
        first = windows.counts.cumsum(0) - windows.counts
        wanted = windows.span >= 0
        where = (first[:, None] + windows.span)[wanted]
        n = int(windows.counts.sum())
        sums = states.new_zeros((n, states.shape[-1]), dtype=torch.float32).index_add(0, where, states[wanted].float())
        sizes = torch.bincount(where, minlength=n)
        if len(sizes) > n:
            raise DataError(f"windows have stretches up to {len(sizes)}, and were to become {n} vectors")
        return sums / sizes.clamp(min=1)[:, None]

    def _scores(self, states: Tensor, windows: WindowRows) -> Tensor | None:
        """Return (documents,) scores, the best of each passage's windows; None without rank tokens."""
        if not self.settings.rank_head:
            return None
        ends = windows.place == self.settings.max_memory
        if not bool(ends.any()):
            return None
        with torch.autocast(states.device.type, enabled=False):
            # Without a norm behind the layers, states are as large as the residual stream happens to be.
            last = states[ends].float()
            scores = self.rank_head(nn.functional.rms_norm(last, last.shape[-1:])).squeeze(-1)
        lowest = scores.new_full((windows.n_documents,), float("-inf"))
        best: Tensor = lowest.scatter_reduce(0, windows.document[ends.any(1)], scores, "amax")
        return best


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the context, and leave every module in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def place(model: CompressModel, device: torch.device | str | None) -> None:
    """Move everything to a device; a generator of 8 or 4 bits is there already."""
    if device is None:
        return
    if bits(model.generator) is None:
        model.to(device)
        return
    for part in (model.compressor, model.connector, model.rank_head):
        part.to(device)
    for learnt in (model.memory, model.tasks):
        learnt.data = learnt.data.to(device)


def embedding_width(network: PreTrainedModel) -> int:
    """Return the width of what a network reads."""
    return int(cast("Tensor", network.get_input_embeddings().weight).shape[1])


@torch.no_grad()
def output_width(network: PreTrainedModel) -> int:
    """Return the width of what a headless network writes, which is not always that of its layers (OPT 350m)."""
    with evaluating(network):
        return int(network(input_ids=torch.zeros(1, 1, dtype=torch.long, device=network.device))[0].shape[-1])


def input_scale(network: PreTrainedModel) -> float:
    """Return what a network multiplies embeddings with after they went in (Granite, MiniCPM)."""
    config = network.config.get_text_config()
    return float(getattr(config, "embedding_multiplier", None) or getattr(config, "scale_emb", None) or 1.0)
