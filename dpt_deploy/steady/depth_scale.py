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
OUTLIER = 0.25
POINTS = 400  # of the fit of the growth
AGREEING = 0.5  # share of the points that move alike, below which nothing is said
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
    similarity, agree = cv2.estimateAffinePartial2D(here, here + flow.motion[rows, columns], ransacReprojThreshold=1.0)
    if similarity is None or agree.mean() < AGREEING:
        return 1.0
    factor = 1 / max(float(np.hypot(similarity[0, 0], similarity[1, 0])), 1e-6)
    return min(max(factor, 1 / MOST_GROWTH), MOST_GROWTH)


def scale_and_shift(depth: np.ndarray, wanted: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Scale from 0.5 to 2 and shift [m] that bring `depth` nearest to `wanted`, by weighted least squares.

    All are (H, W). Pixels that differ from the median ratio by more than `OUTLIER` do not count: they show another
    surface. Where the depth has little relief, the scale is drawn to the ratio of the means. (1, 0) if fewer than
    `FEWEST` pixels count.
    """
    chosen = (weight > 0) & (depth > 0) & (wanted > 0)
    x, y, w = depth[chosen], wanted[chosen], weight[chosen]
    if w.sum() < FEWEST:
        return 1.0, 0.0
    ratio = y / x
    w = w * (abs(ratio / np.median(ratio) - 1) < OUTLIER)
    total = float(w.sum())
    if total < FEWEST:
        return 1.0, 0.0
    mean, target = float((w * x).sum()) / total, float((w * y).sum()) / total
    variance = float((w * (x - mean) ** 2).sum()) / total
    covariance = float((w * (x - mean) * (y - target)).sum()) / total
    floor = (FLAT * mean) ** 2
    scale = min(max((covariance + floor * target / mean) / (variance + floor), 0.5), 2.0)
    return scale, target - scale * mean
