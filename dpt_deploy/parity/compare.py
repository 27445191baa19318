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
from ..core.bundle import Artifact
from ..core.contract import HEADS, Graph
from ..core.errors import BadInput, DptError
from ..core.files import existing_file
from ..core.verdict import AT_LEAST, LEVELS, ParityReport, Stage, limits_of, not_run, over_budget, share_of_budget
from .reference import Case, Reference

DEFAULT_BUDGET = Path(__file__).parent / "budget.json"

__all__ = ["Exhibit", "ParityReport", "Run", "Stage", "compare", "error_map", "load_budget", "not_run"]

# run(batch) -> outputs, both with a batch axis
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Exhibit:
    """One head's maps of one image, for the report: the reference's beside a stage's."""

    stage: str
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


def load_budget(path: Path | None) -> tuple[dict[str, Any], str]:
    """The budget in `path`, or the project's own; and the name that reports give it.

    A budget limits each head in fp32 and in fp16, which bf16 is held to as well: what it left out would
    pass unseen, so that it is refused.
    """
    path = existing_file(path, "a budget file (JSON)") if path else DEFAULT_BUDGET
    try:
        budget = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        budget, why = None, f"it is no JSON ({error})"
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
                    return f"{precision}.{head}.{metric} is {json.dumps(limit)} and no number"
    return None


def _keys_fault(value: Any, known: Sequence[str], place: str, every: bool) -> str | None:
    """What is wrong with the keys of a JSON object: all of `known` when `every`, else at least one."""
    if not isinstance(value, dict):
        return f"{place} is no object of {', '.join(known)}"
    if unknown := [key for key in value if key not in known]:
        return f"{place} has {', '.join(unknown)}, and known are {', '.join(known)}"
    missing = [key for key in known if key not in value]
    return f"{place} lacks {', '.join(missing)}" if missing and (every or not value) else None


def compare(
    name: str, run: Run, reference: Reference, graph: Graph, precision: str, budget: dict[str, Any],
    artifact: Artifact | None = None, notes: tuple[str, ...] = (),
    show: Callable[[Exhibit], None] = lambda exhibit: None,
) -> Stage:
    """Run every case and judge the answers.

    `run` takes a batch of what `graph` takes and gives the graph's outputs. NaN, Inf, a missing
    output, a wrong shape and an exception are failures. `notes` say what a pass does not cover.
    `show` is given every map that was compared.
    """
    limits = limits_of(budget, precision)
    values: dict[str, dict[str, float]] = {}
    quantiles: dict[str, tuple[float, ...]] = {}
    worst: dict[str, tuple[float, str]] = {}
    reasons: list[str] = []
    for batch in reference.batches(graph):
        try:
            answers = run(np.stack([case.input(graph) for case in batch]))
        except (DptError, RuntimeError, ValueError, TypeError) as error:
            first = (str(error).strip().splitlines() or ["no message"])[0]
            reasons.append(f"a batch of {len(batch)} of {batch[0].name} raised {type(error).__name__}: {first}")
            continue
        for i, case in enumerate(batch):
            faults = _faults(case, graph, answers, i, len(batch))
            for head, fault in faults:
                reasons.append(fault)
                if worst.get(head, (0.0,))[0] < math.inf:
                    worst[head] = (math.inf, case.name)
            if faults:
                _show_faults(name, case, graph, answers, i, show)
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
                show(Exhibit(name, case, graph, head, share, have[head]))
    names = {head: image for head, (_, image) in worst.items()}
    reasons += over_budget(values, names, limits)
    expected_heads = _heads(reference.cases[0].maps[graph])
    reasons += [f"{head} was never measured" for head in expected_heads if head not in values and not reasons]
    return Stage(
        name, "failed" if reasons else "passed", precision, artifact.file if artifact else None,
        artifact.sha256 if artifact else None, values, names, tuple(reasons) or notes, quantiles,
    )


def _show_faults(
    name: str, case: Case, graph: Graph, answers: dict[str, np.ndarray], index: int, show: Callable[[Exhibit], None]
) -> None:
    """Show the maps of the right shape that are not finite."""
    for output, want in case.maps[graph].items():
        have = answers.get(output)
        if have is not None and have.shape[1:] == want.shape and not np.isfinite(have[index]).all():
            ((head, picture),) = as_maps(graph, {output: have[index]}).items()
            show(Exhibit(name, case, graph, head, math.inf, picture))


def _faults(
    case: Case, graph: Graph, answers: dict[str, np.ndarray], index: int, batch: int
) -> list[tuple[str, str]]:
    """Per head, what is wrong with an answer before any number is compared."""
    faults = []
    for name, reference in case.maps[graph].items():
        if name not in answers:
            fault = f"no output {name}"
        elif answers[name].shape != (batch, *reference.shape):
            fault = f"{name} has shape {list(answers[name].shape)}, expected {[batch, *reference.shape]}"
        elif not np.isfinite(answers[name][index]).all():
            share = 1 - np.isfinite(answers[name][index]).mean()
            fault = f"{name} is NaN or Inf in {share:.1%} of its values"
        else:
            continue
        faults.append((name.removesuffix("_logits"), f"{case.name}: {fault}"))
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
