"""Rates, decay, schedule and moving average."""

from __future__ import annotations

import itertools

import pytest
import torch

from dpt_deploy.model import create_multitask_dpt_model
from train.loop.optim import MovingAverage, parameter_groups, rate_factor


@pytest.fixture(scope="module")
def model():
    return create_multitask_dpt_model("test_vit", features=8, backbone_kwargs={"img_size": 64})


def settings(model, **options) -> dict[str, tuple[float, float]]:
    """Peak rate and decay of every parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 1e-3, 0.05, **options)
    found = {names[id(p)]: (group["peak_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found.keys() == dict(model.named_parameters()).keys(), "every parameter once"
    return found


def test_the_backbone_has_its_own_rate_and_vectors_do_not_decay(model):
    found = settings(model, backbone_scale=0.1)
    assert found["backbone.blocks.0.attn.qkv.weight"] == pytest.approx((1e-4, 0.05))
    assert found["decoder.fusion.0.out.weight"] == pytest.approx((1e-3, 0.05))
    assert found["heads.depth.conv1.weight"] == pytest.approx((1e-3, 0.05))
    for name, (_, decay) in found.items():
        if name.endswith((".bias", "norm1.weight", "norm2.weight", "pos_embed", "cls_token", "reg_token")):
            assert decay == 0, name


def test_layer_decay_falls_from_the_last_block_to_the_patches(model):
    found = settings(model, backbone_scale=1.0, layer_decay=0.5)
    blocks = len(model.backbone.blocks)
    for i in range(blocks):
        assert found[f"backbone.blocks.{i}.mlp.fc1.weight"][0] == pytest.approx(1e-3 * 0.5 ** (blocks - 1 - i))
    assert found["backbone.patch_embed.proj.weight"][0] == pytest.approx(1e-3 * 0.5**blocks)
    assert found["heads.alpha.conv3.weight"][0] == pytest.approx(1e-3)


def test_the_rate_rises_and_falls():
    factors = [rate_factor(step, 1000, 0.1) for step in range(1000)]
    assert factors[0] < 0.02
    assert max(factors) == pytest.approx(1, abs=0.02)
    assert factors.index(max(factors)) == pytest.approx(100, abs=2)
    assert factors[-1] == pytest.approx(0.01, abs=1e-3)
    assert all(b <= a for a, b in itertools.pairwise(factors[101:]))
    assert rate_factor(0, 10, 0) == pytest.approx(1)


def test_the_moving_average_follows_the_model_and_resumes():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = MovingAverage(model, 0.9)
    start, expected = model[0].weight.detach().clone(), model[0].weight.detach().clone()
    for update in range(1, 40):
        with torch.no_grad():
            model[0].weight += 1
        model(torch.rand(3, 2))
        average.update_parameters(model)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = expected * decay + (start + update) * (1 - decay)
    torch.testing.assert_close(average.module[0].weight, expected)
    torch.testing.assert_close(model[0].weight, start + 39)
    assert average.module[1].num_batches_tracked == 39, "a counter is copied"
    assert average.updates == 39
    again = MovingAverage(model, 0.9)
    again.load(average.module.state_dict(), average.updates)
    for one in (average, again):
        one.update_parameters(model)
    torch.testing.assert_close(again.module[0].weight, average.module[0].weight, rtol=0, atol=0)
