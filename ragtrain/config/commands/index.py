"""``ragtrain index``."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from ragtrain.config.base import Command, NonNegativeInt, PositiveInt, Section
from ragtrain.config.commands.graph import GraphConfig


class EncoderConfig(Section):
    """How text becomes a vector. What is not given is taken from the encoder's own folder."""

    title: ClassVar[str] = "Encoder"

    encoder: str | None = None
    """Folder or hub id: a DPR encoder, a sentence-transformers folder, or any AutoModel; without it, the built-in
    demo encoder."""
    pooling: Literal["cls", "mean", "pooler", "last"] | None = None
    """How token vectors become one vector; needed only where the folder does not say."""
    normalize: bool | None = None
    """Scale vectors to unit length; without it, as the encoder's folder says, else no."""
    query_prompt: str | None = None
    """Text put before each question."""
    passage_prompt: str | None = None
    """Text put before each passage."""
    passage_format: Literal["pair", "joined"] | None = None
    """Title and text as two segments (DPR), or joined by a space; without it, as the encoder's folder says."""
    passage_max_tokens: PositiveInt | None = None
    """Tokens of a passage the encoder reads; without it, as the encoder's folder says, at most 512."""


class AnnConfig(Section):
    """Approximate search through faiss."""

    title: ClassVar[str] = "Approximate search"

    hnsw_links: PositiveInt = 32
    """Neighbours of a vector in the HNSW graph."""
    ef_construction: PositiveInt = 200
    """Candidates weighed when a vector enters the HNSW graph."""
    ef_search: PositiveInt = 128
    """Candidates weighed in a search of the HNSW graph."""
    n_lists: PositiveInt | None = None
    """Inverted lists of IVF; without it four times the square root of the number of vectors."""
    n_probe: PositiveInt = 32
    """Inverted lists searched for a question."""
    pq_bytes: PositiveInt = 64
    """Bytes that IVF-PQ keeps of a vector; its dimension must be a multiple of them."""
    recall_samples: PositiveInt = 256
    """Passages searched with, to measure the recall of an approximate index against exact search."""


class PrepareConfig(Command):
    """Turn passages into a verified dense index, or into a knowledge graph."""

    name: ClassVar[str] = "index prepare"
    examples: ClassVar[tuple[str, ...]] = (
        "ragtrain index prepare --passages data/demo/passages.jsonl --output-dir data/demo/index",
        "ragtrain index prepare --passages psgs_w100.tsv.gz --encoder facebook/dpr-ctx_encoder-single-nq-base",
        "ragtrain index prepare --graph --passages corpus.json --graph-questions train.json --output-dir data/graph",
    )
    title: ClassVar[str] = "Passages"

    passages: Path | None = None
    """Passages in any known format: a file, a folder of text files or a dataset folder; without it, the demo's."""
    index_path: Path | None = None
    """Index of another tool to adopt as it stands: a faiss file, a ``.npy``, ``.npz`` or ``.memmap`` file, or a folder
    that holds one (transformers, datasets, FlashRAG, DPR, Atlas); ``passages`` are looked for beside it."""
    ids_file: Path | None = None
    """Passage ids of the vectors of ``index_path``, one a line or a JSON or ``.npy`` list; without it, both are in the
    same order."""
    output_dir: Path | None = None
    """Index folder to write; without it ``index`` beside the passages."""
    passage_words: PositiveInt | None = 100
    """Words after which a longer text is split; null keeps texts whole."""
    overlap: NonNegativeInt = 0
    """Words that two neighbouring pieces share."""
    skip_bad_lines: bool = False
    """Leave out lines that cannot be read, and count them, instead of stopping at the first."""
    encoder: EncoderConfig = EncoderConfig()
    index_type: Literal["flat", "faiss-flat", "hnsw", "ivf", "ivfpq"] = "flat"
    """``flat`` searches exactly by matrix product; the others write ``index.faiss`` as well: flat, a graph (HNSW), or
    inverted lists of whole (IVF) or compressed (IVF-PQ) vectors."""
    ann: AnnConfig = AnnConfig()
    bm25: bool = False
    """Write a BM25 index as well, for hybrid retrieval."""
    graph_build: GraphConfig = GraphConfig()
    export_hf: Path | None = None
    """Folder to write the index to in the form that transformers' ``RagRetriever`` loads."""
    verify_samples: NonNegativeInt = 64
    """Passages of an adopted index that are encoded again and compared with its vectors; 0 leaves the encoder
    unchecked."""
    shard_size: PositiveInt = 20000
    """Pieces encoded between two points from which a stopped preparation goes on."""
    storage: Literal["float16", "float32"] = "float16"
    """Precision in which vectors are stored."""
    encode_batch_size: PositiveInt = 64
    """Passages of the longest kind encoded at a time; shorter ones come in larger batches. A CPU gets at most 1024 tokens."""
    device: str | None = None
    """Device to encode on; without it a GPU if there is one."""
    overwrite: bool = False
    """Replace an existing index folder."""
    dry_run: bool = False
    """Read the passages, load the encoder, print the plan and write nothing."""


class SearchConfig(Command):
    """Search an index, or a graph with the model that was trained for it, with a question."""

    name: ClassVar[str] = "index search"
    examples: ClassVar[tuple[str, ...]] = (
        'ragtrain index search "capital of Norway" --index-path data/demo/index',
        'ragtrain index search "Who founded …?" --model-dir runs/gfm --draw paths.svg',
    )
    title: ClassVar[str] = "Search"
    positional: ClassVar[str | None] = "question"
    positional_metavar: ClassVar[str] = "[QUESTION]"

    question: str = ""
    """Question to search with."""
    index_path: Path = Path("data/demo/index")
    """Index folder."""
    encoder: str | None = None
    """Question encoder; without it, the one the index was made for. A run folder stands for its trained one."""
    model_dir: str | None = None
    """Graph model (a run of train gfm): search its graph instead of an index, and show along which paths it found what it found."""
    graph: Path | None = None
    """Folder of the graph to search; without it, that of the model's training."""
    draw: Path | None = None
    """Graph models: SVG file to draw the paths in."""
    n_docs: PositiveInt = 5
    """Passages to show."""
    retrieval: Literal["dense", "bm25", "hybrid"] = "dense"
    """What chooses passages: vectors, words, or both by reciprocal rank fusion."""
    search_index: Literal["flat", "faiss"] = "flat"
    """Search the vectors exactly, or ``index.faiss`` of the index folder as it is."""
    device: str | None = None
    """Device to search on; without it a GPU if there is one."""


class InfoConfig(Command):
    """Explain an index or a graph, folder or file: what it holds, how it was made, whether it is whole."""

    name: ClassVar[str] = "index info"
    examples: ClassVar[tuple[str, ...]] = (
        "ragtrain index info data/demo/index",
        "ragtrain index info wiki/index.faiss",
    )
    title: ClassVar[str] = "Index"
    positional: ClassVar[str | None] = "index_path"
    positional_metavar: ClassVar[str] = "[PATH]"

    index_path: Path = Path("data/demo/index")
    """Index or graph folder of ``ragtrain index prepare``, an index of another tool, or a graph folder of GFM-RAG."""
    check_hashes: bool = False
    """Read every file and compare its SHA-256 with the manifest."""
