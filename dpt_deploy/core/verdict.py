"""What parity found: stages, the report, the verdict, and where an error enters."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from .bundle import RECORD, Bundle

Status = Literal["passed", "failed", "not run"]
AT_LEAST = ("iou", "within_1_percent")  # metrics that a budget bounds from below
LEVELS = (0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0)
"""The quantiles of an error map that a stage keeps."""

CHECKPOINT, REFERENCE = "the checkpoint", "PyTorch FP32"
# The line from the checkpoint to the maps, by how a stage's name begins.
LINE = ("weights", "PyTorch", "ONNX Runtime model", "ONNX Runtime frame", "Runtime", "C++ runtime", "OpenVINO",
        "tensorrt")


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
    """Per head, the image with the largest error, or the first one whose answer is not valid."""
    reasons: tuple[str, ...] = ()
    """Why it failed or was not run; what a pass does not cover."""
    quantiles: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Per head, the error map's quantiles at `LEVELS`, each the worst over the images that count."""
    earlier: bool = False
    """Judged by an earlier run; the file and the reference are unchanged since."""

    def __bool__(self) -> bool:
        return self.status == "passed"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a metric that is not finite becomes null, which never passes."""
        return json.loads(json.dumps(_finite(dataclasses.asdict(self))))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Stage:
        """The inverse of `to_json`; reads the reports of earlier versions too."""
        heads = {head: {key: _number(number) for key, number in values.items()}
                 for head, values in value["heads"].items()}
        quantiles = {head: tuple(map(_number, values)) for head, values in value.get("quantiles", {}).items()}
        return cls(**value | {"heads": heads, "quantiles": quantiles, "reasons": tuple(value["reasons"])})

    def reasons_of(self, head: str) -> list[str]:
        """The reasons that concern this head: those that name it, and those that name no head."""
        return [reason for reason in self.reasons if (named := _heads_named(reason)) == [] or head in named]


@dataclass(frozen=True)
class ParityReport:
    """All stages. Truthy when none failed and at least one ran."""

    stages: tuple[Stage, ...]
    budget: dict[str, Any]
    budget_file: str
    """Name of the budget; "default" is the project's own."""
    inputs: tuple[str, ...]
    """Names of the parity images."""
    reference: str | None = None
    """SHA-256 of the reference that the stages were judged against."""

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
    def blame(self) -> tuple[str, ...]:
        """Where errors enter: a sentence for each failed stage none of whose sources failed."""
        failed = {stage.name for stage in self.failed}
        sentences = []
        for stage in self.failed:
            sources = self.sources(stage)
            if not failed.intersection(sources):
                sentences.append(f"the error enters between {sources[0]} and {stage.name}")
        return tuple(sentences)

    def sources(self, stage: Stage) -> list[str]:
        """What `stage` was made from, as far as it was judged here, the nearest first."""
        ran = {other.name for other in self.stages if other.status != "not run"}
        kind, graph, precision = _kind(stage), "model" if " model" in stage.name else "frame", stage.precision
        half = [f"PyTorch {precision}"] if precision != "fp32" else []
        onnx = [f"ONNX Runtime {graph} {precision}"]
        weights = [f"weights {graph} {precision}"]
        wanted = {
            "weights": [CHECKPOINT],
            "PyTorch": [REFERENCE],
            "ONNX Runtime model": [*half, *weights],
            "ONNX Runtime frame": [f"ONNX Runtime model {precision}", *half, *weights],
            "Runtime": [f"ONNX Runtime model {precision}"],
        }.get(kind, [*onnx, *half, *weights])
        found = [name for name in wanted if name in ran or name in (CHECKPOINT, REFERENCE)]
        if precision != "fp32" and kind not in ("weights", "PyTorch"):
            # What is wrong in FP32 already did not enter with half precision.
            graphs = ("model", "frame") if graph == "frame" else ("model",)
            found += [name for this in graphs if (name := f"ONNX Runtime {this} fp32") in ran]
        return found or [REFERENCE]

    @property
    def verdict(self) -> str:
        """One sentence: passed or failed, and where an error enters."""
        ran = len(self.stages) - len(self.not_run)
        tail = f"; {len(self.not_run)} not run" if self.not_run else ""
        if earlier := sum(stage.earlier for stage in self.stages):
            tail += f"; {earlier} judged earlier"
        if self.budget_file != "default":
            tail += f"; budget taken from {self.budget_file}"
        if self.failed:
            first = f"first {self.failed[0].name}: {self.blame[0]}"
            return f"FAILED: {len(self.failed)} of {ran} stages out of budget, {first}{tail}"
        return f"PASSED: {ran} of {ran} stages within budget{tail}" if self else f"NOT RUN: nothing could run{tail}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a metric that is not finite becomes null, which never passes."""
        value = dataclasses.asdict(self) | {"verdict": self.verdict, "blame": self.blame, "passed": bool(self)}
        return json.loads(json.dumps(_finite(value)))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ParityReport:
        """The inverse of `to_json`; reads the reports of earlier versions too."""
        stages, inputs = tuple(map(Stage.from_json, value["stages"])), tuple(value["inputs"])
        return cls(stages, value["budget"], value["budget_file"], inputs, value.get("reference"))


