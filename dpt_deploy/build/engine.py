"""Build TensorRT and TensorRT-RTX engines from ONNX graphs with Polygraphy, one process per build.

Polygraphy reads an environment variable at import to choose between the two builders, so each build is a process of
its own: `python -m dpt_deploy.build.builder_process`, with a request as JSON on standard input.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.version import Version

from ..backends import device
from ..backends.engines import MODULES
from ..backends.served_gpus import TURING, rtx_capabilities, unserved
from ..core.contract import Contract, Graph
from ..core.errors import BackendError, BuildError
from ..core.files import replacing
from ..core.install import install_command
from ..core.manifest import PrecisionPlan, ShapeRange
from .certificate import failure_message
from .options import BuilderChoice, EngineOptions, check_builder

BuilderName = Literal["tensorrt", "tensorrt-rtx"]
ATTENTION_SINCE = Version("10.14")  # the first TensorRT whose parser knows the Attention operator (its release notes)


@dataclass(frozen=True)
class Builder:
    """An installed builder."""

    name: BuilderName
    version: str

    def file_name(self, graph: Graph, precision: str, options: EngineOptions | None = None) -> str:
        """File name of an engine, such as frame.fp16.rtx1.7.engine or frame.fp16.trt11.4-sm90-refit.engine."""
        parts = [f"rtx{self.short_version}"]
        if self.name == "tensorrt":  # a TensorRT-RTX engine works on every GPU that it supports
            parts = [f"trt{self.short_version}", self.gpu]
        variant = options.variant if options else {}
        parts += ["sm75"] if variant.get("turing") else []
        if variant.get("hardware_compatible"):
            parts[1] = "ampere"
        parts += ["versions"] if variant.get("version_compatible") else []
        parts += [{"refittable": "refit", "stripped": "stripped"}[variant["weights"]]] if "weights" in variant else []
        return f"{graph}.{precision}.{'-'.join(parts)}.engine"

    @property
    def timing_file(self) -> str:
        """File name of TensorRT's timing cache in a bundle."""
        return f"timing.trt{self.short_version}-{self.gpu}.cache"

    @property
    def short_version(self) -> str:
        """Major and minor version, such as 11.4."""
        return ".".join(self.version.split(".")[:2])

    @property
    def gpu(self) -> str:
        """Architecture of the visible GPU, such as sm90."""
        return f"sm{(device.compute_capability() or 'none').replace('.', '')}"


def choose_builder(options: EngineOptions) -> Builder | None:
    """The builder for `options`, or None for "none". Raises `BackendError` if it does not support them here.

    "auto" never chooses a builder whose engines cannot run on the visible GPU.
    """
    if options.builder == "none":
        return None
    builder, capability = find_builder(options.builder), device.compute_capability()
    check_builder(options, builder.name, builder.version, capability)
    problem = unserved(builder.name, builder.version, capability, options.turing)
    if problem is not None and options.builder == "auto":
        if options.turing and capability != TURING and unserved(builder.name, builder.version, capability) is None:
            raise BackendError(f"--turing: expected a GPU of compute capability {TURING}, received {capability}. Omit "
                               "--turing.")
        advice = f"or {problem.instead}" if builder.name == "tensorrt" or capability == TURING else (
            f"or {install_command('tensorrt')}; meanwhile, backend onnxruntime-cuda runs the graphs without an engine")
        raise BackendError(f"--builder auto: {problem.reason}. Use --builder none to skip engines, {advice}.")
    return builder


def find_builder(choice: BuilderChoice) -> Builder:
    """The builder `choice`; "auto" is TensorRT if it is installed and a GPU is visible, else TensorRT-RTX.

    Raises `BackendError`, with the command to install it, if the builder is not available.
    """
    if choice in ("auto", "tensorrt"):
        reason = _unavailable_reason("tensorrt")
        if reason is None and device.compute_capability() is None:
            reason = "TensorRT needs the target GPU to build, and no GPU is visible"
        if reason is None:
            return Builder("tensorrt", _version("tensorrt"))
        if choice == "tensorrt":
            raise BackendError(f"--builder tensorrt: {reason}. Run: {install_command('tensorrt')}, "
                               "or use --builder tensorrt-rtx.")
    reason = _unavailable_reason("tensorrt-rtx")
    if reason is None:
        return Builder("tensorrt-rtx", _version("tensorrt-rtx"))
    raise BackendError(
        f"--builder {choice}: {reason}. Run: {install_command('tensorrt-rtx')}, or {install_command('tensorrt')}, "
        "or use --builder none to skip building engines."
    )


def default_profile(
    contract: Contract, graph: Graph, batch: tuple[int, int], frame_sizes: tuple[tuple[int, int], tuple[int, int]]
) -> dict[str, ShapeRange]:
    """The optimization profile of a graph's input, tuned for the smallest batch.

    `batch` and `frame_sizes`, (H, W) [pixels], are pairs of the smallest and the largest. The frame graph is tuned for
    720x1280, or the nearest size in that range; the model graph has the input size of the contract.
    """
    low, high = batch
    if graph == "model":
        h, w = contract.input_size
        return {"image": ShapeRange(min=(low, 3, h, w), opt=(low, 3, h, w), max=(high, 3, h, w))}
    (min_h, min_w), (max_h, max_w) = frame_sizes
    opt = (min(max(720, min_h), max_h), min(max(1280, min_w), max_w))
    return {"frame": ShapeRange(min=(low, min_h, min_w, 3), opt=(low, *opt, 3), max=(high, max_h, max_w, 3))}


