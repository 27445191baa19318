"""The registry of backends, in order of preference. `load`, parity, the doctor and the benchmarks use it."""

from __future__ import annotations

from ..core.errors import BadInput
from .base import Backend, Check, Refusal, SessionOptions, StageTask
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
    "Backend", "Check", "Refusal", "Session", "SessionOptions", "StageTask", "get", "names", "register", "registered",
    "unregister",
]


def registered() -> tuple[Backend, ...]:
    """All backends in order of preference."""
    return tuple(_registry.values())


def names() -> tuple[str, ...]:
    """The names of all backends in order of preference."""
    return tuple(_registry)


def get(name: str) -> Backend:
    """The backend called `name`. Raises `BadInput` for an unknown name."""
    if name not in _registry:
        raise BadInput(f"backend: expected one of {', '.join(_registry)}, received {name!r}.")
    return _registry[name]


def register(backend: Backend, before: str | None = None) -> None:
    """Add a backend.

    Args:
        backend: The backend to add.
        before: Name of the backend to insert it before in the order of preference. Default: last.

    Raises:
        BadInput: The name is already registered, or `before` is unknown.
    """
    if backend.name in _registry:
        raise BadInput(f"backend: {backend.name!r} is already registered. Choose another name.")
    order = list(_registry.values())
    order.insert(order.index(get(before)) if before else len(order), backend)
    _registry.clear()
    _registry.update({entry.name: entry for entry in order})


def unregister(name: str) -> None:
    """Remove the backend called `name`. Raises `BadInput` for an unknown name."""
    del _registry[get(name).name]
