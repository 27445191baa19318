"""How heads, metrics and numbers are shown in the HTML report, in the model card and in the terminal."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..core.metrics import AT_LEAST
from ..core.verdict import Stage

HEAD_TITLES = {"depth": "Depth", "normals": "Normals", "alpha": "Alpha"}
_ERROR_UNITS = {"depth": "relative error", "normals": "degrees", "alpha": "difference of coverage"}
METRIC_TITLES = {
    "depth": {"abs_rel": "AbsRel", "p99.9": "p99.9", "max": "max", "within_1_percent": "within 1%"},
    "normals": {"mean": "mean", "p99": "p99", "max": "max"},
    "alpha": {"max": "max", "iou": "IoU", "mean": "mean"},
}
SUMMARY_COLUMNS = (  # head, metric, title
    ("depth", "abs_rel", "AbsRel"), ("depth", "p99.9", "depth p99.9"), ("normals", "mean", "normals [deg]"),
    ("normals", "p99", "normals p99 [deg]"), ("alpha", "max", "alpha max"), ("alpha", "iou", "IoU"),
)
TASK_TITLES = {
    "depth": {"abs_rel": "AbsRel"}, "normals": {"mean": "mean [deg]"}, "alpha": {"iou": "IoU", "mae": "MAE"},
}
TASK_COLUMNS = ("metric", "FP32", "eight bits", "change, 95 % interval", "margin", "verdict")
POSITIVE = "A positive change is worse. A metric passes if its whole interval is at most the margin."


def error_units(metric_depth: bool) -> dict[str, str]:
    """By head, what its errors are. Those of depth without unit are fractions of the range of the map."""
    return _ERROR_UNITS if metric_depth else _ERROR_UNITS | {"depth": "error by the range of the map"}


def number(value: float) -> str:
    """A number with three digits, and an exponent only if it is far from 1."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def metric_value(metric: str, value: float) -> str:
    """A metric for the HTML report. One that is bounded from below is close to 1, so it is shown with five decimals."""
    return f"{value:.5f}" if metric in AT_LEAST else number(value)


def budget_share(share: float) -> str:
    """The share of a budget that is used: "34%", "12 times" or "not finite"."""
    if not math.isfinite(share):
        return "not finite"
    if share >= 10:
        return f"{share:.0f} times"
    return f"{share:.0%}" if share >= 0.1 or share == 0 else f"{share:.1%}"


def metric_cell(stage: Stage, head: str, metric: str) -> str:
    """A metric for the cell of a table, "" if it was not measured."""
    value = stage.heads.get(head, {}).get(metric)
    if value is None:
        return ""
    return "NaN" if math.isnan(value) else f"{value:.5f}" if metric in AT_LEAST else f"{value:.1e}"


def compared(stage: Stage) -> str:
    """How much a stage compared, such as "9 images, 3 heads, 1.9 MP"; "" if it was not run or nobody counted."""
    counts = stage.compared
    if counts is None:
        return ""
    if counts.nothing:
        return "nothing"
    if counts.tensors:
        return f"{counts.tensors} tensors"
    pixels = f"{counts.pixels / 1e6:.1f} MP" if counts.pixels >= 1e5 else f"{counts.pixels} pixels"
    return f"{_count(counts.images, 'image')}, {_count(counts.heads, 'head')}, {pixels}"


def compared_images(stage: Stage) -> str:
    """The number of images that a stage compared; "" if it compared no maps."""
    counts = stage.compared
    return "" if counts is None or counts.tensors else str(counts.images)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def stage_status(stage: Stage) -> str:
    """The status of a stage, and whether an earlier run judged it."""
    return f"{stage.status}, judged earlier" if stage.earlier else stage.status


class TaskRow(NamedTuple):
    """A row of the table of the task's loss, by `TASK_COLUMNS`."""

    metric: str
    before: str
    after: str
    change: str
    margin: str
    verdict: str


def task_rows(stage: Stage) -> list[TaskRow]:
    """The table of the task's loss of a stage; empty if the task was not judged."""
    return [
        TaskRow(
            f"{HEAD_TITLES[change.head]} {TASK_TITLES[change.head][change.metric]}", f"{change.before:.4g}",
            f"{change.after:.4g}", f"{change.change:+.2g} ({change.low:+.2g} to {change.high:+.2g})",
            "none" if change.margin is None else f"{change.margin:g}",
            "failed" if not change.passed else "passed" if change.margin is not None else "shown only",
        )
        for change in (stage.task.changes if stage.task is not None else ())
    ]


def judged_by(stage: Stage) -> str:
    """What decides on a stage in eight bits that ran; "" for any other."""
    if not stage.eight_bits or stage.status == "not run":
        return ""
    if stage.task is not None:
        return "judged by the loss of the task"
    return "judged by the task of the frame graph" if stage.frame_decides else "judged by distance alone"


def task_sentence(stage: Stage) -> str:
    """What the task was judged on; "" if it was not."""
    if stage.task is None:
        return ""
    against = f", against {stage.task.against}" if stage.task.against else ""
    return f"{stage.task.judged_on[0].upper()}{stage.task.judged_on[1:]}{against}, {stage.task.resamples} resamples"
