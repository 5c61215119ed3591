"""``ragtrain index``: passages to a verified dense index, and looks into it.

build.py     passages → vectors and passages with a manifest of hashes, once
source.py    the passages of a configuration: read, split, counted
plan.py      what making the index would take
encoders.py  the encoders of passages and questions, and the device they run on
search.py    a question to an index, on the console
"""

from ragtrain.prepare.build import PrepareResult, run
from ragtrain.prepare.encoders import question_encoder, resolve_device
from ragtrain.prepare.search import SearchResult, search

__all__ = ["PrepareResult", "SearchResult", "question_encoder", "resolve_device", "run", "search"]
