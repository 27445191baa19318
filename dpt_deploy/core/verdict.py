"""The parity verdict as data: stages, findings, the report, and the stage that introduces an error.

Text is generated from this data for display and never parsed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from pydantic import TypeAdapter

from .compared import Compared
from .contract import Graph
from .errors import Cause
from .legacy import upgraded
from .metrics import AT_LEAST
from .plan import EIGHT_BITS
from .task import TaskVerdict
from .values import Number, Sha256, StrictBool, StrictFloat

Status = Literal["passed", "failed", "not run"]
LEVELS = (0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0)
"""The quantiles of the error maps that a stage stores."""
CHECKPOINT, REFERENCE = "the checkpoint", "PyTorch FP32"
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8")

Budget = dict[str, dict[str, dict[str, StrictFloat]]]
"""Limits by precision ("fp32", "fp16", "int8"), head and metric. Under "task", the margins of the task's metrics."""


class StageKind(StrEnum):
    """What a stage judges, ordered from the checkpoint to the maps."""

    WEIGHTS = "weights"
    """The weights of a graph against the checkpoint."""
    PYTORCH = "pytorch"
    """The PyTorch model in the precision of the plan."""
    GRAPH = "graph"
    """An ONNX graph in ONNX Runtime."""
    COMPAT = "compat"
    """A graph for the program of another project."""
    STEPS = "steps"
    """The Python runtime's pre- and post-processing around the model graph."""
    BACKEND = "backend"
    """An artefact on another backend."""
    SERVER = "server"
    """The maps that a server gives, through the client."""


@dataclass(frozen=True)
class StageId:
    """The identity of a stage across reports."""

    kind: StageKind
    graph: Graph
    precision: Literal["fp32", "bf16", "fp16", "int8", "fp8"]
    """Selects the budget. BF16 uses the FP16 budget, FP8 that of INT8."""
    backend: str = ""
    """Name in the backend registry. Empty for weights and PyTorch."""
    device: str = "cpu"
    """cpu or gpu; server if a server computes."""
    file: str | None = None
    """File name of the artefact, None if the stage judges no file."""
    title: str = field(default="", compare=False)
    """Display name, such as "ONNX Runtime frame fp16"."""

    def __str__(self) -> str:
        return self.title or " ".join(filter(None, (self.kind, self.backend, self.graph, self.precision)))


class Fault(StrEnum):
    """The kind of a finding."""

    OVER_BUDGET = "over budget"
    OVER_MARGIN = "over margin"
    """The task's loss: `value` is the upper end of the interval, `bound` the margin."""
    NOT_FINITE = "not finite"
    NO_OUTPUT = "no output"
    WRONG_SHAPE = "wrong shape"
    RAISED = "raised"
    REFUSED = "refused"
    NOT_MEASURED = "not measured"
    TENSOR_MISSING = "tensor missing"
    TENSOR_SHAPE = "tensor shape"
    TENSOR_DIFFERS = "tensor differs"
    TENSOR_RANGE = "tensor range"
    TENSOR_UNKNOWN = "tensor unknown"


