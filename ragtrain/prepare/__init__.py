"""``ragtrain index``: passages to a verified dense index or a knowledge graph, looks into it, and the model built around it.

command.py   an index or a graph
build.py     passages → vectors and passages with a manifest of hashes, once
source.py    the passages of a configuration: read, split, counted
beside.py    what stands beside the vectors: faiss files of any type, measured, and BM25
result.py    what all ways of making an index give back
resume.py    an index made in stretches: stops, and what they leave
ranks.py     the processes of a launcher that make one index
plan.py      what making the index would take
encoders.py  the encoders of passages and questions, and the device they run on
chat.py      prompts to texts, by a language model here or by a server
model.py     the RAG model of a configuration, around an index
adopt.py     an index of another tool as one of ours, where it lies
lines.py     the passages of an adopted index
verify.py    whether vectors, passages and encoder belong together
diagnose.py  what would fit where they do not
graph/       passages → a knowledge graph, and questions linked to it
export.py    an index in the form that transformers loads
info.py      what an index is
search.py    a question to an index, on the console
demo.py      the built-in demo set and its index
"""

from ragtrain.prepare.command import run
from ragtrain.prepare.demo import demo_graph, demo_set
from ragtrain.prepare.encoders import context_encoder, encode, encode_again, question_encoder, resolve_device
from ragtrain.prepare.info import InfoResult, info
from ragtrain.prepare.model import rag_model
from ragtrain.prepare.result import PrepareResult
from ragtrain.prepare.search import SearchResult, search

__all__ = [
    "InfoResult",
    "PrepareResult",
    "SearchResult",
    "context_encoder",
    "demo_graph",
    "demo_set",
    "encode",
    "encode_again",
    "info",
    "question_encoder",
    "rag_model",
    "resolve_device",
    "run",
    "search",
]
