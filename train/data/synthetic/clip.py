"""Generated clips: a person of the generator moves before a camera that moves too, with the true motion of each pixel.

Joints sway, the person turns and walks, the camera pans, tilts and shakes. Truth is exact: a pixel's surface point is
known in the frame of its ellipsoid, and so is where it was in the frame before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from .body import JOINTS, Body, Sway, random_body, rotation
from .render import Camera, Surface, backdrop, render, shade
from .scene import kind_of, place

SWAY = {"lean": 3, "twist": 8, "bend": 3, "nod": 6, "turn": 14, "tilt": 4, "raise": 10, "arm": 12, "elbow": 16,
          "leg": 8, "knee": 8}
"""Amplitude of each joint's sway [degrees]."""
MARGIN = 1.7  # the backdrop's size in frames, so that the camera can turn
SAME_DEPTH = 0.02  # relative difference of two views of one point


@dataclass(frozen=True)
class ClipFrame:
    """One frame of a clip and the truth about it."""

    rgb: np.ndarray
    """uint8 (H, W, 3)."""
    depth: np.ndarray
    """float64 (H, W): z-depth [m]; inf where there is no surface."""
    normals: np.ndarray
    """float32 (H, W, 3), 0 where there is no surface."""
    alpha: np.ndarray
    """float32 (H, W) in [0, 1]."""
    motion: np.ndarray
    """float32 (H, W, 2), x and y [pixels]: from a pixel to where its point was in the frame before; 0 in the first."""
    seen: np.ndarray
    """bool (H, W): whether that point was visible in the frame before; False in the first."""


@dataclass(frozen=True)
class _View:
    """What the next frame needs to know of a frame."""

    body: Body
    turn: np.ndarray
    """float64 (3, 3): from directions of the world to those of the camera."""
    surface: Surface


def clip(seed: int, number: int, height: int, width: int, frames: int, fps: float = 25.0) -> Iterator[ClipFrame]:
    """Generate the frames of clip `number` of a seed: faces, full bodies and upper bodies in turn.

    Equal arguments give the same clip, and more `frames` a longer one with the same beginning.
    """
    choices = np.random.default_rng((seed, number, 1))
    path = _Path(choices)
    while True:
        person = int(choices.integers(1 << 31))
        body = random_body(np.random.default_rng(person))
        placement = place(body, kind_of(number), height, width, np.random.default_rng((person, 1)))
        if (render(placement.placed(body), placement.camera).alpha > 0.5).mean() > 0.08:
            break
    camera = placement.camera
    wide = Camera(camera.focal, int(height * MARGIN), int(width * MARGIN))
    scenery = backdrop(wide.height, wide.width, choices)
    light, noise = int(choices.integers(1 << 31)), np.random.default_rng((seed, number, 2))
    before: _View | None = None
    for i in range(frames):
        moment = i / fps
        moved = placement.placed(random_body(np.random.default_rng(person), sway=path.sway(moment)))
        centre = placement.to
        turn, step = path.turn(moment), path.step(moment) * -centre[2]
        moved = moved.moved(turn, centre, centre + step)
        look = path.look(moment)
        moved = _continued(moved.moved(look, np.zeros(3), np.zeros(3)), before and before.body)
        surface = render(moved, camera)
        rgb = shade(surface, moved, _seen_backdrop(scenery, wide, camera, look), np.random.default_rng(light), noise)
        view = _View(moved, look, surface)
        motion, seen = _motion(view, before, camera)
        before = view
        yield ClipFrame(rgb, surface.depth, surface.normals, surface.alpha, motion, seen)


class _Path:
    """Smooth random motion: sums of two sines for each joint, for the person and for the camera."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._joints = {joint: _waves(rng, SWAY[joint.split()[0]], 0.15, 0.6) for joint in JOINTS}
        self._turn = _waves(rng, 18, 0.1, 0.3)
        self._step = [_waves(rng, size, 0.1, 0.4) for size in (0.05, 0.015, 0.12)]
        self._look = [_waves(rng, size, 0.1, 0.3) for size in (1.0, 2.0, 0.6)]
        self._shake = [_waves(rng, 0.06, 1.0, 2.5) for _ in range(3)]

    def sway(self, moment: float) -> Sway:
        """What the joints' angles have changed by at a moment [s]."""
        return lambda joint: _value(self._joints[joint], moment)

    def turn(self, moment: float) -> np.ndarray:
        """How the person has turned, (3, 3)."""
        return rotation(0, _value(self._turn, moment))

    def step(self, moment: float) -> np.ndarray:
        """Where the person has gone, (3,), in distances from the camera."""
        return np.array([_value(waves, moment) for waves in self._step])

    def look(self, moment: float) -> np.ndarray:
        """From directions of the world to those of the camera, (3, 3)."""
        return rotation(*(_value(slow, moment) + _value(fast, moment)
                          for slow, fast in zip(self._look, self._shake, strict=True)))


