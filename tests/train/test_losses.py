"""Losses against their formulas written out again, per image, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from train.model.losses import Losses, alpha_loss, berhu, cosine, gradient_matching


@pytest.fixture
def maps() -> dict[str, torch.Tensor]:
    """Three images of 12x10 with random outputs and truth; the last has no valid pixels."""
    g = torch.Generator().manual_seed(0)
    n, h, w = 3, 12, 10
    normals = torch.nn.functional.normalize(torch.randn(n, 3, h, w, generator=g), dim=1)
    depth = torch.rand(n, 1, h, w, generator=g) + 1
    depth[:, :, :3], normals[:, :, :, :2] = 0, 0
    depth[2], normals[2] = 0, 0
    inside = torch.ones(n, 1, h, w, dtype=torch.bool)
    inside[0, :, -2:] = False
    inside[2] = False
    return {
        "p_depth": torch.rand(n, 1, h, w, generator=g) * 3, "p_normals": torch.randn(n, 3, h, w, generator=g),
        "p_logits": torch.randn(n, 1, h, w, generator=g) * 3, "depth": depth, "normals": normals,
        "alpha": torch.rand(n, 1, h, w, generator=g), "inside": inside,
    }


def per_image(maps: dict[str, torch.Tensor], losses: Losses | None = None) -> dict[str, torch.Tensor]:
    outputs = {"depth": maps["p_depth"], "normals": maps["p_normals"], "alpha_logits": maps["p_logits"]}
    return (losses or Losses()).per_image(outputs, maps)


def test_berhu_is_the_reverse_huber_loss_of_each_image(maps):
    mask = maps["inside"] & (maps["depth"] > 0)
    got = berhu(maps["p_depth"], maps["depth"], mask)
    for i in range(2):
        e = np.abs((maps["p_depth"] - maps["depth"])[i][mask[i]].double().numpy())
        c = 0.2 * e.max()
        expected = np.mean([v if v <= c else (v * v + c * c) / (2 * c) for v in e])
        assert got[i].item() == pytest.approx(expected, rel=1e-5)
    assert got[2].item() == 0


def test_the_threshold_of_berhu_carries_no_gradient():
    depth = torch.tensor([[[[1.0, 3.0]]]], requires_grad=True)
    berhu(depth, torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2, dtype=torch.bool)).sum().backward()
    # c = 0.4 is constant: d/de (e^2 + c^2) / 2c = e / c, over two pixels.
    assert depth.grad[0, 0, 0, 1].item() == pytest.approx(2 / 0.4 / 2)


def test_a_perfect_depth_has_no_loss_and_a_finite_gradient():
    depth = torch.ones(1, 1, 4, 4, requires_grad=True)
    loss = berhu(depth, torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool)).sum()
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(depth.grad).all()


def test_cosine_ignores_the_length_of_the_prediction(maps):
    mask = maps["inside"] & (maps["normals"].abs().sum(1, keepdim=True) > 0)
    got = cosine(maps["p_normals"], maps["normals"], mask)
    torch.testing.assert_close(cosine(7 * maps["p_normals"], maps["normals"], mask), got)
    p, t = (x.permute(0, 2, 3, 1)[1][mask[1, 0]].double().numpy() for x in (maps["p_normals"], maps["normals"]))
    assert got[1].item() == pytest.approx(np.mean(1 - (p * t).sum(1) / np.linalg.norm(p, axis=1)), rel=1e-5)


def test_alpha_is_cross_entropy_plus_dice(maps):
    got = alpha_loss(maps["p_logits"], maps["alpha"], maps["inside"])
    x, t = (maps[k][0][maps["inside"][0]].double().numpy() for k in ("p_logits", "alpha"))
    p = 1 / (1 + np.exp(-x))
    entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    dice = 1 - (2 * (p * t).sum() + 1) / ((p + t).sum() + 1)
    assert got[0].item() == pytest.approx(entropy + dice, rel=1e-5)
    assert got[2].item() == 0


def test_gradients_are_matched_between_valid_neighbours_only():
    truth = torch.ones(1, 1, 8, 8)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    assert gradient_matching(truth + 0.5, truth, mask).item() == 0, "a shift has no gradient"
    spike = truth.clone()
    spike[..., 3, 3] = 100
    mask[..., 3, 3] = False
    assert gradient_matching(spike, truth, mask).item() == 0
    ramp = truth + 0.1 * torch.arange(8.0)
    assert gradient_matching(ramp, truth, torch.ones_like(mask)).item() == pytest.approx(0.1 + 0.2 + 0.4, rel=1e-5)


def test_splitting_a_batch_changes_nothing(maps):
    whole = per_image(maps)
    parts = [per_image({k: v[i : i + 1] for k, v in maps.items()}) for i in range(3)]
    for name, values in whole.items():
        torch.testing.assert_close(values, torch.cat([part[name] for part in parts]))


def test_an_image_without_valid_pixels_contributes_nothing_not_even_nan(maps):
    maps["p_depth"][2], maps["p_normals"][2] = float("inf"), float("nan")
    losses = per_image(maps, Losses(w_gradient=1.0))
    assert all(value[2].item() == 0 for value in losses.values())


def test_nothing_outside_the_content_counts(maps):
    before = per_image(maps, Losses(w_gradient=1.0))
    outside = ~maps["inside"]
    for name in ("p_depth", "p_normals", "p_logits", "alpha"):
        maps[name] = torch.where(outside, 7.0, maps[name])
    for name, value in per_image(maps, Losses(w_gradient=1.0)).items():
        torch.testing.assert_close(value, before[name])


def test_weights_and_heads_choose_the_sum(maps):
    weighted = per_image(maps, Losses(w_depth=2, w_normal=3, w_alpha=5))
    expected = 2 * weighted["depth"] + 3 * weighted["normals"] + 5 * weighted["alpha"]
    torch.testing.assert_close(weighted["loss"], expected)
    assert set(per_image(maps, Losses(heads=("normals",)))) == {"normals", "loss"}


def test_losses_are_float32_for_half_outputs(maps):
    half = {k: v.half() if k.startswith("p_") else v for k, v in maps.items()}
    assert all(value.dtype == torch.float32 for value in per_image(half).values())
