"""Sessions and images -> ParityReport: per stage and head, in task units, against budgets."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import metrics
from ..contract import Graph
from ..errors import BadInput, DptError
from ..files import existing_file, sha256
from .reference import Case, Reference

Status = Literal["passed", "failed", "not run"]
AT_LEAST = ("iou",)  # metrics that a budget bounds from below
DEFAULT_BUDGET = Path(__file__).parent / "budget.json"

# run(batch) -> outputs, both with a batch axis
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Stage:
    """One artefact, judged on its own against PyTorch FP32."""

    name: str
    status: Status
    precision: str
    """Whose budget applies: fp32, fp16 or bf16 (bf16 is held to the FP16 budget)."""
    artifact: str | None = None
    """The file judged, None for what is no file."""
    sha256: str | None = None
    heads: dict[str, dict[str, float]] = field(default_factory=dict)
    """Per head and metric, the worst value over the images that count."""
    worst: dict[str, str] = field(default_factory=dict)
    """Per head, the image with the largest error."""
    reasons: tuple[str, ...] = ()
    """Why it failed or was not run; what a pass does not cover."""

    def __bool__(self) -> bool:
        return self.status == "passed"


@dataclass(frozen=True)
class ParityReport:
    """All stages. Truthy when none failed and at least one ran."""

    stages: tuple[Stage, ...]
    budget: dict[str, Any]
    budget_file: str
    """Name of the budget; "default" is the project's own."""
    inputs: tuple[str, ...]
    """Names of the parity images."""

    def __bool__(self) -> bool:
        return not self.failed and any(self.stages)

    @property
    def failed(self) -> list[Stage]:
        """Stages out of budget, in order: the first is where the error enters."""
        return [stage for stage in self.stages if stage.status == "failed"]

    @property
    def not_run(self) -> list[Stage]:
        """Stages that could not run here."""
        return [stage for stage in self.stages if stage.status == "not run"]

    @property
    def verdict(self) -> str:
        """One sentence."""
        ran = len(self.stages) - len(self.not_run)
        tail = f"; {len(self.not_run)} not run" if self.not_run else ""
        if self.budget_file != "default":
            tail += f"; budget taken from {self.budget_file}"
        if self.failed:
            return f"FAILED: {len(self.failed)} of {ran} stages out of budget, first {self.failed[0].name}{tail}"
        return f"PASSED: {ran} of {ran} stages within budget{tail}" if self else f"NOT RUN: nothing could run{tail}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a metric that is not finite becomes null, which never passes."""
        value = dataclasses.asdict(self) | {"verdict": self.verdict, "passed": bool(self)}
        return json.loads(json.dumps(_finite(value)))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ParityReport:
        """The inverse of `to_json`."""
        stages = []
        for entry in value["stages"]:
            heads = {head: {key: math.nan if number is None else number for key, number in values.items()}
                     for head, values in entry["heads"].items()}
            stages.append(Stage(**entry | {"heads": heads, "reasons": tuple(entry["reasons"])}))
        return cls(tuple(stages), value["budget"], value["budget_file"], tuple(value["inputs"]))


def load_budget(path: Path | None) -> tuple[dict[str, Any], str]:
    """The budget in `path`, or the project's own; and the name that reports give it."""
    path = existing_file(path, "a budget file (JSON)") if path else DEFAULT_BUDGET
    try:
        budget = json.loads(path.read_text(encoding="utf-8"))
        for precision in ("fp32", "fp16"):
            for head, limits in budget[precision].items():
                if head not in ("depth", "normals", "alpha") or not all(
                    isinstance(limit, int | float) for limit in limits.values()
                ):
                    raise ValueError(f"{precision}.{head}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path}: expected a budget such as {DEFAULT_BUDGET.read_text(encoding='utf-8')!s} ({error})."
        ) from error
    return budget, "default" if path == DEFAULT_BUDGET else path.name


