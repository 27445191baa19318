"""Compare the outputs of one stage with the reference and evaluate the metrics against a budget."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core import metrics
from ..core.budget import largest_share, limits_of, over_budget
from ..core.contract import HEADS, Graph
from ..core.errors import BadInput, DptError
from ..core.exhibit import Exhibit
from ..core.files import existing_file
from ..core.task import TASK
from ..core.values import parse_json
from ..core.verdict import (
    LEVELS,
    Budget,
    Compared,
    Fault,
    Finding,
    Stage,
    StageId,
)
from .reference import Case, Reference

LARGEST = 1e30  # limit of a budget
NO_REFERENCE = "the reference has no such map"
EIGHT_BIT_KEYS = ("int8", "task")  # of a budget
DEFAULT_BUDGET = Path(__file__).parent / "budget.json"

# run(batch) -> outputs, both with a batch axis
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def load_budget(path: Path | None) -> tuple[Budget, str]:
    """Read a budget, by default the project's own. Returns it with its name for reports.

    A budget limits each head in fp32, in fp16, whose limits also apply to bf16, and in int8, whose limits also apply to
    fp8; under task it has the margins of the task's metrics, for eight bits with labelled data. A file without int8 or
    task takes the project's own limits for it. Raises `BadInput` if the budget is incomplete, because metrics without a
    limit would always pass.
    """
    path = existing_file(path, "a budget file (JSON)") if path else DEFAULT_BUDGET
    try:
        budget = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        budget, why = None, f"it is not valid JSON ({error})"
    else:
        why = _budget_fault(budget)
    if why:
        raise BadInput(f"{path}: expected a budget with limits for {', '.join(HEADS)} in fp32 and in fp16 (bf16 is "
                       f"held to fp16's), but {why}. Start from a copy of {DEFAULT_BUDGET}.")
    if missing := [key for key in EIGHT_BIT_KEYS if key not in budget]:  # written for a version without eight bits
        defaults = parse_json(DEFAULT_BUDGET.read_text(encoding="utf-8"))
        budget |= {key: defaults[key] for key in missing}
    return budget, "default" if path == DEFAULT_BUDGET else path.name


def _budget_fault(budget: Any) -> str | None:
    """What is wrong with a budget, or None."""
    optional = [key for key in EIGHT_BIT_KEYS if not isinstance(budget, dict) or key in budget]
    required = ("fp32", "fp16", *optional)
    if fault := _keys_fault(budget, required, "it", every=True):
        return fault
    for precision in required:
        if fault := _keys_fault(budget[precision], HEADS, precision, every=True):
            return fault
        for head, limits in budget[precision].items():
            known = (TASK if precision == "task" else metrics.PARITY)[head]
            if fault := _keys_fault(limits, known, f"{precision}.{head}", every=False):
                return fault
            for metric, limit in limits.items():
                if isinstance(limit, bool) or not isinstance(limit, int | float) or not abs(limit) < LARGEST:
                    return f"{precision}.{head}.{metric} is {json.dumps(limit)[:80]} and not a number below {LARGEST:g}"
    return None


def _keys_fault(value: Any, expected: Sequence[str], place: str, every: bool) -> str | None:
    """What is wrong with a JSON object that must have every, or else at least one, of the expected keys; or None."""
    if not isinstance(value, dict):
        return f"{place} is not an object of {', '.join(expected)}"
    if unknown := [key for key in value if key not in expected]:
        return f"{place} has {', '.join(unknown)[:80]}; expected {', '.join(expected)}"
    missing = [key for key in expected if key not in value]
    return f"{place} lacks {', '.join(missing)}" if missing and (every or not value) else None


def compare(
    stage: StageId, run: Run, reference: Reference, budget: Budget, sha256: str | None = None,
    notes: tuple[str, ...] = (), on_exhibit: Callable[[Exhibit], None] = lambda exhibit: None,
) -> Stage:
    """Judge a stage on every case. Non-finite values, missing outputs, wrong shapes and exceptions fail.

    So does a case whose reference lacks a head of `reference.heads`, and a stage that measured nothing.

    Args:
        stage: Identity of the stage. Its graph selects the inputs, its precision the budget.
        run: Maps a batch of inputs to the graph's outputs by name.
        reference: The parity inputs and the outputs of PyTorch FP32.
        budget: Limits by precision, head and metric.
        sha256: Hash of the artefact.
        notes: Limitations of a pass.
        on_exhibit: Called with every compared map.
    """
    graph, precision = stage.graph, stage.precision
    limits = limits_of(budget, precision)
    values: dict[str, dict[str, float]] = {}
    quantiles: dict[str, tuple[float, ...]] = {}
    worst: dict[str, tuple[float, str]] = {}
    findings: list[Finding] = []
    images = pixels = 0
    for batch in reference.batches(graph):
        try:
            outputs = run(np.stack([case.input(graph) for case in batch]))
        except (DptError, RuntimeError, ValueError, TypeError) as error:
            first = (str(error).strip().splitlines() or ["no message"])[0]
            detail = f"a batch of {len(batch)} of {batch[0].name} raised {type(error).__name__}: {first}"
            findings.append(Finding(Fault.RAISED, detail=detail))
            continue
        for i, case in enumerate(batch):
            wanted = case.maps.get(graph, {})
            if missing := [head for head in reference.heads if _output(graph, head) not in wanted]:
                findings += [Finding(Fault.NOT_MEASURED, head, image=case.name, detail=NO_REFERENCE)
                             for head in missing]
                continue
            reference_maps = as_maps(graph, wanted)

            def exhibit(head: str, share: float, have: np.ndarray, case=case, maps=reference_maps) -> None:
                on_exhibit(Exhibit(stage, head, share, case.name, case.frame, maps[head], have, maps.get("alpha"),
                                    reference.metric_depth))

            faults = _faults(case, graph, outputs, i, len(batch))
            findings += faults
            for fault in faults:
                if worst.get(fault.head, (0.0,))[0] < math.inf:
                    worst[fault.head] = (math.inf, case.name)
            for name, want in wanted.items() if faults else ():
                have = outputs.get(name)
                if have is not None and have.shape[1:] == want.shape and not np.isfinite(have[i]).all():
                    ((head, picture),) = as_maps(graph, {name: have[i]}).items()
                    exhibit(head, math.inf, picture)
            if faults or (case.adversarial and precision != "fp32"):
                continue
            images += 1
            have = as_maps(graph, {key: value[i] for key, value in outputs.items()})
            for head, measured, error in metrics.parity(reference_maps, have, reference.metric_depth):
                kept = values.setdefault(head, {})
                pixels += error.size
                for metric, value in measured.items():
                    # min() and max() drop a NaN in second place, but a NaN must stay.
                    pick = min if metric in metrics.AT_LEAST else max
                    kept[metric] = value if math.isnan(value) else pick(kept.get(metric, value), value)
                levels = tuple(float(level) for level in np.quantile(error, LEVELS))
                quantiles[head] = tuple(map(max, quantiles.get(head, levels), levels))
                share = largest_share(measured, limits.get(head, {}))
                if head not in worst or share > worst[head][0]:
                    worst[head] = (share, case.name)
                exhibit(head, share, have[head])
    names = {head: image for head, (_, image) in worst.items()}
    findings += over_budget(values, names, limits)
    if not findings:
        findings = [Finding(Fault.NOT_MEASURED, head) for head in reference.heads if head not in values]
    return Stage(stage, "failed" if findings else "passed", sha256, values, names, tuple(findings), notes,
                 quantiles=quantiles, compared=Compared(images, len(values), pixels))


def _output(graph: Graph, head: str) -> str:
    """The name of a head's output in a graph."""
    return "alpha_logits" if (graph, head) == ("model", "alpha") else head


