"""PyTorch as a session: what tests hold the runtimes against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dpt_deploy.backends.session import Session, reject_stream
from dpt_deploy.core.contract import Contract, Graph
from dpt_deploy.core.errors import ContractError


class TorchSession(Session):
    """A `MultiTaskDPT` (model graph) or `FrameModel` (frame graph) on the device where its weights are.

    Takes NumPy arrays and tensors, gives NumPy arrays.
    """

    backend = "torch"

    def __init__(self, module: nn.Module, contract: Contract, graph: Graph) -> None:
        """`module` is put into evaluation mode, and its precision is left as it is."""
        super().__init__(contract, graph)
        self._module: nn.Module | None = module.eval()
        self._device = next(module.parameters()).device

    def _run(self, inputs: Mapping[str, Any], outputs: list[str], stream: int | None) -> dict[str, np.ndarray]:
        reject_stream(stream, self.backend)
        tensors = [_tensor(inputs[name], self._device) for name in self.inputs]
        with torch.inference_mode():
            results = self._module(*tensors)
        if missing := [name for name in outputs if name not in results]:
            raise ContractError(f"outputs: the module gives {', '.join(results)}, and not {', '.join(missing)}.")
        return {name: results[name].float().cpu().numpy() for name in outputs}

    def close(self) -> None:
        super().close()
        self._module = None


def _tensor(array: Any, device: torch.device) -> torch.Tensor:
    if isinstance(array, np.ndarray):
        array = np.ascontiguousarray(array)
        array = array if array.flags.writeable else array.copy()  # torch has no read-only tensors
    return torch.as_tensor(array, device=device)
