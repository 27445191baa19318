"""Compare the artefacts of a bundle with PyTorch FP32, in the units of each task."""

from ..core.verdict import ParityReport, Stage
from .compare import compare, load_budget
from .judge import Judgement, judge
from .reference import Case, Reference

__all__ = ["Case", "Judgement", "ParityReport", "Reference", "Stage", "compare", "judge", "load_budget"]