@dataclass(frozen=True)
class Finding:
    """A reason why a stage failed."""

    fault: Fault
    head: str | None = None
    """depth, normals or alpha. None if it is not specific to one head."""
    metric: str | None = None
    value: Number = math.nan
    """The metric, the fraction of non-finite values, or the relative difference of a tensor."""
    bound: StrictFloat | None = None
    image: str | None = None
    """Name of the parity input."""
    name: str = ""
    """Name of the output or tensor."""
    detail: str = ""
    """Shapes, or the message of an error."""

    def __str__(self) -> str:
        where = f"{self.image}: " if self.image is not None else ""
        match self.fault:
            case Fault.OVER_BUDGET:
                value = f"{self.value:.5f}" if self.metric in AT_LEAST else f"{self.value:.3g}"
                return f"{self.head} {self.metric} {value}, budget {self.bound:.3g}, worst image {self.image}"
            case Fault.OVER_MARGIN if math.isnan(self.value):
                return f"{self.head} {self.metric} against truth is not a number"
            case Fault.OVER_MARGIN:
                return (f"{self.head} {self.metric} against truth may be worse by {self.value:.3g} (95 % interval; "
                        f"{self.detail}), margin {self.bound:.3g}")
            case Fault.NOT_FINITE:
                return f"{where}{self.name} is NaN or Inf in {self.value:.1%} of its values"
            case Fault.NO_OUTPUT:
                return f"{where}no output {self.name}"
            case Fault.WRONG_SHAPE:
                return f"{where}{self.name} has shape {self.detail}"
            case Fault.NOT_MEASURED:
                what = " ".join(filter(None, (self.head or self.name, self.metric)))
                return f"{where}{what} was never measured{f': {self.detail}' if self.detail else ''}"
            case Fault.TENSOR_MISSING:
                return f"{self.name} is missing from the graph"
            case Fault.TENSOR_SHAPE:
                return f"{self.name} has shape {self.detail}"
            case Fault.TENSOR_DIFFERS:
                return f"{self.name} differs by {self.value:.2%} of its largest weight"
            case Fault.TENSOR_RANGE:
                return f"{self.name} does not fit the range of {self.detail}"
            case Fault.TENSOR_UNKNOWN:
                return f"{self.name} is in the graph but not in the checkpoint"
            case _:
                return where + self.detail


@dataclass(frozen=True)
class Stage:
    """The comparison of one artefact with PyTorch FP32. Use `passed`; a stage has no truth value."""

    id: StageId
    status: Status
    sha256: Sha256 | None = None
    """SHA-256 of the artefact."""
    heads: dict[str, dict[str, Number]] = field(default_factory=dict)
    """Per head and metric, the worst value over the judged images."""
    worst: dict[str, str] = field(default_factory=dict)
    """Per head, the image with the largest error, or the first one with an invalid output."""
    findings: tuple[Finding, ...] = ()
    """Reasons for the failure."""
    notes: tuple[str, ...] = ()
    """Limitations of a pass."""
    cause: Cause | None = None
    """Why it was not run."""
    detail: str = ""
    """Explains `cause` and says what to run."""
    quantiles: dict[str, tuple[Number, ...]] = field(default_factory=dict)
    """Per head, the quantiles of the error map at `LEVELS`, each the worst over the judged images."""
    earlier: StrictBool = False
    """Judged by an earlier run with the same file and reference."""
    compared: Compared | None = None
    """How much was compared. None if it was not run, or judged by a version that did not count."""
    task: TaskVerdict | None = None
    """Eight bits with labelled data: what decides in place of the distances to PyTorch FP32."""
    frame_decides: StrictBool = False
    """Model graph in eight bits with labelled data: the frame graph, with the same network, is judged by the task."""
    unknown: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """Keys of a newer version in the manifest that the stage was read from. They are written again."""

    def __post_init__(self) -> None:
        if self.status == "passed" and self.compared is not None and self.compared.nothing:
            raise ValueError(f"{self.name}: passed, but nothing was compared")

    @property
    def passed(self) -> bool:
        """Whether it ran without a finding."""
        return self.status == "passed"

    @property
    def eight_bits(self) -> bool:
        """Whether it judges the maps of a graph or an engine in eight bits."""
        return self.precision in EIGHT_BITS and self.id.kind is not StageKind.WEIGHTS

    @property
    def by_task(self) -> bool:
        """Whether the loss of the task decides and the distances to PyTorch FP32 are only shown."""
        return self.task is not None or self.frame_decides

    @property
    def name(self) -> str:
        """The display name."""
        return str(self.id)

    @property
    def precision(self) -> str:
        """Selects the budget."""
        return self.id.precision

    @property
    def artifact(self) -> str | None:
        """File name of the artefact, None if the stage judges no file."""
        return self.id.file

    @property
    def reasons(self) -> tuple[str, ...]:
        """Text: why it failed or was not run, or the limitations of a pass."""
        return tuple(map(str, self.findings)) or ((self.detail,) if self.status == "not run" else self.notes)

    def findings_of(self, head: str) -> list[Finding]:
        """The findings on `head`, and those that are not specific to one head."""
        return [finding for finding in self.findings if finding.head in (head, None)]

    def __bool__(self) -> bool:
        raise TypeError("a Stage has no truth value; use .passed")


