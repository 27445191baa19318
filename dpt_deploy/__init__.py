"""dpt-deploy: a three-head Dense Prediction Transformer from PyTorch to engines, with proof.

Importing this package loads neither torch nor any runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .core.contract import Contract
from .core.errors import DptError

if TYPE_CHECKING:
    from .model import create_multitask_dpt_model
    from .runtime import Prediction, Runtime, load

__version__ = "0.1.0"
__all__ = ["Contract", "DptError", "Prediction", "Runtime", "create_multitask_dpt_model", "load"]


def __getattr__(name: str) -> Any:
    if name == "create_multitask_dpt_model":
        from .model import create_multitask_dpt_model

        return create_multitask_dpt_model
    if name in ("Prediction", "Runtime", "load"):
        from . import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module 'dpt_deploy' has no attribute {name!r}")
