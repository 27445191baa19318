"""Judge every stage of a bundle that can run on this machine. Writes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import backends
from ..backends import Session, StageTask, device
from ..core.budget import held_to
from ..core.bundle import Bundle
from ..core.errors import BackendError, BadBundle, Cause, DptError, MissingPackage
from ..core.exhibit import Exhibit
from ..core.manifest import ShapeRange
from ..core.verdict import (
    Budget,
    Fault,
    Finding,
    ParityReport,
    Stage,
    StageId,
    StageKind,
    in_order,
    not_run,
)
from ..runtime import load
from .compare import Run, compare, load_budget
from .reference import FILE, Reference

NEED_PYTORCH = (StageKind.WEIGHTS, StageKind.PYTORCH)


@dataclass(frozen=True)
class Judgement:
    """A report and the maps to show with it."""

    report: ParityReport
    exhibits: dict[str, Exhibit]
    """Per head, the map with the largest share of its budget."""


class WorstMaps:
    """Collects, per head, the exhibit with the largest share of its budget."""

    def __init__(self) -> None:
        self.by_head: dict[str, Exhibit] = {}

    def __call__(self, exhibit: Exhibit) -> None:
        worst = self.by_head.get(exhibit.head)
        if worst is None or exhibit.share > worst.share:
            # A view would keep the whole batch in memory.
            self.by_head[exhibit.head] = dataclasses.replace(exhibit, have=exhibit.have.copy())


def judge(
    bundle: Bundle, budget_file: Path | None = None, judged: Iterable[Stage] = (),
    progress: Callable[[str], None] = lambda name: None, worst: WorstMaps | None = None,
) -> Judgement:
    """Judge every stage that can run on this machine.

    Other stages are copied from the bundle's last report if their file and the reference are unchanged: those
    that need PyTorch, unless listed in `judged`, and those on a GPU if none is visible. They are marked as
    earlier and evaluated against the current budget.

    Args:
        bundle: The bundle to judge.
        budget_file: JSON file with another budget. Default: the project's own.
        judged: Stages that the caller has already judged.
        progress: Called with the name of each stage before it runs.
        worst: The exhibits of the stages in `judged`.

    Raises:
        BadBundle: The bundle has no reference.
        BadInput: The budget is not valid.
    """
    budget, budget_name = load_budget(budget_file)
    reference, digest = load_reference(bundle)
    worst = worst or WorstMaps()
    stages = list(judged)
    for task in stage_tasks(bundle):
        progress(str(task.id))
        stages.append(_judge(bundle, task, reference, budget, worst))
    progress(str(_steps_id(bundle)))
    stages.append(_judge_steps(bundle, reference, budget, worst))
    stages = _with_earlier(bundle, stages, digest, budget)
    inputs = tuple(case.name for case in reference.cases)
    assumed = tuple(map(str, bundle.manifest.assumed))
    report = ParityReport(tuple(in_order(stages)), budget, budget_name, inputs, digest,
                          bundle.manifest.options.get("parity") == "quick", assumed)
    return Judgement(report, worst.by_head)


def stage_ids(bundle: Bundle) -> list[StageId]:
    """The stages that `judge` reports, in the same order, without running them."""
    planned = [not_run(stage, Cause.NO_GPU if stage.device == "gpu" else Cause.UNSUPPORTED, "")
               for stage in [*(task.id for task in stage_tasks(bundle)), _steps_id(bundle)]]
    found = bundle.find("reference", file=FILE)
    digest = found[0].sha256 if found else ""
    return [stage.id for stage in in_order(_with_earlier(bundle, planned, digest, None))]


def stage_tasks(bundle: Bundle) -> list[StageTask]:
    """The stages of all backends, in reverse order of preference."""
    return [task for backend in reversed(backends.registered()) for task in backend.stages(bundle)]


def load_reference(bundle: Bundle) -> tuple[Reference, str]:
    """The bundle's reference and its SHA-256. Raises `BadBundle` without one."""
    found = bundle.find("reference", file=FILE)
    if not found:
        raise BadBundle(f"{bundle.folder} has no {FILE}, so nothing can be judged. Export the checkpoint again.")
    return Reference.load(bundle.path(found[0]), bundle.contract), found[0].sha256


def _judge(bundle: Bundle, task: StageTask, reference: Reference, budget: Budget, worst: WorstMaps) -> Stage:
    """Judge one task. It is not run if its backend cannot run on this machine, and fails on any other error."""
    digest = task.artifact.sha256
    try:
        session = _open(bundle, task, reference)
    except (MissingPackage, BackendError) as error:
        if isinstance(error, BackendError) and task.must_open:
            return _refused(task.id, error, digest)
        return not_run(task.id, error.cause, str(error), digest)
    except DptError as error:
        return _refused(task.id, error, digest)
    notes = task.notes
    cases = reference.without_adversarial() if task.images_only else reference
    if task.profile and (outside := [c for c in cases.cases if not _fits(c.input(task.id.graph).shape, task.profile)]):
        cases = cases.only(case for case in cases.cases if not any(case is other for other in outside))
        notes += (f"not judged on {', '.join(case.name for case in outside)}: outside the engine's profile",)
    with session:
        return compare(task.id, _split_batches(session, task.profile), cases, budget, digest, notes, worst)


