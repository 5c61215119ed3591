"""Rows for supervised fine-tuning on retrieval-augmented prompts: from records to token ids and labels.

records.py       Example, Sample, Encoded: what the rooms here hand to each other
examples.py      files → rows to train and to validate on
contexts.py      which passages stand in a prompt, epoch by epoch; with distractors.py and shots.py
conditions.py    what prompts hold in an evaluation
templates.py     template files and instructions; layouts.py writes the texts, spans.py finds passages in them
prompts.py       samples → token ids, with labels by encode.py
overflow.py      what a long example loses; with fitting.py
packing.py       which rows share a sequence
batches.py       rows as tensors
source.py        micro-batches, epoch by epoch
preview.py       a look at rows before training
examples.py    rows from files: questions in any format, finished prompts, validation held out
contexts.py    which passages stand in a prompt, epoch by epoch
distractors.py passages that answer nothing: hard negatives, then other rows'
shots.py       solved examples before the question
conditions.py  the prompts of an evaluation: no, gold, found, or mixed passages
"""
