"""Which GPUs TensorRT and TensorRT-RTX serve, by compute capability, from NVIDIA's support matrices.

Read in November 2026. Sources:

- TensorRT-RTX 1.0, 1.1, 1.4 and 1.5:
  https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix-1/1.5.html and its neighbours.
  The matrices of 1.2, 1.3, 1.6 and 1.7 were not read; they follow the version before. NVIDIA's page on engines that are
  built without a GPU also names 8.0, which no matrix lists; it was not tried.
- TensorRT: https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/support-matrix.html and the release
  notes of 10.5, which dropped Volta (7.0). Which GPUs newer than Turing a version serves is not in this table.
"""

from __future__ import annotations

from typing import Any, NamedTuple

TURING = "7.5"
RTX_SERVES = {  # first version of TensorRT-RTX -> what its engines run on by default
    (1, 0): ("8.6", "8.9", "12.0"),
    (1, 5): ("8.6", "8.9", "12.0", "12.1"),
}
FP8_FROM = "8.9"
"""The lowest compute capability with FP8, in both builders. On Turing, TensorRT-RTX has no eight bits at all."""
TENSORRT_SERVES_FROM = {(10, 0): "7.0", (10, 5): "7.5"}  # first version of TensorRT -> the lowest compute capability


class Unserved(NamedTuple):
    """Why a GPU is not served, and what works there."""

    reason: str
    instead: str


def rtx_capabilities(version: str, precision: str | None = None) -> tuple[str, ...]:
    """The compute capabilities that engines of a version of TensorRT-RTX run on by default."""
    capabilities = _newest(RTX_SERVES, version)
    if precision == "fp8":
        return tuple(one for one in capabilities if _number(one) >= _number(FP8_FROM))
    return capabilities


def unserved(
    builder: str, version: str, capability: str | None, for_turing: bool = False, bundle: object = "BUNDLE",
    precision: str | None = None,
) -> Unserved | None:
    """Why a builder does not serve a GPU, or None if it does, or if that is not known.

    Args:
        builder: tensorrt or tensorrt-rtx.
        version: Version of the builder, such as "1.7.1".
        capability: Compute capability of the GPU, such as "9.0"; None if no GPU is visible.
        for_turing: Whether the engine is, or is to be, built for Turing alone (TensorRT-RTX).
        bundle: The bundle's folder, for the commands in `instead`.
        precision: Precision of the engine; None for one that all of these GPUs compute in.
    """
    if capability is None:
        return None
    short = ".".join(version.split(".")[:2])
    command = f"python -m dpt_deploy.build {bundle} --builder"
    if precision == "fp8" and _number(capability) < _number(FP8_FROM):
        return Unserved(f"FP8 needs a GPU of compute capability {FP8_FROM} or later, and this one has {capability}",
                        "use the FP16 or INT8 graphs of an export with --precision fp16 or int8")
    onnxruntime = "ONNX Runtime CUDA runs the graphs without an engine: backend onnxruntime-cuda"
    if builder == "tensorrt":
        lowest = _newest(TENSORRT_SERVES_FROM, version)
        if _number(capability) >= _number(lowest):
            return None
        return Unserved(f"TensorRT {short} serves GPUs of compute capability {lowest} and later, and this one has "
                        f"{capability}", onnxruntime)
    served = (TURING,) if for_turing else rtx_capabilities(version)
    if capability in served:
        return None
    reason = (f"TensorRT-RTX {short} serves GPUs of compute capability {', '.join(rtx_capabilities(version))}, and "
              f"{TURING} in engines built for it alone; this one has {capability}")
    if capability in (*rtx_capabilities(version), TURING):
        return Unserved(reason, f"build for it: {command} tensorrt-rtx{' --turing' if capability == TURING else ''}")
    if _number(capability) < _number(list(TENSORRT_SERVES_FROM.values())[-1]):
        return Unserved(reason, onnxruntime)
    return Unserved(reason, f"use TensorRT: {command} tensorrt; meanwhile, {onnxruntime}")


def _newest(table: dict[tuple[int, int], Any], version: str) -> Any:
    """The last entry of a table that is not newer than a version, or the first entry."""
    number = _number(version)
    return next((value for first, value in reversed(table.items()) if number >= first), next(iter(table.values())))


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
