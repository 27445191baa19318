"""Shape profiles and compatibility of engines, from the manifest. Shared by both TensorRT backends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

from ..core.bundle import Bundle
from ..core.errors import ContractError
from ..core.manifest import Artifact, ShapeRange
from .served_gpus import TURING, Unserved, unserved

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Python package by builder."""


@dataclass(frozen=True)
class EngineProfile:
    """The shapes that an engine accepts."""

    file: str
    ranges: Mapping[str, ShapeRange]
    """The smallest and largest shape of each input."""
    max_pixels: int | None = None
    """Largest product of batch, height and width of a frame graph's input. None for a model graph."""

    @classmethod
    def of(cls, artifact: Artifact) -> EngineProfile:
        return cls(artifact.file, artifact.details.profile, artifact.details.max_pixels)

    def check(self, shapes: Mapping[str, tuple[int, ...]], remedy: str) -> None:
        """Raise `ContractError`, ending with `remedy`, if an input's shape is outside the profile."""
        for name, shape in shapes.items():
            if name not in self.ranges:
                continue
            low, high = self.ranges[name].min, self.ranges[name].max
            limit = f"from {list(low)} to {list(high)}"
            outside = not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
            if self.max_pixels:
                limit += f" with at most {self.max_pixels} pixels in a batch"
                outside = outside or math.prod(shape[:3]) > self.max_pixels
            if outside:
                raise ContractError(f"{name}: {self.file} takes shapes {limit}, received {list(shape)}. {remedy}")

    def largest_batch(self, size: tuple[int, int]) -> int | None:
        """The largest batch of frames of `size` (H, W). At least 1, so that `check` reports an oversized frame."""
        batches = [shapes.max[0] for shapes in self.ranges.values()]
        if self.max_pixels:
            batches.append(self.max_pixels // (size[0] * size[1]))
        return max(1, min(batches)) if batches else None


def unserved_gpu(artifact: Artifact, capability: str | None, folder: object = "BUNDLE") -> Unserved | None:
    """Why the builder of an engine does not serve a GPU of this `capability`, and what works there; None if it does.

    Building the engine again does not help. `folder` is the bundle's, for the commands.
    """
    details = artifact.details
    for_turing = details.builder == "tensorrt-rtx" and details.compute_capability == TURING
    return unserved(details.builder, details.builder_version, capability, for_turing, folder, artifact.precision)


def incompatibility(bundle: Bundle, artifact: Artifact, version: str, capability: str | None) -> str | None:
    """Why an engine cannot run with the installed `version` of its builder and a GPU of this `capability`, or None.

    A `capability` of None skips the check of the GPU.
    """
    details = artifact.details
    builder, built_by = details.builder, details.builder_version
    if details.weights == "stripped":
        return (f"has no weights; restore them with: python -m dpt_deploy.build {bundle.folder} "
                f"--refit {bundle.folder}")
    if built_by != version and not (details.version_compatible and _not_older(version, built_by)):
        return (f"was built by {builder} {built_by}, and {version} is installed here; engines run only on the version "
                "that built them")
    built_for = details.compute_capability
    from_ampere_on = details.hardware_compatible and _not_older(capability, "8.0")
    if built_for and capability and built_for != capability and not from_ampere_on:
        return f"was built for a GPU of compute capability {built_for}, and this one has {capability}"
    graphs = bundle.find("onnx", graph=artifact.graph, precision=artifact.precision)
    if graphs and details.made_from and details.made_from not in [graph.sha256 for graph in graphs]:
        return f"was built from another graph than {graphs[0].file}, which was exported since"
    return None


def _not_older(version: str | None, than: str | None) -> bool:
    """Whether `version` is `than` or later. False if either is not a valid version."""
    try:
        return Version(version or "") >= Version(than or "")
    except InvalidVersion:
        return False