def build_engine(
    onnx: Path, plan: Path, builder: Builder, profile: dict[str, ShapeRange], precision: str, size: tuple[int, int],
    precision_plan: PrecisionPlan | None = None, options: EngineOptions | None = None, timings: Path | None = None,
) -> dict[str, Any]:
    """Build an engine in a separate process, and write it atomically.

    Args:
        onnx: The ONNX graph.
        plan: File of the engine to write.
        builder: The builder.
        profile: Shapes of each input.
        precision: The requested precision: fp16, bf16, fp32, int8 or fp8.
        size: The network's input size (H, W) [pixels].
        precision_plan: The precision plan of the graph; None if it is unknown.
        options: Kind of the engine; the default kind if None.
        timings: TensorRT's timing cache, which is read if it exists, and replaced.

    Returns:
        The details of the engine, with its certificate.

    Raises:
        BuildError: The builder failed or is too old for the graph, or the network does not compute in `precision`.
    """
    options = options or EngineOptions()
    _check_operators(onnx, builder)
    shapes = {name: entry.to_json() for name, entry in profile.items()}
    with replacing(plan) as temporary:
        new_timings = temporary.with_name("timings") if timings else None
        request = {
            "action": "build", "builder": builder.name, "module": MODULES[builder.name], "onnx": str(onnx),
            "plan": str(temporary), "profile": shapes, "precision": precision, "size": list(size),
            "precision_plan": precision_plan.to_json() if precision_plan else None,
            "variant": options.variant, "new_timings": str(new_timings) if new_timings else None,
            "old_timings": str(timings) if timings and timings.is_file() else None,
        }
        result = run_builder(request, builder, f"could not build {onnx.name}")
        if result["certificate"]["status"] == "failed":
            raise BuildError(failure_message(onnx.name, result["certificate"]))
        if new_timings and new_timings.is_file():
            with replacing(timings) as temporary_timings:
                new_timings.rename(temporary_timings)
    capability, serves = device.compute_capability(), []
    if builder.name == "tensorrt-rtx":
        capability = TURING if options.turing else None
        serves = [TURING] if options.turing else list(rtx_capabilities(builder.version, precision))
    variant = {name: value for name, value in options.variant.items() if name != "turing"}
    return {"builder": builder.name, "builder_version": builder.version, "compute_capability": capability,
            "serves": serves, "profile": shapes, **variant, **result}


def run_builder(request: dict[str, Any], builder: Builder, failure: str) -> dict[str, Any]:
    """The result of `builder_process` for a request. Raises `BuildError`: `failure`, and the first error it printed."""
    environment = os.environ | {"POLYGRAPHY_USE_TENSORRT_RTX": "1" if builder.name == "tensorrt-rtx" else "0"}
    command = [sys.executable, "-m", "dpt_deploy.build.builder_process"]
    process = subprocess.run(command, input=json.dumps(request), env=environment, capture_output=True, text=True)
    if process.returncode:
        errors = [line for line in (process.stdout + process.stderr).splitlines() if "[E]" in line or "rror:" in line]
        lines = errors[:1] or (process.stderr or process.stdout).strip().splitlines() or ["no output"]
        raise BuildError(f"{builder.name} {builder.version} {failure}: {lines[-1].strip()[:400]}")
    return json.loads(process.stdout.strip().splitlines()[-1])


def _check_operators(path: Path, builder: Builder) -> None:
    """Raise `BuildError` if the graph has the Attention operator of opset 23 and this TensorRT cannot parse it."""
    import onnx

    if builder.name != "tensorrt" or Version(builder.version) >= ATTENTION_SINCE:
        return
    if any(node.op_type == "Attention" for node in onnx.load(path, load_external_data=False).graph.node):
        raise BuildError(
            f"{path.name} has the Attention operator of opset 23: expected TensorRT {ATTENTION_SINCE} or newer, "
            f"received {builder.version}. Upgrade it: {install_command('tensorrt', 'tensorrt', flags=('--upgrade',))}; "
            "or export again with --opset 20.")


def _unavailable_reason(name: BuilderName) -> str | None:
    """Why a builder is not available, or None if it is."""
    module = MODULES[name]
    if importlib.util.find_spec("polygraphy") is None:
        return "polygraphy is not installed"
    if importlib.util.find_spec(module) is None:
        return f"the Python package {module} is not installed"
    try:
        importlib.import_module(module)
    except Exception as error:  # a missing shared library raises exceptions of many types
        return f"the Python package {module} is installed but broken ({type(error).__name__}: {error})"
    return None


def _version(name: BuilderName) -> str:
    return importlib.import_module(MODULES[name]).__version__
