"""Indexes of other tools, read where they lie: faiss files, arrays, dataset folders; and passages in foreign lines.

find.py        which file of a folder is the index, which are the passages; pickles are refused
faiss_file.py  where a faiss file keeps its vectors; those that it keeps only roughly are reconstructed
arrays.py      .npy, .npz, raw .memmap, Atlas' torch shards, the embeddings of a dataset folder
places.py      rows of a file as an array, without a copy
lines.py       passages in the lines of another tool, by byte offset
"""

from ragtrain.index.foreign.arrays import read_vectors
from ragtrain.index.foreign.find import Found, find, is_index, refuse_pickle
from ragtrain.index.foreign.lines import LineForm, LineStore, line_offsets
from ragtrain.index.foreign.places import ForeignVectors, Place, iter_blocks

__all__ = [
    "ForeignVectors", "Found", "LineForm", "LineStore", "Place", "find", "is_index", "iter_blocks", "line_offsets",
    "read_vectors", "refuse_pickle",
]  # fmt: skip
