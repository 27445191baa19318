"""Generated parity inputs: scenes with shading, texture and edges, and adversarial inputs."""

from __future__ import annotations

import cv2
import numpy as np

from ..core.scene import scene

__all__ = ["adversarial", "built_in", "scene"]


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
