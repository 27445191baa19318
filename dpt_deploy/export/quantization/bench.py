"""Run the graph of a plan in the backends of this machine, and measure what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from ... import backends
from ...backends import Session, SessionOptions
from ...core.budget import largest_share, limits_of
from ...core.bundle import Bundle
from ...core.contract import Contract
from ...core.errors import BadInput, DptError, first_line
from ...core.manifest import Artifact, PrecisionPlan
from ...core.verdict import Budget, Fault, Stage, StageId, StageKind
from ...parity import Case, Reference, compare
from ...parity.compare import Run
from ...parity.task_loss import Labelled, judge_task, measure_task
from ...runtime.image import postprocess, preprocess
from .insertion import insert
from .layers import Layer, eight_bit
from .search import Outcome

REFERENCE_BACKEND = "onnxruntime-cpu"


class Distance:
    """Judges a session by how far its maps are from those of the FP32 graph, as a share of the budget."""

    def __init__(self, fp32: Session, images: Sequence[np.ndarray], heads: tuple[str, ...], budget: Budget) -> None:
        """Run the FP32 model graph on the images, float32 (3, h, w)."""
        cases = []
        for number, image in enumerate(images, 1):
            maps = {name: value[0] for name, value in fp32.run({"image": image[None]}).items()}
            cases.append(Case(f"calibration image {number}", False, np.zeros((1, 1, 3), np.uint8), image,
                              {"model": maps}))
        self.reference, self.budget = Reference(tuple(cases), heads), budget
        self.description = f"distance to FP32 on {len(cases)} of the calibration images"

    def judge(self, session: Session, precision: str) -> Outcome:
        """Run a session of the model graph."""
        stage = compare(StageId(StageKind.GRAPH, "model", precision, session.backend),
                        lambda batch: session.run({"image": batch}), self.reference, self.budget)
        return Outcome(self._loss(stage), stage.heads, stage.reasons if stage.findings else ())

    def _loss(self, stage: Stage) -> float:
        if any(finding.fault is not Fault.OVER_BUDGET for finding in stage.findings):
            return math.inf
        limits = limits_of(self.budget, stage.precision)
        return max(largest_share(values, limits.get(head, {})) for head, values in stage.heads.items())


class TaskLoss:
    """Judges a session by what it costs in the task's metrics against ground truth, as a share of the margins."""

    def __init__(self, fp32: Session, labelled: Labelled, contract: Contract, budget: Budget) -> None:
        """Score the FP32 model graph. Raises `BadInput` if there are too few images."""
        self.labelled, self.contract, self.margins = labelled, contract, budget["task"]
        self.before = measure_task(self._maps(fp32), labelled, contract.heads)
        self.description = f"loss of the task on {len(labelled)} labelled images of {labelled.name}"

    def judge(self, session: Session, _precision: str) -> Outcome:
        """Run a session of the model graph."""
        verdict = judge_task(self.before, self._maps(session), self.labelled, self.margins, self.contract.heads)
        heads: dict[str, dict[str, float]] = {}
        for change in verdict.changes:
            heads.setdefault(change.head, {})[change.metric] = change.change
        judged = [change for change in verdict.changes if change.margin is not None]
        loss = max((_share(change.high, change.margin) for change in judged), default=math.inf)
        return Outcome(loss, heads, tuple(
            f"{change.head} {change.metric} is worse by up to {change.high:.3g}, margin {change.margin:.3g}"
            for change in judged if not change.passed))

    def _maps(self, session: Session) -> Run:
        """Frames to maps, with the runtime's pre- and post-processing around the model graph."""
        def run(frames: np.ndarray) -> dict[str, np.ndarray]:
            outputs = session.run({"image": preprocess(frames, self.contract)})
            return postprocess(outputs, self.contract, frames.shape[1:3])

        return run


def _share(high: float, margin: float) -> float:
    if math.isnan(high):
        return math.inf
    return max(high, 0.0) / margin if margin > 0 else (math.inf if high > 0 else 0.0)


class GraphBench:
    """Makes the model graph of a plan and runs it. Needs a folder for one graph and its manifest."""

    def __init__(
        self, folder: Path, bundle: Bundle, base: onnx.ModelProto, layers: Sequence[Layer], clips: Mapping[str, float],
        distance: Distance, precision: str, task: TaskLoss | None = None, bias_everywhere: bool = True,
    ) -> None:
        """
        Args:
            folder: An empty folder.
            bundle: Gives the contract of the graph.
            base: The model graph without quantization, with the metadata of its bundle.
            layers: Its layers.
            clips: The largest magnitude of each activation.
            distance: Compares parts of the network, and decides on plans without `task`.
            precision: int8 or fp8.
            task: Decides on plans.
            bias_everywhere: As for `insert`.
        """
        self.base, self.layers, self.clips, self.distance, self.task = base, layers, clips, distance, task
        self.bias_everywhere = bias_everywhere
        self._trial = Bundle.create(folder, bundle.manifest.model_copy(update={"artifacts": ()}))
        folder.mkdir(parents=True, exist_ok=True)
        self.backends = runners(precision)

    def run(self, plan: PrecisionPlan, backend: str) -> Outcome:
        """Judge the graph of a plan in a backend: by the loss of the task if there is labelled data."""
        return self._judge(plan, backend, self.task or self.distance)

    def cost(self, plan: PrecisionPlan, backend: str) -> Outcome:
        """The distance of the graph of a plan to FP32."""
        return self._judge(plan, backend, self.distance)

    def _judge(self, plan: PrecisionPlan, backend: str, evidence: Distance | TaskLoss) -> Outcome:
        """What cannot be opened has an infinite loss."""
        artifact = self._write(plan)
        try:
            with backends.get(backend).open(self._trial, artifact, SessionOptions()) as session:
                return evidence.judge(session, plan.precision)
        except BadInput:
            raise
        except (DptError, RuntimeError, ValueError, TypeError) as error:
            return Outcome(math.inf, reasons=(first_line(error),))

    def _write(self, plan: PrecisionPlan) -> Artifact:
        for artifact in self._trial.find("onnx"):
            if artifact.details.plan == plan:
                return artifact
        nodes = {layer.node for layer in eight_bit(self.layers, plan.wide)}
        file = f"model.{plan.precision}.onnx"
        onnx.save(insert(self.base, nodes, self.clips, plan, self.bias_everywhere), self._trial.folder / file)
        return self._trial.add(file, "onnx", graph="model", precision=plan.precision,
                               details={"opset": 0, "plan": plan.to_json()})


def runners(precision: str) -> tuple[str, ...]:
    """Names of the backends on the processor that `load` considers and that can run eight-bit graphs here."""
    return tuple(backend.name for backend in backends.registered()
                 if backend.device == "cpu" and backend.automatic and backend.unavailable() is None
                 and (precision == "int8" or backend.name == REFERENCE_BACKEND))
