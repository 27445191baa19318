"""Sessions and images -> ParityReport: per stage and head, in task units, against budgets."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core import metrics
from ..core.contract import HEADS, Graph
from ..core.errors import BadInput, DptError
from ..core.files import existing_file
from ..core.verdict import (
    AT_LEAST,
    LEVELS,
    Budget,
    Fault,
    Finding,
    Stage,
    StageId,
    limits_of,
    over_budget,
    share_of_budget,
)
from .reference import Case, Reference

DEFAULT_BUDGET = Path(__file__).parent / "budget.json"

# run(batch) -> outputs, both with a batch axis
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Exhibit:
    """One head's maps of one image, for the report: the reference's beside a stage's."""

    stage: StageId
    case: Case
    graph: Graph
    head: str
    share: float
    """How much of its budget the worst metric of this head uses on this image; infinite for what is not finite."""
    have: np.ndarray
    """The stage's map, (H, W) or (H, W, 3)."""

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """The reference's maps of this image."""
        return as_maps(self.graph, self.case.maps[self.graph])


def load_budget(path: Path | None) -> tuple[Budget, str]:
    """The budget in `path`, or the project's own; and the name that reports give it.

    A budget limits each head in fp32 and in fp16; bf16 is held to the limits of fp16. A budget that leaves
    something out is refused with `BadInput`, because what it left out would pass unseen.
    """
    path = existing_file(path, "a budget file (JSON)") if path else DEFAULT_BUDGET
    try:
        budget = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        budget, why = None, f"it is not valid JSON ({error})"
    else:
        why = _budget_fault(budget)
    if why:
        raise BadInput(f"{path}: expected a budget with limits for {', '.join(HEADS)} in fp32 and in fp16 (bf16 is "
                       f"held to fp16's), but {why}. Start from a copy of {DEFAULT_BUDGET}.")
    return budget, "default" if path == DEFAULT_BUDGET else path.name


def _budget_fault(budget: Any) -> str | None:
    """What is wrong with a budget, or None."""
    names, place = ("fp32", "fp16"), "it"
    if fault := _keys_fault(budget, names, place, every=True):
        return fault
    for precision in names:
        if fault := _keys_fault(budget[precision], HEADS, precision, every=True):
            return fault
        for head, limits in budget[precision].items():
            if fault := _keys_fault(limits, metrics.PARITY[head], f"{precision}.{head}", every=False):
                return fault
            for metric, limit in limits.items():
                if isinstance(limit, bool) or not isinstance(limit, int | float) or not math.isfinite(limit):
                    return f"{precision}.{head}.{metric} is {json.dumps(limit)} and not a number"
    return None


def _keys_fault(value: Any, known: Sequence[str], place: str, every: bool) -> str | None:
    """What is wrong with the keys of a JSON object: all of `known` when `every`, else at least one."""
    if not isinstance(value, dict):
        return f"{place} is not an object of {', '.join(known)}"
    if unknown := [key for key in value if key not in known]:
        return f"{place} has {', '.join(unknown)}; expected {', '.join(known)}"
    missing = [key for key in known if key not in value]
    return f"{place} lacks {', '.join(missing)}" if missing and (every or not value) else None


def compare(
    stage: StageId, run: Run, reference: Reference, budget: Budget, sha256: str | None = None,
    notes: tuple[str, ...] = (), show: Callable[[Exhibit], None] = lambda exhibit: None,
) -> Stage:
    """Run every case and judge the answers; NaN, Inf, a missing output, a wrong shape and an exception fail.

    Args:
        stage: What is judged; its graph decides what `run` takes, its precision which budget applies.
        run: Takes a batch of what the graph takes, and returns the graph's outputs.
        reference: The parity inputs with PyTorch FP32's answers.
        budget: Limits by precision, head and metric.
        sha256: Hash of the artefact.
        notes: What a pass does not cover.
        show: Receives every map that was compared.
    """
    graph, precision = stage.graph, stage.precision
    limits = limits_of(budget, precision)
    values: dict[str, dict[str, float]] = {}
    quantiles: dict[str, tuple[float, ...]] = {}
    worst: dict[str, tuple[float, str]] = {}
    findings: list[Finding] = []
    for batch in reference.batches(graph):
        try:
            answers = run(np.stack([case.input(graph) for case in batch]))
        except (DptError, RuntimeError, ValueError, TypeError) as error:
            first = (str(error).strip().splitlines() or ["no message"])[0]
            detail = f"a batch of {len(batch)} of {batch[0].name} raised {type(error).__name__}: {first}"
            findings.append(Finding(Fault.RAISED, detail=detail))
            continue
        for i, case in enumerate(batch):
            faults = _faults(case, graph, answers, i, len(batch))
            findings += faults
            for fault in faults:
                if worst.get(fault.head, (0.0,))[0] < math.inf:
                    worst[fault.head] = (math.inf, case.name)
            if faults:
                _show_faults(stage, case, answers, i, show)
            if faults or (case.adversarial and precision != "fp32"):
                continue
            have = as_maps(graph, {key: value[i] for key, value in answers.items()})
            for head, measured, error in _measure(as_maps(graph, case.maps[graph]), have):
                _keep_worst(values.setdefault(head, {}), measured)
                levels = tuple(float(level) for level in np.quantile(error, LEVELS))
                quantiles[head] = tuple(map(max, quantiles.get(head, levels), levels))
                share = max((share_of_budget(metric, measured.get(metric, math.nan), bound)
                             for metric, bound in limits.get(head, {}).items()), default=0.0)
                if head not in worst or share > worst[head][0]:
                    worst[head] = (share, case.name)
                show(Exhibit(stage, case, graph, head, share, have[head]))
    names = {head: image for head, (_, image) in worst.items()}
    findings += over_budget(values, names, limits)
    if not findings:
        findings = [Finding(Fault.NOT_MEASURED, head) for head in _heads(reference.cases[0].maps[graph])
                    if head not in values]
    return Stage(stage, "failed" if findings else "passed", sha256, values, names, tuple(findings), notes,
                 quantiles=quantiles)


