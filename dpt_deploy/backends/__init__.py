"""All ways to run a bundle. `load`, parity, the doctor, benchmarks and the documents ask this registry.

The order is the order of preference; it is data, and the only place where all backends are named.
"""

from __future__ import annotations

from ..core.errors import BadInput
from .base import Backend, Refusal, SessionOptions, StageTask
from .cpp import CppRuntime
from .onnxruntime import OnnxRuntime
from .openvino import OpenVINO
from .session import Session
from .tensorrt import TensorRT

_registry: dict[str, Backend] = {
    backend.name: backend for backend in (
        TensorRT("tensorrt"), TensorRT("tensorrt-rtx"), OnnxRuntime("cuda"), OpenVINO(), OnnxRuntime("cpu"),
        CppRuntime(),
    )
}

__all__ = [
    "Backend", "Refusal", "Session", "SessionOptions", "StageTask", "get", "names", "register", "registered",
    "unregister",
]


def registered() -> tuple[Backend, ...]:
    """All backends, the preferred one first."""
    return tuple(_registry.values())


def names() -> tuple[str, ...]:
    """The names of all backends, the preferred one first."""
    return tuple(_registry)


def get(name: str) -> Backend:
    """The backend called `name`. Raises `BadInput`, with all names, for an unknown one."""
    if name not in _registry:
        raise BadInput(f"backend: expected one of {', '.join(_registry)}, received {name!r}.")
    return _registry[name]


def register(backend: Backend, before: str | None = None) -> None:
    """Add a backend, last in the order of preference or ahead of the one called `before`.

    Raises:
        BadInput: The name is taken, or `before` is unknown.
    """
    if backend.name in _registry:
        raise BadInput(f"backend: {backend.name!r} is registered already. Choose another name.")
    order = list(_registry.values())
    order.insert(order.index(get(before)) if before else len(order), backend)
    _registry.clear()
    _registry.update({entry.name: entry for entry in order})


def unregister(name: str) -> None:
    """Remove the backend called `name`. Raises `BadInput` for an unknown one."""
    del _registry[get(name).name]
