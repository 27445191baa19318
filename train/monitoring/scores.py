"""Task metrics of a data set, in the units that are usual in the field (PyTorch, float64).

Depth and alpha are averaged per image and then over images, normals over all pixels. Images without valid pixels do
not count.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from dpt_deploy.core import metrics

from ..data.statistics import Statistics

METRICS = {
    "depth_abs_rel": "AbsRel", "depth_rmse": "RMSE [m]", "depth_delta1": "delta1",
    "depth_abs_rel_aligned": "AbsRel, aligned", "depth_rmse_aligned": "RMSE, aligned [m]",
    "normals_mean": "mean [deg]", "normals_median": "median [deg]", "normals_11.25": "below 11.25 deg",
    "normals_22.5": "below 22.5 deg", "normals_30": "below 30 deg",
    "alpha_mae": "MAE", "alpha_mse": "MSE", "alpha_sad": "SAD [1000 px]", "alpha_sad_trimap": "SAD, trimap [1000 px]",
    "alpha_iou": "IoU at 0.5",
}
"""Metric -> its name in tables, in the order of the tables."""
_BINS = 3600  # of 0.05 degrees


def depth_scores(depth: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """AbsRel, RMSE [m] and delta1 (Eigen et al. 2014), and AbsRel and RMSE after a least-squares scale and shift.

    Args:
        depth: (N, 1, H, W) [m].
        truth: (N, 1, H, W) [m].
        mask: bool (N, 1, H, W), the valid pixels.

    Returns:
        Metric -> float64 (N,), NaN for an image without valid pixels.
    """
    mask = mask.flatten(1)
    count = mask.sum(dim=1).double()
    p, t = (torch.where(mask, x.flatten(1).double(), 0.0) for x in (depth, truth))

    def mean(values: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, values, 0.0).sum(dim=1) / count

    def errors(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return mean((p - t).abs() / t), mean((p - t) ** 2).sqrt()

    abs_rel, rmse = errors(p)
    mean_p, mean_t = (mean(p)[:, None], mean(t)[:, None])
    variance, covariance = mean((p - mean_p) ** 2), mean((p - mean_p) * (t - mean_t))
    scale = torch.where(variance > 1e-12, covariance / variance.clamp(min=1e-12), 0.0)[:, None]
    aligned = errors(scale * (p - mean_p) + mean_t)
    ratio = torch.maximum(p / t, t / p.clamp(min=1e-12))
    return {"depth_abs_rel": abs_rel, "depth_rmse": rmse, "depth_delta1": mean((ratio < 1.25).double()),
            "depth_abs_rel_aligned": aligned[0], "depth_rmse_aligned": aligned[1]}


def angles(normals: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Angles between vectors (N, 3, H, W) at the M pixels of a mask (N, 1, H, W): float64 (M,) [degrees]."""
    return metrics.angle(*(x.permute(0, 2, 3, 1)[mask[:, 0]] for x in (normals, truth)))


def alpha_scores(alpha: torch.Tensor, truth: torch.Tensor, inside: torch.Tensor) -> dict[str, torch.Tensor]:
    """MAE, MSE, SAD and trimap SAD [1000 pixels], IoU at 0.5.

    The unknown band of the trimap is where the ground truth varies within 10/384 of the height: a dilated contour, as
    in matting benchmarks (Rhemann et al. 2009).

    Args:
        alpha: (N, 1, H, W) in [0, 1].
        truth: (N, 1, H, W) in [0, 1].
        inside: bool (N, 1, H, W), False in padding.

    Returns:
        Metric -> float64 (N,).
    """
    radius = max(1, round(truth.shape[2] * 10 / 384))
    pooled = [F.max_pool2d(sign * truth, 2 * radius + 1, 1, radius) for sign in (1, -1)]
    band = inside & ((pooled[0] + pooled[1]) > 0.01)
    error = torch.where(inside, (alpha - truth).abs(), 0.0).double().flatten(1)
    count = inside.flatten(1).sum(dim=1)
    ious = [metrics.iou(a[within], t[within]) for a, t, within in zip(alpha, truth, inside, strict=True)]
    return {
        "alpha_mae": error.sum(dim=1) / count, "alpha_mse": (error**2).sum(dim=1) / count,
        "alpha_sad": error.sum(dim=1) / 1000, "alpha_sad_trimap": (error * band.flatten(1)).sum(dim=1) / 1000,
        "alpha_iou": torch.tensor(ious, dtype=torch.float64),
    }


