"""``ragtrain train gfm``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ragtrain.config.aliases import Alias, Reading
from ragtrain.config.base import Command, Fraction, NonNegativeFloat, PositiveInt, Section
from ragtrain.config.foreign_gfm import GFM_ALIASES, reshape
from ragtrain.config.foreign_values import READINGS
from ragtrain.config.training import LoopConfig, OptimConfig, RunConfig


class GfmDataConfig(Section):
    """Which graphs, and which questions about them."""

    title: ClassVar[str] = "Data"

    stage: Literal["pretrain", "finetune"] = "pretrain"
    """Learn to complete the graph's own triples, or to retrieve documents for labelled questions."""
    graphs: tuple[Path, ...] = ()
    """Graph folders: of ``index prepare --graph``, of GFM-RAG (stage 1, or CSV), or of train/valid/test triples; without it,
    that of the built-in demo set."""
    val_graphs: tuple[Path, ...] = ()
    """Graph folders with questions to validate on; without it, questions of ``graphs`` are held out (``dev_split``)."""
    train_data: Path | None = None
    """``finetune``: training questions, where the graph folder holds none; of one graph only."""
    val_data: Path | None = None
    """``finetune``: validation questions, where the graph folder holds none."""
    dev_split: Fraction = 0.1
    """Share of triples (``pretrain``) or questions (``finetune``) held out where the folder has no validation file."""
    sampling: Literal["step", "epoch"] = "step"
    """Several graphs: draw one for each step by its number of examples, or train on one after another."""
    max_triples: PositiveInt | None = None
    """``pretrain``: triples of each graph to use in an epoch, drawn anew each time."""
    max_val_samples: PositiveInt | None = 500
    """Validation triples or questions, drawn once with the seed."""
    skip_bad_lines: bool = False
    """Leave out lines that cannot be read, and count them, instead of stopping at the first."""


class GfmModelConfig(Section):
    """The query-conditioned graph network (NBFNet)."""

    title: ClassVar[str] = "Model"

    model_dir: str | None = None
    """What to go on from: a run, a ``pretrained`` folder of GFM-RAG, an ULTRA checkpoint, or a hub id."""
    text_encoder: str | None = None
    """Encoder of relations and questions, folder or hub id; without it the demo's, or the one of ``model_dir``."""
    hidden_dim: PositiveInt = 512
    """Width of entity states."""
    num_layers: PositiveInt = 6
    """Message-passing layers: how many hops a question reaches."""
    message: Literal["distmult", "transe", "rotate"] = "distmult"
    """How a neighbour's state and a relation become a message."""
    aggregate: Literal["sum", "mean", "max", "pna"] = "sum"
    """How messages of an entity are gathered."""
    short_cut: bool = True
    """Add each layer's input to its output."""
    layer_norm: bool = True
    """Normalise each layer before its activation."""
    init_entity_weights: bool = True
    """``finetune``: entities of a question count inversely to the documents that hold them."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass: a third of the memory, a third more time."""
    null_states: bool = True
    """Compute what no question has reached once for the whole batch; exact."""
    refit: bool = False
    """``model_dir`` with another text encoder: train the input maps only, and keep the layers."""
    save_pretrained: bool = False
    """Write ``pretrained/`` into the run, too, as GFM-RAG 1 loads it; a run that is complete gets it by the same command."""


class GfmObjectiveConfig(Section):
    """The losses."""

    title: ClassVar[str] = "Objective"

    num_negatives: PositiveInt = 256
    """``pretrain``: corrupted triples for each true one."""
    strict_negatives: bool = True
    """``pretrain``: never draw a corrupted triple that the graph holds."""
    adversarial_temperature: NonNegativeFloat | None = None
    """Temperature of the weights of negatives (Sun et al. 2019); without it 1 in ``pretrain`` and 0.2 in ``finetune``; 0 weighs
    them alike."""
    bce_weight: NonNegativeFloat = 0.3
    """``finetune``: weight of the binary cross-entropy over entities."""
    list_weight: NonNegativeFloat = 0.7
    """``finetune``: weight of the listwise cross-entropy over entities."""
    document_weight: NonNegativeFloat = 0.0
    """``finetune``: weight of the listwise cross-entropy over documents."""


class GfmRankConfig(Section):
    """From scores of entities to documents."""

    title: ClassVar[str] = "Ranking"

    ranker: Literal["simple", "idf", "topk", "idf_topk"] = "idf_topk"
    """Documents are ranked by the scores of their entities, weighted by rarity, or by how many of the best they hold."""
    ranker_top_k: PositiveInt = 20
    """``topk``, ``idf_topk``: how many entities are the best."""
    fusion: Literal["none", "bm25", "dense"] = "none"
    """Add a lexical or dense score of documents."""
    fusion_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the graph's score in the sum; both are scaled to 0 to 1 for each question."""


class GfmConfig(Command):
    """Train a graph foundation model that retrieves over a knowledge graph."""

    name: ClassVar[str] = "train gfm"
    examples: ClassVar[tuple[str, ...]] = (
        "ragtrain train gfm --stage pretrain --graphs data/musique --output-dir runs/pretrained",
        "ragtrain train gfm --stage finetune --graphs data/musique --model-dir runs/pretrained --output-dir runs/gfm",
    )

    aliases: ClassVar[Mapping[str, Alias]] = GFM_ALIASES
    readings: ClassVar[Mapping[str, Reading]] = {name: READINGS[name] for name in ("loop.max_steps", "loop.resume")}
    reshape: ClassVar[Callable[..., Any] | None] = staticmethod(reshape)

    data: GfmDataConfig = GfmDataConfig()
    model: GfmModelConfig = GfmModelConfig()
    objective: GfmObjectiveConfig = GfmObjectiveConfig()
    ranking: GfmRankConfig = GfmRankConfig()
    loop: LoopConfig = LoopConfig(batch_size=8, gradient_accumulation_steps=1, best_metric="eval_mrr")
    optim: OptimConfig = OptimConfig(lr_scheduler="constant", warmup_ratio=0.0)
    run: RunConfig = RunConfig(output_dir=Path("runs/gfm"))
