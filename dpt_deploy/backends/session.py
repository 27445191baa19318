"""The session interface of all backends: dictionaries of arrays in and out, checked against the contract."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from ..core.contract import Contract, Graph
from ..core.errors import BackendError, ContractError


class Session(abc.ABC):
    """A loaded graph, usable as a context manager. Thread-safe only if the subclass says so.

    Inputs are NumPy arrays or other arrays with `__dlpack__` (PyTorch, CuPy). Outputs are NumPy arrays
    unless the subclass documents device arrays.
    """

    backend: str = ""
    """Name of the backend in the registry."""
    note: str = ""
    """Details of the computation, shown in `Runtime.reason`."""
    concurrency: int = 1
    """Number of calls that can run at the same time, so that transfers overlap with compute."""
    closed: bool = False

    def __init__(self, contract: Contract, graph: Graph) -> None:
        self.contract = contract
        self.graph = graph
        self.inputs = contract.inputs(graph)
        self.outputs = contract.outputs(graph)

    def run(
        self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None, stream: int | None = None
    ) -> dict[str, Any]:
        """Run the graph.

        Args:
            inputs: One array per input of the contract.
            outputs: Names of the outputs to return. Default: all.
            stream: CUDA stream handle on which device inputs are ready and device outputs will be ready. With None,
                results are complete on return.

        Returns:
            Arrays by output name.

        Raises:
            ContractError: A name, dtype or shape violates the contract.
            BackendError: The computation failed, or the session is closed.
        """
        if self.closed:
            raise BackendError(f"this {self.backend} session is closed. Load the bundle again.")
        wanted = list(self.outputs if outputs is None else outputs)
        if (unknown := [name for name in wanted if name not in self.outputs]) or not wanted:
            raise ContractError(f"outputs: expected names among {', '.join(self.outputs)}, received {unknown}.")
        if set(inputs) != set(self.inputs):
            raise ContractError(f"inputs: expected {', '.join(self.inputs)}, received {', '.join(inputs) or 'none'}.")
        for name, spec in self.inputs.items():
            if not hasattr(inputs[name], "shape"):
                raise ContractError(f"{name}: expected an array, received a {type(inputs[name]).__name__}.")
            spec.check(inputs[name])
        return self._run(inputs, wanted, stream)

    @abc.abstractmethod
    def _run(self, inputs: Mapping[str, Any], outputs: list[str], stream: int | None) -> dict[str, Any]:
        """Implements `run` after the checks."""

    def largest_batch(self, size: tuple[int, int]) -> int | None:
        """The largest batch of frames of `size` (H, W) that one call accepts. None if only memory limits it."""
        return None

    def close(self) -> None:
        """Release all resources. The session cannot be used afterwards."""
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def host_array(array: Any, name: str, contiguous: bool = True) -> np.ndarray:
    """Convert `array` to NumPy, without a copy if possible. C-contiguous if `contiguous`.

    Raises `ContractError` for an array in device memory.
    """
    if not isinstance(array, np.ndarray):
        try:
            array = np.from_dlpack(array)
        except (BufferError, RuntimeError, TypeError, AttributeError) as error:
            raise ContractError(
                f"{name}: expected an array in host memory (NumPy or DLPack), received a {type(array).__name__} that "
                f"cannot be read on the CPU ({error}). Move it to the CPU, or load a backend on the GPU."
            ) from error
    return np.ascontiguousarray(array) if contiguous else array


def reject_stream(stream: int | None, backend: str) -> None:
    """Raise `ContractError` if a CUDA stream is passed to a CPU backend."""
    if stream is not None:
        raise ContractError(f"stream: {backend} does not take a CUDA stream, received {stream}. Pass None.")
