"""Augmentations. Mirror and zoom change image, ground truth and intrinsics together, so that the geometry stays right.

Colour, blur, noise and JPEG change only the image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from .sample import Sample, crop


@dataclass(frozen=True)
class AugmentOptions:
    """How much of each augmentation; 0 (for the zoom 1) turns it off."""

    mirror: float = 0.5
    """Probability of a left-right mirror."""
    zoom: float = 1.2
    """Largest zoom factor; the smallest is its inverse. 1 turns it off."""
    color: float = 0.3
    """Strength of random brightness, contrast, saturation and tint; 0 turns them off."""
    blur: float = 0.1
    """Probability of a blur."""
    noise: float = 0.1
    """Probability of noise."""
    jpeg: float = 0.1
    """Probability of JPEG compression."""


class Augment(AugmentOptions):
    """Applies the augmentations."""

    def geometry(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Mirror and zoom at random."""
        if rng.random() < self.mirror:
            sample = mirrored(sample)
        if self.zoom > 1:
            scale = np.exp(rng.uniform(-1, 1) * np.log(self.zoom))
            sample = zoomed(sample, scale, *rng.uniform(-1, 1, 2))
        return sample

    def image(self, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Colour, blur, noise and JPEG at random; uint8 (H, W, 3) in and out."""
        if self.color > 0:
            rgb = recoloured(rgb, self.color, rng)
        if rng.random() < self.blur:
            rgb = cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.4, 0.004 * max(rgb.shape) + 0.6))
        if rng.random() < self.noise:
            noisy = rgb + rng.normal(0, rng.uniform(2, 12), rgb.shape)
            rgb = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        if rng.random() < self.jpeg:
            quality = int(rng.integers(30, 90))
            rgb = cv2.imdecode(cv2.imencode(".jpg", rgb, (cv2.IMWRITE_JPEG_QUALITY, quality))[1], cv2.IMREAD_COLOR)
        return rgb


def mirrored(sample: Sample) -> Sample:
    """Flip left and right: the x of normals changes sign, and the principal point moves."""
    intrinsics = sample.intrinsics.copy()
    intrinsics[0, 2] = sample.alpha.shape[1] - intrinsics[0, 2]
    rgb, depth, normals, alpha = (cv2.flip(x, 1) for x in (sample.rgb, sample.depth, sample.normals, sample.alpha))
    normals[..., 0] *= -1
    inside = None if sample.inside is None else np.ascontiguousarray(sample.inside[:, ::-1])
    return replace(sample, rgb=rgb, depth=depth, normals=normals, alpha=alpha, intrinsics=intrinsics, inside=inside)


def zoomed(sample: Sample, scale: float, right: float = 0.0, down: float = 0.0) -> Sample:
    """Crop a window of 1 / scale the size; the resize to the network's input then makes it a zoom.

    Depth in metres and normals stay as they are. The focal length grows with the resize. `right` and `down` move the
    window from -1 (leftmost, topmost) to 1.
    """
    h, w = sample.alpha.shape
    height, width = max(1, round(h / scale)), max(1, round(w / scale))
    top, left = round((h - height) * (1 + down) / 2), round((w - width) * (1 + right) / 2)
    return crop(sample, top, left, height, width)


def recoloured(rgb: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and tint of uint8 (H, W, 3) at random."""
    brightness, contrast, saturation = 1 + strength * rng.uniform(-1, 1, 3)
    tint = 1 + 0.3 * strength * rng.uniform(-1, 1, 3)
    grey = np.float32((0.299, 0.587, 0.114))
    # One 3x4 matrix does all four, in one pass: saturation mixes in the grey, contrast pivots on mid-grey.
    mix = saturation * np.eye(3) + (1 - saturation) * grey
    matrix = np.diag(tint) @ mix * (contrast * brightness)
    offset = 127.5 * (1 - contrast) * brightness
    return cv2.transform(rgb, np.column_stack((matrix, np.full(3, offset))))
