"""One small interface to every backend: arrays in, arrays out, by name, checked against the contract."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from ..core.contract import Contract, Graph
from ..core.errors import BackendError, ContractError


class Session(abc.ABC):
    """A loaded graph. A context manager. Thread-safe only if the backend says so.

    Inputs are NumPy arrays or anything with `__dlpack__` (torch, CuPy). Outputs are NumPy arrays,
    which speak DLPack themselves, unless the backend says that it can leave them on the device.
    """

    backend: str = ""
    """Name of the backend in the registry."""
    note: str = ""
    """What a user should know of how it computes; part of `Runtime.reason`."""
    concurrency: int = 1
    """How many calls make progress at a time; more than one lets a call's transfers overlap another's compute."""
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

        `inputs`: one array per input of the contract. `outputs`: the names wanted, all when None.
        `stream`: a CUDA stream handle on which device inputs are ready and device outputs will be;
        None means the session's own, and host results are complete on return. Raises
        `ContractError` for a name, dtype or shape outside the contract, `BackendError` when the backend
        fails or the session is closed.
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
        """`run` after its checks."""

    def largest_batch(self, size: tuple[int, int]) -> int | None:
        """The largest batch of frames of `size` (H, W) that one call takes; None where memory alone sets the limit."""
        return None

    def close(self) -> None:
        """Release what the session holds; it cannot be used afterwards."""
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def host_array(array: Any, name: str, contiguous: bool = True) -> np.ndarray:
    """`array` as a NumPy array, C-contiguous unless any strides will do, without a copy where its memory allows.

    Raises `ContractError` for an array that lives on a device: a backend on the CPU cannot read it.
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


def first_line(error: Exception) -> str:
    """What another library's error says first, without a full stop; its type's name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def no_stream(stream: int | None, backend: str) -> None:
    """Raise `ContractError` if a caller gives a CUDA stream to a backend that has none."""
    if stream is not None:
        raise ContractError(f"stream: {backend} does not take a CUDA stream, received {stream}. Leave it None.")
