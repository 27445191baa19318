"""Parity inputs that need no file: scenes with shading, texture and edges, and adversarial ones."""

from __future__ import annotations

import cv2
import numpy as np


def scene(height: int, width: int, seed: int) -> np.ndarray:
    """A shaded scene of spheres before a textured backdrop, uint8 (height, width, 3) RGB.

    Its spectrum falls off as that of photographs does: what resizing and FP16 do to it is typical.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    image = np.empty((height, width, 3), np.float32)
    for channel in range(3):
        slope_x, slope_y = rng.uniform(-0.2, 0.2, 2)
        image[..., channel] = rng.uniform(0.2, 0.6) + slope_x * x / width + slope_y * y / height
    for octave in range(1, 7):  # 1/f texture
        size = (min(width, 3 * 2**octave), min(height, 2 * 2**octave))
        noise = rng.standard_normal((size[1], size[0], 3)).astype(np.float32)
        image += 0.25 / 2**octave * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    light = rng.normal(size=3) + (0, 0, 2)
    light /= np.linalg.norm(light)
    for _ in range(6):
        radius = rng.uniform(0.08, 0.3) * min(height, width)
        cx, cy = rng.uniform(0.1, 0.9, 2) * (width, height)
        nx, ny = (x - cx) / radius, (y - cy) / radius
        inside = nx**2 + ny**2 < 1
        nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0, 1))
        shade = np.clip(nx * light[0] - ny * light[1] + nz * light[2], 0.05, 1)
        image[inside] = (rng.uniform(0.1, 1.0, 3) * shade[..., None])[inside]
    image += rng.normal(0, 0.01, image.shape)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def built_in() -> list[tuple[str, bool, np.ndarray]]:
    """(name, adversarial, frame) of the inputs used when a user gives none."""
    rng = np.random.default_rng(0)
    checker = ((np.indices((160, 160)).sum(axis=0) % 2) * 255).astype(np.uint8)
    return [
        ("scene 480x640", False, scene(480, 640, 1)),
        ("scene 480x640 b", False, scene(480, 640, 2)),
        ("scene 517x333", False, scene(517, 333, 3)),
        ("scene 96x128", False, scene(96, 128, 4)),
        ("black", True, np.zeros((160, 160, 3), np.uint8)),
        ("noise", True, rng.integers(0, 256, (160, 160, 3), dtype=np.uint8)),
        ("checkerboard", True, np.repeat(checker[..., None], 3, axis=2)),
    ]
