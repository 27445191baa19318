"""The maps of one head and image, for reports."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .verdict import StageId


@dataclass(frozen=True, eq=False)
class Exhibit:
    """The maps of one head and image from a stage and the reference."""

    stage: StageId
    head: str
    share: float
    """The fraction of its budget that the worst metric of this head and image uses. Infinite for an invalid map."""
    image: str
    """Name of the parity input."""
    frame: np.ndarray
    """The parity input, uint8 (H, W, 3) RGB."""
    want: np.ndarray
    """The reference map, (H, W) or (H, W, 3)."""
    have: np.ndarray
    """The stage's map, of the same shape."""
    alpha: np.ndarray | None = None
    """The reference alpha of the image, (H, W). None if the bundle has no alpha head."""
    metric_depth: bool = True
    """Whether depth is in metres."""
