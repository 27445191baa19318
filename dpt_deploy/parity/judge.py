"""Judge a bundle: every stage that can run here, against the reference that the bundle carries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Artifact, Bundle
from ..contract import Graph
from ..errors import BackendError, BadBundle, DptError, MissingPackage
from ..files import write_json, write_text
from ..runtime import machine
from ..runtime.runtime import load, open_session
from .compare import ParityReport, Run, Stage, compare, load_budget, not_run
from .reference import FILE, Reference
from .report import render

RECORD, PAGE = "parity.json", "report.html"
CPU_NOTE = (
    "graph, weights and names are checked; FP16 arithmetic is not: ONNX Runtime's CPU provider computes most "
    "operators in FP32"
)


@dataclass
class Exhibit:
    """One image's maps beside the reference's, for the report."""

    case: str = ""
    stage: str = ""
    frame: np.ndarray | None = None
    reference: dict[str, np.ndarray] = field(default_factory=dict)
    candidate: dict[str, np.ndarray] = field(default_factory=dict)


def judge(
    bundle: Bundle, budget_file: Path | None = None, known: Iterable[Stage] = (),
    progress: Callable[[str], None] = lambda name: None, command: str = "",
) -> ParityReport:
    """Run every stage, write parity.json and report.html into the bundle, and return the report.

    `known` are stages that were just judged elsewhere (those that need PyTorch). Stages of the last
    report that cannot be judged here are carried over while the artefact they judged is unchanged.
    """
    budget, budget_name = load_budget(budget_file)
    reference = _reference(bundle)
    stages = list(known)
    exhibit = Exhibit()
    for artifact in bundle.find("onnx"):
        progress(artifact.file)
        stages.append(_judge_onnx(bundle, artifact, reference, budget, exhibit))
    progress("runtime on the model graph")
    stages.append(_judge_runtime(bundle, reference, budget))
    for artifact in bundle.find("engine"):
        progress(artifact.file)
        stages.append(_judge_engine(bundle, artifact, reference, budget))
    stages = _carried_over(bundle, stages) + stages
    stages.sort(key=_order)
    report = ParityReport(tuple(stages), budget, budget_name, tuple(case.name for case in reference.cases))
    write_json(bundle.folder / RECORD, report.to_json())
    bundle.add(RECORD, "report")
    write_text(bundle.folder / PAGE, render(report, bundle, exhibit, command))
    bundle.add(PAGE, "report")
    return report


def last_report(bundle: Bundle) -> ParityReport | None:
    """The report that the bundle carries, or None."""
    try:
        return ParityReport.from_json(json.loads((bundle.folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _reference(bundle: Bundle) -> Reference:
    found = bundle.find("reference", file=FILE)
    if not found:
        raise BadBundle(f"{bundle.folder} has no {FILE}, so nothing can be judged. Export the checkpoint again.")
    return Reference.load(bundle.path(found[0]))


def _judge_onnx(
    bundle: Bundle, artifact: Artifact, reference: Reference, budget: dict[str, Any], exhibit: Exhibit
) -> Stage:
    name = f"ONNX Runtime {artifact.graph} {artifact.precision}"
    path = bundle.path(artifact)
    if artifact.precision == "bf16" and machine.compute_capability() is None:
        reason = "ONNX Runtime's CPU provider has no BF16 convolution"
        return not_run(name, "bf16", reason, artifact.file, artifact.sha256)
    on_gpu = artifact.precision != "fp32" and machine.compute_capability() is not None
    try:
        try:
            session = open_session(bundle, artifact, "onnxruntime-cuda" if on_gpu else "onnxruntime-cpu")
        except (BackendError, MissingPackage):
            if not on_gpu:
                raise
            on_gpu = False
            session = open_session(bundle, artifact, "onnxruntime-cpu")
    except MissingPackage as error:
        return not_run(name, artifact.precision, str(error), artifact.file, artifact.sha256)
    with session:
        run = _runner(session, artifact.graph)
        if artifact.graph == "frame" and not (exhibit.candidate and artifact.precision == "fp32"):
            run = _watch(run, name, reference, exhibit)
        notes = (CPU_NOTE,) if artifact.precision == "fp16" and not on_gpu else ()
        return compare(name, run, reference, artifact.graph, artifact.precision, budget, path, notes)


def _judge_runtime(bundle: Bundle, reference: Reference, budget: dict[str, Any]) -> Stage:
    """The Python runtime's own pre- and post-processing around the FP32 model graph."""
    name = "Runtime, NumPy pre- and post-processing"
    try:
        runtime = load(bundle.folder, backend="onnxruntime-cpu", graph="model", precision="fp32")
    except (MissingPackage, BackendError) as error:
        return not_run(name, "fp32", str(error))

    def run(frames: np.ndarray) -> dict[str, np.ndarray]:
        predictions = runtime(frames)
        heads = bundle.contract.heads
        return {head: np.stack([getattr(prediction, head) for prediction in predictions]) for head in heads}

    with runtime:
        path = bundle.folder / runtime.artifact.file
        return compare(name, run, reference, "frame", "fp32", budget, path)


def _judge_engine(bundle: Bundle, artifact: Artifact, reference: Reference, budget: dict[str, Any]) -> Stage:
    name = f"{artifact.details['builder']} {artifact.graph} {artifact.precision}"
    if machine.compute_capability() is None:
        return not_run(name, artifact.precision, "no GPU is visible here", artifact.file, artifact.sha256)
    try:
        session = open_session(bundle, artifact, artifact.details["builder"])
    except DptError as error:
        return not_run(name, artifact.precision, str(error), artifact.file, artifact.sha256)
    with session:
        run, path = _runner(session, artifact.graph), bundle.path(artifact)
        return compare(name, run, reference, artifact.graph, artifact.precision, budget, path)


def _runner(session: Any, graph: Graph) -> Run:
    (input_name,) = session.inputs
    return lambda batch: session.run({input_name: batch})


def _watch(run: Run, stage: str, reference: Reference, exhibit: Exhibit) -> Run:
    """`run`, keeping the answer to the first case for the report."""
    case = reference.cases[0]

    def watched(batch: np.ndarray) -> dict[str, np.ndarray]:
        answers = run(batch)
        if batch.shape[1:] == case.frame.shape and np.array_equal(batch[0], case.frame):
            exhibit.case, exhibit.stage, exhibit.frame = case.name, stage, case.frame
            exhibit.reference = case.maps["frame"]
            exhibit.candidate = {name: value[0] for name, value in answers.items()}
        return answers

    return watched


def _carried_over(bundle: Bundle, stages: list[Stage]) -> list[Stage]:
    """Stages of the last report that were not judged now, whose artefact is still the one they judged."""
    last = last_report(bundle)
    current = {artifact.file: artifact.sha256 for artifact in bundle.artifacts}
    now = {stage.name for stage in stages}
    return [
        stage for stage in (() if last is None else last.stages)  # a report that failed is falsy
        if stage.name not in now and stage.sha256 is not None and current.get(stage.artifact) == stage.sha256
    ]


def _order(stage: Stage) -> tuple[int, int]:
    """From the checkpoint to the engine: the first failure is where the error enters."""
    kinds = ("weights", "PyTorch", "ONNX Runtime model", "ONNX Runtime frame", "Runtime", "tensorrt")
    kind = next((i for i, start in enumerate(kinds) if stage.name.startswith(start)), len(kinds))
    return kind, ("fp32", "bf16", "fp16").index(stage.precision)
