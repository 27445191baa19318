"""What is typical of a set: where a new model starts, and what constant predictions score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from dpt_deploy.core.errors import BadInput
from train.sample import Sample
from train.scores import Scores
from train.sources import Source


@dataclass(frozen=True)
class Statistics:
    """Of a set's foreground."""

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
    """Median focal length over the image's width."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def constants(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Maps that say the same everywhere, as large as `batch`'s."""
        like = batch["alpha"]
        normal = torch.tensor(self.normal, device=like.device).view(1, 3, 1, 1)
        return {"depth": torch.full_like(like, self.depth), "normals": normal.expand(len(like), 3, *like.shape[2:]),
                "alpha": torch.full_like(like, self.coverage)}


def spread(positions: Sequence[int], limit: int) -> list[int]:
    """Up to `limit` of `positions`, evenly spread over them."""
    chosen = np.unique(np.linspace(0, len(positions) - 1, min(limit, len(positions))).astype(int))
    return [positions[i] for i in chosen]


def readable(source: Source, positions: Sequence[int]) -> Iterator[Sample]:
    """The samples at `positions` that can be read. Raises `BadInput` when none can."""
    found, reason = False, ""
    for position in positions:
        try:
            sample = source.read(position)
        except BadInput as error:
            reason = str(error)
            continue
        found = True
        yield sample
    if not found:
        raise BadInput(f"data: none of the samples tried can be read. The last one: {reason}")


def measure(samples: Iterable[Sample]) -> Statistics:
    """Statistics of some samples, at least one."""
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


class ConstantScores:
    """What constant predictions score on the same images; IoU is that of "everything is foreground"."""

    def __init__(self, statistics: Statistics, tasks: Sequence[str]) -> None:
        self.statistics, self.tasks = statistics, tasks
        self.constant, self.full = Scores(), Scores()

    def add(self, batch: dict[str, Any]) -> None:
        maps = self.statistics.constants(batch)
        self.constant.add({task: maps[task] for task in self.tasks}, batch)
        if "alpha" in self.tasks:
            self.full.add({"alpha": torch.ones_like(batch["alpha"])}, batch)

    def merge(self, others: list[ConstantScores]) -> ConstantScores:
        merged = ConstantScores(self.statistics, self.tasks)
        merged.constant = self.constant.merge([other.constant for other in others])
        merged.full = self.full.merge([other.full for other in others])
        return merged

    def table(self) -> dict[str, dict[str, float]]:
        table, full = self.constant.table(), self.full.table()
        for kind, row in table.items():
            if "alpha_iou" in row:
                row["alpha_iou"] = full[kind]["alpha_iou"]
        return table
