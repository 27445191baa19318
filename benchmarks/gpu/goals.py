"""The goals of the project on a GPU, held against what was measured."""

from __future__ import annotations

from typing import Any

GOALS = {  # ViT-B at 384 in FP16 on an H200-class device
    "engine time at batch 1 [ms], at most": 1.5,
    "share of the measured FP16 matrix rate at batch 16, at least": 0.6,
    "times faster than torch.compile FP16, at least": 1.3,
    "peak memory of AMP training at batch 6 [GB], at most": 8.0,
}

NOT_REHEARSED = "a rehearsal builds no engine"


def judge_goals(steps: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal with its bound, the measured value or None, what was measured, and whether the goal is met.

    A rehearsal has no values.
    """
    steps = {name: step for name, step in steps.items() if not step.get("dry_run")}
    times = steps.get("engine-time", {}).get("times", {})
    first, sixteen = times.get("batch 1", {}), times.get("batch 16", {})
    rows = steps.get("latency-1", {}).get("rows", [])
    faster = [(row["times_faster_than_compiled"]["median"], row["name"]) for row in rows
              if row["artifact"] and row["precision"] == "fp16" and "times_faster_than_compiled" in row]
    file = steps.get("engine-time", {}).get("artifact")
    peak = steps.get("training-6", {}).get("guide", {}).get("peak_gib")
    found = ((first.get("parts_ms", {}).get("engine", [None])[0], file),
             (sixteen.get("share_of_fp16_matrix_rate"), file), max(faster, default=(None, None)),
             (None if peak is None else peak * 2**30 / 1e9, "PyTorch"))
    judged = []
    for (goal, bound), (value, of) in zip(GOALS.items(), found, strict=True):
        met = None if value is None else value <= bound if goal.endswith("at most") else value >= bound
        judged.append({"goal": goal, "bound": bound, "value": value, "of": None if value is None else of, "met": met})
    return judged


def passed(steps: dict[str, Any], names: tuple[str, ...]) -> bool:
    """Whether every named step ran and nothing that was judged failed.

    A row that ended with an unexpected error fails. A rehearsal passes if the steps that can be rehearsed did.
    """
    chosen = [steps.get(name, {}) for name in names]
    if any("error" in row for step in chosen for row in (*step.get("rows", []), *step.get("switches", []))):
        return False
    chosen = [step for step in chosen if step.get("reason") != NOT_REHEARSED or not step.get("dry_run")]
    return all(step.get("status") == "ran" and step.get("passed", True) and not failures(step) for step in chosen)


def failures(step: dict[str, Any]) -> list[str]:
    """A line for each row of a step that exceeds a budget."""
    return [f"{row['name']}: {', '.join(row['parity'].get('over_budget', row['parity'].get('reasons', [])))}"
            for row in step.get("rows", []) if row.get("parity", {}).get("status") == "failed"]
