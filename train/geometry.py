"""Normals from depth and intrinsics, and the 48 ways to name three axes."""

from __future__ import annotations

import itertools

import numpy as np

from dpt_deploy.core.errors import BadInput

AXES = "+x+y+z"
"""The convention as this project reads it: x right, y up, z towards the viewer."""


def points(depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """z-depth (H, W) [m] -> points float64 (H, W, 3) [m], x right, y up, z towards the viewer."""
    h, w = depth.shape
    x = (np.arange(w) + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (intrinsics[1, 2] - np.arange(h) - 0.5) / intrinsics[1, 1]
    rays = np.stack(np.broadcast_arrays(x[None, :], y[:, None], -1.0), axis=-1)
    return rays * depth[..., None].astype(np.float64)


def normals_from_depth(
    depth: np.ndarray, intrinsics: np.ndarray, reach: int = 0, largest_step: float = 0.02
) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals float64 (H, W, 3) of the surface in `depth` (H, W) [m], 0 for none; and where they hold, bool.

    Central differences over `reach` pixels either way (0: one per 100 of width, which averages out
    the steps of half-precision depth). They hold where all four neighbours have depth and the depth
    changes smoothly: by less than `largest_step` per pixel, relative, and about as much on both sides.
    """
    reach = reach or max(1, round(depth.shape[1] / 100))
    position = points(depth, intrinsics)
    padded = np.pad(depth, reach)
    h, w = depth.shape

    def shifted(down: int, right: int) -> np.ndarray:
        return padded[reach + down : reach + down + h, reach + right : reach + right + w]

    holds = depth > 0
    for down, right in ((reach, 0), (0, reach)):
        a, b = shifted(down, right), shifted(-down, -right)
        steps = np.abs(a - depth), np.abs(b - depth)
        limit = largest_step * reach * depth
        holds &= (a > 0) & (b > 0) & (np.maximum(*steps) < limit) & (np.abs(a + b - 2 * depth) < 0.25 * limit)
    along = np.pad(position, ((0, 0), (reach, reach), (0, 0)))
    down = np.pad(position, ((reach, reach), (0, 0), (0, 0)))
    right_step = along[:, 2 * reach :] - along[:, : -2 * reach]
    up_step = down[: -2 * reach] - down[2 * reach :]
    normals = np.cross(right_step, up_step)
    length = np.linalg.norm(normals, axis=2, keepdims=True)
    holds &= length[..., 0] > 0
    return np.where(holds[..., None], normals / np.maximum(length, 1e-300), 0), holds


def all_axes() -> list[str]:
    """The 48 signed permutations of three axes, such as "+x-y-z", the assumed one first."""
    names = ["".join(sign + axis for sign, axis in zip(signs, order, strict=True))
             for order in itertools.permutations("xyz") for signs in itertools.product("+-", repeat=3)]
    return sorted(names, key=lambda name: name != AXES)


def parse_axes(axes: str) -> tuple[tuple[int, int, int], np.ndarray]:
    """ "-z+y+x" -> which stored component is x, y, z, and its sign, float32 (3,). Raises `BadInput`.

    "-z+y+x" says: x is minus the third stored component, y the second, z the first.
    """
    if axes not in all_axes():
        raise BadInput(f"normal axes: expected three signed axes such as {AXES} or +x-y-z, received {axes!r}.")
    order = tuple("xyz".index(axis) for axis in axes[1::2])
    return order, np.array([1.0 if sign == "+" else -1.0 for sign in axes[::2]], np.float32)


def composed(first: str, then: str) -> str:
    """The axes that do in one step what `with_axes` does with `first` and then with `then`."""
    (inner, inner_signs), (outer, outer_signs) = parse_axes(first), parse_axes(then)
    return "".join(("+" if sign > 0 else "-") + "xyz"[inner[i]]
                   for i, sign in zip(outer, outer_signs * inner_signs[list(outer)], strict=True))


def with_axes(vectors: np.ndarray, axes: str) -> np.ndarray:
    """Vectors (..., 3) as stored -> x right, y up, z towards the viewer, given what `axes` says is stored."""
    if axes == AXES:
        return vectors
    order, signs = parse_axes(axes)
    return vectors[..., order] * signs
