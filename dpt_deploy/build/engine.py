"""ONNX -> TensorRT or TensorRT-RTX plan, through Polygraphy, one process per build.

Polygraphy decides between the two builders when it is imported, by an environment variable: each
build is `python -m dpt_deploy.build.engine` with a JSON order on standard input.
"""

from __future__ import annotations

import dataclasses
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

from ..contract import Contract, Graph
from ..errors import BackendError, BuildError
from ..files import replacing
from ..runtime import machine

BuilderName = Literal["tensorrt", "tensorrt-rtx"]
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL = {
    "tensorrt": "pip install 'dpt-deploy[tensorrt]' (its libraries come from NVIDIA's package index)",
    "tensorrt-rtx": "pip install 'dpt-deploy[tensorrt-rtx]'",
}


@dataclass(frozen=True)
class Profile:
    """The shapes an engine takes: smallest, typical (the one it is tuned for), largest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class Builder:
    """An installed builder."""

    name: BuilderName
    version: str

    def file_name(self, graph: Graph, precision: str) -> str:
        """Such as frame.fp16.rtx1.7.engine or model.fp16.trt11.4-sm90.engine."""
        short = ".".join(self.version.split(".")[:2])
        if self.name == "tensorrt-rtx":  # built ahead of time for every GPU it supports
            return f"{graph}.{precision}.rtx{short}.engine"
        return f"{graph}.{precision}.trt{short}-sm{(machine.compute_capability() or 'none').replace('.', '')}.engine"


def find_builder(choice: Literal["auto", "tensorrt", "tensorrt-rtx"]) -> Builder:
    """The builder to use. auto: TensorRT where it is importable and a GPU is visible, else TensorRT-RTX.

    Raises `BackendError` with the install command when the choice is not to be had here.
    """
    if choice in ("auto", "tensorrt"):
        reason = _unusable("tensorrt")
        if reason is None and machine.compute_capability() is None:
            reason = "TensorRT builds on the target GPU, and no GPU is visible here"
        if reason is None:
            return Builder("tensorrt", _version("tensorrt"))
        if choice == "tensorrt":
            raise BackendError(f"--builder tensorrt: {reason}. Install: {INSTALL['tensorrt']}, or use tensorrt-rtx.")
    reason = _unusable("tensorrt-rtx")
    if reason is None:
        return Builder("tensorrt-rtx", _version("tensorrt-rtx"))
    raise BackendError(
        f"--builder {choice}: {reason}. Install {INSTALL['tensorrt-rtx']}, or {INSTALL['tensorrt']}, "
        "or use --builder none to stop at ONNX."
    )


def default_profile(
    contract: Contract, graph: Graph, batch: tuple[int, int], frame_sizes: tuple[tuple[int, int], tuple[int, int]]
) -> dict[str, Profile]:
    """The profile of a graph's inputs: tuned for one image, 720x1280 where the frame sizes allow it."""
    low, high = batch
    if graph == "model":
        h, w = contract.input_size
        return {"image": Profile((low, 3, h, w), (low, 3, h, w), (high, 3, h, w))}
    (min_h, min_w), (max_h, max_w) = frame_sizes
    opt = (min(max(720, min_h), max_h), min(max(1280, min_w), max_w))
    return {"frame": Profile((low, min_h, min_w, 3), (low, *opt, 3), (high, max_h, max_w, 3))}


def build_engine(
    onnx: Path, plan: Path, builder: Builder, profile: dict[str, Profile], decomposable_attention: bool
) -> dict[str, Any]:
    """Build `plan` from `onnx` in a process of its own; the file appears only when it is whole.

    `decomposable_attention` lets the builder take an attention apart that it has no fused kernel for
    (FP32 has none). Returns what the builder says of the engine. Raises `BuildError` with the
    builder's own words.
    """
    with replacing(plan) as temporary:
        order = {
            "onnx": str(onnx), "plan": str(temporary), "module": MODULES[builder.name],
            "profile": {name: dataclasses.asdict(shapes) for name, shapes in profile.items()},
            "decomposable_attention": decomposable_attention,
        }
        environment = os.environ | {"POLYGRAPHY_USE_TENSORRT_RTX": "1" if builder.name == "tensorrt-rtx" else "0"}
        done = subprocess.run(
            [sys.executable, "-m", "dpt_deploy.build.engine"], input=json.dumps(order), env=environment,
            capture_output=True, text=True, check=False,
        )
        if done.returncode or not temporary.is_file():
            words = [line for line in (done.stdout + done.stderr).splitlines() if "[E]" in line or "rror:" in line]
            last = words[0] if words else ((done.stderr or done.stdout).strip().splitlines() or ["no output"])[-1]
            raise BuildError(f"{builder.name} {builder.version} could not build {onnx.name}: {last.strip()[:400]}")
    return {
        "builder": builder.name,
        "builder_version": builder.version,
        "compute_capability": machine.compute_capability() if builder.name == "tensorrt" else None,
        "profile": {name: dataclasses.asdict(shapes) for name, shapes in profile.items()},
        **json.loads(done.stdout.strip().splitlines()[-1]),
    }


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


def _work(order: dict[str, Any]) -> dict[str, Any]:
    """The build itself, in the child process."""
    from polygraphy.backend.trt import CreateConfig, engine_bytes_from_network, network_from_onnx_path
    from polygraphy.backend.trt import Profile as TrtProfile

    trt = importlib.import_module(order["module"])
    _, network, _ = parsed = network_from_onnx_path(order["onnx"], strongly_typed=True)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    attention = [layer for layer in layers if "ATTENTION_INPUT" in str(layer.type)]
    if order["decomposable_attention"]:
        for layer in attention:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
    profile = TrtProfile()
    for name, shapes in order["profile"].items():
        profile.add(name, min=tuple(shapes["min"]), opt=tuple(shapes["opt"]), max=tuple(shapes["max"]))
    config = CreateConfig(profiles=[profile], profiling_verbosity=trt.ProfilingVerbosity.DETAILED)
    plan = engine_bytes_from_network(parsed, config)
    with open(order["plan"], "wb") as file:
        file.write(plan)
    return {"layers": len(layers), "attention_layers": len(attention)}


if __name__ == "__main__":
    print(json.dumps(_work(json.load(sys.stdin))))
