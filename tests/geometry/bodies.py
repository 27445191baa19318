"""A generated body with known intrinsics, and how far points and normals are from its surface."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from train.data.synthetic.body import Body, random_body
from train.data.synthetic.render import Camera, Surface, render


@dataclass(frozen=True)
class Scene:
    """A body before a camera, and what each pixel sees of it."""

    body: Body
    camera: Camera
    surface: Surface

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Distance (N,) of points to the nearest ellipsoid of the body [m], to first order."""
        nearest = np.full(len(points), np.inf)
        for centre, axes, radii in zip(self.body.centres, self.body.axes, self.body.radii, strict=True):
            local = (points - centre) @ axes / radii
            length = np.linalg.norm(local, axis=1)
            slope = np.linalg.norm(local / radii, axis=1) / length
            nearest = np.minimum(nearest, np.abs(length - 1) / slope)
        return nearest


def scene(seed: int = 3, size: int = 384, focal: float = 500.0) -> Scene:
    """A standing person at 2.5 m."""
    body = random_body(np.random.default_rng(seed), seated_share=0)
    body = replace(body, centres=body.centres + (0, -0.1, -2.5))
    camera = Camera(focal, size, size)
    return Scene(body, camera, render(body, camera))


def angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles (N,) between vectors (N, 3) [degrees]."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=1), (a * b).sum(axis=1)))
