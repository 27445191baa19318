"""Judge a bundle: every stage that can run here, against the reference that the bundle carries. Writes nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import backends
from ..backends import Session, StageTask, device
from ..core.bundle import PARITY_JSON, Bundle
from ..core.errors import BackendError, BadBundle, Cause, DptError, MissingPackage
from ..core.manifest import ShapeRange
from ..core.verdict import (
    Budget,
    Fault,
    Finding,
    ParityReport,
    Stage,
    StageId,
    StageKind,
    held_to,
    in_order,
    not_run,
)
from ..runtime import load
from .compare import Exhibit, compare, load_budget
from .reference import FILE, Reference

NEED_PYTORCH = (StageKind.WEIGHTS, StageKind.PYTORCH)

Show = Callable[[Exhibit], None]


@dataclass(frozen=True)
class Judgement:
    """A report, and the maps to show with it."""

    report: ParityReport
    exhibits: dict[str, Exhibit]
    """Per head, the map that uses most of its budget."""


class WorstMaps:
    """Of all maps that are shown to it, keeps per head the one that uses most of its budget."""

    def __init__(self) -> None:
        self.by_head: dict[str, Exhibit] = {}

    def __call__(self, exhibit: Exhibit) -> None:
        worst = self.by_head.get(exhibit.head)
        if worst is None or exhibit.share > worst.share:
            # A view would keep the whole batch.
            self.by_head[exhibit.head] = dataclasses.replace(exhibit, have=exhibit.have.copy())


def judge(
    bundle: Bundle, budget_file: Path | None = None, known: Iterable[Stage] = (),
    progress: Callable[[str], None] = lambda name: None, show: Show = lambda exhibit: None,
) -> Judgement:
    """Run every stage that can run here.

    Stages of the bundle's last report are carried over if they cannot be judged now: those that need
    PyTorch, unless they are among `known`, and those on engines if no GPU is visible. Each only while its
    file and the reference are unchanged; it is marked as judged earlier and held to the budget of now.

    Args:
        bundle: What to judge.
        budget_file: JSON file with another budget; None for the project's own.
        known: Stages that were just judged elsewhere.
        progress: Receives the name of each stage before it runs.
        show: Receives every map that was compared.

    Raises:
        BadBundle: The bundle has no reference.
        BadInput: The budget cannot be read.
    """
    budget, budget_name = load_budget(budget_file)
    reference, digest = load_reference(bundle)
    worst = WorstMaps()

    def shown(exhibit: Exhibit) -> None:
        worst(exhibit)
        show(exhibit)

    stages = list(known)
    for task in stage_tasks(bundle):
        progress(str(task.id))
        stages.append(_judge(bundle, task, reference, budget, shown))
    progress(str(_steps(bundle)))
    stages.append(_judge_steps(bundle, reference, budget, shown))
    stages = _with_earlier(bundle, stages, digest, budget)
    inputs = tuple(case.name for case in reference.cases)
    return Judgement(ParityReport(tuple(in_order(stages)), budget, budget_name, inputs, digest), worst.by_head)


def stage_ids(bundle: Bundle) -> list[StageId]:
    """The stages that `judge` will report, in its order; nothing is run."""
    planned = [not_run(stage, Cause.NO_GPU if stage.device == "gpu" else Cause.UNSUPPORTED, "")
               for stage in [*(task.id for task in stage_tasks(bundle)), _steps(bundle)]]
    found = bundle.find("reference", file=FILE)
    digest = found[0].sha256 if found else ""
    return [stage.id for stage in in_order(_with_earlier(bundle, planned, digest, None))]


def stage_tasks(bundle: Bundle) -> list[StageTask]:
    """What the backends judge, from the manifest alone; the preferred backend last, as the nearest to the user."""
    return [task for backend in reversed(backends.registered()) for task in backend.stages(bundle)]


def last_report(bundle: Bundle) -> ParityReport | None:
    """The report that the bundle carries, or None."""
    try:
        return ParityReport.from_json(json.loads((bundle.folder / PARITY_JSON).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def load_reference(bundle: Bundle) -> tuple[Reference, str]:
    """The reference that the bundle carries, and its SHA-256. Raises `BadBundle` without one."""
    found = bundle.find("reference", file=FILE)
    if not found:
        raise BadBundle(f"{bundle.folder} has no {FILE}, so nothing can be judged. Export the checkpoint again.")
    return Reference.load(bundle.path(found[0])), found[0].sha256


def _judge(bundle: Bundle, task: StageTask, reference: Reference, budget: Budget, show: Show) -> Stage:
    """The stage of a task. What is not installed or cannot run here is not run; any other refusal is a failure."""
    digest = task.artifact.sha256
    try:
        session = _opened(bundle, task, reference)
    except (MissingPackage, BackendError) as error:
        if isinstance(error, BackendError) and task.must_open:
            return _refused(task.id, error, digest)
        return not_run(task.id, error.cause, str(error), digest)
    except DptError as error:
        return _refused(task.id, error, digest)
    notes = task.notes
    cases = reference.images_alone() if task.images_only else reference
    if task.profile and (outside := [c for c in cases.cases if not _fits(c.input(task.id.graph).shape, task.profile)]):
        cases = Reference(tuple(case for case in cases.cases if not any(case is other for other in outside)))
        notes += (f"not judged on {', '.join(case.name for case in outside)}: outside the engine's profile",)
    with session:
        return compare(task.id, _in_pieces(session, task.profile), cases, budget, digest, notes, show)


def _opened(bundle: Bundle, task: StageTask, reference: Reference) -> Session:
    """The task's session, after what can be known without it."""
    refusal = None
    images = reference.images_alone().cases
    if task.id.device == "gpu" and device.compute_capability() is None:
        refusal = BackendError(device.NO_GPU, Cause.NO_GPU)
    elif task.profile and not any(_fits(case.input(task.id.graph).shape, task.profile) for case in images):
        refusal = BackendError("no image has a size within the engine's profile", Cause.OUTSIDE_PROFILE)
    if refusal is not None:
        bundle.path(task.artifact)  # a damaged file has failed, whether or not it could run
        raise refusal
    return task.open()


