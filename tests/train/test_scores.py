"""Every metric against a second implementation: plain NumPy over pixels, `dpt_deploy.metrics`, SciPy-free loops."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from dpt_deploy.core import metrics
from train.data.sources import open_source
from train.data.statistics import Statistics, measure
from train.monitoring.scores import METRICS, ConstantScores, Scores


@pytest.fixture
def batch() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Maps and truth of five images of 40x48, of two kinds; one image has no valid depth or normals."""
    g = torch.Generator().manual_seed(1)
    n, h, w = 5, 40, 48
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    alpha = torch.stack([((x - 15 - 3 * i) ** 2 + (y - 20) ** 2 < 140).float() for i in range(n)])[:, None]
    alpha = torch.nn.functional.avg_pool2d(alpha, 3, 1, 1)
    body = alpha > 0.5
    depth = torch.where(body, 1 + torch.rand(n, 1, h, w, generator=g), 0.0)
    normals = torch.nn.functional.normalize(torch.randn(n, 3, h, w, generator=g), dim=1) * body
    depth[3], normals[3] = 0, 0
    inside = torch.ones(n, 1, h, w, dtype=torch.bool)
    inside[1, :, :, 30:] = False
    maps = {
        "depth": (depth + 0.3 * torch.randn(n, 1, h, w, generator=g)).abs() + 0.05,
        "normals": normals + 0.4 * torch.randn(n, 3, h, w, generator=g),
        "alpha": (alpha + 0.3 * torch.randn(n, 1, h, w, generator=g)).clamp(0, 1),
    }
    kinds = ["face", "face", "upper_body", "face", "upper_body"]
    return maps, {"depth": depth, "normals": normals, "alpha": alpha, "inside": inside, "kind": kinds}


def second_implementation(maps, truth, members) -> dict[str, float]:
    """The same metrics, image by image and pixel by pixel, in NumPy."""
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    angles = []
    for i in members:
        inside = truth["inside"][i, 0].numpy()
        valid = inside & (truth["depth"][i, 0].numpy() > 0)
        p, t = (x["depth"][i, 0].double().numpy()[valid] for x in (maps, truth))
        if t.size:
            scale, shift = np.linalg.lstsq(np.stack((p, np.ones_like(p)), axis=1), t, rcond=None)[0]
            for suffix, q in (("", p), ("_aligned", scale * p + shift)):
                found[f"depth_abs_rel{suffix}"].append(metrics.relative_depth_error(q, t).mean())
                found[f"depth_rmse{suffix}"].append(np.sqrt(((q - t) ** 2).mean()))
            found["depth_delta1"].append((np.maximum(p / t, t / p) < 1.25).mean())
        n, m = (x["normals"][i].permute(1, 2, 0).numpy() for x in (maps, truth))
        angles.append(metrics.angle(n, m)[inside & (np.linalg.norm(m, axis=2) > 0)])
        a, b = (x["alpha"][i, 0].double().numpy() for x in (maps, truth))
        radius = 1  # 40 rows: 10/384 of the height is one pixel
        kernel = np.ones((2 * radius + 1,) * 2)
        band = (cv2.dilate(b, kernel) - cv2.erode(b, kernel)) > 0.01
        found["alpha_mae"].append(np.abs(a - b)[inside].mean())
        found["alpha_mse"].append(((a - b) ** 2)[inside].mean())
        found["alpha_sad"].append(np.abs(a - b)[inside].sum() / 1000)
        found["alpha_sad_trimap"].append(np.abs(a - b)[inside & band].sum() / 1000)
        found["alpha_iou"].append(metrics.iou(a[inside], b[inside]))
    pooled = np.concatenate(angles)
    row = {name: float(np.mean(values)) for name, values in found.items() if values}
    row |= {"normals_mean": pooled.mean(), "normals_median": float(np.median(pooled))}
    return row | {f"normals_{limit:g}": float((pooled < limit).mean()) for limit in (11.25, 22.5, 30)}


def test_every_metric_agrees_with_a_second_implementation(batch):
    maps, truth = batch
    scores = Scores()
    scores.add(maps, truth)
    table = scores.table()
    assert list(table) == ["all", "face", "upper_body"]
    for name, members in (("all", range(5)), ("face", (0, 1, 3)), ("upper_body", (2, 4))):
        expected = second_implementation(maps, truth, members)
        assert set(table[name]) == set(METRICS)
        for metric, value in table[name].items():
            tolerance = 0.06 if metric == "normals_median" else 1e-5  # a histogram of 0.05 degrees
            assert value == pytest.approx(expected[metric], rel=1e-5, abs=tolerance), (name, metric)


