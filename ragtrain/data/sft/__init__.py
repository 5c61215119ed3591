"""Rows for supervised fine-tuning on retrieval-augmented prompts: from records to token ids and labels.

records.py     Example, Sample, Encoded: what the rooms here hand to each other
"""
