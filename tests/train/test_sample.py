"""Image and truth reach the network's size together: the contract's filter, valid-weighted depth, padding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dpt_deploy.core.contract import Contract, resize_weights
from train.data.conventions import normals_from_depth
from train.data.sample import Sample, to_network
from train.data.synthetic.scene import as_sample, generate


def sample_of(number: int, height: int, width: int, seed: int = 5) -> Sample:
    return as_sample(generate(seed, number, height, width), number)


def median_angle(sample: Sample) -> float:
    """Between the map and the normals that depth and intrinsics give [degrees]."""
    normals, holds = normals_from_depth(sample.depth, sample.intrinsics)
    holds &= np.abs(sample.normals).sum(axis=2) > 0
    assert holds.sum() > 50
    return float(np.degrees(np.arccos(np.clip(np.median((normals * sample.normals).sum(axis=2)[holds]), -1, 1))))


@pytest.mark.parametrize("size", [(60, 80), (300, 200)])
def test_images_are_resized_by_the_contracts_filter(size: tuple[int, int]):
    sample = sample_of(1, 120, 160)
    small = to_network(sample, Contract(input_size=size))
    rows, columns = resize_weights(120, size[0]), resize_weights(160, size[1])
    expected = np.einsum("yh,xw,hwc->yxc", rows, columns, sample.rgb.astype(np.float64))
    assert np.abs(small.rgb - expected).max() <= 0.51
    expected = np.einsum("yh,xw,hw->yx", rows, columns, sample.alpha.astype(np.float64))
    np.testing.assert_allclose(small.alpha, expected, atol=1e-5)
    assert small.inside is None


def test_depth_is_averaged_over_valid_pixels_alone():
    sample = sample_of(1, 128, 128)
    depth = np.where(sample.depth > 0, 2.0, 0.0).astype(np.float32)
    small = to_network(dataclasses.replace(sample, depth=depth), Contract(input_size=(48, 48)))
    values = small.depth[small.depth > 0]
    np.testing.assert_allclose(values, 2.0, rtol=1e-5)
    assert values.size > 100


def test_normals_are_unit_vectors_or_none():
    small = to_network(sample_of(0, 128, 128), Contract(input_size=(48, 48)))
    length = np.linalg.norm(small.normals, axis=2)
    assert np.all((np.abs(length - 1) < 1e-5) | (length == 0))


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_geometry_survives_a_non_square_image(resize: str):
    sample = sample_of(0, 160, 256)
    assert median_angle(sample) < 1.5
    assert median_angle(to_network(sample, Contract(input_size=(128, 128), resize=resize))) < 3


def test_letterbox_padding_repeats_the_edge_and_lies_outside():
    sample = sample_of(1, 64, 128)
    contract = Contract(input_size=(96, 96), resize="letterbox")
    box, small = contract.content_box((64, 128)), to_network(sample, contract)
    assert (box.height, box.width) == (48, 96)
    expected = np.zeros((96, 96), bool)
    expected[box.top : box.top + box.height] = True
    np.testing.assert_array_equal(small.inside, expected)
    np.testing.assert_array_equal(small.rgb[0], small.rgb[box.top])
    assert small.intrinsics[0, 0] == pytest.approx(sample.intrinsics[0, 0] * 0.75)
    assert small.intrinsics[1, 2] == pytest.approx(32 * 0.75 + box.top)


def test_a_sample_of_the_right_size_is_left_alone():
    sample = sample_of(1, 64, 64)
    assert to_network(sample, Contract(input_size=(64, 64))) is sample
