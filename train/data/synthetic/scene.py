"""One generated sample: a person before a backdrop, and SynthHuman's files of it.

Sample n of a seed is the same on every machine and in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .. import exr
from ..sample import Sample
from ..synthhuman import FIRST_INDEX, KINDS, NO_DEPTH
from .body import Body, random_body, rotation
from .render import Camera, backdrop, render, shade


@dataclass(frozen=True)
class Scene:
    """One generated sample."""

    rgb: np.ndarray
    """uint8 (H, W, 3)."""
    depth: np.ndarray
    """float64 (H, W): z-depth [m]; inf where there is no surface."""
    normals: np.ndarray
    """float32 (H, W, 3), 0 where there is no surface."""
    alpha: np.ndarray
    """float32 (H, W) in [0, 1]."""
    intrinsics: np.ndarray
    """float64 (3, 3) [pixels]."""


def kind_of(number: int) -> str:
    """Whether sample `number` is a face, a full_body or an upper_body."""
    return KINDS[number % 3]


def file_index(number: int) -> int:
    """The index in the file names of sample `number`, within the published range of its kind."""
    return FIRST_INDEX[kind_of(number)] + number // 3


def generate(seed: int, number: int, height: int, width: int) -> Scene:
    """Generate sample `number` of a seed; the same arguments give the same sample."""
    rng = np.random.default_rng((seed, number))
    while True:
        body = random_body(rng)
        placement = place(body, kind_of(number), height, width, rng)
        body, camera = placement.placed(body), placement.camera
        surface = render(body, camera)
        if (surface.alpha > 0.5).mean() > 0.04:
            break
    rgb = shade(surface, body, backdrop(height, width, rng), rng)
    return Scene(rgb, surface.depth, surface.normals, surface.alpha, camera.intrinsics)


@dataclass(frozen=True)
class Placement:
    """Where a body stands before the camera."""

    turn: np.ndarray
    """float64 (3, 3): rotates the body about its origin."""
    target: np.ndarray
    """float64 (3,): the point of the turned body [m] that moves to `to`."""
    to: np.ndarray
    """float64 (3,), in camera space [m]."""
    camera: Camera

    def placed(self, body: Body) -> Body:
        """The body in camera space."""
        return body.moved(self.turn, np.zeros(3), np.zeros(3)).moved(np.eye(3), self.target, self.to)


def place(body: Body, kind: str, height: int, width: int, rng: np.random.Generator) -> Placement:
    """Turn the body, and place the camera so that `kind` fills the image."""
    yaw = rng.normal(0, 32) if rng.random() < 0.8 else rng.uniform(-180, 180)
    turn = rotation(rng.normal(4, 9), 0, rng.normal(0, 3)) @ rotation(0, yaw)
    body = body.moved(turn, np.zeros(3), np.zeros(3))
    reach = np.sqrt(np.einsum("kij,kj->ki", body.axes**2, body.radii**2))  # half extents along x, y, z
    low, high = (body.centres - reach).min(axis=0), (body.centres + reach).max(axis=0)
    if kind == "face":
        target, extent = body.head - (0, 0.03, 0), rng.uniform(0.30, 0.50)
    elif kind == "upper_body":
        target, extent = body.head - (0, 0.27, 0), rng.uniform(0.75, 1.05)
    else:
        target = (low + high) / 2
        extent = max(high[1] - low[1], (high[0] - low[0]) * height / width) * rng.uniform(1.02, 1.15)
    field_of_view = np.radians(rng.uniform(32, 48))
    focal = height / 2 / np.tan(field_of_view / 2)
    distance = extent * focal / height
    shift = rng.normal(0, 0.03, 2) * extent
    return Placement(turn, target, np.array((shift[0], shift[1], -distance)), Camera(focal, height, width))


def write_sample(folder: Path, index: int, scene: Scene) -> None:
    """Write SynthHuman's five files of a scene, with `index` in their names, into an existing folder.

    Depth is in cm with 65504 for unknown; B, G, R are the x, y, z of normals.
    """
    stem = f"{index:07d}"
    centimetres = np.where(np.isfinite(scene.depth), scene.depth * 100, NO_DEPTH)
    for name, pixels in (("rgb", scene.rgb[..., ::-1]), ("alpha", np.round(scene.alpha * 255).astype(np.uint8))):
        if not cv2.imwrite(str(folder / f"{name}_{stem}.png"), pixels):
            raise OSError(None, "the image could not be written", str(folder / f"{name}_{stem}.png"))
    exr.write_depth(folder / f"depth_{stem}.exr", centimetres)
    exr.write_vectors(folder / f"normal_{stem}.exr", scene.normals)
    np.savetxt(folder / f"cam_{stem}.txt", scene.intrinsics, fmt="%.6f")


def as_sample(scene: Scene, number: int) -> Sample:
    """Scene `number` as the reader of the files returns it, before rounding."""
    depth = np.where(np.isfinite(scene.depth), scene.depth, 0).astype(np.float32)
    return Sample(f"{file_index(number):07d}", kind_of(number), scene.rgb, depth, scene.normals, scene.alpha,
                  scene.intrinsics)
