"""How a stage in eight bits is judged: by the loss of the task with labelled data, by its distances without."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from ..backends import StageTask
from ..core.budget import held_to, largest_share, limits_of
from ..core.bundle import Bundle
from ..core.errors import BadInput, DptError, first_line
from ..core.verdict import Budget, Fault, Finding, Stage, StageId
from .compare import Run
from .reference import Reference
from .sessions import fits, open_session, split_batches
from .task_loss import Labelled, TaskScores, judge_task, measure_task

BY_TASK = "judged by the loss of the task on {}; the distances to PyTorch FP32 are shown and do not decide"
BY_FRAME = ("the distances to PyTorch FP32 are shown and do not decide, because the frame graph with the same network "
            "is judged by the loss of the task; it passes if its maps are finite")
BY_DISTANCE = ("judged by the distances to PyTorch FP32 alone, with the budgets of eight bits; without labelled data, "
               "the loss of the task is not known")
EARLIER = "an earlier run judged the loss of the task; file, backend and device are unchanged"
DRIFT = 2.0
"""How much the distances may grow before an earlier verdict on the task no longer holds. Another version of a backend,
or another processor, may compute the same file otherwise, and without an error."""
FALLBACK = "onnxruntime-cpu"


class TaskJudge:
    """Judges stages of frame graphs in eight bits by the loss of the task, and leaves other stages as they are.

    The loss is the change from the FP32 frame graph on the same backend and device, or else in ONNX Runtime on the CPU.
    FP32 is scored once per backend.

    Args:
        bundle: The bundle.
        tasks: All stages that can run, those of FP32 among them.
        reference: The parity inputs.
        budget: Gives the margins.
        labelled: Images with ground truth, of the network's input size.
        progress: Called with the name of each step.
    """

    def __init__(
        self, bundle: Bundle, tasks: Sequence[StageTask], reference: Reference, budget: Budget, labelled: Labelled,
        progress: Callable[[str], None],
    ) -> None:
        self.bundle, self.reference, self.budget, self.progress = bundle, reference, budget, progress
        self.labelled, self.heads = labelled, bundle.contract.heads
        self.fp32 = {task.id: task for task in tasks if task.id.graph == "frame" and task.id.precision == "fp32"}
        self._scores: dict[StageId, TaskScores | str] = {}
        self.rejected: set[StageId] = set()
        """FP32 stages that did not pass, which nothing is compared with."""

    def __call__(self, stage: Stage, task: StageTask, run: Run) -> Stage:
        """The stage with its verdict on the task, if it is one of a frame graph in eight bits.

        Raises:
            BadInput: There are too few images with ground truth for a head, or one cannot be read.
        """
        if not stage.eight_bits or stage.id.graph != "frame" or _invalid(stage):
            return stage
        if task.profile and not fits((*self.bundle.contract.input_size, 3), task.profile):
            return _not_judged(stage, "the network's input size is outside the engine's profile")
        found = self._before(stage.id)
        if isinstance(found, str):
            return _not_judged(stage, found)
        against, before = found
        self.progress(f"{stage.name}, loss of the task on {len(self.labelled)} images")
        try:
            verdict = judge_task(before, run, self.labelled, self.budget["task"], self.heads)
        except BadInput:
            raise
        except (DptError, RuntimeError, ValueError, TypeError) as error:
            detail = f"a labelled image raised {type(error).__name__}: {first_line(error)}"
            return dataclasses.replace(stage, status="failed",
                                       findings=(*stage.findings, Finding(Fault.RAISED, detail=detail)))
        verdict = dataclasses.replace(verdict, against=str(against))
        return held_to(dataclasses.replace(stage, task=verdict), self.budget)

    def _before(self, stage: StageId) -> tuple[StageId, TaskScores] | str:
        """FP32 for a stage and its scores, or why there are none."""
        passed = [one for one in self.fp32 if one not in self.rejected]
        same = [one for one in passed if (one.backend, one.device) == (stage.backend, stage.device)]
        why = "the bundle has no frame graph in FP32 that runs here and passed"
        for one in [*same, *(one for one in passed if one.backend == FALLBACK)]:
            if one not in self._scores:
                self._scores[one] = self._measured(one)
            if isinstance(found := self._scores[one], TaskScores):
                return one, found
            why = found
        return why

    def _measured(self, stage: StageId) -> TaskScores | str:
        task = self.fp32[stage]
        if task.profile and not fits((*self.bundle.contract.input_size, 3), task.profile):
            return f"{stage}: the network's input size is outside the engine's profile"
        self.progress(f"{stage}, ground truth of {len(self.labelled)} images")
        try:
            with open_session(self.bundle, task, self.reference) as session:
                return measure_task(split_batches(session, task.profile), self.labelled, self.heads)
        except BadInput:
            raise
        except (DptError, RuntimeError, ValueError, TypeError) as error:
            return f"{stage} cannot run: {first_line(error)}"


def with_earlier_task(stage: Stage, earlier: Stage | None, budget: Budget) -> Stage:
    """A stage in eight bits with the verdict on the task of an earlier report, if that still holds.

    It holds for the same file, backend, device and limitations of the machine, while the maps are valid and the
    distances to PyTorch FP32 are within their budget or at most `DRIFT` times what they were.
    """
    if earlier is None or earlier.task is None or stage.task is not None or stage.status == "not run":
        return stage
    if stage.sha256 is None or stage.sha256 != earlier.sha256 or _invalid(stage):
        return stage
    if not set(stage.notes) <= set(earlier.notes):  # such as a processor with other units
        return _not_judged(stage, "an earlier verdict does not hold, because it was on a machine with other "
                                  "limitations; judge it with labelled data again")
    limits = limits_of(budget, stage.precision)
    for head, values in stage.heads.items():
        now, then = (largest_share(found, limits.get(head, {})) for found in (values, earlier.heads.get(head, {})))
        if now > max(1.0, DRIFT * then):
            return _not_judged(stage, f"an earlier verdict does not hold, because {head} is more than {DRIFT:g} times "
                                      "as far from PyTorch FP32 as it was then; judge it with labelled data again")
    return held_to(dataclasses.replace(stage, task=earlier.task, earlier=True), budget)


def decided(stages: Sequence[Stage], budget: Budget) -> list[Stage]:
    """The stages, with a note on how each one in eight bits was judged.

    The distances of a model graph do not decide where its frame graph is judged by the task and is about as far from
    PyTorch FP32: they are two files, compiled apart, and one may be computed wrongly.
    """
    judged = {_place(stage): stage for stage in stages if stage.id.graph == "frame" and stage.task is not None}
    return [_decided(stage, judged.get(_place(stage)), budget) for stage in stages]


def _decided(stage: Stage, frame: Stage | None, budget: Budget) -> Stage:
    if not stage.eight_bits or stage.status == "not run":
        return stage
    if stage.id.graph == "model":
        decides = frame is not None and _is_as_close(stage, frame, budget)
        if decides or stage.frame_decides:
            stage = held_to(dataclasses.replace(stage, frame_decides=decides), budget)
    note = BY_DISTANCE
    if stage.by_task:
        note = BY_FRAME if stage.task is None else BY_TASK.format(stage.task.judged_on)
    notes = [note, *([EARLIER] if stage.earlier and stage.task is not None else [])]
    return dataclasses.replace(stage, notes=(*stage.notes, *(one for one in notes if one not in stage.notes)))


def _is_as_close(stage: Stage, other: Stage, budget: Budget) -> bool:
    """Whether each head is within its budget of distances, or at most `DRIFT` times as far as in the other stage."""
    limits = limits_of(budget, stage.precision)

    def share(one: Stage, head: str) -> float:
        return largest_share(one.heads.get(head, {}), limits.get(head, {}))

    return all(share(stage, head) <= max(1.0, DRIFT * share(other, head)) for head in stage.heads)


def _place(stage: Stage) -> tuple[str, str, str]:
    return stage.id.backend, stage.id.device, stage.precision


def _invalid(stage: Stage) -> bool:
    """Whether it failed in another way than by its distances."""
    return any(finding.metric is None for finding in stage.findings)


def _not_judged(stage: Stage, why: str) -> Stage:
    return dataclasses.replace(stage, notes=(*stage.notes, f"the loss of the task was not judged: {why}"))
