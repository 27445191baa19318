"""training_samples/: one picture per epoch with a row per sample, prediction beside ground truth for each head."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch

from dpt_deploy.report.colours import colour_depth, colour_normals


def sample_picture(maps: dict[str, torch.Tensor], batch: dict[str, Any]) -> np.ndarray:
    """Draw image, prediction and ground truth.

    Args:
        maps: Some of depth (N, 1, H, W) [m], normals (N, 3, H, W), alpha (N, 1, H, W).
        batch: The samples, as from the data set.

    Returns:
        uint8 (rows, columns, 3) RGB: one row of images per sample, below a header.
    """
    image = batch["image"].permute(0, 2, 3, 1).cpu().numpy()
    predicted, truth = ({name: x[name].permute(0, 2, 3, 1).float().cpu().numpy() for name in maps}
                        for x in (maps, batch))
    columns: dict[str, Any] = {"image": image}
    if "depth" in maps:
        cover = batch["alpha"][:, 0].cpu().numpy()
        pairs = [_depth_pictures(*maps) for maps in zip(predicted["depth"], truth["depth"], cover, strict=True)]
        columns["depth"], columns["depth, truth"] = zip(*pairs, strict=True)
    for name, vectors in (("normals", predicted), ("normals, truth", truth)):
        if "normals" in maps:
            columns[name] = [colour_normals(unit) for unit in _unit(vectors["normals"])]
    for name, alpha in (("alpha", predicted), ("alpha, truth", truth)):
        if "alpha" in maps:
            columns[name] = np.repeat(np.rint(alpha["alpha"] * 255).astype(np.uint8), 3, axis=3)
    picture = np.concatenate([np.concatenate(list(column), axis=0) for column in columns.values()], axis=1)
    enlarge = max(1, 160 // image.shape[2])
    picture = picture.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    return np.concatenate((_header(list(columns), image.shape[2] * enlarge), picture), axis=0)


def _unit(normals: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) of unit length; 0 where there are none."""
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    return np.where(length > 1e-6, normals / np.maximum(length, 1e-6), 0)


def _depth_pictures(depth: np.ndarray, truth: np.ndarray, cover: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth and its ground truth (H, W, 1) [m] with the colour scale of the ground truth and 15 % on either side.

    The prediction is drawn where alpha `cover` (H, W) is above 0.5, the ground truth where it is known.
    """
    depth, truth = depth[..., 0], truth[..., 0]
    valid = truth > 0
    limits = (0.85 * float(truth[valid].min()), 1.15 * float(truth[valid].max())) if valid.any() else (0.0, 1.0)
    return (colour_depth(np.where(cover > 0.5, depth, np.nan), limits),
            colour_depth(np.where(valid, truth, np.nan), limits))


def _header(names: list[str], width: int) -> np.ndarray:
    scale = width / 340
    height = round(40 * scale) + 6
    header = np.full((height, width * len(names), 3), 255, np.uint8)
    for i, name in enumerate(names):
        at = (i * width + round(8 * scale), height - round(12 * scale) - 1)
        cv2.putText(header, name, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (40, 40, 40), 1, cv2.LINE_AA)
    return header
