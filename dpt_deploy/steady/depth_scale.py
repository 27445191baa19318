"""Scale and shift of depth from one frame to the next.

A network that sees single frames guesses the scale of a scene anew for each, and its guesses differ. Within a shot the
scale is held: a frame's depth is fitted to that of the frame before, which is first brought nearer or farther by as
much as the picture of the foreground has grown or shrunk.
"""

from __future__ import annotations

import cv2
import numpy as np

from .flow import Flow

FEWEST = 64  # pixels to fit to
FLAT = 0.03  # of the depth: with less relief than this, a scale is hardly told from a shift
POINTS = 400  # of the fit of the growth
MOST_GROWTH = 1.05  # from frame to frame


def growth(flow: Flow, weight: np.ndarray) -> float:
    """How much larger the foreground is than in the frame before, from 1 / `MOST_GROWTH` to `MOST_GROWTH`.

    At a fixed focal length, depth shrinks by that factor (Lee, "A theory of visual control of braking based on
    information about time-to-collision", Perception 1976).
    """
    rows, columns = np.nonzero(weight > 0.7)
    if len(rows) < FEWEST:
        return 1.0
    chosen = np.linspace(0, len(rows) - 1, POINTS).astype(int)
    rows, columns = rows[chosen], columns[chosen]
    here = np.stack((columns, rows), axis=1).astype(np.float32)
    similarity, _ = cv2.estimateAffinePartial2D(here, here + flow.motion[rows, columns], ransacReprojThreshold=1.0)
    if similarity is None:
        return 1.0
    factor = 1 / max(float(np.hypot(similarity[0, 0], similarity[1, 0])), 1e-6)
    return min(max(factor, 1 / MOST_GROWTH), MOST_GROWTH)


def scale_and_shift(depth: np.ndarray, wanted: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Scale from 0.5 to 2 and shift [m] that bring `depth` nearest to `wanted`, by weighted least squares.

    All are (H, W). Where the depth has little relief, the scale is drawn to the ratio of the means. (1, 0) if fewer
    than `FEWEST` pixels count.
    """
    total = float(weight.sum())
    if total < FEWEST:
        return 1.0, 0.0
    mean, target = float((weight * depth).sum()) / total, float((weight * wanted).sum()) / total
    if mean <= 0 or target <= 0:
        return 1.0, 0.0
    variance = float((weight * (depth - mean) ** 2).sum()) / total
    covariance = float((weight * (depth - mean) * (wanted - target)).sum()) / total
    floor = (FLAT * mean) ** 2
    scale = min(max((covariance + floor * target / mean) / (variance + floor), 0.5), 2.0)
    return scale, target - scale * mean
