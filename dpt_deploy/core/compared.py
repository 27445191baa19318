"""How much a stage of the parity verdict compared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Compared:
    """How much a stage compared."""

    images: int = 0
    """Parity inputs whose maps were measured."""
    heads: int = 0
    """Heads that were measured."""
    pixels: int = 0
    """Pixels that were measured, summed over images and heads. Depth and normals count in the foreground."""
    tensors: int = 0
    """Weight tensors, for a stage that compares weights."""

    def __post_init__(self) -> None:
        if min(self.images, self.heads, self.pixels, self.tensors) < 0:
            raise ValueError(f"expected counts from 0, received {self}")

    @property
    def nothing(self) -> bool:
        """Whether nothing was compared."""
        return not self.tensors and not (self.images and self.heads and self.pixels)
