"""Passages to a knowledge graph, and questions linked to it.

build.py       ``index prepare --graph``: what is asked for, once
making.py      the acts: read, extract, join, write, link
change.py      ``--add`` and ``--delete-ids``
lock.py        one process at a time
openie.py      triples that were extracted before
plain.py       triples without a language model: titles, mentions, co-occurrence
llm.py         triples from a language model: prompt, answers, resuming
llm_writers.py a local model, or a server
words.py       texts as words; what a corpus says of each
mentions.py    what a text names
phrases.py     the words between two mentions as a relation
vectors.py     names as vectors, and search among them
synonyms.py    entities that mean the same
link.py        texts to entities
questions.py   question files linked to a graph
provenance.py  which documents say which triple
result.py      what the command gives back
info.py        ``index info`` of a graph
"""

from ragtrain.prepare.graph.link import EntityLinker, link_entities
from ragtrain.prepare.graph.vectors import NameVectors

__all__ = ["EntityLinker", "NameVectors", "link_entities"]