@dataclass(frozen=True)
class ParityReport:
    """The results of all stages. Use `passed`; a report has no truth value."""

    stages: tuple[Stage, ...]
    budget: Budget
    budget_file: str
    """Name of the budget file, or "default"."""
    inputs: tuple[str, ...]
    """Names of the parity images."""
    reference: Sha256 | None = None
    """SHA-256 of the reference outputs."""
    quick: bool = False
    """Whether the export chose only a few inputs (--parity quick)."""
    assumed: tuple[str, ...] = ()
    """The facts that the export assumed, one sentence each. The reference was made with them, so a pass does not
    confirm them."""
    against: str = REFERENCE
    """What made the reference: PyTorch, or an imported model's own file."""

    @property
    def passed(self) -> bool:
        """Whether no stage failed and at least one that compared maps passed."""
        return not self.failed and any(stage.passed and stage.id.kind is not StageKind.WEIGHTS for stage in self.stages)

    def __bool__(self) -> bool:
        raise TypeError("a ParityReport has no truth value; use .passed")

    @property
    def failed(self) -> list[Stage]:
        """The failed stages in order. The first one introduces the error."""
        return [stage for stage in self.stages if stage.status == "failed"]

    @property
    def not_run(self) -> list[Stage]:
        """The stages that could not run."""
        return [stage for stage in self.stages if stage.status == "not run"]

    @property
    def blame(self) -> tuple[str, ...]:
        """Where errors enter: one sentence per failed stage whose sources all passed."""
        sentences = []
        for stage in self.failed:
            sources = self.sources(stage)
            if not any(source in self.failed for source in sources):
                origin = CHECKPOINT if stage.id.kind is StageKind.WEIGHTS else self.against
                sentences.append(f"the error enters between {sources[0].name if sources else origin} and {stage.name}")
        return tuple(sentences)

    def sources(self, stage: Stage) -> list[Stage]:
        """The stages that judged the inputs of `stage`, nearest first."""
        graph, precision = stage.id.graph, stage.precision
        pytorch, weights = (StageKind.PYTORCH, "model", precision), (StageKind.WEIGHTS, graph, precision)
        wanted = {
            StageKind.WEIGHTS: [],
            StageKind.PYTORCH: [],
            StageKind.GRAPH: [*([(StageKind.GRAPH, "model", precision)] if graph == "frame" else []), pytorch, weights],
            StageKind.STEPS: [(StageKind.GRAPH, "model", precision)],
            StageKind.BACKEND: [(StageKind.GRAPH, graph, precision), pytorch, weights],
            StageKind.SERVER: [(StageKind.GRAPH, graph, precision), pytorch, weights],
        }[stage.id.kind]
        if wanted and precision != "fp32":  # half precision did not introduce an error that FP32 has too
            graphs = ("model", "frame") if graph == "frame" else ("model",)
            wanted += [(StageKind.GRAPH, this, "fp32") for this in graphs]
        ran = {(s.id.kind, s.id.graph, s.precision): s for s in self.stages
               if s.status != "not run" and not s.frame_decides}
        return [ran[key] for key in wanted if key in ran]

    @property
    def status(self) -> Status:
        """passed, failed, or not run if no stage could run."""
        return "failed" if self.failed else "passed" if self.passed else "not run"

    @property
    def verdict(self) -> str:
        """The status and the summary in one sentence."""
        return f"{self.status.upper()}: {self.summary}"

    @property
    def summary(self) -> str:
        """How many stages passed, and where an error enters."""
        ran = len(self.stages) - len(self.not_run)
        tail = f"; {len(self.not_run)} not run" if self.not_run else ""
        if earlier := sum(stage.earlier for stage in self.stages):
            tail += f"; {earlier} judged earlier"
        ran_in_eight = [stage for stage in self.stages if stage.eight_bits and stage.status != "not run"]
        if by_task := sum(stage.task is not None for stage in ran_in_eight):
            tail += f"; {by_task} in eight bits judged by the loss of the task"
        if by_distance := sum(not stage.by_task for stage in ran_in_eight):
            tail += f"; {by_distance} in eight bits judged by distance alone"
        if self.budget_file != "default":
            tail += f"; budget taken from {self.budget_file}"
        if self.quick:
            tail += f"; quick: judged on {len(self.inputs)} inputs only"
        if self.assumed:
            facts = ", ".join(dict.fromkeys(sentence.partition(" ")[0] for sentence in self.assumed))
            tail += f"; assumed and not verified: {facts}"
        if self.failed:
            first = f"first {self.failed[0].name}: {self.blame[0]}"
            return f"{len(self.failed)} of {ran} stages out of budget, {first}{tail}"
        if not self.passed:
            return f"nothing could run{tail}"
        return f"{ran} of {ran} stages within budget{tail}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, including the generated text."""
        value = to_json(self) | {"verdict": self.verdict, "blame": self.blame, "passed": self.passed}
        for stage, entry in zip(self.stages, value["stages"], strict=True):
            entry |= {"name": stage.name, "precision": stage.precision, "artifact": stage.artifact,
                      "reasons": stage.reasons}
        return json.loads(json.dumps(value))

    @classmethod
    def from_json(cls, value: Any) -> ParityReport:
        """The inverse of `to_json`. Also reads reports of version 0.1.0. Raises `ValueError` for anything else."""
        if not isinstance(value, dict) or not isinstance(value.get("stages"), list):
            raise ValueError("expected a parity report")
        return _REPORT.validate_python(value | {"stages": [_current(stage) for stage in value["stages"]]})


