"""Versions of TensorRT that are documented to get a vision transformer's attention wrong, each with its source.

Only what stands in a public report or in NVIDIA's own documentation; a report is about one model on one
GPU and may not touch yours. Parity on the GPU is what tells: python -m dpt_deploy.parity BUNDLE.
"""

from __future__ import annotations

from dataclasses import dataclass

REFIT_FAULT = (11, 3)
"""TensorRT's own documentation: a refittable engine of this version may lose the bias of a matrix product."""


@dataclass(frozen=True)
class KnownFault:
    """What was reported of a range of versions."""

    first: tuple[int, ...]
    """First version concerned."""
    last: tuple[int, ...]
    """Last version concerned, in as many parts as are known: (10, 4) covers 10.4.1."""
    what: str
    source: str
    capabilities: tuple[str, ...] = ()
    """Compute capabilities concerned; empty for all."""
    refit_only: bool = False
    """Whether it concerns refittable engines alone, which are not built unless asked for."""


REPORTS = "https://github.com/NVIDIA/TensorRT/issues"
KNOWN_FAULTS = (
    KnownFault((8, 5, 1), (8, 5, 1), "a timm ViT in FP16 lost most of its accuracy; FP32 was right", f"{REPORTS}/2709"),
    KnownFault((10, 0, 0), (10, 0, 0), "fused attention (_gemm_mha_v2) in FP16 differs from PyTorch; mended in 10.0.1",
               f"{REPORTS}/3777"),
    KnownFault((10, 3), (10, 3), "a DINOv3 ViT in FP16 gave one class everywhere; a transformer with dynamic sizes "
               "was wrong, and right in 10.5", f"{REPORTS}/4723, {REPORTS}/4419"),
    KnownFault((10, 4), (10, 4), "a DINOv3 ViT-B/16 came out wrong in FP32 and NaN in FP16", f"{REPORTS}/4742"),
    KnownFault((10, 7), (10, 7), "torch's scaled_dot_product_attention came out wrong, in FP32 too",
               f"{REPORTS}/4333, {REPORTS}/4328"),
    KnownFault((10, 16), (10, 16), "fused attention of a ViT silently wrong in FP16 and BF16; FP32 was right",
               f"{REPORTS}/4837", ("12.0",)),
    KnownFault(REFIT_FAULT, REFIT_FAULT, "a refittable engine may lose the bias of a matrix product; other engines are "
               "right",
               "https://docs.nvidia.com/deeplearning/tensorrt/11.3.0/inference-library/refitting-engines.html",
               refit_only=True),
)


def known_faults(version: str, capability: str | None) -> list[tuple[KnownFault, bool]]:
    """The faults documented for a TensorRT version, each with whether it is sure to concern this GPU.

    `capability` is the GPU's compute capability, None where no GPU is visible: then a fault of some GPUs
    alone is given with False.
    """
    number = tuple(int(part) for part in version.split(".") if part.isdecimal())
    found = []
    for fault in KNOWN_FAULTS:
        in_range = fault.first <= number and number[: len(fault.last)] <= fault.last
        if in_range and (not fault.capabilities or capability is None or capability in fault.capabilities):
            found.append((fault, not fault.capabilities or capability is not None))
    return found
