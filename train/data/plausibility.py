"""Whether the depth of samples can be that of a picture of people, before a network learns something else from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from dpt_deploy.core.errors import BadInput

from .sample import Sample

NEAREST, FARTHEST = 0.05, 100.0
"""A typical (median) depth outside of this range [m] is in another unit."""
SPREAD = 100.0
"""The farthest point of an image is at most this many times as far as the nearest."""
_ODD_SHARE = 1e-4  # of the pixels with depth, at either end: single pixels count for nothing


def implausible(sample: Sample) -> str | None:
    """What is wrong with the depth of a sample, as one sentence without its full stop; None if nothing is."""
    depth = sample.depth[sample.depth > 0]
    if not depth.size:
        return "no pixel has depth"
    depth = np.sort(depth)
    odd = int(_ODD_SHARE * depth.size)
    nearest, median, farthest = float(depth[odd]), float(depth[depth.size // 2]), float(depth[-1 - odd])
    if farthest > SPREAD * nearest:
        return (f"its depth runs from {nearest:.4g} m to {farthest:.4g} m. The outer values probably mean \"unknown\", "
                "and lossy compression (DWAA, DWAB) changed them")
    if not NEAREST <= median <= FARTHEST:
        return f"its median depth is {median:.4g} m, so the file is in another unit than centimetres"
    return None


def plausible(samples: Iterable[Sample]) -> Iterator[Sample]:
    """The same samples. Raises `BadInput`, with what to do, at the first one with implausible depth."""
    for sample in samples:
        if reason := implausible(sample):
            raise BadInput(
                f"data: sample {sample.name}: {reason}. Write depth in centimetres, 0 or NaN where it is unknown, "
                "without lossy compression. If the depth is right, train with --no-check-data."
            )
        yield sample
