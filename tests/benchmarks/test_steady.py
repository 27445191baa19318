"""The benchmark of flicker: what it writes, and what its numbers mean."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.steady import SteadyConfig, aligned_error, main, silhouette_motion
from dpt_deploy.core.errors import BadInput
from dpt_deploy.steady import flicker
from train.data.synthetic.clip import ClipFrame


def test_it_writes_numbers_and_a_picture(tiny_bundle: Path, tmp_path: Path, capsys) -> None:
    config = SteadyConfig(tiny_bundle, clips=1, frames=4, frame_size=(64, 64), backend="onnxruntime-cpu", out=tmp_path)
    status = main(config)
    result = json.loads((tmp_path / "steady.json").read_text())
    assert status == (0 if result["goals"]["met"] else 1)
    for way in ("frames", "steady"):
        assert set(result["mean"][way]["error"]) >= {"depth", "normals", "alpha", "depth aligned"}
        assert all(value > 0 for value in result["mean"][way]["flicker"].values())
    assert result["ratio"]["flicker"]["depth true"] == pytest.approx(
        result["mean"]["steady"]["flicker"]["depth true"] / result["mean"]["frames"]["flicker"]["depth true"])
    assert cv2.imread(str(tmp_path / "steady.png")) is not None
    assert "flicker, alpha [absolute], true" in capsys.readouterr().out


def test_one_frame_has_no_flicker() -> None:
    with pytest.raises(BadInput, match="at least 2"):
        SteadyConfig(frames=1)


def test_flicker_is_the_change_along_the_motion() -> None:
    """By hand: a ramp that moves by 2 pixels does not flicker, and one that stands still under that motion does."""
    ramp = np.tile(np.arange(20, dtype=np.float32) / 20, (10, 1))
    moved = ramp - 2 / 20
    motion = np.zeros((10, 20, 2), np.float32)
    motion[..., 0] = -2
    counted = np.zeros((10, 20), bool)
    counted[:, 3:] = True
    assert flicker("alpha", moved, ramp, motion, counted) == pytest.approx(0, abs=1e-6)
    assert flicker("alpha", ramp, ramp, motion, counted) == pytest.approx(0.1, abs=1e-6)
    assert flicker("depth", ramp + 1, ramp + 1.1, motion, counted) == pytest.approx(0, abs=1e-6)
    assert np.isnan(flicker("alpha", ramp, ramp, motion, np.zeros_like(counted)))


def test_a_silhouette_moves_with_the_foreground() -> None:
    """A soft edge that moves by 2 pixels before a background that stands still does not flicker along it."""
    def frame(left: int) -> ClipFrame:
        ramp = np.clip((np.arange(128, dtype=np.float32) - left) / 5 + 0.5, 0, 1)
        alpha, motion = np.tile(ramp, (128, 1)), np.zeros((128, 128, 2), np.float32)
        motion[alpha > 0.5] = (-2, 0)
        seen = np.tile(np.arange(128) < 120, (128, 1))
        return ClipFrame(np.zeros((128, 128, 3), np.uint8), np.where(alpha > 0.5, 1.0, np.inf),
                         np.zeros((128, 128, 3), np.float32), alpha, motion, seen)

    before, now = frame(60), frame(62)
    motion, seen = silhouette_motion(now)
    assert flicker("alpha", now.alpha, before.alpha, motion, seen) == pytest.approx(0, abs=1e-6)
    assert flicker("alpha", now.alpha, before.alpha, now.motion, now.seen) > 0.005
    nobody = frame(200)
    assert silhouette_motion(nobody)[0] is nobody.motion


def test_one_scale_and_shift_are_taken_out() -> None:
    want = np.linspace(1, 3, 50)
    assert aligned_error(np.stack((0.5 * want + 0.2, want))) == pytest.approx(0, abs=1e-9)
    assert aligned_error(np.stack((np.full(50, 2.0), want))) > 0.2