def _refused(stage: StageId, error: DptError, digest: str | None) -> Stage:
    return Stage(stage, "failed", digest, findings=(Finding(Fault.REFUSED, detail=str(error)),))


def _steps(bundle: Bundle) -> StageId:
    """The stage of the Python runtime's pre- and post-processing around the FP32 model graph."""
    graph = next(iter(bundle.find("onnx", graph="model", precision="fp32")), None)
    return StageId(StageKind.STEPS, "frame", "fp32", "onnxruntime-cpu", file=graph.file if graph else None,
                   title="Runtime, NumPy pre- and post-processing")


def _judge_steps(bundle: Bundle, reference: Reference, budget: Budget, show: Show) -> Stage:
    stage = _steps(bundle)
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

    with runtime:
        return compare(stage, run, reference, budget, runtime.artifact.sha256, show=show)


def _fits(shape: tuple[int, ...], profile: ShapeRange) -> bool:
    """Whether an engine's profile takes an input of this shape, the batch axis aside."""
    return all(a <= size <= b for a, size, b in zip(profile.min[1:], shape, profile.max[1:], strict=True))


def _in_pieces(
    session: Session, profile: ShapeRange | None
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """`session.run` for batches of any size: too large ones are split, too small ones filled up and cut."""
    (input_name,) = session.inputs
    fewest = profile.min[0] if profile else 1

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        most = session.largest_batch(batch.shape[1:3]) or len(batch)
        pieces = []
        for start in range(0, len(batch), most):
            piece = batch[start : start + most]
            filled = np.concatenate([piece, *[piece[-1:]] * max(0, fewest - len(piece))])
            answers = session.run({input_name: filled})
            pieces.append({key: value[: len(piece)] for key, value in answers.items()} if fewest > 1 else answers)
        if len(pieces) == 1:
            return pieces[0]
        return {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}

    return run


def _with_earlier(bundle: Bundle, stages: list[Stage], reference: str, budget: Budget | None) -> list[Stage]:
    """`stages`, with those of the last report in place of what cannot be judged now."""
    last = last_report(bundle)
    if last is None:
        return stages
    hashes = {artifact.file: artifact.sha256 for artifact in bundle.artifacts}
    now = {stage.id: stage.id for stage in stages}
    without_gpu = {stage.id for stage in stages if stage.cause is Cause.NO_GPU}
    earlier = {}
    for stage in last.stages:
        unchanged = stage.sha256 is not None and hashes.get(stage.artifact) == stage.sha256
        # Weights were compared with the checkpoint, everything else with the reference of its day.
        same_inputs = stage.id.kind is StageKind.WEIGHTS or last.reference in (None, reference)
        missing = stage.id in without_gpu or (stage.id.kind in NEED_PYTORCH and stage.id not in now)
        if unchanged and same_inputs and missing and stage.status != "not run":
            held = held_to(stage, budget) if budget is not None and budget != last.budget else stage
            # An engine beside it may have changed how people call it.
            earlier[stage.id] = dataclasses.replace(held, id=now.get(stage.id, stage.id), earlier=True)
    return [earlier.pop(stage.id, stage) for stage in stages] + list(earlier.values())
