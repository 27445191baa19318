"""TensorRT versions with documented accuracy issues in vision transformers, each with its source.

Includes only public reports and NVIDIA's documentation. A report covers one model on one GPU and may not
apply to yours; check with parity on the GPU: python -m dpt_deploy.parity BUNDLE.
"""

from __future__ import annotations

from dataclasses import dataclass

REFIT_FAULT = (11, 3)
"""Refittable engines of this version may lose the bias of a matrix product, according to NVIDIA."""


@dataclass(frozen=True)
class KnownFault:
    """An issue in a range of versions."""

    first: tuple[int, ...]
    """First affected version."""
    last: tuple[int, ...]
    """Last affected version. (10, 4) includes 10.4.1."""
    what: str
    source: str
    capabilities: tuple[str, ...] = ()
    """Affected compute capabilities. Empty for all."""
    refit_only: bool = False
    """Whether only refittable engines are affected, which are built on request only."""


REPORTS = "https://github.com/NVIDIA/TensorRT/issues"
KNOWN_FAULTS = (
    KnownFault((8, 5, 1), (8, 5, 1), "a timm ViT in FP16 loses most accuracy; FP32 is correct", f"{REPORTS}/2709"),
    KnownFault((10, 0, 0), (10, 0, 0), "fused attention (_gemm_mha_v2) in FP16 differs from PyTorch; fixed in 10.0.1",
               f"{REPORTS}/3777"),
    KnownFault((10, 3), (10, 3), "a DINOv3 ViT in FP16 predicts one class everywhere; a transformer with dynamic sizes "
               "is incorrect until 10.5", f"{REPORTS}/4723, {REPORTS}/4419"),
    KnownFault((10, 4), (10, 4), "a DINOv3 ViT-B/16 is incorrect in FP32 and NaN in FP16", f"{REPORTS}/4742"),
    KnownFault((10, 7), (10, 7), "PyTorch's scaled_dot_product_attention is incorrect, even in FP32",
               f"{REPORTS}/4333, {REPORTS}/4328"),
    KnownFault((10, 16), (10, 16), "fused attention of a ViT is silently incorrect in FP16 and BF16; FP32 is correct",
               f"{REPORTS}/4837", ("12.0",)),
    KnownFault(REFIT_FAULT, REFIT_FAULT, "a refittable engine may lose the bias of a matrix product; other engines are "
               "correct",
               "https://docs.nvidia.com/deeplearning/tensorrt/11.3.0/inference-library/refitting-engines.html",
               refit_only=True),
)


def known_faults(version: str, capability: str | None) -> list[tuple[KnownFault, bool]]:
    """The documented issues of a TensorRT version, each with whether it certainly affects this GPU.

    `capability` is the GPU's compute capability. Without a GPU it is None, and issues of some GPUs are uncertain.
    """
    number = tuple(int(part) for part in version.split(".") if part.isdecimal())
    found = []
    for fault in KNOWN_FAULTS:
        in_range = fault.first <= number and number[: len(fault.last)] <= fault.last
        if in_range and (not fault.capabilities or capability is None or capability in fault.capabilities):
            found.append((fault, not fault.capabilities or capability is not None))
    return found
