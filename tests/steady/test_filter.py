"""Steadied maps: less flicker, no smear behind what moves, nothing carried over a cut."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from dpt_deploy import Steady
from dpt_deploy.core import metrics
from dpt_deploy.core.errors import BadInput
from dpt_deploy.runtime import Prediction
from dpt_deploy.steady import Tracker, flicker
from tests.tiny import photo
from train.data.synthetic.clip import ClipFrame, clip

SIZE = 96
STEP = 1.5  # pixels from frame to frame


def pan(frames: int, seed: int = 7) -> Iterator[tuple[np.ndarray, Prediction]]:
    """A camera that pans over a picture, and its true maps, which pan too."""
    wide = cv2.GaussianBlur(photo(SIZE, 3 * SIZE, seed), (0, 0), 1)
    smooth = cv2.GaussianBlur(wide, (0, 0), 4).astype(np.float32) / 255
    normals = smooth - 0.5 + np.float32((0, 0, 1))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    for i in range(frames):
        window = np.float32([[1, 0, -STEP * i], [0, 1, 0]])
        rgb, depth, normal, alpha = (cv2.warpAffine(picture, window, (SIZE, SIZE), flags=cv2.INTER_LINEAR)
                                     for picture in (wide, 2 + smooth[..., 0], normals, smooth[..., 1]))
        yield rgb, Prediction(depth, normal, alpha)


def coarse(value: np.ndarray) -> np.ndarray:
    """A map as of a network whose output is a quarter as large."""
    small = cv2.resize(value, (SIZE // 4, SIZE // 4), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def noisy(prediction: Prediction, rng: np.random.Generator) -> Prediction:
    """The maps with noise of a few per cent, as coarse as a network's."""
    def noise(*shape: int) -> np.ndarray:
        return cv2.resize(rng.normal(0, 0.06, shape).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)

    side = SIZE // 4
    normals = prediction.normals + noise(side, side, 3)
    return Prediction(
        (prediction.depth * (1 + noise(side, side))).astype(np.float32),
        (normals / np.linalg.norm(normals, axis=-1, keepdims=True)).astype(np.float32),
        np.clip(prediction.alpha + noise(side, side), 0, 1).astype(np.float32))


def error(head: str, prediction: Prediction, truth: Prediction, where: np.ndarray) -> float:
    return float(metrics.error_map(head, getattr(prediction, head), getattr(truth, head))[where].mean())


def truth_of(frame: ClipFrame) -> Prediction:
    depth = np.where(np.isfinite(frame.depth), frame.depth, 4).astype(np.float32)
    return Prediction(depth, np.where(np.isfinite(frame.depth)[..., None], frame.normals, np.float32((0, 0, 1))),
                      frame.alpha)


@pytest.mark.parametrize("head", ["depth", "normals", "alpha"])
def test_known_noise_flickers_less_than_half_and_the_maps_are_nearer_to_the_truth(head: str) -> None:
    rng, steady = np.random.default_rng(0), Steady()
    motion = np.broadcast_to(np.float32((STEP, 0)), (SIZE, SIZE, 2))
    inside = np.zeros((SIZE, SIZE), bool)
    inside[4:-4, 4:-8] = True
    before, found, errors = None, [], []
    for rgb, truth in pan(14):
        raw = noisy(truth, rng)
        maps = {"raw": raw, "steady": steady(rgb, raw)}
        if before:
            found.append([flicker(head, getattr(maps[name], head), getattr(before[name], head), motion, inside)
                          for name in maps])
            errors.append([error(head, one, truth, inside) for one in maps.values()])
        before = maps
    raw_flicker, flickers = np.mean(found, axis=0)
    raw_error, steady_error = np.mean(errors, axis=0)
    assert flickers < 0.5 * raw_flicker
    assert steady_error < 0.7 * raw_error
    assert steady.shots == 1


def test_a_cut_begins_anew() -> None:
    steady, rng = Steady(), np.random.default_rng(1)
    for rgb, truth in pan(4):
        steady(rgb, noisy(truth, rng))
    first = True
    for rgb, truth in pan(3, seed=8):
        raw = noisy(Prediction(3 * truth.depth, truth.normals, truth.alpha), rng)
        result = steady(rgb, raw)
        if first:
            for head, value in raw.maps.items():
                np.testing.assert_array_equal(getattr(result, head), value)
        first = False
    assert steady.shots == 2


def test_a_change_of_exposure_is_no_cut() -> None:
    steady = Steady()
    for i, (rgb, truth) in enumerate(pan(6)):
        steady((rgb * (0.5 if i >= 3 else 1.0)).astype(np.uint8), truth)
    assert steady.shots == 1


