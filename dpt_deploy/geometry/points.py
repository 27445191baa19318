"""Depth as points in camera space, with normals and colours, and without the points that no surface has."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..core.errors import BadInput
from .intrinsics import Intrinsics

CHANNELS = "metres; x right, y up, z towards the viewer; the camera is in the origin"
"""Units and axes of points and normals: those of the normals, of OpenGL and of glTF."""
_GRID = 512  # pixels; maps of larger images are enlarged ones, and their normals come from as much wider steps
_COMPARED = 100  # parts of the longer side; normals are compared over such steps, since noise turns those of short ones


@dataclass(frozen=True)
class Cut:
    """Which pixels give a point."""

    threshold: float = 0.5
    """Pixels with less alpha than this are background, in [0, 1]."""
    max_slope: float = 85.0
    """Largest angle between the surface, from one pixel to its neighbour, and the image plane [degrees]. Steeper steps
    are edges between two surfaces: the pixels on both sides are left out, and no triangle spans one. 90 keeps all."""
    max_angle: float = 75.0
    """Largest angle between the predicted normal and that of the depth's surface [degrees]. 180 keeps all."""
    step: int = 1
    """Keep every n-th row and column."""

    def __post_init__(self) -> None:
        for name, low, high in (("threshold", 0, 1), ("max_slope", 0, 90), ("max_angle", 0, 180)):
            if not low <= getattr(self, name) <= high:
                raise BadInput(f"{name}: expected a number from {low} to {high}, received {getattr(self, name)!r}.")
        if not isinstance(self.step, int) or self.step < 1:
            raise BadInput(f"step: expected a number from 1, received {self.step!r}.")

    @property
    def slope(self) -> float:
        """Largest step of depth between neighbours, in widths of a pixel at that depth."""
        return math.tan(math.radians(self.max_slope)) if self.max_slope < 90 else math.inf


@dataclass(frozen=True, eq=False)
class PointCloud:
    """N points in camera space: x right, y up, z towards the viewer, with the camera in the origin."""

    vertices: np.ndarray
    """float32 (N, 3) [m]."""
    normals: np.ndarray | None
    """float32 (N, 3), unit length."""
    colours: np.ndarray | None
    """uint8 (N, 3) RGB."""
    intrinsics: Intrinsics
    pixels: np.ndarray
    """int64 (N,): the flat index of each point's pixel in the image."""

    def __len__(self) -> int:
        return len(self.vertices)

    @property
    def comments(self) -> tuple[str, ...]:
        """What a file of these points should say: unit, axes, and where the focal length comes from."""
        return CHANNELS, str(self.intrinsics)


def point_cloud(
    depth: np.ndarray, intrinsics: Intrinsics, image: np.ndarray | None = None, normals: np.ndarray | None = None,
    alpha: np.ndarray | None = None, cut: Cut | None = None,
) -> PointCloud:
    """The points of a depth map.

    Args:
        depth: (H, W), z-depth [m]. Pixels without a finite depth above 0 give no point.
        intrinsics: Those of the image.
        image: uint8 (H, W, 3) RGB, for the colours.
        normals: (H, W, 3) in camera space: x right, y up, z towards the viewer. None: those of the depth's surface.
        alpha: (H, W) in [0, 1].
        cut: What is left out.

    Raises:
        BadInput: Sizes do not agree, or the image is not uint8.
    """
    cut = cut or Cut()
    if image is not None and image.dtype != np.uint8:
        raise BadInput(f"image: expected uint8 RGB with values 0 to 255, received {image.dtype}. Values in [0, 1]: "
                       "(image * 255).round().astype(np.uint8).")
    for name, values, shape in (("depth", depth, intrinsics.size), ("image", image, (*intrinsics.size, 3)),
                                ("normals", normals, (*intrinsics.size, 3)), ("alpha", alpha, intrinsics.size)):
        if values is not None and values.shape != shape:
            raise BadInput(f"{name}: expected the shape {shape}, received {values.shape}.")
    with np.errstate(invalid="ignore"):
        solid = np.isfinite(depth) & (depth > 0)
        kept = solid & ~jumps(np.where(solid, depth, np.inf), intrinsics, cut.slope)
        if alpha is not None:
            kept &= alpha >= cut.threshold
    position = positions(np.where(solid, depth, np.nan), intrinsics)
    if normals is None:
        normals = surface_normals(position, kept)
    elif cut.max_angle < 180:
        surface = surface_normals(position, kept, max(1, round(max(kept.shape) / _COMPARED)))
        # A pixel whose surface has no normal, because its neighbours are cut, is not judged.
        known = (surface != 0).any(axis=2)
        kept &= ~known | (_cosine(normals, surface) >= math.cos(math.radians(cut.max_angle)))
    kept &= np.isfinite(normals).all(axis=2) & (np.abs(normals).max(axis=2) > 1e-6)
    grid = np.zeros_like(kept)
    grid[:: cut.step, :: cut.step] = True
    pixels = np.flatnonzero(kept & grid)
    chosen = normals.reshape(-1, 3)[pixels].astype(np.float32)
    chosen /= np.linalg.norm(chosen, axis=1, keepdims=True)
    return PointCloud(position.reshape(-1, 3)[pixels], chosen,
                      None if image is None else image.reshape(-1, 3)[pixels], intrinsics, pixels)