def _faults(case: Case, graph: Graph, outputs: dict[str, np.ndarray], index: int, batch: int) -> list[Finding]:
    """Findings on invalid outputs, at most one per head."""
    faults = []
    for name, reference in case.maps[graph].items():
        about = {"head": name.removesuffix("_logits"), "image": case.name, "name": name}
        if name not in outputs:
            faults.append(Finding(Fault.NO_OUTPUT, **about))
        elif outputs[name].shape != (batch, *reference.shape):
            detail = f"{list(outputs[name].shape)}, expected {[batch, *reference.shape]}"
            faults.append(Finding(Fault.WRONG_SHAPE, **about, detail=detail))
        elif not (finite := np.isfinite(outputs[name][index])).all():
            faults.append(Finding(Fault.NOT_FINITE, **about, value=float(1 - finite.mean())))
    return faults


def as_maps(graph: Graph, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert one image's outputs of either graph to depth (H, W), normals (H, W, 3) and alpha (H, W)."""
    if graph == "frame":
        return outputs
    maps = {}
    if "depth" in outputs:
        maps["depth"] = outputs["depth"][0]
    if "normals" in outputs:
        maps["normals"] = outputs["normals"].transpose(1, 2, 0)
    if "alpha_logits" in outputs:
        maps["alpha"] = metrics.sigmoid(outputs["alpha_logits"][0])
    return maps

