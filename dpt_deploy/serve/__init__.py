"""Serve a bundle with NVIDIA Triton: a model repository, and what its Python backend runs."""

from .repository import Served, ServeOptions, write_repository

__all__ = ["ServeOptions", "Served", "write_repository"]
