"""Judge a bundle: every stage that can run here, against the reference that the bundle carries."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import device
from ..backends.session import Session
from ..core.bundle import PAGE, RECORD, Artifact, Bundle
from ..core.errors import BackendError, BadBundle, DptError, MissingPackage
from ..core.files import write_json, write_text
from ..core.verdict import held_to, last_report, order
from ..report.card import write_card
from ..report.html import render
from ..runtime.runtime import load, open_session
from .compare import Exhibit, ParityReport, Stage, compare, load_budget, not_run
from .reference import FILE, Reference

EARLIER = ("weights", "PyTorch")  # stages that need PyTorch, by how their names begin
CPU_NOTE = (
    "graph, weights and names are checked; FP16 arithmetic is not: ONNX Runtime's CPU provider computes most "
    "operators in FP32"
)
NO_GPU = "no GPU is visible here"
OPENVINO_NOTE = "a second opinion on accuracy; what passes FP16's range may come out finite here"

RUNTIME = "Runtime, NumPy pre- and post-processing"

Budget = dict[str, Any]
Show = Callable[[Exhibit], None]


@dataclass(frozen=True)
class Task:
    """A stage that is to be judged."""

    name: str
    precision: str
    what: str
    """What runs, for people: a file's name, or a few words."""
    artifact: Artifact | None
    work: Callable[[str, Reference, Budget, Show], Stage]
    """Called with the name."""


class Gallery:
    """Of all maps that are shown to it, per head the one that uses most of its budget."""

    def __init__(self) -> None:
        self.worst: dict[str, Exhibit] = {}

    def __call__(self, exhibit: Exhibit) -> None:
        best = self.worst.get(exhibit.head)
        if best is None or exhibit.share > best.share:
            fields = vars(exhibit) | {"have": exhibit.have.copy()}  # a view would keep the whole batch
            self.worst[exhibit.head] = Exhibit(**fields)


def judge(
    bundle: Bundle, budget_file: Path | None = None, known: Iterable[Stage] = (),
    progress: Callable[[str], None] = lambda name: None, command: str = "",
) -> ParityReport:
    """Run every stage, write parity.json, report.html and the model card into the bundle, and return the report.

    `known` are stages that were just judged elsewhere (those that need PyTorch). Without them, those of the
    last report are carried over, and so are its verdicts on engines where no GPU is visible: each while
    its file and the reference that it was judged by are unchanged, marked as judged earlier, and held to
    the budget of now.
    """
    gallery = Gallery()
    report = assess(bundle, budget_file, known, progress, gallery)
    write_json(bundle.folder / RECORD, report.to_json())
    bundle.add(RECORD, "report")
    write_text(bundle.folder / PAGE, render(report, bundle, gallery.worst, command))
    bundle.add(PAGE, "report")
    write_card(bundle)
    return report


def assess(
    bundle: Bundle, budget_file: Path | None = None, known: Iterable[Stage] = (),
    progress: Callable[[str], None] = lambda name: None, show: Show = lambda exhibit: None,
) -> ParityReport:
    """`judge` without a trace: nothing is written. `show` is given every map that was compared."""
    budget, budget_name = load_budget(budget_file)
    reference, digest = load_reference(bundle)
    stages = list(known)
    for task in tasks(bundle):
        progress(task.what)
        stages.append(_judge(task, reference, budget, show))
    last = last_report(bundle)
    if last is not None:  # a report that failed is falsy
        carried = [held_to(stage, last.budget, budget) for stage in _carried_over(bundle, last, stages, digest)]
        again = {stage.name for stage in carried}
        stages = [stage for stage in stages if stage.name not in again] + carried
    stages.sort(key=order)
    return ParityReport(tuple(stages), budget, budget_name, tuple(case.name for case in reference.cases), digest)


