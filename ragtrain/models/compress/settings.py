"""``CompressSettings`` under the name by which the networks know it."""

from ragtrain.config.compression import CompressorType, CompressSettings

__all__ = ["CompressSettings", "CompressorType"]
