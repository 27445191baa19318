"""Options for building engines, and which of them each builder supports."""

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
    """Which engines to build, and with which builder."""

    builder: BuilderChoice = "auto"
    """auto: TensorRT if it is installed and a GPU is visible, else TensorRT-RTX. none: skip building engines."""
    batch_range: BatchRange = (1, 8)
    """Smallest and largest batch size that an engine accepts."""
    frame_size_range: SizeRange = ((64, 64), (2160, 3840))
    """Smallest and largest frame that an engine accepts."""
    weights: Weights = "fixed"
    """fixed: weights are part of the engine. refittable: they can be replaced without a rebuild; slower. stripped:
    the file has no weights, and --refit restores them. With TensorRT-RTX, the last two need a visible GPU."""
    version_compatible: bool = False
    """TensorRT only: the engine also loads in later versions. It contains a lean runtime and can be slower."""
    hardware_compatible: bool = False
    """TensorRT only: one engine for all GPUs from Ampere on. It can be slower."""
    turing: bool = False
    """TensorRT-RTX only: build for Turing GPUs (compute capability 7.5) alone, which other engines do not run on."""
    timing_cache: bool = True
    """TensorRT only: keep the timing cache in the bundle, so that the next build is faster and reproducible."""

    def __post_init__(self) -> None:
        low, high = self.batch_range
        if not 1 <= low <= high:
            raise BadInput(f"--batch-range: expected 1 <= smallest <= largest, received {low},{high}.")
        (min_h, min_w), (max_h, max_w) = self.frame_size_range
        if min_h > max_h or min_w > max_w:
            received = ",".join(map(size_text, self.frame_size_range))
            raise BadInput(f"--frame-size-range: expected smallest,largest, received {received}.")
        if self.weights not in ("fixed", "refittable", "stripped"):
            raise BadInput(f"--weights: expected fixed, refittable or stripped, received {self.weights!r}.")

    @property
    def variant(self) -> dict[str, str | bool]:
        """The options that change the kind of engine and are not the default."""
        values = {name: getattr(self, name)
                  for name in ("weights", "version_compatible", "hardware_compatible", "turing")}
        return {name: value for name, value in values.items() if value not in (False, "fixed")}


def check_builder(options: EngineOptions, builder: str, version: str, capability: str | None) -> None:
    """Check that a builder supports the options on this machine.

    Args:
        options: The requested engines.
        builder: Name of the builder, tensorrt or tensorrt-rtx.
        version: Version of the builder, such as "11.4.1".
        capability: Compute capability of the GPU, such as "9.0"; None if no GPU is visible.

    Raises:
        BackendError: An option is not supported; the message says what to do instead.
    """
    if builder == "tensorrt-rtx":
        if options.version_compatible:
            raise BackendError("--version-compatible: TensorRT-RTX needs a lean library that its Python package does "
                               "not include; use --builder tensorrt, or omit the option.")
        if options.hardware_compatible:
            raise BackendError("--hardware-compatible: omit the option; a TensorRT-RTX engine is compiled on the GPU "
                               "that runs it, so the same file works on every GPU that it supports.")
        if options.weights != "fixed" and capability is None:
            raise BackendError(f"--weights {options.weights}: TensorRT-RTX builds such engines only if a GPU is "
                               "visible, and none is; build on the GPU machine, or use --weights fixed.")
    elif builder == "tensorrt":
        if options.turing:
            raise BackendError("--turing: omit the option; TensorRT builds for the GPU of this machine.")
        if options.hardware_compatible and capability is not None and _number(capability) < (8, 0):
            raise BackendError(f"--hardware-compatible: expected a GPU of compute capability 8.0 (Ampere) or higher, "
                               f"received {capability}; omit the option.")
        if options.weights == "refittable" and _number(version)[:2] == REFIT_FAULT:
            raise BackendError(f"--weights refittable: TensorRT {version} can lose biases in refittable engines, a "
                               "documented defect; install 11.4 or newer, or use --weights fixed or stripped.")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