def test_batches_and_processes_change_nothing(batch):
    maps, truth = batch
    whole, parts = Scores(), [Scores(), Scores()]
    whole.add(maps, truth)
    for i in range(5):
        parts[i % 2].add({k: v[i : i + 1] for k, v in maps.items()}, {k: v[i : i + 1] for k, v in truth.items()})
    merged = Scores().merge(parts).table()
    for name, row in whole.table().items():
        assert merged[name] == pytest.approx(row)


def test_the_truth_scores_perfectly(batch):
    _, truth = batch
    scores = Scores()
    scores.add({"depth": truth["depth"], "normals": truth["normals"], "alpha": truth["alpha"]}, truth)
    row = scores.table()["all"]
    assert row["depth_abs_rel"] == row["alpha_mae"] == 0
    assert row["depth_rmse_aligned"] < 1e-6
    assert row["depth_delta1"] == row["alpha_iou"] == row["normals_11.25"] == 1
    assert row["normals_mean"] < 1e-3


def test_alignment_removes_scale_and_shift(batch):
    _, truth = batch
    scores = Scores()
    scores.add({"depth": 0.4 * truth["depth"] + 0.7}, truth)
    row = scores.table()["all"]
    assert row["depth_abs_rel"] > 0.05
    assert row["depth_abs_rel_aligned"] < 1e-6


def test_constants_score_what_the_same_value_everywhere_scores(batch):
    _, truth = batch
    statistics = Statistics(depth=1.4, depth_low=1.0, depth_high=2.0, normal=(0.0, 0.6, 0.8), coverage=0.25, focal=1.0)
    constants = ConstantScores(statistics, ("depth", "normals", "alpha"))
    constants.add(truth)
    row = constants.table()["all"]
    maps = {"depth": torch.full_like(truth["depth"], 1.4), "alpha": torch.full_like(truth["alpha"], 0.25),
            "normals": torch.tensor([0.0, 0.6, 0.8]).view(1, 3, 1, 1).expand_as(truth["normals"])}
    expected = second_implementation(maps, truth, range(5))
    everything = second_implementation(maps | {"alpha": torch.ones_like(truth["alpha"])}, truth, range(5))
    assert row["depth_abs_rel"] == pytest.approx(expected["depth_abs_rel"])
    assert row["normals_mean"] == pytest.approx(expected["normals_mean"])
    assert row["alpha_mae"] == pytest.approx(expected["alpha_mae"])
    assert row["alpha_iou"] == pytest.approx(everything["alpha_iou"]), "the better constant: all foreground"


def test_statistics_are_those_of_the_foreground(data):
    source = open_source(data)
    samples = [source.read(i) for i in range(len(source))]
    statistics = measure(samples)
    depth = np.concatenate([sample.depth[sample.depth > 0] for sample in samples])
    assert statistics.depth == pytest.approx(np.median(depth), rel=0.02)
    assert statistics.coverage == pytest.approx(np.mean([sample.alpha.mean() for sample in samples]), rel=1e-5)
    normal = np.sum([sample.normals.sum(axis=(0, 1)) for sample in samples], axis=0)
    np.testing.assert_allclose(statistics.normal, normal / np.linalg.norm(normal), atol=1e-5)


def test_only_the_heads_that_are_there_are_scored(batch):
    maps, truth = batch
    scores = Scores()
    scores.add({"alpha": maps["alpha"]}, truth)
    assert all(name.startswith("alpha") for name in scores.table()["all"])


def test_what_a_model_does_not_know_makes_its_score_worse_not_better(batch):
    maps, truth = batch
    for name, value in maps.items():
        value[0, :, 20] = float("nan")
        scores = Scores()
        scores.add({name: value}, truth)
        row, other = scores.table()["all"], scores.table()["upper_body"]
        mean = {"depth": "depth_abs_rel", "normals": "normals_mean", "alpha": "alpha_mae"}[name]
        assert np.isnan(row[mean]) and np.isfinite(other[mean])
        assert name != "normals" or np.isnan(row["normals_median"])


def test_an_image_without_valid_pixels_does_not_count(batch):
    maps, truth = batch
    maps["depth"][3] = float("nan")  # image 3 has no depth to compare with
    scores = Scores()
    scores.add({"depth": maps["depth"]}, truth)
    assert np.isfinite(scores.table()["all"]["depth_abs_rel"])
