"""What engines to build, and what each builder can do of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..backends.tensorrt_faults import REFIT_FAULT
from ..cli.options import BatchRange, SizeRange, size_text
from ..core.errors import BackendError, BadInput
from ..core.manifest import Weights

BuilderChoice = Literal["auto", "tensorrt", "tensorrt-rtx", "none"]


@dataclass(frozen=True)
class EngineOptions:
    """Which engines to build."""

    builder: BuilderChoice = "auto"
    """auto: TensorRT if it is installed and a GPU is visible, else TensorRT-RTX. none: skip building engines."""
    batch_range: BatchRange = (1, 8)
    """Smallest and largest batch that an engine accepts."""
    frame_size_range: SizeRange = ((64, 64), (2160, 3840))
    """Smallest and largest frame that an engine accepts."""
    weights: Weights = "fixed"
    """fixed: folded into the kernels. refittable: can be replaced without a rebuild, but slower. stripped: not in the
    file; --refit puts them back. With TensorRT-RTX, the last two need a visible GPU."""
    version_compatible: bool = False
    """TensorRT only: the engine also loads in later versions. It carries a lean runtime and can be slower."""
    hardware_compatible: bool = False
    """TensorRT only: one engine for every GPU from Ampere on. It can be slower."""
    timing_cache: bool = True
    """TensorRT only: keep the builder's kernel timings in the bundle, so that the next build is fast and the same."""

    def __post_init__(self) -> None:
        low, high = self.batch_range
        if not 1 <= low <= high:
            raise BadInput(f"--batch-range: expected 1 <= smallest <= largest, received {low},{high}.")
        (min_h, min_w), (max_h, max_w) = self.frame_size_range
        if min_h > max_h or min_w > max_w:
            received = ",".join(map(size_text, self.frame_size_range))
            raise BadInput(f"--frame-size-range: expected the smallest, then the largest, received {received}.")
        if self.weights not in ("fixed", "refittable", "stripped"):
            raise BadInput(f"--weights: expected fixed, refittable or stripped, received {self.weights!r}.")

    @property
    def variant(self) -> dict[str, str | bool]:
        """What makes the engine another one than the default; {} for the default."""
        chosen = {
            "weights": self.weights, "version_compatible": self.version_compatible,
            "hardware_compatible": self.hardware_compatible,
        }
        return {name: value for name, value in chosen.items() if value not in (False, "fixed")}


def check_builder(options: EngineOptions, builder: str, version: str, capability: str | None) -> None:
    """Raise `BackendError`, one sentence before anything is attempted, for what a builder cannot do here.

    `capability` is the GPU's compute capability such as "9.0", None where no GPU is visible.
    """
    if builder == "tensorrt-rtx":
        if options.version_compatible:
            raise BackendError("--version-compatible: TensorRT-RTX needs a lean library for it that its package does "
                               "not have; use --builder tensorrt, or leave the option out.")
        if options.hardware_compatible:
            raise BackendError("--hardware-compatible: leave it out; a TensorRT-RTX engine is finished on the GPU that "
                               "runs it, so one file serves every GPU that it supports.")
        if options.weights != "fixed" and capability is None:
            raise BackendError(f"--weights {options.weights}: TensorRT-RTX builds such an engine only where a GPU is "
                               "visible, and none is; build on the GPU machine, or use --weights fixed.")
    elif builder == "tensorrt":
        if options.hardware_compatible and capability is not None and _number(capability) < (8, 0):
            raise BackendError(f"--hardware-compatible: TensorRT builds such engines on Ampere and newer GPUs (compute "
                               f"capability 8.0), and this one has {capability}; leave the option out.")
        if options.weights == "refittable" and _number(version)[:2] == REFIT_FAULT:
            raise BackendError(f"--weights refittable: TensorRT {version} may lose biases in refittable engines, as "
                               "its own documentation says; install 11.4 or newer, or use --weights fixed or stripped.")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
