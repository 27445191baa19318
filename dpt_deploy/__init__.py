"""dpt-deploy: a three-head Dense Prediction Transformer from PyTorch to engines, with proof.

Importing this package loads neither torch nor any runtime: each name is loaded when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .core.errors import DptError
from .core.version import __version__

if TYPE_CHECKING:
    from .build import EngineOptions, build_engines
    from .core.bundle import Bundle
    from .core.contract import Contract
    from .core.verdict import ParityReport
    from .export.config import ExportConfig
    from .export.pipeline import export_checkpoint
    from .model import create_multitask_dpt_model
    from .parity import judge
    from .report import write_report
    from .runtime import Prediction, Runtime, load
    from .steady import Steady

_HOME = {
    "Bundle": "core.bundle", "Contract": "core.contract", "ParityReport": "core.verdict",
    "Prediction": "runtime", "Runtime": "runtime", "load": "runtime", "Steady": "steady",
    "judge": "parity", "write_report": "report",
    "EngineOptions": "build", "build_engines": "build",
    "ExportConfig": "export.config", "export_checkpoint": "export.pipeline",
    "create_multitask_dpt_model": "model",
}
__all__ = [
    "Bundle", "Contract", "DptError", "EngineOptions", "ExportConfig", "ParityReport", "Prediction", "Runtime",
    "Steady", "__version__", "build_engines", "create_multitask_dpt_model", "export_checkpoint", "judge", "load",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dpt_deploy' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
