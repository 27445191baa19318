"""The GPU of this machine, as far as it decides which artefact fits."""

from __future__ import annotations

import functools

NO_GPU = "no GPU is visible here"


def compute_capability() -> str | None:
    """Compute capability of this thread's current GPU, such as "9.0"; None without a GPU or without cuda-python."""
    try:
        from cuda.bindings import runtime as cudart
    except ImportError:
        return None
    status, device = cudart.cudaGetDevice()
    return _capability(device) if status == cudart.cudaError_t.cudaSuccess else None


@functools.cache
def _capability(device: int) -> str | None:
    from cuda.bindings import runtime as cudart

    status, count = cudart.cudaGetDeviceCount()
    if status != cudart.cudaError_t.cudaSuccess or count == 0:
        return None
    attribute = cudart.cudaDeviceAttr
    major = cudart.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMajor, device)[1]
    minor = cudart.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMinor, device)[1]
    return f"{major}.{minor}"
