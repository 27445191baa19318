"""Models that were not trained here: a description of an ONNX file, and what makes it a graph of our contract."""

from .adapt import adapt
from .describe import PRESETS, Description, describe, find_description

__all__ = ["PRESETS", "Description", "adapt", "describe", "find_description"]