_REPORT: TypeAdapter[ParityReport] = TypeAdapter(ParityReport)
_STAGE: TypeAdapter[Stage] = TypeAdapter(Stage)
_FIELDS = {entry.name for entry in dataclasses.fields(Stage)} - {"unknown"}


def to_json(value: Stage | ParityReport) -> dict[str, Any]:
    """A stage or report as plain JSON values. Non-finite numbers become null."""
    if isinstance(value, ParityReport):
        return json.loads(_REPORT.dump_json(value, exclude={"stages": {"__all__": {"unknown"}}}))
    return value.unknown | json.loads(_STAGE.dump_json(value, exclude={"unknown"}))


def stage_from_json(value: Any) -> Stage:
    """The inverse of `to_json`. Raises `ValueError` for anything but a stage."""
    unknown = {key: item for key, item in value.items() if key not in _FIELDS} if "id" in value else {}
    return dataclasses.replace(_STAGE.validate_python(_current(value)), unknown=unknown)


def _current(stage: Any) -> Any:
    """The known fields of the JSON of a stage, in the current form."""
    try:
        current = stage if "id" in stage else upgraded(stage)
        return {key: item for key, item in current.items() if key in _FIELDS}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"expected a stage of a parity report ({type(error).__name__}: {error})") from error


def not_run(stage: StageId, cause: Cause, detail: str, digest: str | None = None) -> Stage:
    """A stage that cannot run, with the reason. `digest` is the SHA-256 of the artefact."""
    return Stage(stage, "not run", digest, cause=cause, detail=detail)


def in_order(stages: list[Stage]) -> list[Stage]:
    """Sort stages from the checkpoint to the maps, so that the first failure introduces the error.

    Stages of kind BACKEND and SERVER keep their order.
    """
    def position(stage: Stage) -> tuple[int, int, int]:
        kind, graph = stage.id.kind, ("model", "frame").index(stage.id.graph)
        rank = list(StageKind).index(kind)
        if kind in (StageKind.BACKEND, StageKind.SERVER):
            return rank, 0, 0
        return rank, graph if kind is StageKind.GRAPH else 0, PRECISIONS.index(stage.precision)

    return sorted(stages, key=position)
