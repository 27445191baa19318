"""What a change of precision costs in the task: metrics against ground truth, with paired intervals (NumPy only)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..core.contract import HEADS
from ..core.errors import BadInput, ContractError
from ..core.metrics import AT_LEAST
from ..core.task import FEWEST, TASK, Margins, TaskChange, TaskVerdict
from .compare import Run

RESAMPLES = 2000
Key = tuple[str, str]
"""Head and metric, such as ("depth", "abs_rel")."""


class Labelled(Protocol):
    """Images with ground truth, all of the network's input size."""

    name: str
    """Of the data, for reports: no path."""

    @property
    def seen(self) -> int | None:
        """At most so many of the images were used in training. None if not known."""

    def __len__(self) -> int: ...

    def frame(self, index: int) -> np.ndarray:
        """The image, uint8 (H, W, 3) RGB."""

    def score(self, index: int, maps: Mapping[str, np.ndarray]) -> dict[Key, float]:
        """The metrics of `TASK` against the ground truth.

        Args:
            index: Of the image.
            maps: Some of depth (H, W), normals (H, W, 3), alpha (H, W), float32.

        Returns:
            The metrics of these heads. A metric that the image has no valid pixels for is left out; one of a map that
            is not finite is NaN.
        """


class Part:
    """Some of the images of labelled data, as labelled data."""

    def __init__(self, whole: Labelled, indices: Sequence[int]) -> None:
        self.whole, self.indices, self.name = whole, indices, whole.name

    @property
    def seen(self) -> int | None:
        return None if self.whole.seen is None else min(self.whole.seen, len(self.indices))

    def __len__(self) -> int:
        return len(self.indices)

    def frame(self, index: int) -> np.ndarray:
        return self.whole.frame(self.indices[index])

    def score(self, index: int, maps: Mapping[str, np.ndarray]) -> dict[Key, float]:
        return self.whole.score(self.indices[index], maps)


@dataclass(frozen=True)
class TaskScores:
    """The metrics of one session over labelled images."""

    values: dict[Key, np.ndarray]
    """Float64 (N,), one value per image that has ground truth for this metric."""
    images: dict[Key, np.ndarray]
    """Int (N,), the indices of these images."""


def measure_task(run: Run, labelled: Labelled, heads: tuple[str, ...] = HEADS) -> TaskScores:
    """Run a frame graph on every labelled image and score its maps.

    Args:
        run: Maps a batch of frames to the outputs of the frame graph.
        labelled: The images.
        heads: The outputs to score.

    Raises:
        BadInput: There are fewer than `FEWEST` images, or fewer that have ground truth for one of the metrics.
        ContractError: An output is missing or has a wrong shape.
    """
    check_enough(labelled)
    found: dict[Key, list[tuple[int, float]]] = {(head, metric): [] for head in heads for metric in TASK[head]}
    for i in range(len(labelled)):
        frame = labelled.frame(i)
        outputs = run(frame[None])
        maps = {head: _one_map(head, outputs, frame.shape[:2]) for head in heads}
        for key, value in labelled.score(i, maps).items():
            if key in found:
                found[key].append((i, float(value)))
    for (head, metric), values in found.items():
        if len(values) < FEWEST:
            raise BadInput(f"{labelled.name}: expected at least {FEWEST} images with ground truth for {head} {metric}, "
                           f"received {len(values)} of {len(labelled)}. Add labelled images, or judge by distance "
                           "alone, without labelled data.")
    return TaskScores({key: np.array([value for _, value in values]) for key, values in found.items()},
                      {key: np.array([i for i, _ in values]) for key, values in found.items()})


def check_enough(labelled: Labelled) -> None:
    """Raise `BadInput` for fewer than `FEWEST` images."""
    if len(labelled) < FEWEST:
        raise BadInput(f"{labelled.name}: expected at least {FEWEST} labelled images to judge the loss of the task, "
                       f"received {len(labelled)}. Add labelled images, or judge by distance alone, without them.")


def judge_task(
    before: Run | TaskScores, after: Run, labelled: Labelled, margins: Margins, heads: tuple[str, ...] = HEADS,
    resamples: int = RESAMPLES,
) -> TaskVerdict:
    """Compare the task's metrics of two sessions over the same images.

    Args:
        before: FP32: a session's run, or its scores if they were measured already.
        after: The session to judge.
        labelled: Images with ground truth.
        margins: By head and metric, the largest change for the worse that passes.
        heads: The outputs to score.
        resamples: Of the bootstrap.

    Raises:
        BadInput, ContractError: As `measure_task`.
    """
    old = before if isinstance(before, TaskScores) else measure_task(before, labelled, heads)
    new = measure_task(after, labelled, heads)
    changes = []
    for head, metric in new.values:
        b, a = old.values[head, metric], new.values[head, metric]
        if not np.array_equal(old.images[head, metric], new.images[head, metric]):
            raise BadInput(f"{labelled.name}: {head} {metric} was scored on other images of FP32 than of eight bits. "
                           "The labelled data must give a value for the same images whatever the maps are.")
        change, low, high = paired_bootstrap(*((a, b) if metric in AT_LEAST else (b, a)), resamples=resamples)
        changes.append(TaskChange(head, metric, float(b.mean()), float(a.mean()), change, low, high,
                                  margins.get(head, {}).get(metric), len(a)))
    return TaskVerdict(len(labelled), labelled.name, resamples, tuple(changes), labelled.seen)


def paired_bootstrap(
    before: np.ndarray, after: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `after - before` and its 95 % interval, by the percentile bootstrap over pairs (Efron 1979).

    Args:
        before: Float (N,), one value per image.
        after: Float (N,), of the same images.
        resamples: How often N pairs are drawn with replacement.
        seed: Of the draws, so that the same values give the same interval.

    Returns:
        Mean, lower and upper end. All are NaN if a value is not finite or there is none.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.shape != after.shape or before.ndim != 1:
        raise ValueError(f"expected two arrays (N,), received {before.shape} and {after.shape}")
    if not len(before) or not (np.isfinite(before).all() and np.isfinite(after).all()):
        return (float("nan"),) * 3
    difference, rng, count = after - before, np.random.default_rng(seed), len(before)
    means = [difference[rng.integers(0, count, count)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(difference.mean()), float(low), float(high)


def _one_map(head: str, outputs: Mapping[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The map of a batch of one. Raises `ContractError` if it is missing or has a wrong shape."""
    wanted = (1, *size, 3) if head == "normals" else (1, *size)
    have = outputs.get(head)
    if have is None or have.shape != wanted:
        raise ContractError(f"{head}: expected an output of shape {list(wanted)}, received "
                            f"{'none' if have is None else list(have.shape)}. Run dpt parity on the bundle.")
    return have[0]