def compare(
    name: str, run: Run, reference: Reference, graph: Graph, precision: str, budget: dict[str, Any],
    artifact: Path | None = None, notes: tuple[str, ...] = (),
) -> Stage:
    """Run every case and judge the answers.

    `run` takes a batch of what `graph` takes and gives the graph's outputs. NaN, Inf, a missing
    output, a wrong shape and an exception are failures. `notes` say what a pass does not cover.
    """
    limits = budget["fp32" if precision == "fp32" else "fp16"]
    values: dict[str, dict[str, float]] = {}
    worst: dict[str, tuple[float, str]] = {}
    reasons: list[str] = []
    for batch in reference.batches(graph):
        try:
            answers = run(np.stack([case.input(graph) for case in batch]))
        except (DptError, RuntimeError, ValueError, TypeError) as error:
            first = str(error).strip().splitlines()[0]
            reasons.append(f"a batch of {len(batch)} of {batch[0].name} raised {type(error).__name__}: {first}")
            continue
        for i, case in enumerate(batch):
            faults = _faults(case, graph, answers, i, len(batch))
            reasons += faults
            if faults or (case.adversarial and precision != "fp32"):
                continue
            for head, measured in _measure(case, graph, {key: value[i] for key, value in answers.items()}).items():
                _keep_worst(values.setdefault(head, {}), measured)
                first = next(iter(limits.get(head, measured)))
                if head not in worst or measured[first] > worst[head][0]:
                    worst[head] = (measured[first], case.name)
    for head, limit in limits.items():
        for metric, bound in limit.items():
            if head not in values:
                continue
            value = values[head].get(metric, math.nan)
            if not (value >= bound if metric in AT_LEAST else value <= bound):
                reasons.append(f"{head} {metric} {value:.3g}, budget {bound:.3g}, worst image {worst[head][1]}")
    expected_heads = _heads(reference.cases[0].maps[graph])
    reasons += [f"{head} was never measured" for head in expected_heads if head not in values and not reasons]
    return Stage(
        name, "failed" if reasons else "passed", precision, artifact.name if artifact else None,
        sha256(artifact) if artifact else None, values, {head: image for head, (_, image) in worst.items()},
        tuple(reasons) or notes,
    )


def not_run(name: str, precision: str, reason: str, artifact: str | None = None, digest: str | None = None) -> Stage:
    """A stage that cannot run here, and why."""
    return Stage(name, "not run", precision, artifact, digest, reasons=(reason,))


def _faults(case: Case, graph: Graph, answers: dict[str, np.ndarray], index: int, batch: int) -> list[str]:
    """What is wrong with an answer before any number is compared."""
    faults = []
    for name, reference in case.maps[graph].items():
        if name not in answers:
            faults.append(f"{case.name}: no output {name}")
        elif answers[name].shape != (batch, *reference.shape):
            faults.append(
                f"{case.name}: {name} has shape {list(answers[name].shape)}, expected {[batch, *reference.shape]}"
            )
        elif not np.isfinite(answers[name][index]).all():
            share = 1 - np.isfinite(answers[name][index]).mean()
            faults.append(f"{case.name}: {name} is NaN or Inf in {share:.1%} of its values")
    return faults


def _measure(case: Case, graph: Graph, answer: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Errors per head. Depth and normals count where the reference sees foreground, if it does anywhere."""
    have, want = as_maps(graph, answer), as_maps(graph, case.maps[graph])
    mask = None
    if "alpha" in want and (want["alpha"] > 0.5).any():
        mask = want["alpha"] > 0.5
    measured = {}
    if "depth" in want:
        measured["depth"] = metrics.depth_parity(have["depth"], want["depth"], mask)
    if "normals" in want:
        measured["normals"] = metrics.normal_parity(have["normals"], want["normals"], mask)
    if "alpha" in want:
        measured["alpha"] = metrics.alpha_parity(have["alpha"], want["alpha"])
    return measured


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
        smaller_is_worse = metric in AT_LEAST or metric.startswith("within")
        pick = min if smaller_is_worse else max
        # max() and min() drop a NaN that comes second; a NaN must stay.
        kept[metric] = value if math.isnan(value) else pick(kept.get(metric, value), value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
