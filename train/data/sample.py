"""One sample: image and ground truth of the same size, cropped and resized together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from dpt_deploy.core.contract import Contract


@dataclass(frozen=True)
class Sample:
    """Image and ground truth, all of the same size (H, W)."""

    name: str
    """The sample's number, as in its file names."""
    kind: str
    """face, full_body or upper_body."""
    rgb: np.ndarray
    """uint8 (H, W, 3)."""
    depth: np.ndarray
    """float32 (H, W): z-depth [m]; 0 where it is unknown."""
    normals: np.ndarray
    """float32 (H, W, 3): unit vectors, x right, y up, z towards the viewer; 0 where they are unknown."""
    alpha: np.ndarray
    """float32 (H, W): coverage in [0, 1]."""
    intrinsics: np.ndarray
    """float64 (3, 3) [pixels]; the centre of a pixel is its index plus one half."""
    inside: np.ndarray | None = None
    """bool (H, W): False in padding, which losses and metrics ignore; None without padding."""


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """Cut out a window, which may reach beyond the image but must overlap it.

    Beyond the image, edge pixels are repeated, `inside` is False, and depth and normals are unknown. `top` and `left`
    may be negative.
    """
    h, w = sample.alpha.shape
    rows, columns = slice(max(top, 0), min(top + height, h)), slice(max(left, 0), min(left + width, w))
    # Padding above, below, left and right of the image; 0 if the window lies within it.
    margins = rows.start - top, top + height - rows.stop, columns.start - left, left + width - columns.stop
    inside = sample.inside
    if inside is None and any(margins):
        inside = np.ones((h, w), bool)

    def window(values: np.ndarray, border: int = cv2.BORDER_CONSTANT) -> np.ndarray:
        values = values[rows, columns]
        if not any(margins):
            return values
        return cv2.copyMakeBorder(np.ascontiguousarray(values), *margins, border, value=0)

    intrinsics = sample.intrinsics.copy()
    intrinsics[:2, 2] -= (left, top)
    return replace(
        sample, rgb=window(sample.rgb, cv2.BORDER_REPLICATE), depth=window(sample.depth),
        normals=window(sample.normals), alpha=window(sample.alpha, cv2.BORDER_REPLICATE), intrinsics=intrinsics,
        inside=None if inside is None else window(inside.view(np.uint8)).view(bool),
    )


def to_network(sample: Sample, contract: Contract) -> Sample:
    """Resize a sample to the network's input size, by the contract's rule; one of that size is returned unchanged.

    Depth is averaged over valid pixels only and stays z-depth in metres. Normals are renormalised and intrinsics
    rescaled. Letterbox padding repeats the edge of the image and is not `inside`.
    """
    if sample.alpha.shape == contract.input_size:
        return sample
    box = contract.content_box(sample.alpha.shape)
    h, w = sample.alpha.shape
    depth, normals = sample.depth, sample.normals
    if sample.inside is not None:
        depth, normals = depth * sample.inside, normals * sample.inside[..., None]
    x, y, z = normals.transpose(2, 0, 1)
    planes = [*sample.rgb.transpose(2, 0, 1), sample.alpha, depth, depth > 0, x, y, z, (x != 0) | (y != 0) | (z != 0)]
    if sample.inside is not None:
        planes.append(sample.inside)
    small = resized(planes, box.height, box.width)
    rgb, alpha, depth, valid, normals, facing = small[:3], small[3], small[4], small[5], small[6:9], small[9]
    length = np.sqrt((normals**2).sum(axis=0))
    normals *= ((facing > 0.5) & (length > 1e-3)) / np.maximum(length, np.float32(1e-12))
    depth *= (valid > 0.5) / np.maximum(valid, np.float32(1e-12))
    resized_sample = replace(
        sample, rgb=np.ascontiguousarray(np.rint(rgb).astype(np.uint8).transpose(1, 2, 0)), depth=depth,
        normals=normals.transpose(1, 2, 0), alpha=alpha, inside=None if sample.inside is None else small[10] > 0.999,
        intrinsics=np.diag((box.width / w, box.height / h, 1.0)) @ sample.intrinsics,
    )
    if (box.height, box.width) == contract.input_size:
        return resized_sample
    return crop(resized_sample, -box.top, -box.left, *contract.input_size)


def resized(planes: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """C maps (H, W) of any dtype -> float32 (C, height, width), by the triangle filter of the contract."""
    h, w = planes[0].shape
    maps = np.empty((len(planes), h, w), np.float32)
    for target, plane in zip(maps, planes, strict=True):
        target[:] = plane
    if height >= h and width >= w:  # without shrinking, the filter is plain bilinear
        return np.stack([cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in maps])
    stacked = torch.from_numpy(maps)[None]
    return F.interpolate(stacked, (height, width), mode="bilinear", antialias=True, align_corners=False)[0].numpy()
