"""Hold measured metrics to a parity budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from .metrics import AT_LEAST, within
from .verdict import Budget, Fault, Finding, Stage

JUDGE_AGAIN = ("it has a limit now, and had none when an earlier run judged this stage; judge it again with dpt parity "
               "BUNDLE --checkpoint FILE, and engines on a GPU")


def limits_of(budget: Budget, precision: str) -> dict[str, dict[str, float]]:
    """The limits for `precision` by head and metric."""
    return budget[{"fp32": "fp32", "int8": "int8", "fp8": "int8"}.get(precision, "fp16")]


def over_budget(
    heads: dict[str, dict[str, float]], worst: dict[str, str], limits: dict[str, dict[str, float]]
) -> list[Finding]:
    """A finding for each metric over its limit. NaN always is. `worst` is the name of the worst image by head."""
    return [
        Finding(Fault.OVER_BUDGET, head, metric, value, bound, worst.get(head))
        for head, limit in limits.items() if head in heads
        for metric, bound in limit.items() if not within(metric, value := heads[head].get(metric, math.nan), bound)
    ]


def share_of_budget(metric: str, value: float, bound: float) -> float:
    """The fraction of its budget that a metric uses. Above 1 is over budget; NaN counts as infinite."""
    if metric in AT_LEAST:
        value, bound = 1 - value, 1 - bound
    if math.isnan(value):
        return math.inf
    return value / bound if bound > 0 else (math.inf if value > 0 else 0.0)


def largest_share(values: Mapping[str, float], limits: Mapping[str, float]) -> float:
    """The largest share of its budget that one of a head's metrics uses; 0 without a limit."""
    return max((share_of_budget(metric, value, limits[metric]) for metric, value in values.items() if metric in limits),
               default=0.0)


def held_to(stage: Stage, budget: Budget) -> Stage:
    """Evaluate the stored metrics of a stage against another budget: by the task's margins if the task decides."""
    if stage.status == "not run":
        return stage
    if stage.by_task:
        return _held_to_task(stage, budget)
    others = tuple(finding for finding in stage.findings if finding.metric is None)
    limits = limits_of(budget, stage.precision)
    # Only an earlier version of this package did not measure a metric that it is held to.
    missing = {(head, metric) for head, bounds in limits.items() if head in stage.heads
               for metric in bounds if metric not in stage.heads[head]}
    over = [finding for finding in over_budget(stage.heads, stage.worst, limits)
            if (finding.head, finding.metric) not in missing]
    findings = (*over, *(Finding(Fault.NOT_MEASURED, head, metric, detail=JUDGE_AGAIN)
                         for head, metric in sorted(missing)), *others)
    return dataclasses.replace(stage, status="failed" if findings else "passed", findings=findings)


def _held_to_task(stage: Stage, budget: Budget) -> Stage:
    """Evaluate a stage by the loss of the task. Distances to PyTorch FP32 do not count, invalid maps do."""
    task = stage.task.held_to(budget["task"]) if stage.task is not None and "task" in budget else stage.task
    over = [] if task is None else [
        Finding(Fault.OVER_MARGIN, change.head, change.metric, change.high, change.margin,
                detail=f"{change.change:.2g} on average over {change.images} images")
        for change in task.changes if not change.passed
    ]
    if task is not None and not over and not task.passed:
        over = [Finding(Fault.NOT_MEASURED, name="the loss of the task", detail="no metric has a margin")]
    findings = (*over, *(finding for finding in stage.findings if finding.metric is None))
    return dataclasses.replace(stage, status="failed" if findings else "passed", findings=findings, task=task)
