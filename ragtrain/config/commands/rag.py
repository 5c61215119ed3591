"""``ragtrain train rag``."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from ragtrain.config.base import (
    Command,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)
from ragtrain.config.training import LoopConfig, LoraConfig, OptimConfig, RunConfig


class RagDataConfig(Section):
    """What to train on."""

    title: ClassVar[str] = "Data"

    train_data: Path | None = None
    """Training questions in any known format, or a dataset folder; without it, the built-in demo set."""
    val_data: Path | None = None
    """Validation questions; without it ``validation.jsonl`` beside the training file."""
    index_path: Path | None = None
    """Index folder of ``ragtrain index prepare``, or an index file beside its passages; without it ``index`` beside
    the training file."""
    passages_path: Path | None = None
    """Passages of the index, where the index folder does not hold them."""
    question_key: str | None = None
    """Field that holds the question in a format that is not recognised."""
    answer_key: str | None = None
    """Field that holds the answers in a format that is not recognised."""
    skip_bad_lines: bool = False
    """Leave out lines that cannot be read, and count them, instead of stopping at the first."""
    max_train_samples: PositiveInt | None = None
    """Training questions to use, drawn with the seed."""
    max_val_samples: PositiveInt | None = 500
    """Validation questions to use, drawn with the seed."""


class RagModelConfig(Section):
    """The two networks and what they read."""

    title: ClassVar[str] = "Model"

    model_dir: str | None = None
    """Run folder, RAG folder or hub id (``facebook/rag-sequence-nq``) to start from, instead of two parts."""
    question_encoder: str | None = None
    """Question encoder folder or hub id; without it, the encoder the index was made with."""
    generator: str | None = None
    """Generator folder or hub id: BART, T5 or any causal language model; without it, the built-in demo generator."""
    reader: Literal["rag", "fid"] = "rag"
    """Read passages one by one and marginalise, or all at once by fusion in the decoder (FiD; BART and T5 only)."""
    train_generator: bool = True
    """Train the generator; without it, only the retriever learns, from a frozen generator."""
    train_question_encoder: bool = True
    """Train the question encoder through the marginal likelihood; without it, the retriever stays frozen."""
    n_docs: PositiveInt = 5
    """Passages retrieved and marginalised over for each question."""
    max_input_tokens: PositiveInt = 300
    """Generator input: passage and question together; the passage gives way, never the question."""
    max_question_tokens: PositiveInt = 64
    """Longest question read by the question encoder."""
    max_target_tokens: PositiveInt = 32
    """Longest answer, end token included."""
    score_temperature: PositiveFloat | None = None
    """What retrieval scores are divided by before they become a prior; without it that of ``model_dir``, else 1, or 0.05
    for an index of cosines."""
    target_style: Literal["shift-right", "hf"] = "shift-right"
    """How targets meet decoder inputs: properly shifted, or unshifted as ``facebook/rag-*`` was trained."""
    gradient_checkpointing: bool = False
    """Recompute the generator's activations in the backward pass: less memory, about a third more time."""
    doc_chunk: PositiveInt | None = None
    """Passages of each question whose activations are held at a time: the gradient is the same, with one more forward
    pass; without it, all of them."""


class RagRetrieverConfig(Section):
    """How passages are chosen, and which side of the retriever is trained."""

    title: ClassVar[str] = "Retriever"

    train_context_encoder: bool = False
    """Train the encoder of passages as well; the index then follows it."""
    context_encoder: str | None = None
    """Encoder of passages, folder or hub id; without it, the one the index was made with."""
    refresh_steps: PositiveInt = 500
    """Steps between two encodings of the whole index with the context encoder in training."""
    over_retrieve: PositiveInt = 4
    """With ``train_context_encoder`` and ``retrieval`` dense, how many times ``n_docs`` passages are retrieved and scored
    anew between two refreshes."""
    freeze_retriever_steps: NonNegativeInt = 0
    """Steps at the beginning in which only the generator learns."""
    retriever_lora_rank: NonNegativeInt = 0
    """Rank of LoRA matrices in all linear layers of the encoders that are trained, scaled by two; 0 trains all their
    weights."""
    retrieval: Literal["dense", "bm25", "hybrid"] = "dense"
    """What chooses passages: vectors, words, or both by reciprocal rank fusion; their scores are always inner
    products."""
    search_index: Literal["flat", "faiss"] = "flat"
    """Search the vectors exactly, or ``index.faiss`` of the index folder as it is."""


class RagObjectiveConfig(Section):
    """The loss."""

    title: ClassVar[str] = "Objective"

    objective: Literal["rag-sequence", "rag-token", "pdist", "emdr"] = "rag-sequence"
    """What teaches the retriever: the marginal likelihood of an answer or of each token, the likelihoods as a
    distribution over passages (PDist, REPLUG-LSR), or their expectation (EMDR2)."""
    target_temperature: PositiveFloat = 1.0
    """``pdist``: what log-likelihoods of answers are divided by before they become a distribution over passages."""
    infonce_weight: NonNegativeFloat = 0.0
    """Weight of a contrastive loss beside the objective: passages that hold an answer against all others."""
    infonce_temperature: PositiveFloat | None = None
    """What scores are divided by in the contrastive loss; without it, ``score_temperature``."""
    hard_negatives: NonNegativeInt = 4
    """Retrieved passages without an answer that each question adds to the negatives of its micro-batch."""
    label_smoothing: Fraction = 0.0
    """Share of the target probability spread over the vocabulary."""
    normalize_by: Literal["token", "answer"] = "token"
    """What the summed loss of a step is divided by: real target tokens, or questions."""
    answer_choice: Literal["first", "random"] = "random"
    """Which reference answer is the target: always the first, or one drawn anew each epoch."""


class RagOptimConfig(OptimConfig):
    """The optimizer and its schedule."""

    retriever_learning_rate: PositiveFloat | None = None
    """Peak learning rate of the question encoder; without it ``learning_rate``, or what the demo's was tuned for."""


class RagConfig(Command):
    """Train question encoder and generator jointly, through exact marginalisation over retrieved passages."""

    name: ClassVar[str] = "train rag"
    examples: ClassVar[tuple[str, ...]] = (
        "ragtrain train rag --max-steps 15000 --batch-size 2",
        "ragtrain train rag --train-data data/squad --index-path data/squad/index --generator facebook/bart-base "
        "--output-dir runs/squad",
    )

    data: RagDataConfig = RagDataConfig()
    model: RagModelConfig = RagModelConfig()
    retriever: RagRetrieverConfig = RagRetrieverConfig()
    lora: LoraConfig = LoraConfig()
    objective: RagObjectiveConfig = RagObjectiveConfig()
    loop: LoopConfig = LoopConfig()
    optim: RagOptimConfig = RagOptimConfig()
    run: RunConfig = RunConfig()

    @property
    def trains_retriever(self) -> bool:
        """Whether the encoder of questions or that of passages is trained."""
        return self.model.train_question_encoder or self.retriever.train_context_encoder
