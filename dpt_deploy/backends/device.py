"""The compute capability of the current GPU."""

from __future__ import annotations

import functools

from ..core.errors import BackendError, MissingPackage
from . import cuda

NO_GPU = "no GPU is visible"


def compute_capability() -> str | None:
    """Compute capability of this thread's current GPU, such as "9.0". None without a GPU or cuda-python."""
    try:
        return _capability(cuda.call("cudaGetDevice"))
    except (BackendError, MissingPackage):
        return None


@functools.cache
def _capability(device: int) -> str:
    attributes = cuda.cudart().cudaDeviceAttr
    major = cuda.call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, device)
    minor = cuda.call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, device)
    return f"{major}.{minor}"
