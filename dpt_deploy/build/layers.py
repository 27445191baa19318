"""The layers of a parsed network, as the certificate sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FLOATS = ("HALF", "BF16", "FLOAT")
MAX_NAMES_SHOWN = 4


@dataclass(frozen=True)
class Layer:
    """One layer of a parsed network, independent of the builder's objects."""

    name: str
    kind: str
    """The builder's LayerType, such as MATRIX_MULTIPLY."""
    dtype: str
    """Type of the first output, such as HALF; for attention, of the first input."""
    inputs: tuple[str, ...] = ()
    """Names of the input tensors."""
    outputs: tuple[str, ...] = ()
    is_size: bool = False
    """Whether it computes shapes instead of maps."""
    decomposable: bool = False
    """For attention: whether the builder may use separate kernels instead of a fused one."""

    @property
    def computes(self) -> bool:
        """Whether it computes on floating-point maps."""
        return (self.dtype in FLOATS and not self.is_size
                and self.kind not in ("CONSTANT", "CAST", "DEQUANTIZE", "SHAPE"))

    @property
    def node(self) -> str:
        """Name of the ONNX node that it was parsed from."""
        return self.name.removesuffix("_AttentionInput").removesuffix("_AttentionOutput")


def shorten(names: Sequence[str]) -> str:
    """The first names of a list, and how many more it has."""
    more = len(names) - MAX_NAMES_SHOWN
    return ", ".join(names[:MAX_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
