"""training_samples/: one picture per epoch, a row per sample, prediction beside truth for each head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from dpt_deploy.core.files import replacing


def sample_picture(maps: dict[str, torch.Tensor], batch: dict[str, Any]) -> np.ndarray:
    """uint8 (rows, columns, 3) RGB: image, then prediction and truth of each head in `maps`.

    `maps` with depth (N, 1, H, W) [m], normals (N, 3, H, W), alpha (N, 1, H, W); `batch` as the
    dataset's.
    """
    image = batch["image"].permute(0, 2, 3, 1).cpu().numpy()
    columns = {"image": image}
    if "depth" in maps:
        truth, depth = (x[:, 0].float().cpu().numpy() for x in (batch["depth"], maps["depth"]))
        columns["depth"], columns["depth, truth"] = _depth_pictures(depth, truth, batch["alpha"][:, 0].cpu().numpy())
    if "normals" in maps:
        truth, normals = (x.permute(0, 2, 3, 1).float().cpu().numpy() for x in (batch["normals"], maps["normals"]))
        columns["normals"], columns["normals, truth"] = normal_picture(normals), normal_picture(truth)
    if "alpha" in maps:
        for name, alpha in (("alpha", maps["alpha"]), ("alpha, truth", batch["alpha"])):
            grey = np.rint(alpha[:, 0].float().cpu().numpy() * 255).astype(np.uint8)
            columns[name] = np.repeat(grey[..., None], 3, axis=3)
    picture = np.concatenate([np.concatenate(list(column), axis=0) for column in columns.values()], axis=1)
    enlarge = max(1, 160 // image.shape[2])
    picture = picture.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    return np.concatenate((_header(list(columns), image.shape[2] * enlarge), picture), axis=0)


def normal_picture(normals: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) -> uint8: red to the right, green up, blue towards the viewer; grey where there are none."""
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    unit = np.where(length > 1e-6, normals / np.maximum(length, 1e-6), 0)
    return np.rint((unit + 1) * 127.5).astype(np.uint8)


def _depth_pictures(depth: np.ndarray, truth: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with one colour scale per sample, that of the truth and 15 % around; near is bright, none is black."""
    pictures = ([], [])
    for predicted, true, cover in zip(depth, truth, alpha, strict=True):
        valid = true > 0
        near, far = (0.85 * float(true[valid].min()), 1.15 * float(true[valid].max())) if valid.any() else (0.0, 1.0)
        for target, values, shown in ((pictures[0], predicted, cover > 0.5), (pictures[1], true, valid)):
            level = np.clip((far - values) / (far - near), 0, 1)
            coloured = cv2.applyColorMap(np.rint(level * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
            target.append(coloured * shown[..., None])
    return np.stack(pictures[0]), np.stack(pictures[1])


def _header(names: list[str], width: int) -> np.ndarray:
    scale = width / 340
    height = round(40 * scale) + 6
    header = np.full((height, width * len(names), 3), 255, np.uint8)
    for i, name in enumerate(names):
        at = (i * width + round(8 * scale), height - round(12 * scale) - 1)
        cv2.putText(header, name, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (40, 40, 40), 1, cv2.LINE_AA)
    return header


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write uint8 RGB as PNG, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
