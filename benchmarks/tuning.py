"""python benchmarks/tuning.py [BUNDLE]: attempts to make the network faster on the CPU, side by side.

Times options of ONNX Runtime and OpenVINO and exact rewrites of the graph, on the FP32 model graph, in interleaved
rounds, each with its largest difference from ONNX Runtime's outputs. The baselines "ONNX Runtime" and "OpenVINO" are
what the runtime does. A variant wins if the whole confidence interval of its median ratio is above 1, and is again in a
second run of the winners alone (--variants): among so many, one may win by chance. A variant that does not win is not
used.
"""

# ruff: noqa: E402 - run by its path, this file finds the repository through the next line but one
from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import onnx
import onnxruntime
import tyro
from rich.table import Table

from benchmarks import environment
from benchmarks.graph_rewrites import REWRITES
from benchmarks.random_models import vit_base_bundle
from benchmarks.results import log, write_result
from benchmarks.timing import interleave, speedup, speedup_text
from dpt_deploy import cli
from dpt_deploy.backends.openvino import prefer_convolution_kernel, shared_core
from dpt_deploy.cli.options import Json, Names
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import MissingPackage
from dpt_deploy.report.terminal import plain_console

PROG = "python benchmarks/tuning.py"
RENAMED = {"--only": "--variants"}
BASELINES = ("ONNX Runtime", "OpenVINO")
Network = Callable[[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class TuningConfig:
    """Compare options of the CPU backends and rewrites of the graph, side by side."""

    bundle: Annotated[Path | None, tyro.conf.Positional] = None
    """Bundle to use. Default: ViT-B at 384 with random weights, exported to engines/bench-vitb."""
    rounds: int = 10
    """Timed calls of each variant."""
    variants: Names = ()
    """Only variants whose name contains one of these, and the two baselines."""
    out: Path | None = None
    """Folder of the result file. Default: benchmarks/results."""
    name: str = "tuning"
    """Name of the result file: NAME.json."""
    json: Json = False


def main(config: TuningConfig) -> int:
    """Exit status 0."""
    bundle = Bundle.open(config.bundle or vit_base_bundle())
    before = environment.record()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(bundle, config, Path(folder))
    result = {"command": cli.command_line(PROG), "bundle": bundle.name, "machine": before, "rounds": config.rounds,
              "load_after": environment.record()["load"], "rows": rows}
    write_result(config, result, show)
    return 0


def measure(bundle: Bundle, config: TuningConfig, folder: Path) -> list[dict[str, Any]]:
    """One row per variant: its times, its speedup over its baseline, and its difference from ONNX Runtime."""
    graph = bundle.path(bundle.find("onnx", graph="model", precision="fp32")[0])
    image = np.random.default_rng(0).standard_normal((1, 3, *bundle.contract.input_size)).astype(np.float32)
    networks = {name: open_network() for name, open_network in variants(graph, folder)
                if not config.variants or name in BASELINES or any(part in name for part in config.variants)}
    reference = networks["ONNX Runtime"](image)

    def call(network: Network) -> None:
        network(image)

    timings = interleave({name: lambda network=network: call(network) for name, network in networks.items()},
                         config.rounds, 1, lambda done: log(f"round {done} of {config.rounds + 1}"))
    rows = []
    for name, network in networks.items():
        baseline = next(one for one in BASELINES if name.startswith(one))
        differences = [np.abs(a - b).max() for a, b in zip(network(image), reference, strict=True)]
        rows.append({
            "name": name, "base": baseline, "times_faster_than_base": speedup(timings[name], timings[baseline]),
            "difference": float(max(differences)), "doubts": timings[name].doubts(),
        } | timings[name].summary())
    return rows


def variants(graph: Path, folder: Path) -> Iterator[tuple[str, Callable[[], Network]]]:
    """Every variant that can run here: its name, and a function that loads it."""
    rewritten = {name: _rewrite(graph, name, folder / f"{name}.onnx") for name in REWRITES}
    for suffix, change in ORT_OPTIONS.items():
        yield f"ONNX Runtime{suffix}", lambda change=change: _onnxruntime(graph, change)
    yield "ONNX Runtime, I/O binding", lambda: _onnxruntime_with_binding(graph)
    for name, file in rewritten.items():
        yield f"ONNX Runtime, {name}", lambda file=file: _onnxruntime(file)
    try:
        shared_core()
    except MissingPackage:
        return
    for suffix, options in OPENVINO_OPTIONS.items():
        yield f"OpenVINO{suffix}", lambda options=options: _openvino(graph, options)
    yield "OpenVINO, matrix-product kernel throughout", lambda: _openvino(graph, prefer_convolutions=False)
    for name, file in rewritten.items():
        yield f"OpenVINO, {name}", lambda file=file: _openvino(file)


ORT_OPTIONS: dict[str, Callable[[onnxruntime.SessionOptions], None]] = {
    "": lambda options: None,
    ", no memory arena": lambda options: setattr(options, "enable_cpu_mem_arena", False),
    ", no memory pattern": lambda options: setattr(options, "enable_mem_pattern", False),
    ", threads do not spin": lambda options: options.add_session_config_entry("session.intra_op.allow_spinning", "0"),
    ", graph optimisation extended": lambda options: setattr(
        options, "graph_optimization_level", onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
    ", graph optimisation basic": lambda options: setattr(
        options, "graph_optimization_level", onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC),
    ", parallel execution": lambda options: setattr(options, "execution_mode", onnxruntime.ExecutionMode.ORT_PARALLEL),
}
OPENVINO_OPTIONS: dict[str, dict[str, Any]] = {
    "": {}, ", no pinning": {"ENABLE_CPU_PINNING": False}, ", throughput hint": {"PERFORMANCE_HINT": "THROUGHPUT"},
}


def _rewrite(graph: Path, name: str, target: Path) -> Path:
    model = onnx.load(graph)
    REWRITES[name](model)
    onnx.save(model, target)
    return target


def _onnxruntime(graph: Path, change: Callable[[onnxruntime.SessionOptions], None] = ORT_OPTIONS[""]) -> Network:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    change(options)
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})


def _onnxruntime_with_binding(graph: Path) -> Network:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    def run(image: np.ndarray) -> list[np.ndarray]:
        binding = session.io_binding()
        binding.bind_cpu_input("image", image)
        for output in session.get_outputs():
            binding.bind_output(output.name)
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()

    return run


def _openvino(graph: Path, options: dict[str, Any] | None = None, prefer_convolutions: bool = True) -> Network:
    """OpenVINO as `OpenVINOSession` uses it, except for the options and the graph."""
    model = shared_core().read_model(graph)
    if prefer_convolutions:
        prefer_convolution_kernel(model)
    all_options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"} | (options or {})
    request = shared_core().compile_model(model, "CPU", all_options).create_infer_request()
    return lambda image: list(request.infer([image], share_inputs=True).values())


def show(result: dict[str, Any]) -> None:
    """Print the rows."""
    table = Table("variant", "p50 ms", "x base", "largest difference")
    for row in result["rows"]:
        table.add_row(row["name"], f"{row['p50_ms']:.0f}", speedup_text(row["times_faster_than_base"]),
                      f"{row['difference']:.1e}")
    plain_console().print(table)


if __name__ == "__main__":
    cli.run(TuningConfig, main, PROG, renamed=RENAMED)