def test_what_comes_into_sight_is_not_smeared() -> None:
    """At pixels that were hidden in the frame before, the error is not larger than frame by frame."""
    steady, rng, pairs = Steady(), np.random.default_rng(2), []
    for i, frame in enumerate(clip(5, 3, SIZE, SIZE, 16)):
        truth = truth_of(frame)
        raw = noisy(Prediction(**{head: coarse(value) for head, value in truth.maps.items()}), rng)
        result = steady(frame.rgb, raw)
        hidden = ~frame.seen
        person = hidden & np.isfinite(frame.depth)
        if i > 3 and person.any():
            pairs.append([(error("alpha", one, truth, hidden), error("depth", one, truth, person),
                           error("normals", one, truth, person)) for one in (raw, result)])
    raw_errors, errors = np.mean(pairs, axis=0)
    assert (errors < raw_errors * 1.02).all(), (raw_errors, errors)


def test_an_approach_that_the_picture_does_not_show_is_followed() -> None:
    """Depth that falls by 1 % a frame before a still picture lags by few frames, not by the memory of the mean."""
    steady, rgb = Steady(), photo(SIZE, SIZE, 4)
    shape = 1 + 0.2 * cv2.GaussianBlur(photo(SIZE, SIZE, 5), (0, 0), 4)[..., 0].astype(np.float32) / 255
    for i in range(40):
        depth = shape * np.float32(3 * 0.99**i)
        result = steady(rgb, Prediction(depth))
    assert 0.97 < np.median(result.depth / depth) < 1.1


def test_an_area_of_alpha_that_wavers_as_a_whole_is_steadied() -> None:
    steady, rgb, values = Steady(), photo(SIZE, SIZE, 4), []
    for i in range(24):
        alpha = np.zeros((SIZE, SIZE), np.float32)
        alpha[20:60, 20:60] = 0.5 + 0.2 * (-1) ** i
        values.append(steady(rgb, Prediction(alpha=alpha)).alpha[40, 40])
    assert abs(np.diff(values[12:])).max() < 0.05, "frame by frame it is 0.4"


def test_positive_depth_stays_positive() -> None:
    """Scale and shift are fitted to the foreground, and the background is much nearer."""
    steady, rng = Steady(), np.random.default_rng(0)
    rgb, shape = photo(SIZE, SIZE, 4), 2 + photo(SIZE, SIZE, 5)[..., 0].astype(np.float32) / 255
    alpha = np.zeros((SIZE, SIZE), np.float32)
    alpha[20:70, 20:70] = 1
    for _ in range(24):
        depth = np.where(alpha > 0.5, shape * rng.uniform(0.9, 1.1) + rng.uniform(-0.3, 0.3), 0.05).astype(np.float32)
        assert (steady(rgb, Prediction(depth, alpha=alpha)).depth > 0).all()


@pytest.mark.parametrize("size", [(191, 700), (192, 192), (192, 512), (1080, 1920), (37, 800)])
def test_flow_of_frames_large_and_small(size: tuple[int, int]) -> None:
    """DIS crashes on frames that are small for its patches."""
    tracker = Tracker()
    picture = photo(*size, 3)
    now, before = tracker.prepare(picture), tracker.prepare(np.roll(picture, 2, axis=1))
    flow = tracker.flow(now, before, size)
    assert abs(np.median(flow.motion[..., 0]) - 2) < 0.5 and abs(np.median(flow.motion[..., 1])) < 0.5


def test_what_a_fast_object_uncovers_is_new() -> None:
    """A square moves by 6 pixels a frame before a picture that stands still: little of it stays behind."""
    steady = Steady()
    still, square = photo(SIZE, SIZE, 9), photo(40, 40, 11)
    left_behind = []
    for i in range(8):
        left = 10 + 6 * i
        rgb, alpha = still.copy(), np.zeros((SIZE, SIZE), np.float32)
        rgb[30:70, left : left + 40] = square[:, : SIZE - left]
        alpha[30:70, left : left + 40] = 1
        result = steady(rgb, Prediction(3 - 2 * alpha, alpha=alpha))
        if i:
            strip = slice(32, 68), slice(left - 6, left)
            left_behind.append((result.alpha[strip].mean(), abs(result.depth[strip] - 3).mean() / 2))
    alpha_share, depth_share = np.mean(left_behind, axis=0)
    assert alpha_share < 0.2 and depth_share < 0.06, (alpha_share, depth_share)
    assert steady.shots == 1


def test_maps_do_not_depend_on_later_frames() -> None:
    rng = np.random.default_rng(3)
    frames = [(rgb, noisy(truth, rng)) for rgb, truth in pan(6)]
    whole, part = Steady(), Steady()
    for i, (rgb, raw) in enumerate(frames):
        result = whole(rgb, raw)
        if i < 3:
            np.testing.assert_array_equal(result.depth, part(rgb, raw).depth)
    assert Steady.delay == 0