def _open(bundle: Bundle, task: StageTask, reference: Reference) -> Session:
    """Open the task's session after cheaper checks."""
    refusal = None
    images = reference.without_adversarial().cases
    if task.id.device == "gpu" and device.compute_capability() is None:
        refusal = BackendError(device.NO_GPU, Cause.NO_GPU)
    elif task.profile and not any(_fits(case.input(task.id.graph).shape, task.profile) for case in images):
        refusal = BackendError("no image has a size within the engine's profile", Cause.OUTSIDE_PROFILE)
    if refusal is not None:
        bundle.path(task.artifact)  # a damaged file fails even if it cannot run here
        raise refusal
    return task.open()


def _refused(stage: StageId, error: DptError, digest: str | None) -> Stage:
    return Stage(stage, "failed", digest, findings=(Finding(Fault.REFUSED, detail=str(error)),))


def _steps_id(bundle: Bundle) -> StageId:
    """The identity of the stage of the Python runtime with the FP32 model graph."""
    graph = next(iter(bundle.find("onnx", graph="model", precision="fp32")), None)
    return StageId(StageKind.STEPS, "frame", "fp32", "onnxruntime-cpu", file=graph.file if graph else None,
                   title="Runtime, NumPy pre- and post-processing")


def _judge_steps(bundle: Bundle, reference: Reference, budget: Budget, worst: WorstMaps) -> Stage:
    stage = _steps_id(bundle)
    try:
        runtime = load(bundle.folder, backend=stage.backend, graph="model", precision="fp32")
    except (MissingPackage, BackendError) as error:
        return not_run(stage, error.cause, str(error))
    except DptError as error:
        return _refused(stage, error, None)

    def run(frames: np.ndarray) -> dict[str, np.ndarray]:
        predictions = runtime(frames)
        return {head: np.stack([getattr(prediction, head) for prediction in predictions])
                for head in bundle.contract.heads}

    # The stage of the model graph judges the network on all inputs. What is new here depends on a frame's shape.
    one_of_each = {case.frame.shape: i for i, case in enumerate(reference.cases) if case.adversarial}.values()
    cases = reference.only(case for i, case in enumerate(reference.cases)
                           if not case.adversarial or i in one_of_each)
    with runtime:
        return compare(stage, run, cases, budget, runtime.artifact.sha256, on_exhibit=worst)


def _fits(shape: tuple[int, ...], profile: ShapeRange) -> bool:
    """Whether a profile accepts an input of this shape without the batch axis."""
    return all(a <= size <= b for a, size, b in zip(profile.min[1:], shape, profile.max[1:], strict=True))


def _split_batches(session: Session, profile: ShapeRange | None) -> Run:
    """`session.run` for batches of any size: splits large batches and pads small ones."""
    (input_name,) = session.inputs
    smallest = profile.min[0] if profile else 1

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        largest = session.largest_batch(batch.shape[1:3]) or len(batch)
        pieces = []
        for start in range(0, len(batch), largest):
            piece = batch[start : start + largest]
            padded = np.concatenate([piece, *[piece[-1:]] * max(0, smallest - len(piece))])
            outputs = session.run({input_name: padded})
            pieces.append({key: value[: len(piece)] for key, value in outputs.items()} if smallest > 1 else outputs)
        if len(pieces) == 1:
            return pieces[0]
        return {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}

    return run


def _with_earlier(bundle: Bundle, stages: list[Stage], reference: str, budget: Budget | None) -> list[Stage]:
    """Replace or add the stages that cannot be judged now by those of the last report."""
    last = bundle.last_report()
    if last is None:
        return stages
    hashes = {artifact.file: artifact.sha256 for artifact in bundle.artifacts}
    now = {stage.id: stage.id for stage in stages}
    without_gpu = {stage.id for stage in stages if stage.cause is Cause.NO_GPU}
    earlier = {}
    for stage in last.stages:
        unchanged = stage.sha256 is not None and hashes.get(stage.artifact) == stage.sha256
        # Weights are compared with the checkpoint, everything else with the reference.
        same_inputs = stage.id.kind is StageKind.WEIGHTS or last.reference in (None, reference)
        missing = stage.id in without_gpu or (stage.id.kind in NEED_PYTORCH and stage.id not in now)
        if unchanged and same_inputs and missing and stage.status != "not run":
            held = held_to(stage, budget) if budget is not None and budget != last.budget else stage
            # The title depends on which other engines exist.
            earlier[stage.id] = dataclasses.replace(held, id=now.get(stage.id, stage.id), earlier=True)
    return [earlier.pop(stage.id, stage) for stage in stages] + list(earlier.values())
