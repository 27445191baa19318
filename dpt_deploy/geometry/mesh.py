"""A mesh over the pixel grid of a point cloud: two triangles for four neighbours, unless an edge of one is long."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from .points import Cut, PointCloud


@dataclass(frozen=True, eq=False)
class Mesh(PointCloud):
    """Points and the triangles between them."""

    faces: np.ndarray
    """int32 (M, 3): indices of vertices, counter-clockwise as the camera sees them."""


def triangulate(cloud: PointCloud, cut: Cut | None = None) -> Mesh:
    """Join the points of neighbouring pixels to triangles.

    Where three of four neighbours are points, they give one triangle. A square is split along its shorter diagonal. A
    triangle is dropped if the depth along one of its edges is steeper than `cut.max_slope`. Points that are in no
    triangle are dropped.

    Args:
        cloud: The points.
        cut: What `point_cloud` was called with; its step is the distance of neighbours.
    """
    cut = cut or Cut()
    h, w = cloud.intrinsics.size
    index = np.full((h, w), -1, np.int32)
    index.reshape(-1)[cloud.pixels] = np.arange(len(cloud), dtype=np.int32)
    index = index[:: cut.step, :: cut.step]
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]  # upper left and right, lower ...
    corners = np.stack([a, b, c, d], axis=-1).reshape(-1, 4)
    count = (corners >= 0).sum(axis=1)
    whole = corners[count == 4]
    points = cloud.vertices

    def length(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return ((points[i] - points[j]) ** 2).sum(axis=1)

    falling = length(whole[:, 0], whole[:, 3]) <= length(whole[:, 1], whole[:, 2])  # from upper left to lower right
    parts = [whole[falling][:, order] for order in ((0, 2, 3), (0, 3, 1))]
    parts += [whole[~falling][:, order] for order in ((0, 2, 1), (1, 2, 3))]
    three = corners[count == 3]
    for missing, order in enumerate(((1, 2, 3), (0, 2, 3), (0, 3, 1), (0, 2, 1))):
        parts.append(three[three[:, missing] < 0][:, order])
    faces = np.concatenate(parts).astype(np.int32)
    faces = faces[~_steep(points[faces], cloud, cut)]
    used = np.zeros(len(cloud), bool)
    used[faces] = True
    number = np.cumsum(used, dtype=np.int32) - 1
    values = {field.name: getattr(cloud, field.name) for field in fields(PointCloud)}
    for name in ("vertices", "normals", "colours", "pixels"):
        values[name] = None if values[name] is None else values[name][used]
    return Mesh(**values, faces=number[faces])


def _steep(corners: np.ndarray, cloud: PointCloud, cut: Cut) -> np.ndarray:
    """Which triangles (M, 3 corners, 3) have an edge whose ends differ in depth by more than the slope, bool (M,)."""
    depth = -corners[..., 2]
    focal = min(cloud.intrinsics.fx, cloud.intrinsics.fy)
    return np.ptp(depth, axis=1) > cut.slope * cut.step * np.sqrt(2) / focal * depth.min(axis=1)
