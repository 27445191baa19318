"""Engines on TensorRT and TensorRT-RTX: two backends with one API."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from ..core.bundle import Bundle
from ..core.check import Check
from ..core.contract import Graph
from ..core.errors import Cause, MissingPackage
from ..core.install import install_command
from ..core.manifest import Artifact, Precision
from . import cuda, device
from .base import Backend, Refusal, SessionOptions, StageTask
from .engines import MODULES, misfit
from .session import Session
from .tensorrt_faults import known_faults
from .tensorrt_session import TensorRTSession

TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


class TensorRT(Backend):
    """TensorRT, or TensorRT-RTX."""

    device = "gpu"

    def __init__(self, name: str) -> None:
        """`name`: tensorrt or tensorrt-rtx."""
        self.name = self.extra = name
        self.title, self.package = TITLES[name], MODULES[name]
        self.runs = {
            "tensorrt": "engines, on the GPU family and version that built them",
            "tensorrt-rtx": "engines built anywhere, on GPUs of compute capability 8.6, 8.9 and 12.x",
        }[name]

    def unavailable(self) -> Refusal | None:
        try:
            cuda.cudart()
        except MissingPackage as error:
            return Refusal(Cause.NOT_INSTALLED, str(error))
        return Refusal(Cause.NO_GPU, device.NO_GPU) if device.compute_capability() is None else None

    def candidates(self, bundle: Bundle, graph: Graph, precision: Precision | None) -> list[Artifact]:
        order = (precision,) if precision else ("fp16", "bf16", "fp32")
        found = [a for a in bundle.find("engine", graph=graph, builder=self.name) if a.precision in order]
        return sorted(found, key=lambda artifact: order.index(artifact.precision))

    def no_candidate(self, bundle: Bundle, graph: Graph, precision: Precision | None) -> Refusal:
        wanted = f"{graph} graph" + (f" in {precision}" if precision else "")
        return Refusal(
            Cause.NO_ARTIFACT, f"the bundle has no such engine of the {wanted}",
            "to build one, on the GPU that will run it: "
            f"python -m dpt_deploy.build {bundle.folder} --builder {self.name}",
        )

    def open(self, bundle: Bundle, artifact: Artifact, options: SessionOptions) -> Session:
        return TensorRTSession(bundle, artifact)

    def stages(self, bundle: Bundle) -> list[StageTask]:
        """Every engine; engines of several versions and devices may lie side by side."""
        engines = bundle.find("engine", builder=self.name)
        titles = [f"{self.name} {engine.graph} {engine.precision}" for engine in engines]
        return [
            StageTask(
                self.stage_id(engine, title=title if titles.count(title) == 1 else f"{title} ({engine.file})"), engine,
                lambda e=engine: self.open(bundle, e, SessionOptions()),
                profile=engine.details.profile.get(*bundle.contract.inputs(engine.graph)),
            )
            for engine, title in zip(engines, titles, strict=True)
        ]

    def diagnose(self) -> list[Check]:
        """The builder, which TensorRT needs a GPU to start; for TensorRT, the faults documented for its version."""
        module = MODULES[self.name]
        if importlib.util.find_spec(module) is None:
            what = {"tensorrt": "engines for one GPU, built on it", "tensorrt-rtx": "engines built without a GPU"}
            return [Check(self.title, "not installed", what[self.name], install_command(self.extra))]
        trt = importlib.import_module(module)
        if self.name == "tensorrt-rtx":
            return [_builder_starts(trt, self.title, self.extra)]
        capability = device.compute_capability()
        first = _builder_starts(trt, self.title, self.extra) if capability else Check(
            self.title, "not checked", f"{trt.__version__} imports; {device.NO_GPU}, so it cannot build")
        return [first, *documented_faults(trt.__version__, capability)]

    def examine(self, bundle: Bundle, artifact: Artifact) -> Check | None:
        """An intact engine against its graph, and against the builder and the GPU of this machine."""
        details = artifact.details
        if artifact.kind != "engine" or details.builder != self.name:
            return None
        if details.made_from not in [graph.sha256 for graph in bundle.find("onnx")]:
            return Check(artifact.file, "failed", "made from a graph that is no longer in the bundle")
        if details.certificate and details.certificate.status == "failed":
            return Check(artifact.file, "failed", "its certificate failed")
        installed = _version(MODULES[self.name])
        if installed is None:
            return Check(artifact.file, "not checked", f"{self.name} is not installed here")
        if why := misfit(bundle, artifact, installed, device.compute_capability()):
            return Check(artifact.file, "warning", why)
        if device.compute_capability() is None:
            return Check(artifact.file, "not checked", f"version fits; {device.NO_GPU} to load it on")
        return Check(artifact.file, "ok", f"fits {self.name} {installed} and this GPU")


def documented_faults(version: str, capability: str | None) -> list[Check]:
    """One check for each fault documented for this TensorRT version; one that says so if there is none."""
    found = []
    for fault, sure in known_faults(version, capability):
        only = "" if sure else f" (only on GPUs of compute capability {', '.join(fault.capabilities)})"
        status = "not checked" if not sure else "warning" if fault.refit_only else "failed"
        found.append(Check("TensorRT for ViT", status, f"{version}: {fault.what}{only}; see {fault.source}",
                           install_command("tensorrt", flags=("--upgrade",)) if sure else ""))
    nothing = f"nothing is known against {version}; parity on the GPU is the proof"
    return found or [Check("TensorRT for ViT", "ok", nothing)]


def _builder_starts(trt: Any, title: str, extra: str) -> Check:
    if trt.Builder(trt.Logger(trt.Logger.ERROR)) is None:
        return Check(title, "failed", f"{trt.__version__} gives no builder")
    if importlib.util.find_spec("polygraphy") is None:
        return Check(title, "warning", f"{trt.__version__}, its builder starts; polygraphy is missing",
                     install_command(extra, "polygraphy", "onnx"))
    return Check(title, "ok", f"{trt.__version__}, its builder starts")


def _version(module: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.import_module(module).__version__
    except Exception:  # a broken library is a finding of `diagnose`
        return None
