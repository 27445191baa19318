"""The verdict in the loss of the task: how eight bits change the metrics against ground truth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from .values import Number, StrictFloat, StrictInt

TASK = {"depth": ("abs_rel",), "normals": ("mean",), "alpha": ("iou", "mae")}
"""The task's metrics by head, against ground truth. Normals are in degrees; of `iou`, more is better."""
FEWEST = 8
"""The smallest number of images for a verdict. An interval from fewer says nothing."""
Margins = dict[str, dict[str, StrictFloat]]
"""By head and metric, the largest change for the worse that passes."""


@dataclass(frozen=True)
class TaskChange:
    """How one metric against ground truth differs between FP32 and eight bits, over the same images."""

    head: str
    metric: str
    before: Number
    """Of FP32, the mean over the images."""
    after: Number
    """Of eight bits."""
    change: Number
    """Mean difference per image. Positive is worse, also where more is better."""
    low: Number
    """Lower end of the 95 % interval of `change`, by a bootstrap over images."""
    high: Number
    """Upper end."""
    margin: StrictFloat | None
    """The largest `high` that passes. None if the budget has no margin for this metric; then it is only shown."""
    images: StrictInt = 0
    """The images that have ground truth for this metric."""

    @property
    def passed(self) -> bool:
        """Whether the whole interval is within the margin. NaN never is."""
        return self.high <= (math.inf if self.margin is None else self.margin)


@dataclass(frozen=True)
class TaskVerdict:
    """The task's metrics of an eight-bit stage against those of FP32."""

    images: StrictInt
    """Labelled images that both ran on."""
    data: str
    """Name of the folder of labelled data."""
    resamples: StrictInt
    """Of the bootstrap."""
    changes: tuple[TaskChange, ...]
    seen: StrictInt | None = None
    """At most so many of the images were used in training, by the split of the training record. None if not known."""
    against: str = ""
    """The stage of FP32 that it was compared with."""

    @property
    def passed(self) -> bool:
        """Whether a change has a margin and all are within theirs."""
        return any(change.margin is not None for change in self.changes) and all(
            change.passed for change in self.changes)

    def held_to(self, margins: Mapping[str, Mapping[str, float]]) -> TaskVerdict:
        """The same measurements with other margins."""
        return dataclasses.replace(self, changes=tuple(
            dataclasses.replace(change, margin=margins.get(change.head, {}).get(change.metric))
            for change in self.changes))

    @property
    def judged_on(self) -> str:
        """The images in words, such as "64 images of data, at most 12 of them used in training"."""
        known = "not known whether training used them" if self.seen is None else (
            f"at most {self.seen} of them used in training" if self.seen else "none of them used in training")
        return f"{self.images} images of {self.data}, {known}"