class Scores:
    """Accumulates metrics batch by batch; `table` gives them for all images and per kind."""

    def __init__(self) -> None:
        self.images: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.histograms: dict[str, torch.Tensor] = {}
        self.pixels: dict[str, torch.Tensor] = {}  # count, sum, below 11.25, 22.5, 30

    @torch.no_grad()
    def add(self, maps: dict[str, torch.Tensor], batch: dict[str, Any]) -> None:
        """Add a batch: some of depth (N, 1, H, W) [m], normals (N, 3, H, W), alpha (N, 1, H, W), and ground truth."""
        inside = batch["inside"]
        if "depth" in maps:
            valid = inside & (batch["depth"] > 0)
            self._add_images(batch["kind"], depth_scores(maps["depth"], batch["depth"], valid), valid)
        if "alpha" in maps:
            self._add_images(batch["kind"], alpha_scores(maps["alpha"], batch["alpha"], inside), inside)
        if "normals" in maps:
            facing = inside & (batch["normals"].abs().sum(dim=1, keepdim=True) > 0)
            for kind in sorted(set(batch["kind"])):
                chosen = torch.tensor([k == kind for k in batch["kind"]], device=facing.device)
                self._add_angles(kind, angles(maps["normals"][chosen], batch["normals"][chosen], facing[chosen]).cpu())

    def _add_images(self, kinds: list[str], scores: dict[str, torch.Tensor], valid: torch.Tensor) -> None:
        """Add the scores of images with valid pixels. NaN counts too, because then the prediction has NaN."""
        counts = valid.flatten(1).any(dim=1).tolist()
        for name, values in scores.items():
            for kind, value, counted in zip(kinds, values.tolist(), counts, strict=True):
                if counted:
                    self.images[kind][name].append(value)

    def _add_angles(self, kind: str, values: torch.Tensor) -> None:
        histogram = torch.histc(values[values.isfinite()], _BINS, 0, 180)
        below = [(values < limit).sum().double() for limit in (11.25, 22.5, 30)]
        pixels = torch.stack((torch.tensor(float(values.numel()), dtype=torch.float64), values.sum(), *below))
        self.histograms[kind] = self.histograms.get(kind, 0) + histogram
        self.pixels[kind] = self.pixels.get(kind, 0) + pixels

    def merge(self, others: list[Scores]) -> Scores:
        """The scores of all `others` together."""
        merged = Scores()
        for other in others:
            for kind, per_metric in other.images.items():
                for name, values in per_metric.items():
                    merged.images[kind][name] += values
            for kind in other.pixels:
                merged.histograms[kind] = merged.histograms.get(kind, 0) + other.histograms[kind]
                merged.pixels[kind] = merged.pixels.get(kind, 0) + other.pixels[kind]
        return merged

    def __getstate__(self) -> dict:
        return self.__dict__ | {"images": {kind: dict(metrics) for kind, metrics in self.images.items()}}

    def table(self) -> dict[str, dict[str, float]]:
        """Metrics by "all" and by kind, in the order of `METRICS`."""
        kinds = sorted(set(self.images) | set(self.pixels))
        return {"all": self._row(kinds)} | ({kind: self._row([kind]) for kind in kinds} if len(kinds) > 1 else {})

    def _row(self, kinds: list[str]) -> dict[str, float]:
        row: dict[str, float] = {}
        for name in METRICS:
            values = [v for kind in kinds for v in self.images.get(kind, {}).get(name, ())]
            if values:
                row[name] = sum(values) / len(values)
        pixels = sum((self.pixels[kind] for kind in kinds if kind in self.pixels), torch.zeros(5, dtype=torch.float64))
        count = pixels[0].item()
        if count:
            histogram = sum(self.histograms[kind] for kind in kinds if kind in self.histograms)
            middle = torch.searchsorted(histogram.cumsum(0), torch.tensor(count / 2, dtype=histogram.dtype)).item()
            row["normals_mean"] = pixels[1].item() / count
            row["normals_median"] = (middle + 0.5) * 180 / _BINS if pixels[1].isfinite() else math.nan
            row |= {name: pixels[i].item() / count for i, name in
                    enumerate(("normals_11.25", "normals_22.5", "normals_30"), start=2)}
        return {name: row[name] for name in METRICS if name in row}


class ConstantScores:
    """The scores of constant predictions on the same images: median depth, mean normal, mean alpha.

    For IoU the constant is "everything is foreground", because the mean alpha may be below the threshold.
    """

    def __init__(self, statistics: Statistics, heads: Sequence[str]) -> None:
        self.statistics, self.heads = statistics, heads
        self.constant, self.full = Scores(), Scores()

    def add(self, batch: dict[str, Any]) -> None:
        maps = self.statistics.constants(batch)
        self.constant.add({head: maps[head] for head in self.heads}, batch)
        if "alpha" in self.heads:
            self.full.add({"alpha": torch.ones_like(batch["alpha"])}, batch)

    def merge(self, others: list[ConstantScores]) -> ConstantScores:
        merged = ConstantScores(self.statistics, self.heads)
        merged.constant = self.constant.merge([other.constant for other in others])
        merged.full = self.full.merge([other.full for other in others])
        return merged

    def table(self) -> dict[str, dict[str, float]]:
        table, full = self.constant.table(), self.full.table()
        for kind, row in table.items():
            if "alpha_iou" in row:
                row["alpha_iou"] = full[kind]["alpha_iou"]
        return table
