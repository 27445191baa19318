"""Compact forms keep to the errors they state, and say what they cannot hold."""

from __future__ import annotations

import numpy as np
import pytest

from dpt_deploy.core.compact import FORMS, decode, encode, form
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.metrics import angle

RANDOM = np.random.default_rng(7)
NORMALS = RANDOM.normal(size=(400, 500, 3))
NORMALS = (NORMALS / np.linalg.norm(NORMALS, axis=-1, keepdims=True)).astype(np.float32)
NORMALS[0, :6] = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
NORMALS[1] = RANDOM.normal(size=(500, 3)) * 10 ** RANDOM.uniform(-8, 0, (500, 1))
NORMALS[1] += NORMALS[0, RANDOM.integers(0, 6, 500)]  # near the axes, where forms have their seams
NORMALS[1] /= np.linalg.norm(NORMALS[1], axis=-1, keepdims=True)
MAPS = {
    "depth": RANDOM.uniform(0.001, 65.5, (400, 500)).astype(np.float32),
    "normals": NORMALS,
    "alpha": RANDOM.uniform(0, 1, (400, 500)).astype(np.float32),
}
ALL = [(head, name) for head, forms in FORMS.items() for name in forms]


@pytest.mark.parametrize(("head", "name"), ALL)
def test_the_stated_error_holds_and_is_not_a_loose_one(head: str, name: str) -> None:
    one, truth = form(head, name), MAPS[head]
    stored = encode(head, name, truth)
    assert stored.dtype == one.dtype and stored.nbytes == one.bytes * truth.shape[0] * truth.shape[1]
    back = decode(head, name, stored)
    assert back.dtype == np.float32 and back.shape == truth.shape
    if head == "normals":
        error, limit = angle(back, truth), one.degrees
    elif head == "alpha":
        error, limit = abs(back - truth), one.alpha
    else:
        error = abs(back.astype(np.float64) - truth) - one.depth_metres
        error, limit = (error / truth, one.depth_relative) if one.depth_relative else (error + one.depth_metres,
                                                                                       one.depth_metres)
    assert error.max() <= limit
    assert error.max() >= 0.5 * limit


@pytest.mark.parametrize("name", ["float32", "float16", "uint16-mm"])
def test_the_error_of_depth_holds_over_its_whole_range_and_not_beyond(name: str) -> None:
    one = form("depth", name)
    low, high = max(one.depth_range[0], 1e-12), min(one.depth_range[1], 1e30)
    depth = np.exp(RANDOM.uniform(np.log(low), np.log(high), 200_000)).astype(np.float32)
    depth[:3] = low, high, np.nextafter(np.float32(high), np.float32(0))
    depth = depth.clip(np.float32(low), np.float32(high))
    error = abs(decode("depth", name, encode("depth", name, depth)).astype(np.float64) - depth)
    assert (error <= one.depth_metres + one.depth_relative * depth.astype(np.float64)).all()
    if high < 1e30:
        assert np.isinf(decode("depth", name, encode("depth", name, np.array([high * 1.001], np.float32)))).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FORMS["normals"])
def test_what_is_not_a_normal_stays_without_a_direction_or_becomes_a_unit_vector(name: str) -> None:
    none = encode("normals", name, np.zeros((1, 1, 3), np.float32))
    assert decode("normals", name, none).tolist() == [[[0, 0, float("octahedral" in name)]]]
    if name.startswith("float"):
        return
    wild = np.array([[(np.nan, 0, 1), (np.inf, 0, 0), (np.inf, -np.inf, 0), (1e38, 1e38, 1e38)]], np.float32)
    back = decode("normals", name, encode("normals", name, wild))
    assert np.linalg.norm(back, axis=-1) == pytest.approx(1, abs=1e-6)
    half = np.sqrt(0.5)
    assert back[0] == pytest.approx(
        np.array([(0, 0, 1), (1, 0, 0), (half, -half, 0), [3**-0.5] * 3]), abs=0.02)


def test_depth_that_millimetres_cannot_hold_is_no_depth() -> None:
    depth = np.array([[0.0001, 0.0, 65.535, 65.54, 1e6, np.inf, np.nan, -0.0001, -1, -np.inf, 3e38]], np.float32)
    assert encode("depth", "uint16-mm", depth).tolist() == [[1, 0, 65535, 0, 0, 0, 0, 0, 0, 0, 0]]
    assert np.isinf(decode("depth", "uint16-mm", np.array([0], np.uint16))).all()


def test_unknown_names_are_refused_with_those_that_exist() -> None:
    with pytest.raises(BadInput, match="float32, float16, uint16-mm"):
        form("depth", "uint8")
    with pytest.raises(BadInput, match="depth, normals, alpha"):
        form("colour", "uint8")
