"""How much maps flicker: their change from frame to frame along the motion of what they show."""

from __future__ import annotations

import numpy as np

from ..core.metrics import error_map
from .flow import warp


def flicker(head: str, now: np.ndarray, before: np.ndarray, motion: np.ndarray, counted: np.ndarray) -> float:
    """Mean difference between a map and the map of the frame before, warped to the same points.

    It contains the change that is real, as of the depth of a person who comes nearer, and what the warp interpolates at
    edges. Compare it with that of the true maps, where they are known.

    Args:
        head: depth (relative difference), normals (degrees) or alpha (absolute difference).
        now: The map, float32 (H, W) or (H, W, 3).
        before: That of the frame before.
        motion: float32 (H, W, 2), x and y [pixels]: from a pixel to where its point was in the frame before; the true
            one if it is known, else that of `flow.Tracker`.
        counted: bool (H, W): the pixels that count, which were visible in the frame before.

    Returns:
        The mean over these pixels; NaN if there are none.
    """
    if not counted.any():
        return float("nan")
    moved = warp(np.ascontiguousarray(before, np.float32), motion)
    return float(error_map(head, moved[counted], now[counted]).mean())
