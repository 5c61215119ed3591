"""Rows for compressors: questions with passages, as windows of a few tokens each and prompts with places for their memory.

records.py      CompressExample, Context, Window, Windowed, Prompted: what the rooms here hand to each other
rows.py         files → rows to train and to measure on
contexts.py     which passages of a row are shown, in which order, epoch by epoch
windows.py      passages → windows of the compressor's tokens
coverage.py     what a border of windows splits and a limit cuts
prompts.py      question and places for memory, or text → tokens of the generator, with labels
batches.py      windows and prompts as tensors
source.py       micro-batches, epoch by epoch: of memory, and of the full text
pretraining.py  micro-batches of reconstruction and continuation
"""
