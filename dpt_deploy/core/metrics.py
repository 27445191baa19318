"""Per-head errors in the units of the task, for parity and for training (float64).

Maps are (H, W) or (H, W, 3). No pixel at all gives NaN, which every budget refuses.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

# What the parity of each head measures; a budget may limit any of it.
PARITY = {
    "depth": ("abs_rel", "p99.9", "max", "within_1_percent"), "normals": ("mean", "p99", "max"),
    "alpha": ("mean", "max", "iou"),
}
EITHER_WAY = 1e-2  # the largest difference of coverage within the FP16 budget


def relative_depth_error(depth: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """|depth - reference| / reference, per pixel, float64."""
    reference = reference.astype(np.float64)
    return np.abs(depth.astype(np.float64) - reference) / np.maximum(np.abs(reference), 1e-12)


def angle(normals: Any, reference: Any) -> Any:
    """Angle between vectors (..., 3), in degrees, float64 (...); NumPy arrays, or PyTorch tensors of one device.

    atan2(|a x b|, a . b) in float64: arccos in float32 gives 0.007 degrees between identical vectors.
    """
    xp = np if isinstance(normals, np.ndarray) else sys.modules["torch"]  # the tensor's own library is loaded
    a, b = (xp.asarray(vectors, dtype=xp.float64) for vectors in (normals, reference))
    (ax, ay, az), (bx, by, bz) = ([vectors[..., i] for i in range(3)] for vectors in (a, b))
    x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    return xp.rad2deg(xp.arctan2(xp.sqrt(x * x + y * y + z * z), ax * bx + ay * by + az * bz))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Logistic function in float64, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64)))


def iou(alpha: Any, reference: Any, threshold: float = 0.5) -> float:
    """Intersection over union of alpha > threshold; 1 if both are empty. NumPy arrays or PyTorch tensors."""
    a, b = alpha > threshold, reference > threshold
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def depth_summary(error: np.ndarray) -> dict[str, float]:
    """AbsRel, 99.9th percentile and maximum of relative errors, and the share of pixels within 1 %."""
    if error.size == 0:
        return dict.fromkeys(PARITY["depth"], float("nan"))
    return {
        "abs_rel": float(error.mean()),
        "p99.9": float(np.percentile(error, 99.9)),
        "max": float(error.max()),
        "within_1_percent": float((error < 0.01).mean()),
    }


def normal_summary(error: np.ndarray) -> dict[str, float]:
    """Mean, 99th percentile and maximum of angles [degrees]."""
    if error.size == 0:
        return dict.fromkeys(PARITY["normals"], float("nan"))
    return {"mean": float(error.mean()), "p99": float(np.percentile(error, 99)), "max": float(error.max())}


def alpha_parity(alpha: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Mean and maximum absolute difference of coverage, and IoU at 0.5 of the pixels that are sure.

    A pixel whose reference lies within `EITHER_WAY` of 0.5 may fall to either side within the budget of `max`: two
    of them would break an IoU of 0.999 on a foreground of 2,000 pixels, so that the IoU sets them aside.
    """
    reference = reference.astype(np.float64)
    error, sure = np.abs(alpha.astype(np.float64) - reference), np.abs(reference - 0.5) > EITHER_WAY
    return {"mean": float(error.mean()), "max": float(error.max()), "iou": iou(alpha[sure], reference[sure])}
