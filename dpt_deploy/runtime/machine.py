"""What this machine has: facts that decide which artefact fits."""

from __future__ import annotations

import functools


@functools.cache
def compute_capability() -> str | None:
    """Compute capability of the first visible GPU, such as "9.0"; None without a GPU or without cuda-python."""
    try:
        from cuda.bindings import runtime as cudart
    except ImportError:
        return None
    status, count = cudart.cudaGetDeviceCount()
    if status != cudart.cudaError_t.cudaSuccess or count == 0:
        return None
    attribute = cudart.cudaDeviceAttr
    major = cudart.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMajor, 0)[1]
    minor = cudart.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMinor, 0)[1]
    return f"{major}.{minor}"
