"""Passages as a few vectors that a causal language model reads in the place of their text.

A compressor reads a window of a passage (and the question, where it may) followed by learnt memory tokens, whose last
states are the memory; a connector takes them to the width of the generator, which reads them in the place of embeddings
and writes the answer (OSCAR, Louis et al. 2025, arXiv:2504.07109; PISCO, arXiv:2501.16075). No vocabulary grows: learnt
tokens are parameters that go in as ``inputs_embeds``.

settings.py   the numbers: windows, vectors, rates
rows.py       what micro-batches have
nlayers.py    the generator's first layers as a compressor
encoder.py    an encoder as a compressor
smalllm.py    a small causal language model as a compressor
connector.py  from the compressor's width to the generator's
model.py      the network
build.py      from a configuration to the network
generate.py   answers from memory
export.py     its saved form
"""
