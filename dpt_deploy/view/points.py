"""Depth as a point cloud: points in camera space with colours and normals, and its PLY file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FILM_DIAGONAL = 43.2666
"""Diagonal of a 35 mm film frame [mm]."""


@dataclass(frozen=True)
class PointCloud:
    """N points in camera space: x right, y up, z towards the viewer, with the camera in the origin."""

    points: np.ndarray
    """float32 (N, 3) [m]."""
    colours: np.ndarray
    """uint8 (N, 3) RGB."""
    normals: np.ndarray | None = None
    """float32 (N, 3), unit length."""


def focal_pixels(equivalent: float, height: int, width: int) -> float:
    """The focal length [pixels] of an image whose focal length is `equivalent` [mm] on 35 mm film, by the diagonal."""
    return equivalent * float(np.hypot(height, width)) / FILM_DIAGONAL


def point_cloud(
    depth: np.ndarray, image: np.ndarray, focal: float, normals: np.ndarray | None = None,
    alpha: np.ndarray | None = None, threshold: float = 0.5,
) -> PointCloud:
    """The points of a pinhole camera whose axis goes through the middle of the image.

    Args:
        depth: float32 (H, W), z-depth [m]. Pixels without a finite depth above 0 give no point.
        image: uint8 (H, W, 3) RGB.
        focal: Focal length [pixels].
        normals: float32 (H, W, 3) in camera space.
        alpha: float32 (H, W). Pixels below `threshold` give no point.
        threshold: In [0, 1].
    """
    h, w = depth.shape
    kept = np.isfinite(depth) & (depth > 0)
    if alpha is not None:
        kept &= alpha >= threshold
    row, column = np.nonzero(kept)
    z = depth[kept]
    x, y = (column + 0.5 - w / 2) / focal * z, (h / 2 - row - 0.5) / focal * z
    points = np.stack([x, y, -z], axis=1).astype(np.float32)
    return PointCloud(points, image[kept], None if normals is None else normals[kept].astype(np.float32))


def ply_bytes(cloud: PointCloud, comments: Sequence[str] = ()) -> bytes:
    """A binary little-endian PLY file with positions, colours and, if there are some, normals."""
    fields = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    if cloud.normals is not None:
        fields += [("nx", "<f4"), ("ny", "<f4"), ("nz", "<f4")]
    fields += [("red", "u1"), ("green", "u1"), ("blue", "u1")]
    vertices = np.empty(len(cloud.points), fields)
    groups = [("xyz", cloud.points), (("nx", "ny", "nz"), cloud.normals), (("red", "green", "blue"), cloud.colours)]
    for names, values in groups:
        for i, name in enumerate(names if values is not None else ()):
            vertices[name] = values[:, i]
    names = {"<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", *(f"comment {line}" for line in comments),
              f"element vertex {len(vertices)}", *(f"property {names[kind]} {name}" for name, kind in fields),
              "end_header", ""]
    return "\n".join(header).encode("ascii") + vertices.tobytes()
