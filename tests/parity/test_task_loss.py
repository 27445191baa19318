"""The loss of the task: intervals against theory, the sign of a change, and images that do not count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpt_deploy.core import metrics
from dpt_deploy.core.errors import BadInput, ContractError
from dpt_deploy.parity import load_budget
from dpt_deploy.parity.task_loss import judge_task, measure_task, paired_bootstrap

MARGINS = load_budget(None)[0]["task"]
SIZE = 12, 16


class Drawn:
    """Frames of noise with ground truth; for the images in `blank`, none of depth and normals."""

    name = "drawn"
    seen = 0

    def __init__(self, count: int = 10, blank: tuple[int, ...] = ()) -> None:
        self.count, self.blank = count, blank

    def __len__(self) -> int:
        return self.count

    def frame(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (*SIZE, 3), np.uint8)

    def truth(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        x = frame.astype(np.float32) / 255
        return {"depth": 1 + x[..., 0], "normals": np.stack((x[..., 1], x[..., 2], 1 + 0 * x[..., 0]), axis=-1),
                "alpha": x[..., 2]}

    def score(self, index: int, maps: dict[str, np.ndarray]) -> dict[tuple[str, str], float]:
        truth, found = self.truth(self.frame(index)), {}
        if "depth" in maps and index not in self.blank:
            found["depth", "abs_rel"] = metrics.relative_depth_error(maps["depth"], truth["depth"]).mean()
        if "normals" in maps and index not in self.blank:
            found["normals", "mean"] = metrics.angle(maps["normals"], truth["normals"]).mean()
        if "alpha" in maps:
            found["alpha", "iou"] = metrics.iou(maps["alpha"], truth["alpha"])
            found["alpha", "mae"] = np.abs(maps["alpha"] - truth["alpha"]).mean()
        return found


def network(depth: float = 1.0, alpha: float = 0.0, tilt: float = 0.0):
    """A frame graph that is off by a factor in depth, an offset in alpha and a tilt of the normals."""
    def run(frames: np.ndarray) -> dict[str, np.ndarray]:
        maps = [Drawn().truth(frame) for frame in frames]
        maps = [{"depth": one["depth"] * depth, "normals": one["normals"] + np.float32((tilt, 0, 0)),
                 "alpha": one["alpha"] + alpha} for one in maps]
        return {head: np.stack([one[head] for one in maps]) for head in maps[0]}
    return run


def change_of(verdict, head, metric):
    (found,) = [change for change in verdict.changes if (change.head, change.metric) == (head, metric)]
    return found


def test_the_interval_is_that_of_the_binomial_distribution():
    """Means of resampled zeros and ones are binomial, whose quantiles are known exactly."""
    n, ones = 40, 12
    after = np.r_[np.ones(ones), np.zeros(n - ones)]
    p, cdf = ones / n, []
    for k in range(n + 1):
        cdf.append((cdf[-1] if cdf else 0) + math.comb(n, k) * p**k * (1 - p) ** (n - k))
    low, high = (next(k for k, value in enumerate(cdf) if value >= q) / n for q in (0.025, 0.975))
    found = paired_bootstrap(np.zeros(n), after, resamples=20_000)
    assert found[0] == pytest.approx(p)
    assert found[1] == pytest.approx(low, abs=1 / n) and found[2] == pytest.approx(high, abs=1 / n)


def test_the_interval_of_many_images_is_that_of_the_normal_distribution():
    rng = np.random.default_rng(5)
    before = rng.normal(1, 3, 2000)
    after = before + rng.normal(0.02, 0.1, 2000)  # images differ far more than the change does
    change, low, high = paired_bootstrap(before, after)
    difference = after - before
    half = 1.96 * difference.std() / math.sqrt(2000)
    assert change == pytest.approx(difference.mean())
    assert (change - low, high - change) == pytest.approx((half, half), rel=0.12)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng, trials = np.random.default_rng(7), 400
    covered = 0
    for trial in range(trials):
        before = rng.normal(0, 1, 64)
        _, low, high = paired_bootstrap(before, before + rng.normal(0.3, 0.5, 64), resamples=400, seed=trial)
        covered += low <= 0.3 <= high
    assert 0.91 <= covered / trials <= 0.975  # 0.95, less what the percentile method loses at 64; 3 standard errors


def test_an_interval_is_the_same_every_time_and_nothing_has_none():
    before, after = np.arange(9.0), np.arange(9.0) ** 1.5
    assert paired_bootstrap(before, after) == paired_bootstrap(before, after)
    assert paired_bootstrap(before, after, seed=1) != paired_bootstrap(before, after)
    for broken in (np.r_[after[:8], np.nan], np.r_[after[:8], np.inf]):
        assert all(map(math.isnan, (*paired_bootstrap(before, broken), *paired_bootstrap(broken, before))))
    assert all(map(math.isnan, paired_bootstrap(np.empty(0), np.empty(0))))
    with pytest.raises(ValueError, match="two arrays"):
        paired_bootstrap(before, after[:8])


def test_positive_is_worse_also_where_more_is_better():
    worse = judge_task(network(1.01), network(1.05, -0.1, 0.2), Drawn(), MARGINS)
    assert [(change.head, change.metric) for change in worse.changes] == [
        ("depth", "abs_rel"), ("normals", "mean"), ("alpha", "iou"), ("alpha", "mae")]
    assert all(change.change > 0 and change.low > 0 for change in worse.changes) and not worse.passed
    better = judge_task(network(1.05, -0.1, 0.2), network(1.01), Drawn(), MARGINS)
    assert all(change.change < 0 and change.high < 0 for change in better.changes) and better.passed
    iou = change_of(worse, "alpha", "iou")
    assert iou.before == 1.0 and iou.after == pytest.approx(1 - iou.change) and iou.margin == MARGINS["alpha"]["iou"]
    depth = change_of(worse, "depth", "abs_rel")
    assert (depth.before, depth.after, depth.change) == pytest.approx((0.01, 0.05, 0.04), rel=1e-4)


def test_a_change_within_the_margin_passes_and_says_what_it_was_judged_on():
    verdict = judge_task(network(1.01), network(1.014), Drawn(), MARGINS, resamples=100)
    assert verdict.passed and (verdict.images, verdict.data, verdict.resamples, verdict.seen) == (10, "drawn", 100, 0)
    tight = judge_task(network(1.01), network(1.014), Drawn(), {"depth": {"abs_rel": 0.003}})
    assert [change.passed for change in tight.changes] == [False, True, True, True]
    assert [change.margin for change in tight.changes] == [0.003, None, None, None]


def test_nan_in_the_maps_of_one_image_fails():
    labelled = Drawn()

    def run(frames):
        maps = network()(frames)
        if np.array_equal(frames[0], labelled.frame(3)):
            maps["depth"][0, 2, 2] = np.nan
        return maps

    verdict = judge_task(network(), run, labelled, MARGINS)
    assert not verdict.passed and [change.passed for change in verdict.changes] == [False, True, True, True]
    assert not judge_task(run, network(), labelled, MARGINS).passed, "nor does FP32 that is not a number prove anything"


def test_images_without_ground_truth_do_not_count_for_that_head():
    verdict = judge_task(network(1.01), network(1.05), Drawn(10, blank=(0, 4)), MARGINS)
    assert [change.images for change in verdict.changes] == [8, 8, 10, 10]
    with pytest.raises(BadInput, match="at least 8 images with ground truth for depth abs_rel, received 7 of 10"):
        judge_task(network(), network(), Drawn(10, blank=(0, 4, 5)), MARGINS)


def test_too_few_images_are_refused():
    with pytest.raises(BadInput, match=r"drawn: expected at least 8 labelled images .* received 7"):
        judge_task(network(), network(), Drawn(7), MARGINS)


def test_fp32_is_measured_once_for_several_backends_and_each_image_is_paired_with_itself():
    calls = []

    def fp32(frames):
        calls.append(len(frames))
        return network(1.01)(frames)

    labelled = Drawn()
    before = measure_task(fp32, labelled)
    verdicts = [judge_task(before, network(factor), labelled, MARGINS) for factor in (1.011, 1.05)]
    assert len(calls) == 10 and [verdict.passed for verdict in verdicts] == [True, False]
    assert verdicts[1].changes == judge_task(fp32, network(1.05), labelled, MARGINS).changes


def test_the_heads_of_the_contract_are_judged_and_a_missing_output_is_an_error():
    def depth_only(frames):
        return {"depth": network()(frames)["depth"]}

    verdict = judge_task(depth_only, depth_only, Drawn(), MARGINS, ("depth",))
    assert [change.head for change in verdict.changes] == ["depth"] and verdict.passed
    with pytest.raises(ContractError, match="normals: expected an output of shape"):
        judge_task(depth_only, depth_only, Drawn(), MARGINS)
    with pytest.raises(ContractError, match=r"received \[1, 16, 12\]"):
        measure_task(lambda frames: {"depth": network()(frames)["depth"].transpose(0, 2, 1)}, Drawn(), ("depth",))