def stage_names(bundle: Bundle) -> list[str]:
    """The names of the stages that `assess` will report, in its order; nothing is run."""
    stages = [not_run(task.name, task.precision, "") for task in tasks(bundle)]
    last, found = last_report(bundle), bundle.find("reference", file=FILE)
    if last is not None and found:
        names = {stage.name for stage in stages}
        stages += [s for s in _carried_over(bundle, last, stages, found[0].sha256) if s.name not in names]
    return [stage.name for stage in sorted(stages, key=order)]


def tasks(bundle: Bundle) -> list[Task]:
    """Everything to judge, from the manifest alone; what cannot run here says so when it is its turn."""
    found = [
        Task(f"ONNX Runtime {a.graph} {a.precision}", a.precision, a.file, a, partial(_judge_onnx, bundle, a))
        for a in bundle.find("onnx")
    ]
    found.append(Task(RUNTIME, "fp32", "runtime on the model graph", None, partial(_judge_runtime, bundle)))
    for a in bundle.find("onnx", graph="frame", precision="fp32"):
        found.append(Task("C++ runtime frame fp32", "fp32", "C++ runtime", a, partial(_judge_cpp, bundle, a)))
    if importlib.util.find_spec("openvino"):
        for a in bundle.find("onnx", graph="frame"):
            name = f"OpenVINO frame {a.precision}"
            found.append(Task(name, a.precision, f"{a.file} on OpenVINO", a, partial(_judge_openvino, bundle, a)))
    engines = bundle.find("engine")
    names = [f"{a.details['builder']} {a.graph} {a.precision}" for a in engines]
    for a, name in zip(engines, names, strict=True):
        # Engines of several versions and devices may lie side by side.
        told = name if names.count(name) == 1 else f"{name} ({a.file})"
        found.append(Task(told, a.precision, a.file, a, partial(_judge_engine, bundle, a)))
    return found


def load_reference(bundle: Bundle) -> tuple[Reference, str]:
    """The reference that the bundle carries, and its SHA-256. Raises `BadBundle` without one."""
    found = bundle.find("reference", file=FILE)
    if not found:
        raise BadBundle(f"{bundle.folder} has no {FILE}, so nothing can be judged. Export the checkpoint again.")
    return Reference.load(bundle.path(found[0])), found[0].sha256


def _judge(task: Task, reference: Reference, budget: Budget, show: Show) -> Stage:
    """The task's stage: what is not installed, or cannot run here, is not run; any other refusal is a failure."""
    file, digest = (task.artifact.file, task.artifact.sha256) if task.artifact else (None, None)
    try:
        return task.work(task.name, reference, budget, show)
    except (MissingPackage, BackendError) as error:
        return not_run(task.name, task.precision, str(error), file, digest)
    except DptError as error:
        return Stage(task.name, "failed", task.precision, file, digest, reasons=(str(error),))


def _judge_onnx(
    bundle: Bundle, artifact: Artifact, name: str, reference: Reference, budget: Budget, show: Show
) -> Stage:
    gpu = device.compute_capability() is not None
    if artifact.precision == "bf16" and not gpu:
        raise BackendError("ONNX Runtime's CPU provider has no BF16 convolution")
    session = None
    if artifact.precision != "fp32" and gpu:
        with contextlib.suppress(BackendError, MissingPackage):
            session = open_session(bundle, artifact, "onnxruntime-cuda")
    on_gpu = session is not None
    if session is None:
        try:
            session = open_session(bundle, artifact, "onnxruntime-cpu")
        except BackendError as error:
            if artifact.precision == "bf16":
                raise  # its CPU provider lacks BF16: the graph may be right
            return Stage(name, "failed", artifact.precision, artifact.file, artifact.sha256, reasons=(str(error),))
    if artifact.precision == "fp16" and not on_gpu:
        # Adversarial inputs are there to overflow FP16, which this provider does not compute in.
        reference, notes = reference.images_alone(), (CPU_NOTE,)
    else:
        notes = ()
    return _compare(name, session, bundle, artifact, reference, budget, show, notes)


