"""Train every trainable part of a retrieval-augmented generation system, and prove that it helped."""

__version__ = "0.1.0"
