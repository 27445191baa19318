"""Statistics of a data set: they initialise the heads, and are the constant predictions that scores are compared to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from dpt_deploy.core.errors import BadInput

from .sample import Sample
from .sources import BrokenSamples, Source


@dataclass(frozen=True)
class Statistics:
    """Statistics of the foreground."""

    depth: float
    """Median z-depth [m]."""
    depth_low: float
    """1st percentile of z-depth [m]."""
    depth_high: float
    """99th percentile of z-depth [m]."""
    normal: tuple[float, float, float]
    """Mean direction, unit length."""
    coverage: float
    """Mean alpha."""
    focal: float
    """Median focal length divided by the width of the image."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def constants(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Maps with the same value everywhere, of the size of the batch."""
        like = batch["alpha"]
        normal = torch.tensor(self.normal, device=like.device).view(1, 3, 1, 1)
        return {"depth": torch.full_like(like, self.depth), "normals": normal.expand(len(like), 3, *like.shape[2:]),
                "alpha": torch.full_like(like, self.coverage)}


def spread(positions: Sequence[int], limit: int | None) -> list[int]:
    """At most `limit` of `positions`, evenly spaced; None is no limit."""
    if limit is None:
        return list(positions)
    chosen = np.unique(np.linspace(0, len(positions) - 1, min(limit, len(positions))).astype(int))
    return [positions[i] for i in chosen]


def readable(
    source: Source, positions: Sequence[int], broken: BrokenSamples | None = None
) -> Iterator[Sample]:
    """The samples at `positions` that can be read; the others go to `broken`. Raises `BadInput` if none can."""
    found, reason = False, ""
    for position in positions:
        try:
            sample = source.read(position)
        except BadInput as error:
            reason = str(error)
            if broken is not None:
                broken.add(source.names[position], reason)
            continue
        found = True
        yield sample
    if not found:
        raise BadInput(f"data: none of the samples tried can be read. The last one: {reason}")


def measure(samples: Iterable[Sample]) -> Statistics:
    """Measure one or more samples."""
    depths, normals, coverage, focals = [], np.zeros(3), [], []
    for sample in samples:
        valid = sample.depth[sample.depth > 0]
        depths.append(valid[:: max(1, valid.size // 2000)])
        normals += sample.normals.sum(axis=(0, 1))
        coverage.append(sample.alpha.mean())
        focals.append(sample.intrinsics[0, 0] / sample.alpha.shape[1])
    depth = np.concatenate(depths)
    low, median, high = np.percentile(depth, (1, 50, 99)) if depth.size else (1.0, 1.0, 1.0)
    length = np.linalg.norm(normals)
    normal = normals / length if length > 1e-6 else np.array((0.0, 0.0, 1.0))
    return Statistics(float(median), float(low), float(high), tuple(map(float, normal)), float(np.mean(coverage)),
                      float(np.median(focals)))
