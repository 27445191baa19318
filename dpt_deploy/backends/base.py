"""The interface of a backend: its requirements, artefacts, sessions, parity stages and diagnostics."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..core.bundle import Bundle
from ..core.contract import Graph
from ..core.errors import Cause
from ..core.manifest import Artifact, Precision, ShapeRange
from ..core.verdict import PRECISIONS, StageId, StageKind
from .eight_bits import stage_notes
from .session import Session


@dataclass(frozen=True)
class Check:
    """The result of one diagnostic check."""

    subject: str
    status: Literal["ok", "warning", "failed", "not installed", "not checked"]
    """warning: works with a limitation; failed: broken or incorrect; not checked: needs a GPU."""
    finding: str
    """The result, in words."""
    remedy: str = ""
    """The command that fixes the problem, or an empty string."""


@dataclass(frozen=True)
class Refusal:
    """Why a backend cannot run something on this machine."""

    cause: Cause
    message: str
    remedy: str = ""
    """What to run, if the message does not say so."""

    def __str__(self) -> str:
        return "; ".join(filter(None, (self.message, self.remedy)))


@dataclass(frozen=True)
class SessionOptions:
    """How to open a session."""

    threads: int | None = None
    """CPU threads per operator. None uses the backend's default."""
    precision: Precision | None = None
    """The requested arithmetic. None uses the artefact's precision."""
    compile_eagerly: bool = False
    """TensorRT-RTX: compile the kernels of a shape in its first call. Otherwise generic kernels run until those of the
    shape have been compiled in the background."""


@dataclass(frozen=True)
class StageTask:
    """A parity stage to run."""

    id: StageId
    artifact: Artifact
    open: Callable[[], Session]
    """Opens the session. Raises a `DptError` if the artefact cannot run."""
    notes: tuple[str, ...] = ()
    """Limitations of a pass."""
    images_only: bool = False
    """Skip adversarial inputs."""
    must_open: bool = False
    """Whether the stage fails if the session cannot be opened. Otherwise it is not run."""
    profile: ShapeRange | None = None
    """The shapes that the artefact accepts, None for any."""


class Backend(abc.ABC):
    """Base class of backends, which run the artefacts of a bundle. Register an instance with `backends.register`.

    Only the abstract methods are required. Importing the module must not import the underlying library;
    import it in `unavailable`, `open` and `diagnose`.
    """

    name: str
    """Identifier in options, reports and `Runtime.backend`."""
    title: str
    """Display name, such as "ONNX Runtime"."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where it computes."""
    runs: str = ""
    """What it runs and on which hardware, for tables in documents and help."""
    extra: str | None = None
    """The extra of pyproject.toml that installs it."""
    package: str = ""
    """The Python package to reinstall if it is broken."""
    automatic: bool = True
    """Whether `load` considers it when no backend is requested."""

    @abc.abstractmethod
    def unavailable(self) -> Refusal | None:
        """Why it cannot run on this machine, or None. Must be cheap: reads no artefact."""

    @abc.abstractmethod
    def candidates(self, bundle: Bundle, graph: Graph, precision: Precision | None) -> list[Artifact]:
        """The artefacts that it can run, in order of preference.

        Args:
            bundle: Where to look.
            graph: "model" or "frame".
            precision: The required precision. None leaves the choice to the backend, but `load` then takes no graph or
                engine in eight bits.
        """

    @abc.abstractmethod
    def open(self, bundle: Bundle, artifact: Artifact, options: SessionOptions) -> Session:
        """Open a session on one of its candidates.

        Raises:
            MissingPackage: The library is not installed.
            BackendError: The artefact cannot run on this machine.
            BadBundle, ContractError: The file does not match the manifest.
        """

    def no_candidate(self, bundle: Bundle, graph: Graph, precision: Precision | None) -> Refusal:
        """Why `candidates` is empty."""
        wanted = f"{graph} graph" + (f" in {precision}" if precision else "")
        files = ", ".join(artifact.file for artifact in bundle.find("onnx")) or "no ONNX graph"
        return Refusal(Cause.NO_ARTIFACT, f"the bundle has no ONNX file of the {wanted}; it has {files}")

    def stages(self, bundle: Bundle) -> list[StageTask]:
        """The parity stages that it adds. Default: one per precision of its frame graphs."""
        found = []
        for precision in PRECISIONS:
            for artifact in self.candidates(bundle, "frame", precision)[:1]:
                if artifact.precision == precision:  # not another graph computed in that precision
                    found.append(StageTask(
                        self.stage_id(artifact), artifact, lambda a=artifact: self.open(bundle, a, SessionOptions()),
                        stage_notes(artifact) if self.device == "cpu" else (),
                    ))
        return found

    def stage_id(self, artifact: Artifact, kind: StageKind = StageKind.BACKEND, title: str = "") -> StageId:
        """The identity of a stage that judges `artifact` with this backend. `title` replaces the default title."""
        graph, precision = artifact.graph or "frame", artifact.precision or "fp32"
        return StageId(kind, graph, precision, self.name, self.device, artifact.file,
                       title or f"{self.title} {graph} {precision}")

    def diagnose(self) -> list[Check]:
        """The doctor's checks of this backend on this machine."""
        refusal = self.unavailable()
        if refusal is None:
            return [Check(self.title, "ok", self.runs)]
        return [Check(self.title, "not installed" if refusal.cause is Cause.NOT_INSTALLED else "not checked",
                      refusal.message)]

    def examine(self, bundle: Bundle, artifact: Artifact) -> Check | None:
        """The doctor's check of an intact artefact that only this backend runs. None for any other artefact."""
        return None