def positions(depth: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """z-depth (H, W) [m] -> points float32 (H, W, 3) [m], x right, y up, z towards the viewer."""
    x, y = (ray.astype(np.float32) for ray in intrinsics.rays())
    depth = depth.astype(np.float32, copy=False)
    return np.stack([x * depth, y * depth, -depth], axis=2)


def jumps(depth: np.ndarray, intrinsics: Intrinsics, slope: float) -> np.ndarray:
    """Where depth differs from that of a neighbour by more than `slope` widths of a pixel, bool (H, W).

    Both sides of such a step are marked. Predicted depth passes over an edge in several pixels, and none of those
    between the two surfaces belongs to either. Steps to pixels without finite depth do not count.
    """
    found = np.zeros(depth.shape, bool)
    if not math.isfinite(slope):
        return found
    for marks, values, focal in ((found, depth, intrinsics.fy), (found.T, depth.T, intrinsics.fx)):
        near, far = values[:-1], values[1:]
        with np.errstate(invalid="ignore"):  # infinity less infinity
            step = np.abs(far - near)
            steep = np.isfinite(step) & (step > slope / focal * np.minimum(near, far))
        marks[:-1] |= steep
        marks[1:] |= steep
    return found


def surface_normals(position: np.ndarray, kept: np.ndarray, reach: int = 0) -> np.ndarray:
    """Unit normals of the surface that the points describe, by differences, float32 (H, W, 3); 0 where unknown.

    Args:
        position: float32 (H, W, 3) [m].
        kept: bool (H, W). Others are no neighbours: the difference is then to one side only.
        reach: Distance to the neighbours [pixels]; 0 takes one for images of up to 512 pixels, else as much more.
    """
    reach = reach or max(1, round(max(kept.shape) / _GRID))
    points = np.where(kept[..., None], position, np.nan)
    right, down = (_difference(points, axis, reach) for axis in (1, 0))
    normals = np.cross(down, right)
    length = np.linalg.norm(normals, axis=2, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.where(length > 0, normals / length, 0).astype(np.float32)


def _difference(points: np.ndarray, axis: int, reach: int) -> np.ndarray:
    """Central difference along an axis; one-sided where one neighbour is NaN, and NaN where both are."""
    h, w = points.shape[:2]
    room = [(0, 0)] * 3
    room[axis] = (reach, reach)
    padded = np.pad(points, room, constant_values=np.nan)
    rows, columns = (slice(2 * reach, None), slice(None)) if axis == 0 else (slice(None), slice(2 * reach, None))
    after, before = padded[rows, columns], padded[:h, :w]
    after, before = np.where(np.isnan(after), points, after), np.where(np.isnan(before), points, before)
    return after - before


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of the angles between vectors (..., 3); NaN for vectors without length."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
