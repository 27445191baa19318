"""ONNX -> TensorRT or TensorRT-RTX plan, through Polygraphy, one process per build.

Polygraphy decides between the two builders when it is imported, by an environment variable: each
build is a `python -m dpt_deploy.build.builder_process` with a JSON order on standard input.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..backends import device
from ..backends.engines import MODULES
from ..core.contract import Contract, Graph
from ..core.errors import BackendError, BuildError
from ..core.files import replacing
from ..core.install import install_command
from ..core.manifest import ShapeRange
from .certificate import sentence
from .options import BuilderChoice, EngineOptions, check_builder

BuilderName = Literal["tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Builder:
    """An installed builder."""

    name: BuilderName
    version: str

    def file_name(self, graph: Graph, precision: str, options: EngineOptions | None = None) -> str:
        """Such as frame.fp16.rtx1.7.engine, model.fp16.trt11.4-sm90.engine or frame.fp16.trt11.4-sm90-refit.engine."""
        parts = [f"rtx{self.short}"]
        if self.name == "tensorrt":  # TensorRT-RTX builds ahead of time for every GPU it supports
            parts = [f"trt{self.short}", self.gpu]
        variant = options.variant if options else {}
        if variant.get("hardware_compatible"):
            parts[1] = "ampere"
        parts += ["versions"] if variant.get("version_compatible") else []
        parts += [{"refittable": "refit", "stripped": "stripped"}[variant["weights"]]] if "weights" in variant else []
        return f"{graph}.{precision}.{'-'.join(parts)}.engine"

    @property
    def timing_file(self) -> str:
        """Name of TensorRT's timing cache within a bundle."""
        return f"timing.trt{self.short}-{self.gpu}.cache"

    @property
    def short(self) -> str:
        """Major and minor version."""
        return ".".join(self.version.split(".")[:2])

    @property
    def gpu(self) -> str:
        """The GPU that is visible here, such as sm90."""
        return f"sm{(device.compute_capability() or 'none').replace('.', '')}"


def choose_builder(options: EngineOptions) -> Builder | None:
    """The builder for `options`, None for `none`. Raises `BackendError` for what it cannot do here."""
    if options.builder == "none":
        return None
    builder = find_builder(options.builder)
    check_builder(options, builder.name, builder.version, device.compute_capability())
    return builder


def find_builder(choice: BuilderChoice) -> Builder:
    """The builder to use. auto: TensorRT where it is importable and a GPU is visible, else TensorRT-RTX.

    Raises `BackendError` with the install command when the choice is not to be had here.
    """
    if choice in ("auto", "tensorrt"):
        reason = _unusable("tensorrt")
        if reason is None and device.compute_capability() is None:
            reason = "TensorRT builds on the target GPU, and no GPU is visible here"
        if reason is None:
            return Builder("tensorrt", _version("tensorrt"))
        if choice == "tensorrt":
            raise BackendError(f"--builder tensorrt: {reason}. Run: {install_command('tensorrt')}, "
                               "or use --builder tensorrt-rtx.")
    reason = _unusable("tensorrt-rtx")
    if reason is None:
        return Builder("tensorrt-rtx", _version("tensorrt-rtx"))
    raise BackendError(
        f"--builder {choice}: {reason}. Run: {install_command('tensorrt-rtx')}, or {install_command('tensorrt')}, "
        "or use --builder none to stop at ONNX."
    )


def default_profile(
    contract: Contract, graph: Graph, batch: tuple[int, int], frame_sizes: tuple[tuple[int, int], tuple[int, int]]
) -> dict[str, ShapeRange]:
    """The profile of a graph's inputs: tuned for one image, 720x1280 where the frame sizes allow it."""
    low, high = batch
    if graph == "model":
        h, w = contract.input_size
        return {"image": ShapeRange(min=(low, 3, h, w), opt=(low, 3, h, w), max=(high, 3, h, w))}
    (min_h, min_w), (max_h, max_w) = frame_sizes
    opt = (min(max(720, min_h), max_h), min(max(1280, min_w), max_w))
    return {"frame": ShapeRange(min=(low, min_h, min_w, 3), opt=(low, *opt, 3), max=(high, max_h, max_w, 3))}


def build_engine(
    onnx: Path, plan: Path, builder: Builder, profile: dict[str, ShapeRange], asked: str, size: tuple[int, int],
    fp32: list[str] | None = None, options: EngineOptions | None = None, timings: Path | None = None,
) -> dict[str, Any]:
    """Build `plan` from `onnx` in a process of its own; the file appears only when it is whole.

    `asked` is the precision asked for, `size` the network's input (H, W), `fp32` what the precision plan
    keeps in FP32. `timings` is TensorRT's timing cache, read where it is there and replaced. Returns what
    the builder says of the engine, its certificate among it. Raises `BuildError` with the builder's own
    words, or with what the network computes in where that is not what was asked for.
    """
    options = options or EngineOptions()
    shapes = {name: entry.to_json() for name, entry in profile.items()}
    with replacing(plan) as temporary:
        fresh = temporary.with_name("timings") if timings else None
        order = {
            "do": "build", "onnx": str(onnx), "plan": str(temporary), "builder": builder.name,
            "module": MODULES[builder.name], "profile": shapes, "asked": asked, "size": list(size), "fp32": fp32,
            "variant": options.variant, "new_timings": str(fresh) if fresh else None,
            "old_timings": str(timings) if timings and timings.is_file() else None,
        }
        answer = run_builder(order, builder, f"could not build {onnx.name}")
        if answer["certificate"]["status"] == "failed":
            raise BuildError(sentence(onnx.name, answer["certificate"]))
        if fresh and fresh.is_file():
            with replacing(timings) as kept:
                fresh.rename(kept)
    return {
        "builder": builder.name,
        "builder_version": builder.version,
        "compute_capability": device.compute_capability() if builder.name == "tensorrt" else None,
        "profile": shapes,
        **options.variant,
        **answer,
    }


def run_builder(order: dict[str, Any], builder: Builder, failure: str) -> dict[str, Any]:
    """What `build.builder_process` answers to an order. Raises `BuildError`: `failure`, and the builder's own words."""
    environment = os.environ | {"POLYGRAPHY_USE_TENSORRT_RTX": "1" if builder.name == "tensorrt-rtx" else "0"}
    done = subprocess.run(
        [sys.executable, "-m", "dpt_deploy.build.builder_process"], input=json.dumps(order), env=environment,
        capture_output=True, text=True, check=False,
    )
    if done.returncode:
        words = [line for line in (done.stdout + done.stderr).splitlines() if "[E]" in line or "rror:" in line]
        last = words[0] if words else ((done.stderr or done.stdout).strip().splitlines() or ["no output"])[-1]
        raise BuildError(f"{builder.name} {builder.version} {failure}: {last.strip()[:400]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _unusable(name: BuilderName) -> str | None:
    """Why a builder cannot be used here, or None."""
    module = MODULES[name]
    if importlib.util.find_spec("polygraphy") is None:
        return "polygraphy is not installed"
    if importlib.util.find_spec(module) is None:
        return f"the Python package {module} is not installed"
    try:
        importlib.import_module(module)
    except Exception as error:  # a missing library surfaces in many ways
        return f"the Python package {module} cannot be imported ({type(error).__name__}: {error})"
    return None


def _version(name: BuilderName) -> str:
    return importlib.import_module(MODULES[name]).__version__