def _judge_runtime(bundle: Bundle, name: str, reference: Reference, budget: Budget, show: Show) -> Stage:
    """The Python runtime's own pre- and post-processing around the FP32 model graph."""
    runtime = load(bundle.folder, backend="onnxruntime-cpu", graph="model", precision="fp32")

    def run(frames: np.ndarray) -> dict[str, np.ndarray]:
        predictions = runtime(frames)
        heads = bundle.contract.heads
        return {head: np.stack([getattr(prediction, head) for prediction in predictions]) for head in heads}

    with runtime:
        return compare(name, run, reference, "frame", "fp32", budget, runtime.artifact, show=show)


def _judge_cpp(
    bundle: Bundle, artifact: Artifact, name: str, reference: Reference, budget: Budget, show: Show
) -> Stage:
    from ..backends.cpp import CppSession

    session = CppSession(bundle, "onnxruntime-cpu", artifact.precision)
    return _compare(name, session, bundle, artifact, reference, budget, show)


def _judge_openvino(
    bundle: Bundle, artifact: Artifact, name: str, reference: Reference, budget: Budget, show: Show
) -> Stage:
    from ..backends.openvino import OpenVINOSession

    session = OpenVINOSession(bundle, artifact)
    notes = (OPENVINO_NOTE,) if artifact.precision == "fp16" else ()
    return _compare(name, session, bundle, artifact, reference, budget, show, notes)


def _judge_engine(
    bundle: Bundle, artifact: Artifact, name: str, reference: Reference, budget: Budget, show: Show
) -> Stage:
    if device.compute_capability() is None:
        bundle.path(artifact)  # a damaged file has failed wherever it is found
        raise BackendError(NO_GPU)
    profile = artifact.details.get("profile", {}).get(*bundle.contract.inputs(artifact.graph), {})
    outside = [case for case in reference.cases if not _fits(case.input(artifact.graph).shape, profile)]
    if all(case in outside for case in reference.cases if not case.adversarial):
        raise BackendError("no image has a size within the engine's profile")
    session = open_session(bundle, artifact, artifact.details["builder"])
    notes = (f"not judged on {', '.join(c.name for c in outside)}: outside the engine's profile",) if outside else ()
    inside = Reference(tuple(case for case in reference.cases if not any(case is other for other in outside)))
    return _compare(name, session, bundle, artifact, inside, budget, show, notes, profile)


def _fits(shape: tuple[int, ...], profile: dict[str, Any]) -> bool:
    """Whether an engine's profile takes an input of this shape, the batch axis aside."""
    if not profile:
        return True
    return all(a <= size <= b for a, size, b in zip(profile["min"][1:], shape, profile["max"][1:], strict=True))


def _compare(
    name: str, session: Session, bundle: Bundle, artifact: Artifact, reference: Reference, budget: Budget, show: Show,
    notes: tuple[str, ...] = (), profile: dict[str, Any] | None = None,
) -> Stage:
    (input_name,) = session.inputs
    fewest = profile["min"][0] if profile else 1

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        """In pieces that the session takes; a piece that is too small for it is filled up and cut."""
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

    with session:
        return compare(name, run, reference, artifact.graph, artifact.precision, budget, artifact, notes, show)


def _carried_over(bundle: Bundle, last: ParityReport, stages: list[Stage], reference: str) -> list[Stage]:
    """Stages of the last report that cannot be judged now, whose artefact is still the one they judged.

    An engine's is kept by name and hash: one that has got a twin since is called otherwise, and judged anew.
    """
    current = {artifact.file: artifact.sha256 for artifact in bundle.artifacts}
    now = {stage.name for stage in stages}
    without_gpu = {stage.name for stage in stages if stage.status == "not run" and stage.reasons == (NO_GPU,)}
    return [
        dataclasses.replace(stage, earlier=True) for stage in last.stages
        if stage.sha256 is not None and current.get(stage.artifact) == stage.sha256 and stage.status != "not run"
        and (stage.name in without_gpu or (stage.name.startswith(EARLIER) and stage.name not in now))
        # Weights were compared with the checkpoint, everything else with the reference of its day.
        and (stage.name.startswith("weights") or last.reference in (None, reference))
    ]