def _waves(rng: np.random.Generator, size: float, slowest: float, fastest: float) -> np.ndarray:
    """Two sines, whose amplitudes are about `size` together: (2, 3), amplitude, frequency [Hz] and phase [rad]."""
    return np.stack((size * rng.uniform(0.3, 0.7, 2), rng.uniform(slowest, fastest, 2), rng.uniform(0, 2 * np.pi, 2)),
                    axis=1)


def _value(waves: np.ndarray, moment: float) -> float:
    """The sum of the sines, less its value at the beginning: a clip starts in the pose that was drawn."""
    amplitude, frequency, phase = waves.T
    return float((amplitude * (np.sin(2 * np.pi * frequency * moment + phase) - np.sin(phase))).sum())


def _continued(body: Body, before: Body | None) -> Body:
    """The body with the axes of its limbs turned about the limb as little as possible since the frame before.

    A limb is round, and its axes are drawn anew for each pose: its pattern, and the true motion, would jump.
    """
    if before is None:
        return body
    axes = body.axes.copy()
    for k in np.flatnonzero(body.radii[:, 0] == body.radii[:, 2]):
        old, new = before.axes[k], body.axes[k]
        cross, cosine = np.cross(old[:, 1], new[:, 1]), float(old[:, 1] @ new[:, 1])
        skew = np.array([[0, -cross[2], cross[1]], [cross[2], 0, -cross[0]], [-cross[1], cross[0], 0]])
        axes[k] = (np.eye(3) + skew + skew @ skew / (1 + cosine)) @ old
    return Body(body.centres, axes, body.radii, body.materials, body.head)


def _seen_backdrop(scenery: np.ndarray, wide: Camera, camera: Camera, look: np.ndarray) -> np.ndarray:
    """What the camera sees of the backdrop, which is infinitely far."""
    x, y = camera.rays()
    rays = np.stack(np.broadcast_arrays(x, y, -1.0), axis=-1) @ look  # (H, W, 3), in the world: look^T d
    at = _projected(rays, wide).astype(np.float32)
    return cv2.remap(scenery, at[..., 0] - 0.5, at[..., 1] - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _projected(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Where points (..., 3) in camera space are seen, (..., 2) [pixels]; the centre of the first pixel is at 0.5."""
    scale = camera.focal / -points[..., 2]
    return np.stack((points[..., 0] * scale + camera.width / 2, camera.height / 2 - points[..., 1] * scale), axis=-1)


def _motion(view: _View, before: _View | None, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    shape = view.surface.depth.shape
    if before is None:
        return np.zeros((*shape, 2), np.float32), np.zeros(shape, bool)
    x, y = camera.rays()
    rays = np.stack(np.broadcast_arrays(x, y, -1.0), axis=-1)
    points = rays @ (before.turn @ view.turn.T).T  # (H, W, 3): the backdrop's directions in the frame before
    hit = np.isfinite(view.surface.depth).reshape(-1)
    of_body = hit[view.surface.pixels]
    parts, local = view.surface.parts[of_body], view.surface.local[of_body]
    old = np.einsum("mij,mj->mi", before.body.axes[parts], local) + before.body.centres[parts]
    points.reshape(-1, 3)[view.surface.pixels[of_body]] = old
    at = _projected(points, camera)
    column, row = np.floor(at[..., 0]).astype(int), np.floor(at[..., 1]).astype(int)
    inside = (column >= 0) & (column < shape[1]) & (row >= 0) & (row < shape[0])
    there = before.surface.depth[row.clip(0, shape[0] - 1), column.clip(0, shape[1] - 1)]
    depth = np.full(shape, np.inf)
    depth.reshape(-1)[view.surface.pixels[of_body]] = -old[:, 2]
    with np.errstate(invalid="ignore"):
        same = (np.isinf(there) & np.isinf(depth)) | (abs(there - depth) < SAME_DEPTH * depth)
    here = np.stack(np.broadcast_arrays(np.arange(shape[1]) + 0.5, np.arange(shape[0])[:, None] + 0.5), axis=-1)
    return (at - here).astype(np.float32), inside & same & (points[..., 2] < 0)