def last_report(bundle: Bundle) -> ParityReport | None:
    """The report that the bundle carries, or None."""
    try:
        return ParityReport.from_json(json.loads((bundle.folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def not_run(name: str, precision: str, reason: str, artifact: str | None = None, digest: str | None = None) -> Stage:
    """A stage that cannot run here, and why."""
    return Stage(name, "not run", precision, artifact, digest, reasons=(reason,))


def order(stage: Stage) -> tuple[int, int]:
    """Sort key, from the checkpoint to the engine: the first failure is where the error enters."""
    kind = _kind(stage)
    return LINE.index(kind) if kind in LINE else len(LINE), ("fp32", "bf16", "fp16").index(stage.precision)


def limits_of(budget: dict[str, Any], precision: str) -> dict[str, dict[str, float]]:
    """Per head and metric, the budget of a stage in `precision`."""
    return budget["fp32" if precision == "fp32" else "fp16"]


def over_budget(
    heads: dict[str, dict[str, float]], worst: dict[str, str], limits: dict[str, dict[str, float]]
) -> list[str]:
    """A reason for each metric that is out of its limits; NaN always is."""
    def told(metric: str, value: float) -> str:
        return f"{value:.5f}" if metric in AT_LEAST else f"{value:.3g}"

    return [
        f"{head} {metric} {told(metric, heads[head].get(metric, math.nan))}, budget {bound:.3g}, worst image "
        f"{worst.get(head)}"
        for head, limit in limits.items() if head in heads
        for metric, bound in limit.items() if not within(metric, heads[head].get(metric, math.nan), bound)
    ]


def within(metric: str, value: float, bound: float) -> bool:
    """Whether a metric meets its budget; NaN never does."""
    return value >= bound if metric in AT_LEAST else value <= bound


def share_of_budget(metric: str, value: float, bound: float) -> float:
    """How much of its budget a metric uses: 1 is all of it, above 1 is out of budget; NaN counts as infinite."""
    if metric in AT_LEAST:
        value, bound = 1 - value, 1 - bound
    if math.isnan(value):
        return math.inf
    return value / bound if bound > 0 else (math.inf if value > 0 else 0.0)


def held_to(stage: Stage, old: dict[str, Any], new: dict[str, Any]) -> Stage:
    """A stage judged under the budget `old`, judged again under `new` from the numbers it kept."""
    if old == new or stage.status == "not run":
        return stage
    before = over_budget(stage.heads, stage.worst, limits_of(old, stage.precision))
    after = over_budget(stage.heads, stage.worst, limits_of(new, stage.precision))
    rest = tuple(reason for reason in stage.reasons if reason not in before)
    faults = rest if stage.status == "failed" else ()
    if after or faults or (stage.status == "failed" and not before):
        return dataclasses.replace(stage, status="failed", reasons=(*after, *faults))
    return dataclasses.replace(stage, status="passed", reasons=rest if stage else ())


def _kind(stage: Stage) -> str:
    return next((start for start in LINE if stage.name.startswith(start)), stage.name)


def _heads_named(reason: str) -> list[str]:
    """Which heads a reason of `compare` names; one of `compare_weights` concerns the weights as a whole."""
    words = r"(depth|normals|alpha)(?:_logits)?"
    patterns = (rf"^{words} ", rf": {words} (?:is|has) ", rf": no output {words}$")
    return [found[1] for pattern in patterns if (found := re.search(pattern, reason))]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
