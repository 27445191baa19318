"""The TensorRT and TensorRT-RTX backends."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from ..core.bundle import Bundle
from ..core.contract import Graph
from ..core.errors import Cause, MissingPackage
from ..core.install import install_command
from ..core.manifest import Artifact, Precision
from . import cuda, device
from .base import Backend, Check, Refusal, SessionOptions, StageTask
from .engines import MODULES, incompatibility, unserved_gpu
from .served_gpus import RTX_SERVES, TURING, unserved
from .session import Session
from .tensorrt_faults import known_faults
from .tensorrt_session import TensorRTSession


class TensorRT(Backend):
    """TensorRT or TensorRT-RTX."""

    device = "gpu"

    def __init__(self, name: str) -> None:
        self.name = self.extra = name
        self.title = "TensorRT-RTX" if name == "tensorrt-rtx" else "TensorRT"
        self.package = MODULES[name]
        self.runs = {
            "tensorrt": "engines, on the GPU family and version that built them",
            "tensorrt-rtx": "engines built anywhere, on GPUs of compute capability "
                            f"{', '.join(list(RTX_SERVES.values())[-1])}, and {TURING} if built for it",
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
        version = _version(self.package)
        if version and (problem := unserved(self.name, version, device.compute_capability(), bundle=bundle.folder)):
            return Refusal(Cause.NO_ARTIFACT, problem.reason, problem.instead)
        return Refusal(
            Cause.NO_ARTIFACT, f"the bundle has no {self.title} engine of the {wanted}",
            "to build one on the target GPU: "
            f"python -m dpt_deploy.build {bundle.folder} --builder {self.name}",
        )

    def open(self, bundle: Bundle, artifact: Artifact, options: SessionOptions) -> Session:
        return TensorRTSession(bundle, artifact, options.compile_eagerly)

    def stages(self, bundle: Bundle) -> list[StageTask]:
        """One stage per engine. There may be several for different versions and devices."""
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
        """Whether the builder starts, which needs a GPU for TensorRT, and known issues of TensorRT's version."""
        module = MODULES[self.name]
        if importlib.util.find_spec(module) is None:
            what = {"tensorrt": "engines built on the target GPU", "tensorrt-rtx": "engines built without a GPU"}
            return [Check(self.title, "not installed", what[self.name], install_command(self.extra))]
        trt = importlib.import_module(module)
        capability = device.compute_capability()
        problem = unserved(self.name, trt.__version__, capability, for_turing=capability == TURING)
        found = [Check(self.title, "warning", problem.reason, problem.instead)] if problem else []
        if self.name == "tensorrt-rtx":  # it builds for other machines
            return [*found, _builder_starts(trt, self.title, self.extra)]
        if found:
            return found
        builder = _builder_starts(trt, self.title, self.extra) if capability else Check(
            self.title, "not checked", f"{trt.__version__} imports; {device.NO_GPU}, so it cannot build")
        return [builder, *documented_faults(trt.__version__, capability)]

    def examine(self, bundle: Bundle, artifact: Artifact) -> Check | None:
        """Whether an engine matches its graph, the installed builder and the GPU."""
        details = artifact.details
        if artifact.kind != "engine" or details.builder != self.name:
            return None
        if details.made_from not in [graph.sha256 for graph in bundle.find("onnx")]:
            return Check(artifact.file, "failed", "built from a graph that is no longer in the bundle")
        if details.certificate and details.certificate.status == "failed":
            return Check(artifact.file, "failed", "its certificate failed")
        installed = _version(MODULES[self.name])
        if installed is None:
            return Check(artifact.file, "not checked", f"{self.name} is not installed here")
        if problem := unserved_gpu(artifact, device.compute_capability(), bundle.folder):
            return Check(artifact.file, "warning", problem.reason, problem.instead)
        if why := incompatibility(bundle, artifact, installed, device.compute_capability()):
            return Check(artifact.file, "warning", why)
        if device.compute_capability() is None:
            return Check(artifact.file, "not checked", f"compatible version; {device.NO_GPU}, so it cannot be loaded")
        return Check(artifact.file, "ok", f"compatible with {self.name} {installed} and this GPU")


def documented_faults(version: str, capability: str | None) -> list[Check]:
    """One check per known issue of this TensorRT version, or a single passed check."""
    found = []
    for fault, sure in known_faults(version, capability):
        only = "" if sure else f" (only on GPUs of compute capability {', '.join(fault.capabilities)})"
        status = "not checked" if not sure else "warning" if fault.refit_only else "failed"
        found.append(Check("TensorRT for ViT", status, f"{version}: {fault.what}{only}; see {fault.source}",
                           install_command("tensorrt", flags=("--upgrade",)) if sure else ""))
    none = f"no known issue in {version}; verify with parity on the GPU"
    return found or [Check("TensorRT for ViT", "ok", none)]


def _builder_starts(trt: Any, title: str, extra: str) -> Check:
    if trt.Builder(trt.Logger(trt.Logger.ERROR)) is None:
        return Check(title, "failed", f"{trt.__version__}: the builder does not start")
    if importlib.util.find_spec("polygraphy") is None:
        return Check(title, "warning", f"{trt.__version__}, the builder starts; polygraphy is missing",
                     install_command(extra, "polygraphy", "onnx"))
    return Check(title, "ok", f"{trt.__version__}, the builder starts")


def _version(module: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.import_module(module).__version__
    except Exception:  # `diagnose` reports a broken library
        return None
