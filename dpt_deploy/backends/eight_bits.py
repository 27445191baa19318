"""What the backends on a processor say about eight-bit graphs."""

from __future__ import annotations

from ..core import processor
from ..core.manifest import EIGHT_BITS, Artifact

FP8_NOTE = "checks FP8 rounding, but not a GPU's FP8 kernels: products and sums are in FP32"


def is_eight_bit(artifact: Artifact) -> bool:
    """Whether a graph has eight-bit operands or weights."""
    return artifact.precision in EIGHT_BITS


def weights_only(artifact: Artifact) -> bool:
    """Whether only the weights of a graph are in eight bits, so that its products are not."""
    plan = getattr(artifact.details, "plan", None)
    return plan is not None and plan.weights_only


def session_note(artifact: Artifact, not_in_int8: str = "") -> str:
    """In what an eight-bit graph computes on this processor, for `Session.note`. Empty for another graph.

    `not_in_int8` says what of the quantized layers a backend computes in FP32.
    """
    if not is_eight_bit(artifact):
        return ""
    if weights_only(artifact):
        return f"with {artifact.precision.upper()} weights, in FP32"
    if artifact.precision == "fp8":
        return "with values rounded to FP8, in FP32"
    return f"in INT8{f', {not_in_int8} in FP32' if not_in_int8 else ''}; {processor.eight_bit_summary()}"


def stage_notes(artifact: Artifact) -> tuple[str, ...]:
    """Limitations of a pass of an eight-bit graph on this processor. None for another graph."""
    if not is_eight_bit(artifact) or weights_only(artifact):
        return ()
    if artifact.precision == "fp8":
        return (FP8_NOTE,)
    units = processor.eight_bit_units()
    if not processor.is_x86() or not (units or processor.may_saturate()):
        return ()
    judge = f"with {' and '.join(units)}" if units else "without VNNI"
    return (f"judged on a processor {judge}; results differ between processors with and without VNNI, because 8-bit "
            "products may saturate in 16 bits without it",)
