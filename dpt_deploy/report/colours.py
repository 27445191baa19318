"""Maps as colours: depth, normals, alpha and errors as uint8 (H, W, 3) RGB pictures."""

from __future__ import annotations

import cv2
import numpy as np


def depth_range(depth: np.ndarray, alpha: np.ndarray | None = None) -> tuple[float, float]:
    """The depths (near, far) [m] that the colours span: the 1st to the 99th percentile, far above near.

    Args:
        depth: (H, W) [m].
        alpha: (H, W) in [0, 1]. Only the foreground (alpha above 0.5) counts, if there is any.
    """
    values = depth[np.isfinite(depth)]
    if alpha is not None and (alpha > 0.5).any():
        values = depth[(alpha > 0.5) & np.isfinite(depth)]
    if values.size == 0:
        return 0.0, 1.0
    near, far = (float(value) for value in np.percentile(values, (1, 99)))
    return near, max(far, near + max(1e-3, 1e-6 * abs(near)))  # 0.001 is nothing beside 1e20


def colour_depth(depth: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Depth (H, W) [m] in colours that span `limits` (near, far): near is bright, far is dark, not finite is black."""
    near, far = limits
    nearness = np.clip((far - np.nan_to_num(depth, nan=far, posinf=far)) / (far - near), 0, 1)
    picture = cv2.applyColorMap((nearness * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    return np.where(np.isfinite(depth)[..., None], picture, 0).astype(np.uint8)


def colour_normals(normals: np.ndarray) -> np.ndarray:
    """Normals (H, W, 3) in [-1, 1]: red is right, green is up, blue is towards the viewer."""
    return (np.clip(np.nan_to_num(normals) * 0.5 + 0.5, 0, 1) * 255 + 0.5).astype(np.uint8)


def colour_alpha(alpha: np.ndarray) -> np.ndarray:
    """Alpha (H, W) in [0, 1]: white is foreground, black is background."""
    return (np.clip(np.nan_to_num(alpha), 0, 1)[..., None].repeat(3, axis=2) * 255).astype(np.uint8)


def cut_out(image: np.ndarray, alpha: np.ndarray, square: int = 12) -> np.ndarray:
    """The foreground of an image over a checkerboard.

    Args:
        image: uint8 (H, W, 3) RGB.
        alpha: (H, W) in [0, 1].
        square: Side of a square of the checkerboard [pixels].
    """
    y, x = np.indices(alpha.shape) // square
    board = np.where((x + y) % 2, 200, 240)[..., None]
    weight = np.clip(np.nan_to_num(alpha), 0, 1)[..., None]
    return (image * weight + board * (1 - weight) + 0.5).astype(np.uint8)


def colour_error(error: np.ndarray, top: float) -> np.ndarray:
    """Error (H, W) >= 0: black is 0, white is `top`, magenta is not finite."""
    level = (np.clip(np.nan_to_num(error, posinf=top) / max(top, 1e-30), 0, 1) * 255).astype(np.uint8)
    picture = cv2.applyColorMap(level, cv2.COLORMAP_HOT)[..., ::-1].copy()
    picture[~np.isfinite(error)] = (255, 0, 255)
    return picture
