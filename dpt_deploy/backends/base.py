"""What a backend is: one class that says what it needs, what it runs and what to check about it."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..core.bundle import Bundle
from ..core.check import Check
from ..core.contract import Graph
from ..core.errors import Cause
from ..core.manifest import Artifact, Precision, ShapeRange
from ..core.verdict import StageId, StageKind
from .session import Session


@dataclass(frozen=True)
class Refusal:
    """Why a backend does not run something here."""

    cause: Cause
    """For programs."""
    message: str
    """For people."""
    remedy: str = ""
    """What to run, if the message does not say it."""

    def __str__(self) -> str:
        return "; ".join(filter(None, (self.message, self.remedy)))


@dataclass(frozen=True)
class SessionOptions:
    """How to open a session."""

    threads: int | None = None
    """CPU threads per operator; None leaves it to the backend."""
    precision: Precision | None = None
    """The arithmetic asked for; None takes that of the artefact."""


@dataclass(frozen=True)
class StageTask:
    """A parity stage that is yet to run."""

    id: StageId
    artifact: Artifact
    open: Callable[[], Session]
    """Raises a `DptError` if it cannot run here."""
    notes: tuple[str, ...] = ()
    """What a pass does not cover."""
    images_only: bool = False
    """Leave adversarial inputs out."""
    must_open: bool = False
    """Whether a session that cannot be opened is a failure of the artefact and not of the machine."""
    profile: ShapeRange | None = None
    """The shapes that the artefact takes, None for any."""


class Backend(abc.ABC):
    """A way to run a bundle's artefacts. Register an instance with `backends.register`.

    The methods without an implementation here are all that a backend must have. Importing its module
    must not import the library behind it: do that in `unavailable`, `open` and `diagnose`.
    """

    name: str
    """In options, reports and `Runtime.backend`."""
    title: str
    """For people, such as "ONNX Runtime"."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where it computes."""
    runs: str = ""
    """What it takes and where, in a few words, for tables in documents and help."""
    extra: str | None = None
    """The optional dependency group that installs it."""
    package: str = ""
    """The Python package to reinstall if it is broken."""
    automatic: bool = True
    """Whether `load` takes it without being asked."""

    @abc.abstractmethod
    def unavailable(self) -> Refusal | None:
        """Why it cannot run on this machine, or None. Cheap: no artefact is read."""

    @abc.abstractmethod
    def candidates(self, bundle: Bundle, graph: Graph, precision: Precision | None) -> list[Artifact]:
        """The artefacts of `bundle` that it could run, the preferred one first.

        `precision` makes the choice strict; None leaves it to the backend.
        """

    @abc.abstractmethod
    def open(self, bundle: Bundle, artifact: Artifact, options: SessionOptions) -> Session:
        """A session on one of its candidates.

        Raises:
            MissingPackage: The library is not installed.
            BackendError: It cannot run this artefact here.
            BadBundle, ContractError: The file is not the one that the manifest describes.
        """

    def no_candidate(self, bundle: Bundle, graph: Graph, precision: Precision | None) -> Refusal:
        """Why `candidates` found nothing."""
        wanted = f"{graph} graph" + (f" in {precision}" if precision else "")
        files = ", ".join(artifact.file for artifact in bundle.find("onnx")) or "no ONNX graph"
        return Refusal(Cause.NO_ARTIFACT, f"the bundle has no ONNX file of the {wanted}; it has {files}")

    def stages(self, bundle: Bundle) -> list[StageTask]:
        """The parity stages that it adds: here, its frame graphs, one stage for each."""
        found = []
        for precision in ("fp32", "bf16", "fp16"):
            for artifact in self.candidates(bundle, "frame", precision)[:1]:
                if artifact.precision == precision:  # and not another graph, computed in that precision
                    found.append(StageTask(
                        self.stage_id(artifact), artifact, lambda a=artifact: self.open(bundle, a, SessionOptions())
                    ))
        return found

    def stage_id(self, artifact: Artifact, kind: StageKind = StageKind.BACKEND, title: str = "") -> StageId:
        """The identity of a stage that judges `artifact` on this backend."""
        graph, precision = artifact.graph or "frame", artifact.precision or "fp32"
        return StageId(kind, graph, precision, self.name, self.device, artifact.file,
                       title or f"{self.title} {graph} {precision}")

    def diagnose(self) -> list[Check]:
        """What the doctor reports about this machine."""
        refusal = self.unavailable()
        if refusal is None:
            return [Check(self.title, "ok", self.runs)]
        return [Check(self.title, "not installed" if refusal.cause is Cause.NOT_INSTALLED else "not checked",
                      refusal.message)]

    def examine(self, bundle: Bundle, artifact: Artifact) -> Check | None:
        """What the doctor reports about an intact artefact that only this backend runs; None if it is not one."""
        return None
