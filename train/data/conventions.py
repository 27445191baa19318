"""Conventions of stored normals: the 48 signed permutations of the axes, and which one fits the depth.

The convention of this project is camera space with x right, y up, z towards the viewer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dpt_deploy.core.errors import BadInput

from ..commands import command
from .sample import Sample

AXES = "+x+y+z"
"""Stored as this project uses them: x right, y up, z towards the viewer."""


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
    """Normals of the surface that a depth map describes, by central differences.

    They are reliable where all four neighbours have depth and the depth changes smoothly: by less than `largest_step`
    per pixel, relative, and about as much on both sides.

    Args:
        depth: z-depth (H, W) [m], 0 where it is unknown.
        intrinsics: (3, 3) [pixels].
        reach: Distance to the neighbours [pixels]; 0 is 1 % of the width, which averages out the steps of
            half-precision depth.
        largest_step: Largest relative change of depth per pixel.

    Returns:
        Unit normals float64 (H, W, 3), 0 where they are unknown, and where they are reliable, bool (H, W).
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
    """The 48 signed permutations of three axes, such as "+x-y-z"; the convention of this project first."""
    names = ["".join(sign + axis for sign, axis in zip(signs, order, strict=True))
             for order in itertools.permutations("xyz") for signs in itertools.product("+-", repeat=3)]
    return sorted(names, key=lambda name: name != AXES)


def parse_axes(axes: str) -> tuple[tuple[int, int, int], np.ndarray]:
    """Stored component and sign, float32 (3,), of x, y and z. Raises `BadInput`.

    "-z+y+x" means: x is minus the third stored component, y is the second, z is the first.
    """
    if axes not in all_axes():
        raise BadInput(f"normal axes: expected three signed axes such as {AXES} or +x-y-z, received {axes!r}.")
    order = tuple("xyz".index(axis) for axis in axes[1::2])
    return order, np.array([1.0 if sign == "+" else -1.0 for sign in axes[::2]], np.float32)


def composed(first: str, then: str) -> str:
    """The axes for which one call of `with_axes` equals one with `first` followed by one with `then`."""
    (inner, inner_signs), (outer, outer_signs) = parse_axes(first), parse_axes(then)
    return "".join(("+" if sign > 0 else "-") + "xyz"[inner[i]]
                   for i, sign in zip(outer, outer_signs * inner_signs[list(outer)], strict=True))


def with_axes(vectors: np.ndarray, axes: str) -> np.ndarray:
    """Convert stored vectors (..., 3) to x right, y up, z towards the viewer."""
    if axes == AXES:
        return vectors
    order, signs = parse_axes(axes)
    return vectors[..., order] * signs


@dataclass(frozen=True)
class Convention:
    """How well each reading of the stored normals fits the depth."""

    assumed: str
    """The axes that the samples were read with."""
    medians: dict[str, float]
    """Axes -> median angle between the normals read with them and those from depth [degrees], best first."""
    pixels: int
    """Pixels compared."""

    @property
    def best(self) -> str:
        return next(iter(self.medians))

    def lines(self, count: int = 5) -> list[str]:
        """A table of the best readings and the assumed one."""
        shown = list(self.medians)[:count]
        shown += [self.assumed] if self.assumed not in shown else []
        marks = {self.assumed: "   assumed"}
        return ["stored as   median angle to the normals from depth [deg]",
                *(f"{axes:11} {self.medians[axes]:10.2f}{marks.get(axes, '')}" for axes in shown)]


def compare_conventions(samples: Iterable[Sample], assumed: str = AXES, per_sample: int = 4000) -> Convention:
    """Compare stored normals with those from depth, over all 48 signed permutations of the axes.

    `assumed` are the axes that the samples were read with. About `per_sample` pixels of each sample are compared.
    Raises `BadInput` if there are fewer than 100 pixels in all.
    """
    stored, computed = [], []
    for sample in samples:
        normals, holds = normals_from_depth(sample.depth, sample.intrinsics)
        holds &= np.abs(sample.normals).sum(axis=2) > 0
        chosen = np.flatnonzero(holds)[:: max(1, int(holds.sum()) // per_sample)]
        stored.append(sample.normals.reshape(-1, 3)[chosen])
        computed.append(normals.reshape(-1, 3)[chosen])
    pixels = sum(map(len, stored))
    if pixels < 100:
        raise BadInput(
            f"data: normals and depth could be compared at only {pixels} pixels of {len(stored)} samples. Check that "
            "depth, normals and intrinsics belong together, or train with --no-check-data."
        )
    a, b = np.concatenate(stored), np.concatenate(computed)
    medians = {}
    for axes in all_axes():
        cosine = np.clip((with_axes(a, axes) * b).sum(axis=1), -1, 1)
        medians[composed(assumed, axes)] = float(np.degrees(np.arccos(np.median(cosine))))
    return Convention(assumed, dict(sorted(medians.items(), key=lambda entry: entry[1])), pixels)


def require_assumed(convention: Convention, prepared: bool) -> None:
    """Raise `BadInput`, with the table and what to do, unless the assumed axes fit the depth best.

    `prepared` says that the samples come from a prepared cache, whose axes cannot be chosen any more.
    """
    if convention.best == convention.assumed:
        return
    table = "\n  ".join(convention.lines())
    if prepared:
        what = (f"The cache holds converted normals. Run {command('train.check')} on the original files, and prepare "
                "the cache again with the --normal-axes that it prints")
    else:
        what = f"If the files store them like that, give --normal-axes={convention.best}"
    raise BadInput(
        f"the normals do not follow the assumed convention (x right, y up, z towards the viewer): {convention.best} "
        f"fits the depth better than {convention.assumed}.\n  {table}\n"
        f"{what}; otherwise check depth and intrinsics, or train with --no-check-data."
    )
