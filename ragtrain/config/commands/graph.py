"""``ragtrain index prepare --graph``: how passages become a knowledge graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from ragtrain.config.base import PositiveFloat, PositiveInt, Section


class GraphConfig(Section):
    """A knowledge graph of the passages, for ``train gfm``."""

    title: ClassVar[str] = "Graph"

    graph: bool = False
    """Make a knowledge graph of the passages instead of vectors: from ``openie``, with ``llm``, or, without either, from
    titles, mentions and co-occurrence."""
    openie: Path | None = None
    """Triples and entities that were extracted before: OpenIE JSON of HippoRAG, or a GFM-RAG folder."""
    llm: str | None = None
    """Causal language model that extracts triples: folder, hub id, or the http(s) address of an OpenAI-compatible server."""
    llm_model: str | None = None
    """Name of the model at the server."""
    llm_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key."""
    llm_batch_size: PositiveInt = 8
    """Passages sent to the language model at a time."""
    graph_questions: tuple[Path, ...] = ()
    """Questions whose entities are linked to the graph and written beside it: training, validation, test, by file name."""
    synonym_threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Cosine above which two entities are joined as synonyms."""
    max_synonyms: PositiveInt = 20
    """Synonyms of an entity, the nearest first."""
    link_threshold: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Cosine below which a mention in a question is linked to no entity."""
    max_mentions: PositiveInt = 40
    """Without language model: entities of a passage, the rarest first."""
    min_entity_documents: PositiveInt = 1
    """Without language model: passages in which a name must occur to be an entity; titles always are."""
    add: bool = False
    """Add the passages to the graph in ``output_dir``, which keeps what it has."""
    delete_ids: Path | None = None
    """Remove the passages with these ids, one a line, from the graph in ``output_dir``."""
    llm_timeout_s: PositiveFloat = 120.0
    """Longest wait for an answer of the server."""