def test_the_scale_of_depth_is_held_over_a_shot() -> None:
    rng, steady = np.random.default_rng(4), Steady()
    raw, held = [], []
    for rgb, truth in pan(14):
        guess = Prediction(depth=truth.depth * np.float32(rng.uniform(0.85, 1.15)) + np.float32(rng.normal(0, 0.1)))
        result = steady(rgb, guess)
        raw.append(np.median(guess.depth / truth.depth))
        held.append(np.median(result.depth / truth.depth))
    assert np.abs(np.diff(held[2:])).mean() < 0.3 * np.abs(np.diff(raw[2:])).mean()


def test_a_person_who_comes_nearer_does() -> None:
    """The scale that is held does not hold the person: a growing picture brings the depth nearer."""
    steady, picture = Steady(), photo(SIZE, SIZE)
    for i in range(20):
        grown = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), 0, 1.015**i)
        rgb = cv2.warpAffine(picture, grown, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT)
        result = steady(rgb, Prediction(depth=np.full((SIZE, SIZE), 3 / 1.015**i, np.float32)))
    assert steady.shots == 1
    assert np.median(result.depth) == pytest.approx(3 / 1.015**19, rel=0.03)


def test_normals_stay_unit_vectors_and_alpha_in_its_range() -> None:
    rng, steady = np.random.default_rng(5), Steady()
    for rgb, truth in pan(5):
        result = steady(rgb, noisy(truth, rng))
    np.testing.assert_allclose(np.linalg.norm(result.normals, axis=-1), 1, atol=1e-5)
    assert result.alpha.min() >= 0 and result.alpha.max() <= 1
    assert all(value.dtype == np.float32 for value in result.maps.values())


def test_results_may_be_changed() -> None:
    """What a caller draws into the maps does not come back."""
    drawn, kept = Steady(), Steady()
    for rgb, truth in pan(3):
        mine = Prediction(alpha=truth.alpha.copy())
        result = drawn(rgb, mine)
        np.testing.assert_array_equal(result.alpha, kept(rgb, Prediction(alpha=truth.alpha)).alpha)
        result.alpha[:] = 1
        mine.alpha[:] = 1


def test_what_is_not_finite_does_not_spread() -> None:
    steady = Steady()
    for i, (rgb, truth) in enumerate(pan(4)):
        if i == 1:
            truth.depth[40:44, 40:44] = np.nan
        result = steady(rgb, truth)
        assert np.isnan(result.depth).sum() == (16 if i == 1 else 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pixel_without_a_value_does_not_end_the_steadying_of_the_others(value: float) -> None:
    steady, rng, rgb = Steady(), np.random.default_rng(0), photo(SIZE, SIZE, 4)
    for _ in range(20):
        depth = (2 + cv2.resize(rng.normal(0, 0.05, (24, 24)), (SIZE, SIZE))).astype(np.float32)
        raw = depth[:40].std()
        depth[80, 80] = value
        result = steady(rgb, Prediction(depth)).depth
    assert result[:40].std() < raw / 2 and np.isfinite(np.delete(result, 80, axis=0)[:70]).all()


def test_other_sizes_heads_and_a_reset_begin_a_shot() -> None:
    steady = Steady()
    (rgb, truth), = pan(1)
    steady(rgb, truth)
    steady(np.ascontiguousarray(rgb[:64]), Prediction(depth=np.ascontiguousarray(truth.depth[:64])))
    steady(rgb, Prediction(depth=truth.depth))
    steady(rgb, truth)
    assert steady.shots == 4
    steady.reset()
    steady(rgb, truth)
    assert steady.shots == 5
    assert steady(rgb, Prediction(alpha=truth.alpha, canonical_focal=3.0)).canonical_focal == 3.0


def test_a_frame_that_does_not_fit_is_refused() -> None:
    (rgb, truth), = pan(1)
    with pytest.raises(BadInput, match=r"expected uint8 \(H, W, 3\) RGB, received float32"):
        Steady()(rgb.astype(np.float32), truth)
    with pytest.raises(BadInput, match="expected a map of the frame's size 50x96, received 96x96"):
        Steady()(rgb[:50], truth)


@pytest.mark.parametrize("size", [(8, 8), (4, 700), (40, 30)])
def test_frames_of_any_size(size: tuple[int, int]) -> None:
    steady = Steady()
    for _ in range(2):
        result = steady(photo(64, 700)[: size[0], : size[1]].copy(), Prediction(depth=np.ones(size, np.float32)))
        np.testing.assert_allclose(result.depth, 1, atol=1e-6)
