"""A z-buffer for triangle meshes, in NumPy.

Camera space as in `train.data.synthetic.render`: x right, y up, z towards the viewer; the camera looks along -z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train.data.synthetic.render import Camera


@dataclass(frozen=True)
class Hits:
    """What the centre of each pixel sees of a mesh. M pixels see it."""

    pixels: np.ndarray
    """int64 (M,): flat indices of these pixels, ascending."""
    faces: np.ndarray
    """int64 (M,): the triangle that each sees."""
    weights: np.ndarray
    """float64 (M, 3): barycentric weights of the triangle's vertices, corrected for perspective."""
    depth: np.ndarray
    """float64 (M,): z-depth [m]."""


def rasterize(vertices: np.ndarray, faces: np.ndarray, camera: Camera, near: float = 0.1) -> Hits:
    """Find the nearest triangle that faces the camera, for the centre of every pixel.

    Args:
        vertices: float (V, 3), camera space [m].
        faces: int (F, 3), counterclockwise seen from outside.
        camera: Focal length and image size [pixels].
        near: Triangles with a vertex nearer than this are left out [m].
    """
    distance = -vertices[:, 2]
    safe = np.maximum(distance, near)
    u = camera.width / 2 + camera.focal * vertices[:, 0] / safe
    v = camera.height / 2 - camera.focal * vertices[:, 1] / safe
    fu, fv, inverse = u[faces], v[faces], 1 / safe[faces]  # (F, 3)
    # v points down, so that a triangle which faces the camera has a negative area here.
    area = (fu[:, 1] - fu[:, 0]) * (fv[:, 2] - fv[:, 0]) - (fu[:, 2] - fu[:, 0]) * (fv[:, 1] - fv[:, 0])
    left = np.clip(np.ceil(fu.min(axis=1) - 0.5), 0, camera.width).astype(np.int64)
    right = np.clip(np.floor(fu.max(axis=1) - 0.5) + 1, 0, camera.width).astype(np.int64)
    top = np.clip(np.ceil(fv.min(axis=1) - 0.5), 0, camera.height).astype(np.int64)
    bottom = np.clip(np.floor(fv.max(axis=1) - 0.5) + 1, 0, camera.height).astype(np.int64)
    wide, tall = np.maximum(right - left, 0), np.maximum(bottom - top, 0)
    candidate = np.flatnonzero((area < -1e-12) & (wide * tall > 0) & (distance[faces].min(axis=1) > near))
    count = (wide * tall)[candidate]
    face = np.repeat(candidate, count)  # (N,), one entry for each pixel of each bounding box
    inside = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
    row, column = np.divmod(inside, wide[face])
    row, column = row + top[face], column + left[face]
    x, y = column + 0.5, row + 0.5
    corner = [(fu[face, k], fv[face, k]) for k in range(3)]
    edges = []
    for k in range(3):
        (ax, ay), (bx, by) = corner[(k + 1) % 3], corner[(k + 2) % 3]
        edges.append((bx - ax) * (y - ay) - (by - ay) * (x - ax))
    share = np.stack(edges, axis=1) / area[face, None]  # barycentric on the screen, (N, 3)
    within = np.flatnonzero((share >= 0).all(axis=1))
    share, face = share[within] * inverse[face[within]], face[within]
    depth = 1 / share.sum(axis=1)
    pixel = row[within] * camera.width + column[within]
    nearest = np.full(camera.height * camera.width, np.inf)
    np.minimum.at(nearest, pixel, depth)
    first = np.flatnonzero(depth == nearest[pixel])
    pixels, where = np.unique(pixel[first], return_index=True)
    chosen = first[where]
    return Hits(pixels, face[chosen], share[chosen] * depth[chosen, None], depth[chosen])


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (V, 3) of the vertices, weighted by the areas of their triangles; 0 without a triangle."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    total = np.stack([sum(np.bincount(faces[:, k], normal[:, axis], len(vertices)) for k in range(3))
                      for axis in range(3)], axis=1)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
