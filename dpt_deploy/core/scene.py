"""A generated scene with shading, texture and edges: the input of parity, benchmarks and examples."""

from __future__ import annotations

import cv2
import numpy as np


def scene(height: int, width: int, seed: int) -> np.ndarray:
    """Generate shaded spheres in front of a textured background, uint8 (height, width, 3) RGB.

    Its spectrum is similar to that of photographs, so errors of resizing and FP16 are representative.
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
