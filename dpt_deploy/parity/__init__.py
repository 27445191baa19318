"""How far an artefact is from PyTorch FP32, in the units of the task."""

from .compare import ParityReport, Stage, compare, load_budget
from .reference import Case, Reference

__all__ = ["Case", "ParityReport", "Reference", "Stage", "compare", "load_budget"]
