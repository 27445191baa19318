"""Per-head error metrics for parity and training, in float64.

Maps are (H, W) or (H, W, 3). An empty set of pixels gives NaN, which exceeds every budget.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

# The parity metrics of each head. A budget may limit any of them.
PARITY = {
    "depth": ("abs_rel", "p99.9", "max", "within_1_percent"), "normals": ("mean", "p99", "max"),
    "alpha": ("mean", "max", "iou"),
}
AT_LEAST = ("iou", "within_1_percent")  # metrics with a lower bound
IOU_MARGIN = 1e-2  # the FP16 budget of the maximum alpha difference


def relative_depth_error(depth: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """|depth - reference| / |reference| per pixel, float64."""
    reference = reference.astype(np.float64)
    return np.abs(depth.astype(np.float64) - reference) / np.maximum(np.abs(reference), 1e-12)


def ranged_depth_error(depth: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """|depth - reference| per pixel as a fraction of the range of the reference, float64: for depth without unit.

    A range below a thousandth of the largest value counts as that: a uniform map has none.
    """
    reference = reference.astype(np.float64)
    span = max(float(np.ptp(reference)), 1e-3 * float(abs(reference).max()), 1e-12)
    return np.abs(depth.astype(np.float64) - reference) / span


def angle(normals: Any, reference: Any) -> Any:
    """Angle between vectors (..., 3) in degrees, float64 (...), for NumPy arrays or PyTorch tensors.

    Computed as atan2(|a x b|, a . b), because arccos in float32 gives 0.007 degrees for identical vectors.
    """
    xp = np if isinstance(normals, np.ndarray) else sys.modules["torch"]  # tensors imply that PyTorch is imported
    a, b = (xp.asarray(vectors, dtype=xp.float64) for vectors in (normals, reference))
    (ax, ay, az), (bx, by, bz) = ([vectors[..., i] for i in range(3)] for vectors in (a, b))
    x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    dot = ax * bx + ay * by + az * bz + 0.0  # of zero vectors, -0 would give 180 degrees
    return xp.rad2deg(xp.arctan2(xp.sqrt(x * x + y * y + z * z), dot))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Logistic function in float64, computed without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64)))


def iou(alpha: Any, reference: Any, threshold: float = 0.5) -> float:
    """Intersection over union of alpha > threshold, 1 if both are empty, for NumPy arrays or PyTorch tensors."""
    a, b = alpha > threshold, reference > threshold
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def depth_summary(error: np.ndarray) -> dict[str, float]:
    """AbsRel, 99.9th percentile and maximum of relative errors, and the fraction of pixels below 1 %."""
    if error.size == 0:
        return dict.fromkeys(PARITY["depth"], float("nan"))
    return {
        "abs_rel": float(error.mean()),
        "p99.9": float(np.percentile(error, 99.9)),
        "max": float(error.max()),
        "within_1_percent": float((error < 0.01).mean()),
    }


def normal_summary(error: np.ndarray) -> dict[str, float]:
    """Mean, 99th percentile and maximum of angular errors [degrees]."""
    if error.size == 0:
        return dict.fromkeys(PARITY["normals"], float("nan"))
    return {"mean": float(error.mean()), "p99": float(np.percentile(error, 99)), "max": float(error.max())}


def alpha_parity(alpha: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Mean and maximum absolute difference of alpha, and IoU at a threshold of 0.5.

    The IoU ignores pixels whose reference is within `IOU_MARGIN` of 0.5. They can cross the threshold within the
    budget of `max`, and two of them reduce the IoU of a foreground of 2,000 pixels below 0.999.
    """
    reference = reference.astype(np.float64)
    error, sure = np.abs(alpha.astype(np.float64) - reference), np.abs(reference - 0.5) > IOU_MARGIN
    return {"mean": float(error.mean()), "max": float(error.max()), "iou": iou(alpha[sure], reference[sure])}


def error_map(head: str, have: np.ndarray, want: np.ndarray, metric_depth: bool = True) -> np.ndarray:
    """Error per pixel, float64 (H, W): relative for depth, in degrees for normals, absolute for alpha.

    Without `metric_depth`, errors of depth are fractions of the range of the map.
    """
    if head == "depth":
        return relative_depth_error(have, want) if metric_depth else ranged_depth_error(have, want)
    if head == "normals":
        return angle(have, want)
    return np.abs(have.astype(np.float64) - want.astype(np.float64))


def within(metric: str, value: float, bound: float) -> bool:
    """Whether a metric is within its limit. NaN never is."""
    return value >= bound if metric in AT_LEAST else value <= bound


def foreground(want: dict[str, np.ndarray]) -> np.ndarray | None:
    """The mask for depth and normals: reference alpha above 0.5. None, for all pixels, if that is empty."""
    mask = want["alpha"] > 0.5 if "alpha" in want else None
    return mask if mask is not None and mask.any() else None


def parity(
    want: dict[str, np.ndarray], have: dict[str, np.ndarray], metric_depth: bool = True
) -> Iterator[tuple[str, dict[str, float], np.ndarray]]:
    """Per head: its name, its parity metrics, and the errors of the masked pixels.

    Args:
        want: The maps of the reference: depth (H, W), normals (H, W, 3), alpha (H, W), or some of them.
        have: The maps to judge, at least those of `want`.
        metric_depth: As for `error_map`.
    """
    mask = foreground(want)
    for head, reference in want.items():
        error = error_map(head, have[head], reference, metric_depth)
        if head == "alpha":
            yield head, alpha_parity(have[head], reference), error
        else:
            counted = error if mask is None else error[mask]
            yield head, (depth_summary if head == "depth" else normal_summary)(counted), counted
