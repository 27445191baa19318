"""python benchmarks/tuning.py [BUNDLE]: what was tried to make the network faster on the processor, side by side.

ONNX Runtime's and OpenVINO's options and exact rewrites of the graph, on the model graph in FP32, in interleaved
rounds; each with its largest difference from ONNX Runtime's results. The bases, "ONNX Runtime" and "OpenVINO", are what
the runtime does. A variant wins where the whole confidence interval of its median ratio lies above 1, and does so again
in a second run of the winners alone (--only): among so many, one may win by chance. What does not win is not used.
"""

# ruff: noqa: E402 - this file is run by its path, and finds its neighbours through the line below
from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import onnxruntime
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.latency import RESULTS
from benchmarks.measure import doubts, interleave, ratios
from benchmarks.models import default_bundle
from benchmarks.show import times
from dpt_deploy import cli
from dpt_deploy.backends.openvino import prefer_convolution_kernel, shared_core
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import MissingPackage
from dpt_deploy.core.files import write_json

PROG = "python benchmarks/tuning.py"
REWRITES = ("project-before-resize", "join-first-convolutions")
Network = Callable[[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class TuningConfig:
    """Options of the CPU backends and rewrites of the graph, side by side."""

    bundle: Annotated[Path | None, tyro.conf.Positional] = None
    """Bundle to use; when not given, one of ViT-B at 384 with random weights is made."""
    rounds: int = 10
    """Timed calls of each variant."""
    only: tuple[str, ...] = ()
    """Variants whose name contains one of these, and the two baselines; all when not given."""
    out: Path = RESULTS
    """Folder for the JSON."""
    name: str = "tuning"
    """Name of the file in it."""


def main(config: TuningConfig) -> int:
    """Exit status 0."""
    bundle = Bundle.open(config.bundle or default_bundle())
    before = machine.record()
    h, w = bundle.contract.input_size
    image = np.random.default_rng(0).standard_normal((1, 3, h, w)).astype(np.float32)
    path = bundle.path(bundle.find("onnx", graph="model", precision="fp32")[0])
    with tempfile.TemporaryDirectory() as folder:
        networks = dict(_variants(path, Path(folder), config.only))
        reference = networks["ONNX Runtime"](image)
        samples = interleave({name: lambda run=run: _call(run, image) for name, run in networks.items()},
                             config.rounds, 1, lambda done: print(f"round {done} of {config.rounds + 1}", flush=True))
        rows = []
        for name, run in networks.items():
            base = "OpenVINO" if name.startswith("OpenVINO") else "ONNX Runtime"
            rows.append({"name": name, "base": base, "times_faster_than_base": ratios(samples[name], samples[base]),
                         "difference": max(float(np.abs(a - b).max()) for a, b in zip(run(image), reference,
                                                                                      strict=True)),
                         "doubts": doubts(samples[name])} | samples[name].summary())
    result = {"command": cli.command_line(PROG), "bundle": bundle.name, "machine": before, "rounds": config.rounds,
              "load_after": machine.record()["load"], "rows": rows}
    write_json(config.out / f"{config.name}.json", result)
    shown = Table("variant", "p50 ms", "x base", "largest difference")
    for row in rows:
        shown.add_row(row["name"], f"{row['p50_ms']:.0f}", times(row["times_faster_than_base"]),
                      f"{row['difference']:.1e}")
    Console().print(shown)
    return 0


def _call(run: Network, image: np.ndarray) -> None:
    run(image)


def _variants(path: Path, folder: Path, only: tuple[str, ...]) -> Iterator[tuple[str, Network]]:
    """Every variant that can run here, by name."""
    options: dict[str, Callable[[onnxruntime.SessionOptions], None]] = {
        "": lambda o: None,
        ", no memory arena": lambda o: setattr(o, "enable_cpu_mem_arena", False),
        ", no memory pattern": lambda o: setattr(o, "enable_mem_pattern", False),
        ", threads do not spin": lambda o: o.add_session_config_entry("session.intra_op.allow_spinning", "0"),
        ", graph optimisation extended": lambda o: setattr(
            o, "graph_optimization_level", onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
        ", graph optimisation basic": lambda o: setattr(
            o, "graph_optimization_level", onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC),
        ", parallel execution": lambda o: setattr(o, "execution_mode", onnxruntime.ExecutionMode.ORT_PARALLEL),
    }

    def wanted(name: str) -> bool:
        return not only or any(part in name for part in only) or name in ("ONNX Runtime", "OpenVINO")

    for suffix, change in options.items():
        if wanted(f"ONNX Runtime{suffix}"):
            yield f"ONNX Runtime{suffix}", _onnxruntime(path, change)
    if wanted("ONNX Runtime, I/O binding"):
        yield "ONNX Runtime, I/O binding", _bound(path)
    rewritten = dict(_rewritten(path, folder))
    for name, file in rewritten.items():
        if wanted(f"ONNX Runtime, {name}"):
            yield f"ONNX Runtime, {name}", _onnxruntime(file, options[""])
    try:
        core = shared_core()
    except MissingPackage:
        return
    for suffix, more in (("", {}), (", no pinning", {"ENABLE_CPU_PINNING": False}),
                         (", throughput hint", {"PERFORMANCE_HINT": "THROUGHPUT"})):
        if wanted(f"OpenVINO{suffix}"):
            yield f"OpenVINO{suffix}", _openvino(core, path, more)
    if wanted("OpenVINO, matrix-product kernel throughout"):
        yield "OpenVINO, matrix-product kernel throughout", _openvino(core, path, {}, prefer_convolutions=False)
    for name, file in rewritten.items():
        if wanted(f"OpenVINO, {name}"):
            yield f"OpenVINO, {name}", _openvino(core, file, {})


def _rewritten(path: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """The graph after each rewrite of the exporter, which runs as the command that it is."""
    for name in REWRITES:
        target = folder / f"{name}.onnx"
        command = [sys.executable, "-m", "benchmarks.rewrite", str(path), str(target), name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        yield name, target


def _onnxruntime(path: Path, change: Callable[[Any], None]) -> Network:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    change(options)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})


def _bound(path: Path) -> Network:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(image: np.ndarray) -> list[np.ndarray]:
        binding = session.io_binding()
        binding.bind_cpu_input("image", image)
        for output in session.get_outputs():
            binding.bind_output(output.name)
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()

    return run


def _openvino(core: Any, path: Path, more: dict[str, Any], prefer_convolutions: bool = True) -> Network:
    """OpenVINO as `OpenVINOSession` uses it, but for options and graph."""
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"} | more
    model = core.read_model(path)
    if prefer_convolutions:
        prefer_convolution_kernel(model)
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda image: list(request.infer([image], share_inputs=True).values())


if __name__ == "__main__":
    cli.run(TuningConfig, main, PROG)
