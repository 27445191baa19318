"""Which GPUs TensorRT and TensorRT-RTX serve, by compute capability, from NVIDIA's support matrices.

Read in November 2026. Sources:

- TensorRT-RTX 1.0 to 1.5: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix.html.
  NVIDIA's page on engines built without a GPU also speaks of 8.0; the matrices of these versions do not list it.
- TensorRT: https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/support-matrix.html. Which of the GPUs
  that are newer than Turing a version serves depends on the version, and is not in this table.
"""

from __future__ import annotations

from typing import NamedTuple

TURING = "7.5"
RTX_SERVES = {  # first version of TensorRT-RTX -> what its engines run on by default
    (1, 0): ("8.6", "8.9", "12.0"),
    (1, 5): ("8.6", "8.9", "12.0", "12.1"),
}
TENSORRT_FROM = "7.5"  # Volta, 7.0, was dropped in TensorRT 10.5


class Unserved(NamedTuple):
    """Why a GPU is not served, and what works there."""

    reason: str
    instead: str


def rtx_capabilities(version: str) -> tuple[str, ...]:
    """The compute capabilities that engines of a version of TensorRT-RTX run on by default."""
    number = _number(version)
    return next((served for first, served in reversed(RTX_SERVES.items()) if number >= first), RTX_SERVES[1, 0])


def unserved(
    builder: str, version: str, capability: str | None, for_turing: bool = False, bundle: object = "BUNDLE"
) -> Unserved | None:
    """Why a builder does not serve a GPU, or None if it does, or if that is not known.

    Args:
        builder: tensorrt or tensorrt-rtx.
        version: Version of the builder, such as "1.7.1".
        capability: Compute capability of the GPU, such as "9.0"; None if no GPU is visible.
        for_turing: Whether the engine is, or is to be, built for Turing alone (TensorRT-RTX).
        bundle: The bundle's folder, for the commands in `instead`.
    """
    if capability is None:
        return None
    short = ".".join(version.split(".")[:2])
    onnxruntime = "ONNX Runtime CUDA runs the graphs without an engine: backend onnxruntime-cuda"
    if builder == "tensorrt":
        if _number(capability) >= _number(TENSORRT_FROM):
            return None
        return Unserved(f"TensorRT {short} serves GPUs of compute capability {TENSORRT_FROM} and later, and this one "
                        f"has {capability}", onnxruntime)
    served = (TURING,) if for_turing else rtx_capabilities(version)
    if capability in served:
        return None
    reason = (f"TensorRT-RTX {short} serves GPUs of compute capability {', '.join(rtx_capabilities(version))}, and "
              f"{TURING} in engines built for it alone; this one has {capability}")
    command = f"python -m dpt_deploy.build {bundle} --builder"
    if capability in (*rtx_capabilities(version), TURING):
        return Unserved(reason, f"build for it: {command} tensorrt-rtx{' --turing' if capability == TURING else ''}")
    return Unserved(reason, f"use TensorRT: {command} tensorrt; meanwhile, {onnxruntime}")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
