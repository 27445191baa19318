"""Judge every stage of a bundle that can run on this machine. Writes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import backends
from ..backends import StageTask
from ..core.budget import held_to
from ..core.bundle import Bundle
from ..core.errors import BackendError, BadBundle, Cause, DptError, MissingPackage
from ..core.exhibit import Exhibit
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
from .compare import compare, load_budget
from .eight_bits import TaskJudge, decided, with_earlier_task
from .reference import FILE, Reference
from .sessions import fits, open_session, split_batches
from .task_loss import Labelled, check_enough

NEED_PYTORCH = (StageKind.WEIGHTS, StageKind.PYTORCH, StageKind.COMPAT)


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
    labelled: Labelled | None = None,
) -> Judgement:
    """Judge every stage that can run on this machine.

    Frame graphs in eight bits are judged by the loss of the task if `labelled` is given, or if an earlier run judged
    the same file so; then the distances to PyTorch FP32 are measured and do not decide. Otherwise the distances decide.

    Other stages are copied from the bundle's last report if their file and the reference are unchanged: those
    that need PyTorch, unless listed in `judged`, and those on a GPU if none is visible. They are marked as
    earlier and evaluated against the current budget.

    Args:
        bundle: The bundle to judge.
        budget_file: JSON file with another budget. Default: the project's own.
        judged: Stages that the caller has already judged.
        progress: Called with the name of each stage before it runs.
        worst: The exhibits of the stages in `judged`.
        labelled: Images with ground truth, of the network's input size.

    Raises:
        BadBundle: The bundle has no reference.
        BadInput: The budget is not valid, or there are too few labelled images, or one cannot be read.
    """
    budget, budget_name = load_budget(budget_file)
    reference, digest = load_reference(bundle)
    worst = worst or WorstMaps()
    if labelled is not None:
        check_enough(labelled)
    stages, tasks = list(judged), stage_tasks(bundle)
    by_task = TaskJudge(bundle, tasks, reference, budget, labelled, progress) if labelled is not None else None
    for task in tasks:
        progress(str(task.id))
        stages.append(_judge(bundle, task, reference, budget, worst, by_task))
        if by_task is not None and stages[-1].status == "failed":
            by_task.rejected.add(task.id)
    progress(str(_steps_id(bundle)))
    stages.append(_judge_steps(bundle, reference, budget, worst))
    stages = decided(_with_earlier(bundle, stages, digest, budget), budget)
    inputs = tuple(case.name for case in reference.cases)
    assumed = tuple(map(str, bundle.manifest.assumed))
    report = ParityReport(tuple(in_order(stages)), budget, budget_name, inputs, digest,
                          bundle.manifest.options.get("parity") == "quick", assumed,
                          bundle.manifest.reference)
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
        raise BadBundle(f"{bundle.folder} has no {FILE}, so nothing can be judged. Make it again: "
                        f"{bundle.remake_command}")
    return Reference.load(bundle.path(found[0]), bundle.contract), found[0].sha256


def _judge(
    bundle: Bundle, task: StageTask, reference: Reference, budget: Budget, worst: WorstMaps, by_task: TaskJudge | None
) -> Stage:
    """Judge one task. It is not run if its backend cannot run on this machine, and fails on any other error."""
    digest = task.artifact.sha256
    try:
        session = open_session(bundle, task, reference)
    except (MissingPackage, BackendError) as error:
        if isinstance(error, BackendError) and task.must_open:
            return _refused(task.id, error, digest)
        return not_run(task.id, error.cause, str(error), digest)
    except DptError as error:
        return _refused(task.id, error, digest)
    notes = task.notes
    cases = reference.without_adversarial() if task.images_only else reference
    if task.profile and (outside := [c for c in cases.cases if not fits(c.input(task.id.graph).shape, task.profile)]):
        cases = cases.only(case for case in cases.cases if not any(case is other for other in outside))
        notes += (f"not judged on {', '.join(case.name for case in outside)}: outside the engine's profile",)
    with session:
        run = split_batches(session, task.profile)
        stage = compare(task.id, run, cases, budget, digest, notes, worst)
        return by_task(stage, task, run) if by_task is not None else stage


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


def _with_earlier(bundle: Bundle, stages: list[Stage], reference: str, budget: Budget | None) -> list[Stage]:
    """Replace or add the stages that cannot be judged now by those of the last report.

    Stages in eight bits that the last report judged by the task keep its verdict.
    """
    last = bundle.last_report()
    if last is None:
        return stages
    if budget is not None:
        known = {stage.id: stage for stage in last.stages}
        stages = [with_earlier_task(stage, known.get(stage.id), budget) for stage in stages]
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
