"""Augmentations keep geometry true, and depend on (seed, epoch, position) alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dpt_deploy.core.contract import Contract
from train.data.augmentation import Augment, mirrored, zoomed
from train.data.conventions import normals_from_depth
from train.data.dataset import MapDataset
from train.data.sample import Sample, to_network
from train.data.sources import open_source
from train.data.synthetic.scene import as_sample, generate

CONTRACT = Contract(input_size=(128, 128))


@pytest.fixture(params=[0, 1, 2], ids=["face", "full_body", "upper_body"])
def sample(request: pytest.FixtureRequest) -> Sample:
    return as_sample(generate(9, request.param, 160, 160), request.param)


def median_angle(sample: Sample) -> float:
    normals, holds = normals_from_depth(sample.depth, sample.intrinsics)
    holds &= np.abs(sample.normals).sum(axis=2) > 0
    assert holds.sum() > 50
    cosine = np.clip((normals * sample.normals).sum(axis=2)[holds], -1, 1)
    return float(np.degrees(np.median(np.arccos(cosine))))


def test_a_mirror_mirrors_image_truth_and_x(sample: Sample):
    other = mirrored(sample)
    np.testing.assert_array_equal(other.rgb, sample.rgb[:, ::-1])
    np.testing.assert_array_equal(other.depth, sample.depth[:, ::-1])
    np.testing.assert_array_equal(other.normals[..., 0], -sample.normals[:, ::-1, 0])
    np.testing.assert_array_equal(other.normals[..., 1:], sample.normals[:, ::-1, 1:])
    assert median_angle(to_network(other, CONTRACT)) < 5


@pytest.mark.parametrize("scale", [0.6, 0.8, 1.3, 2.0])
def test_a_zoom_scales_intrinsics_and_leaves_depth_and_normals(sample: Sample, scale: float):
    other = to_network(zoomed(sample, scale, 0.3, -0.4), CONTRACT)
    plain = to_network(sample, CONTRACT)
    assert other.intrinsics[0, 0] == pytest.approx(plain.intrinsics[0, 0] * scale, rel=0.02)
    assert median_angle(other) < 5
    seen = other.depth[other.depth > 0]
    assert sample.depth[sample.depth > 0].min() * 0.99 <= seen.min()
    assert seen.max() <= sample.depth.max() * 1.01
    assert (other.inside is not None) == (scale < 1)


def test_random_augmentations_keep_the_geometry(sample: Sample):
    augment = Augment(mirror=0.5, zoom=1.5)
    for seed in range(5):
        assert median_angle(to_network(augment.geometry(sample, np.random.default_rng(seed)), CONTRACT)) < 5


def test_image_changes_touch_the_image_alone(sample: Sample):
    augment = Augment(color=0.5, blur=1, noise=1, jpeg=1)
    rgb = augment.image(sample.rgb, np.random.default_rng(0))
    assert rgb.shape == sample.rgb.shape and rgb.dtype == np.uint8
    assert np.abs(rgb.astype(int) - sample.rgb).mean() > 2
    assert np.corrcoef(rgb.mean(axis=2).ravel(), sample.rgb.mean(axis=2).ravel())[0, 1] > 0.9


def test_a_padded_zoom_hides_the_padding_from_every_loss():
    sample = as_sample(generate(9, 1, 96, 96), 1)
    small = to_network(zoomed(sample, 0.5), CONTRACT)
    assert 0.2 < small.inside.mean() < 0.3
    assert (small.depth[~small.inside] == 0).mean() > 0.99  # resizing blends one pixel over the border


def test_augmentation_is_fixed_by_seed_epoch_and_position(data: Path):
    source = open_source(data)
    positions = list(range(len(source)))

    def item(seed: int, epoch: int, index: int) -> torch.Tensor:
        return MapDataset(source, positions, CONTRACT, Augment(), seed)[epoch, index]["image"]

    assert torch.equal(item(0, 1, 2), item(0, 1, 2))
    assert not torch.equal(item(0, 1, 2), item(0, 2, 2))
    assert not torch.equal(item(0, 1, 2), item(1, 1, 2))
    shuffled = MapDataset(source, positions[::-1], CONTRACT, Augment(), 0)
    assert torch.equal(shuffled[1, len(source) - 3]["image"], item(0, 1, 2)), "whatever else is trained on"
