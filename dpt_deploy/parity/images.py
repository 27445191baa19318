"""Generated parity inputs: scenes with shading, texture and edges, and adversarial inputs."""

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


def built_in() -> list[tuple[str, bool, np.ndarray]]:
    """The default inputs as (name, adversarial, frame)."""
    scenes = [
        ("scene 480x640", scene(480, 640, 1)),
        ("scene 480x640 b", scene(480, 640, 2)),
        ("scene 517x333", scene(517, 333, 3)),
        ("scene 96x128", scene(96, 128, 4)),
    ]
    return [(name, False, frame) for name, frame in scenes] + adversarial()


def adversarial(side: int = 160) -> list[tuple[str, bool, np.ndarray]]:
    """Adversarial inputs as (name, True, frame): flat, random, saturated, fine detail, extreme aspect ratios.

    Most share a size, so that they run in pairs. All are within the default profile of an engine.
    """
    rng = np.random.default_rng(0)
    square = (side, side, 3)
    return [
        ("black", True, np.zeros(square, np.uint8)),
        ("white", True, np.full(square, 255, np.uint8)),
        ("single colour", True, np.broadcast_to(np.array([230, 20, 120], np.uint8), square).copy()),
        ("noise", True, rng.integers(0, 256, square, dtype=np.uint8)),
        ("saturated edges", True, _saturated_edges(side)),
        ("1-pixel lines", True, _lines(side)),
        ("checkerboard 64x512", True, _checkerboard(64, 512)),
        ("checkerboard 512x64", True, _checkerboard(512, 64)),
    ]


def _checkerboard(height: int, width: int) -> np.ndarray:
    board = (np.indices((height, width)).sum(axis=0) % 2 * 255).astype(np.uint8)
    return np.repeat(board[..., None], 3, axis=2)


def _saturated_edges(side: int) -> np.ndarray:
    """Discs and bars in the corners of the RGB cube, with steps of 255 at every edge."""
    image = np.zeros((side, side, 3), np.uint8)
    colours = [tuple(255 * (i >> k & 1) for k in range(3)) for i in range(1, 8)]
    for i, colour in enumerate(colours):
        left = i * side // 7
        cv2.rectangle(image, (left, 0), (left + side // 14, side), colour, -1)
        centre = (left + side // 14, side * (2 + 3 * (i % 3)) // 10)
        cv2.circle(image, centre, side // 9, tuple(255 - c for c in colour), -1)
    return image


def _lines(side: int) -> np.ndarray:
    """One-pixel structures on gray: a grid, diagonals, rings and single pixels."""
    image = np.full((side, side, 3), 128, np.uint8)
    image[:: side // 8, : side // 2] = 255
    image[: side // 2, :: side // 8] = 0
    for i in range(6):
        cv2.line(image, (side // 2, i * side // 12), (side - 1, side // 2 - i * side // 12), (255, 255 * (i % 2), 0), 1)
        cv2.circle(image, (3 * side // 4, 3 * side // 4), (i + 1) * side // 30, (0, 255, 255 * (i % 2)), 1)
    image[side // 2 + 3 :: 9, 3 : side // 2 : 9] = (0, 0, 255)
    return image
