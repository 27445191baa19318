"""Samples on disk, in memory and as tensors."""
