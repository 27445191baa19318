"""Generated clips: what is called the true motion is the motion."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from train.data.synthetic.clip import ClipFrame, clip

SIZE = 112


@pytest.fixture(scope="module", params=[0, 1, 3])
def frames(request: pytest.FixtureRequest) -> list[ClipFrame]:
    return list(clip(5, request.param, SIZE, SIZE, 8))


def moved(picture: np.ndarray, motion: np.ndarray) -> np.ndarray:
    y, x = np.indices(motion.shape[:2]).astype(np.float32)
    return cv2.remap(picture, x + motion[..., 0], y + motion[..., 1], cv2.INTER_LINEAR)


def test_the_motion_leads_to_the_same_point(frames: list[ClipFrame]) -> None:
    """The person looks the same there, but for noise, which a blur removes, and light."""
    blurred = [cv2.GaussianBlur(frame.rgb.astype(np.float32), (0, 0), 1) for frame in frames]
    pairs = []
    for i, now in enumerate(frames[1:]):
        assert now.seen.mean() > 0.9
        person = now.seen & (now.alpha > 0.5)
        pairs.append([abs(other - blurred[i + 1])[person].mean()
                      for other in (moved(blurred[i], now.motion), blurred[i])])
    difference, without = np.mean(pairs, axis=0)
    assert difference < 0.75 * without


def test_the_person_and_the_camera_move(frames: list[ClipFrame]) -> None:
    speed = np.linalg.norm([frame.motion for frame in frames[1:]], axis=-1)
    person = np.array([frame.alpha > 0.5 for frame in frames[1:]])
    assert speed[person].mean() > 0.2 and speed[~person].mean() > 0.05
    assert speed.max() < SIZE / 8


def test_the_first_frame_has_no_motion(frames: list[ClipFrame]) -> None:
    assert not frames[0].seen.any() and not frames[0].motion.any()


def test_a_longer_clip_has_the_same_beginning() -> None:
    for a, b in zip(clip(3, 4, 48, 64, 2), clip(3, 4, 48, 64, 4), strict=False):
        np.testing.assert_array_equal(a.rgb, b.rgb)
        np.testing.assert_array_equal(a.motion, b.motion)
    assert a.rgb.shape == (48, 64, 3)
