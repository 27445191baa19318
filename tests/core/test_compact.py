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
        error = abs(back.astype(np.float64) - truth)
        if one.depth_relative:
            error = error / truth
        limit = one.depth_relative or one.depth_metres
    assert error.max() <= limit
    assert error.max() >= 0.5 * limit


def test_depth_that_millimetres_cannot_hold_is_no_depth() -> None:
    depth = np.array([[0.0001, 0.0, 65.535, 65.54, 1e6, np.inf, np.nan]], np.float32)
    assert encode("depth", "uint16-mm", depth).tolist() == [[1, 1, 65535, 0, 0, 0, 0]]
    assert np.isinf(decode("depth", "uint16-mm", np.array([0], np.uint16))).all()


def test_unknown_names_are_refused_with_those_that_exist() -> None:
    with pytest.raises(BadInput, match="float32, float16, uint16-mm"):
        form("depth", "uint8")
    with pytest.raises(BadInput, match="depth, normals, alpha"):
        form("colour", "uint8")