def _show_faults(
    stage: StageId, case: Case, answers: dict[str, np.ndarray], index: int, show: Callable[[Exhibit], None]
) -> None:
    """Show the maps of the right shape that are not finite."""
    for output, want in case.maps[stage.graph].items():
        have = answers.get(output)
        if have is not None and have.shape[1:] == want.shape and not np.isfinite(have[index]).all():
            ((head, picture),) = as_maps(stage.graph, {output: have[index]}).items()
            show(Exhibit(stage, case, stage.graph, head, math.inf, picture))


def _faults(case: Case, graph: Graph, answers: dict[str, np.ndarray], index: int, batch: int) -> list[Finding]:
    """What is wrong with an answer before any number is compared, one finding per head."""
    faults = []
    for name, reference in case.maps[graph].items():
        about = {"head": name.removesuffix("_logits"), "image": case.name, "name": name}
        if name not in answers:
            faults.append(Finding(Fault.NO_OUTPUT, **about))
        elif answers[name].shape != (batch, *reference.shape):
            detail = f"{list(answers[name].shape)}, expected {[batch, *reference.shape]}"
            faults.append(Finding(Fault.WRONG_SHAPE, **about, detail=detail))
        elif not (finite := np.isfinite(answers[name][index])).all():
            faults.append(Finding(Fault.NOT_FINITE, **about, value=float(1 - finite.mean())))
    return faults


def error_map(head: str, have: np.ndarray, want: np.ndarray) -> np.ndarray:
    """One head's error per pixel, float64 (H, W): relative for depth, degrees for normals, difference for alpha."""
    if head == "depth":
        return metrics.relative_depth_error(have, want)
    if head == "normals":
        return metrics.angle(have, want)
    return np.abs(have.astype(np.float64) - want.astype(np.float64))


def foreground(want: dict[str, np.ndarray]) -> np.ndarray | None:
    """Where depth and normals count: the reference's alpha above 0.5; None (everywhere) where that is empty."""
    mask = want["alpha"] > 0.5 if "alpha" in want else None
    return mask if mask is not None and mask.any() else None


def _measure(
    want: dict[str, np.ndarray], have: dict[str, np.ndarray]
) -> Iterator[tuple[str, dict[str, float], np.ndarray]]:
    """Per head: its name, its metrics, and the errors of the pixels that count."""
    mask = foreground(want)
    for head, reference in want.items():
        error = error_map(head, have[head], reference)
        if head == "alpha":
            yield head, metrics.alpha_parity(have[head], reference), error
        else:
            counted = error if mask is None else error[mask]
            yield head, (metrics.depth_summary if head == "depth" else metrics.normal_summary)(counted), counted


def as_maps(graph: Graph, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One image's outputs of either graph as depth (H, W), normals (H, W, 3) and alpha (H, W)."""
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


def _heads(maps: dict[str, np.ndarray]) -> list[str]:
    return [name.removesuffix("_logits") for name in maps]


def _keep_worst(kept: dict[str, float], measured: dict[str, float]) -> None:
    for metric, value in measured.items():
        pick = min if metric in AT_LEAST else max
        # max() and min() drop a NaN that comes second; a NaN must stay.
        kept[metric] = value if math.isnan(value) else pick(kept.get(metric, value), value)
