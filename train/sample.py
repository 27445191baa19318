"""One sample: image and truth at one size, and how they reach the network's input together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from dpt_deploy.contract import Contract


@dataclass(frozen=True)
class Sample:
    """Image and truth, all at the same size (H, W)."""

    name: str
    """The sample's number as it stands in the file names."""
    kind: str
    """face, full_body or upper_body."""
    rgb: np.ndarray
    """uint8 (H, W, 3)."""
    depth: np.ndarray
    """float32 (H, W): z-depth [m]; 0 where there is none."""
    normals: np.ndarray
    """float32 (H, W, 3): unit vectors, x right, y up, z towards the viewer; 0 where there are none."""
    alpha: np.ndarray
    """float32 (H, W): coverage in [0, 1]."""
    intrinsics: np.ndarray
    """float64 (3, 3) [pixels]; a pixel's centre is its index plus one half."""
    inside: np.ndarray | None = None
    """bool (H, W): False in padding, which no loss sees; None where there is none."""


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """The window of `sample` at (top, left).

    Beyond the image, its edge pixels repeat, `inside` is False, and there are no depth and normals.
    """
    h, w = sample.alpha.shape
    rows, columns = np.arange(top, top + height), np.arange(left, left + width)
    window = np.ix_(rows.clip(0, h - 1), columns.clip(0, w - 1))
    within = ((rows >= 0) & (rows < h))[:, None] & ((columns >= 0) & (columns < w))[None, :]
    inside = within if sample.inside is None else within & sample.inside[window]
    intrinsics = sample.intrinsics.copy()
    intrinsics[:2, 2] -= (left, top)
    return replace(
        sample, rgb=sample.rgb[window], depth=sample.depth[window] * within,
        normals=sample.normals[window] * within[..., None], alpha=sample.alpha[window], intrinsics=intrinsics,
        inside=None if inside.all() else inside,
    )


def to_network(sample: Sample, contract: Contract) -> Sample:
    """`sample` at the contract's input size, by its resize rule and filter.

    Depth is averaged over valid pixels only and stays z-depth in metres; normals are renormalised;
    intrinsics follow; letterbox padding repeats the image's edge and is not `inside`.
    """
    if sample.alpha.shape == contract.input_size:
        return sample
    box = contract.content_box(sample.alpha.shape)
    h, w = sample.alpha.shape
    inside = np.ones((h, w), bool) if sample.inside is None else sample.inside
    has_depth = (sample.depth > 0) & inside
    facing = sample.normals * inside[..., None]
    maps = np.concatenate((
        sample.rgb, (sample.depth * has_depth)[..., None], has_depth[..., None], facing,
        (np.abs(facing).sum(axis=2) > 0)[..., None], sample.alpha[..., None], inside[..., None],
    ), axis=2, dtype=np.float32)  # (H, W, 10)
    stacked = torch.from_numpy(maps).permute(2, 0, 1)[None]
    small = F.interpolate(stacked, (box.height, box.width), mode="bilinear", antialias=True, align_corners=False)
    rgb, depth, valid, normals, facing_share, alpha, within = np.split(
        small[0].permute(1, 2, 0).contiguous().numpy(), (3, 4, 5, 8, 9, 10), axis=2
    )
    length = np.linalg.norm(normals, axis=2, keepdims=True)
    normals = np.where((facing_share > 0.5) & (length > 1e-3), normals / np.maximum(length, 1e-12), 0)
    depth = np.where(valid > 0.5, depth / np.maximum(valid, 1e-12), 0)
    resized = replace(
        sample, rgb=np.clip(np.rint(rgb), 0, 255).astype(np.uint8), depth=depth[..., 0].astype(np.float32),
        normals=normals.astype(np.float32), alpha=alpha[..., 0], inside=within[..., 0] > 0.999,
        intrinsics=np.diag((box.width / w, box.height / h, 1.0)) @ sample.intrinsics,
    )
    return crop(resized, -box.top, -box.left, *contract.input_size)
