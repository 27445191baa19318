"""python benchmarks/gpu_validation.py [BUNDLE]: all checks that need a GPU, in one command, within 10 minutes.

Builds engines, judges parity on the GPU, times the engines alone and against all peers, compares the figures with their
goals, and looks for memory leaks. Each step has a share of the time. A step that fails or has no time left is "not run"
with the reason, and the others continue. The result file is written after every step. Without a GPU the command exits
with status 2 and writes nothing, so that an earlier result remains.
"""

# ruff: noqa: E402 - run by its path, this file finds the repository through the next line but one
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import tyro
from rich.table import Table

from benchmarks import cuda_timing, environment, latency
from benchmarks.contenders import contenders
from benchmarks.matrix_products import MatrixProduct, matrix_products
from benchmarks.pytorch_pipeline import count_flops
from benchmarks.random_models import vit_base_bundle
from benchmarks.results import log, result_file, write_result
from dpt_deploy import backends, cli
from dpt_deploy.backends import device
from dpt_deploy.cli.options import Batches, Json
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BackendError, DptError, first_line
from dpt_deploy.core.files import write_json
from dpt_deploy.parity.images import scene
from dpt_deploy.parity.judge import judge
from dpt_deploy.report import write_report
from dpt_deploy.report.terminal import plain_console
from dpt_deploy.runtime import Runtime, load

PROG = "python benchmarks/gpu_validation.py"
RENAMED = {"--seconds": "--max-seconds"}
GOALS = {  # ViT-B at 384 in FP16 on an H200-class device
    "engine time at batch 1 [ms], at most": 1.5,
    "share of the measured FP16 matrix rate at batch 16, at least": 0.6,
    "times faster than torch.compile FP16, at least": 1.3,
}

# The build command judges parity too, which is a step of its own here.
BUILD = """
import sys
from dpt_deploy.build import EngineOptions, build_engines
from dpt_deploy.core.bundle import Bundle
folder, builder, low, high = sys.argv[1:]
build_engines(Bundle.open(folder), EngineOptions(builder=builder, batch_range=(int(low), int(high))))
"""


@dataclass(frozen=True)
class ValidationConfig:
    """Validate engines, parity, latency and memory on the GPU of this machine."""

    bundle: Annotated[Path | None, tyro.conf.Positional] = None
    """Bundle to validate. Default: ViT-B at 384 with random weights, exported to engines/bench-vitb."""
    max_seconds: float = 600.0
    """Time limit [s]: no step starts after it."""
    rounds: int = 50
    """Timed calls of each contender."""
    batches: Batches = (1, 16)
    """Batch sizes to time, at 720x1280, or at 480x640 if an engine takes no such batch."""
    out: Path | None = None
    """Folder of the result file. Default: benchmarks/results."""
    name: str = "gpu_validation"
    """Name of the result file: NAME.json."""
    json: Json = False


def main(config: ValidationConfig) -> int:
    """Exit status 0 if every step ran and parity passed, else 1.

    Raises:
        BackendError: No GPU is visible.
    """
    if device.compute_capability() is None:
        raise BackendError("no GPU is visible here: the machine has none, or the NVIDIA driver or cuda-python is not "
                           "installed. Run this command on a machine with an NVIDIA GPU.")
    result: dict[str, Any] = {"command": cli.command_line(PROG), "machine": environment.record(),
                              "goals": judge_goals({}), "steps": {}}
    started = time.perf_counter()
    folder = config.bundle or vit_base_bundle()
    for name, step in STEPS.items():
        begun = time.perf_counter()
        left = config.max_seconds - (begun - started)
        if left < 0:
            result["steps"][name] = {"status": "not run", "reason": f"no time left of {config.max_seconds:.0f} s"}
            continue
        log(f"step     {name}")
        try:
            result["steps"][name] = {"status": "ran"} | step(folder, config, left)
        except Exception as error:  # ONNX Runtime's exceptions have no narrower base class
            result["steps"][name] = {"status": "not run", "reason": first_line(error)}
        result["steps"][name]["seconds"] = time.perf_counter() - begun
        result["goals"] = judge_goals(result["steps"])
        write_json(result_file(config), result)
    write_result(config, result, show)
    steps = result["steps"]
    passed = all(step["status"] == "ran" for step in steps.values()) and steps["parity"].get("passed", False)
    return 0 if passed else 1


def _build(folder: Path, config: ValidationConfig, left: float) -> dict[str, Any]:
    """Engines of every installed builder. A builder that fails is recorded with its message."""
    found: dict[str, Any] = {}
    for builder in ("tensorrt", "tensorrt-rtx"):
        batches = [str(bound) for bound in (min(config.batches), max(config.batches))]
        status, lines = run_for(max(30.0, left * 0.25), [sys.executable, "-c", BUILD, str(folder), builder, *batches])
        found[builder] = {"status": "not run" if status else "ran", "exit": status,
                          "said": lines[-1:] if status else lines}
    if all(one["status"] != "ran" for one in found.values()):
        said = "; ".join(f"{builder}: {(one['said'] or ['no message'])[-1]}" for builder, one in found.items())
        raise BackendError(f"no engine was built. {said}")
    engines = [artifact.file for artifact in Bundle.open(folder).find("engine")]
    return {"builders": found, "engines": engines}


def run_for(seconds: float, command: list[str]) -> tuple[int, list[str]]:
    """Exit status and output lines of a command. After `seconds` it is killed, with the processes that it started."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True)
    try:
        said, _ = process.communicate(timeout=seconds)
        return process.returncode, said.strip().splitlines()
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return -signal.SIGKILL, [f"stopped after {seconds:.0f} s"]


def _parity(folder: Path, config: ValidationConfig, left: float) -> dict[str, Any]:
    """Judge every stage of the bundle that can run here; the report and the verdict go into the bundle too."""
    bundle = Bundle.open(folder)
    judgement = judge(bundle)
    write_report(bundle, judgement.report, judgement.exhibits, cli.command_line(PROG))
    report = judgement.report
    if not any(stage.id.device == "gpu" and stage.status != "not run" and not stage.earlier for stage in report.stages):
        raise BackendError(f"no stage ran on the GPU: {report.verdict}")
    return {"passed": report.passed, "verdict": report.verdict, "report": report.to_json()}


def _latency(folder: Path, config: ValidationConfig, left: float) -> dict[str, Any]:
    """From frame to maps, against all peers, at each batch size."""
    _load_on_gpu(folder).close()
    found = {}
    bundle = Bundle.open(folder)
    on_gpu = [contender for contender in contenders(bundle) if contender.device == "gpu"]
    for batch in config.batches:
        options = latency.LatencyConfig(
            frame_size=frame_size(batch), batch=batch, rounds=config.rounds, warm_up=10, parity=batch == 1,
            max_seconds=left * 0.7 / len(config.batches))
        found[f"batch {batch}"] = latency.measure(bundle, options, on_gpu)
    return {"batches": found}


def frame_size(batch: int) -> tuple[int, int]:
    """720p if a default engine takes such a batch, else a frame that is small enough."""
    return (720, 1280) if batch * 720 * 1280 <= 2160 * 3840 else (480, 640)


def _engine_time(folder: Path, config: ValidationConfig, left: float) -> dict[str, Any]:
    """Upload, engine and download, each on its own, and the engine's share of the matrix-product rate."""
    found: dict[str, Any] = {}
    flops = count_flops(Bundle.open(folder))
    product = next((one for one in matrix_products() if one.precision == "fp16"), None)
    with _load_on_gpu(folder) as runtime:
        for batch in config.batches:
            frames = np.stack([scene(*frame_size(batch), seed) for seed in range(batch)])
            inputs = {"frame": frames}
            try:
                rates = _rates(product)
                parts = cuda_timing.time_steps(runtime.session, inputs, config.rounds)
                rates += _rates(product)
                whole = []
                for _ in range(config.rounds):
                    started = time.perf_counter()
                    runtime.session.run(inputs)
                    whole.append((time.perf_counter() - started) * 1e3)
            except DptError as error:
                found[f"batch {batch}"] = {"status": "not run", "reason": str(error)}
                continue
            times = {"status": "ran", "frame": list(frame_size(batch)), "parts_ms": parts,
                     "host_to_host_ms": cuda_timing.percentiles(whole)}
            if flops and rates:
                reached = flops * batch / (parts["engine"][0] / 1e3)
                times |= {"fp16_matrix_flops_per_s": float(np.median(rates)),
                          "share_of_fp16_matrix_rate": reached / float(np.median(rates))}
            found[f"batch {batch}"] = times
        note = ("p50, p90, p99 [ms], each step repeated on its own; the frame engine includes pre- and "
                f"post-processing, which the {flops or 0:.3g} FLOPs per frame do not count; "
                f"host to host {runtime.session.note}")
        return {"backend": runtime.backend, "artifact": runtime.artifact.file, "note": note, "times": found}


def _load_on_gpu(folder: Path) -> Runtime:
    """The bundle on the GPU. Raises `BackendError` if `load` chooses the processor."""
    runtime = load(folder, measure=False, compile_eagerly=True)
    if backends.get(runtime.backend).device != "gpu":
        runtime.close()
        raise BackendError(f"no artefact of the bundle runs on the GPU. {runtime.reason}")
    return runtime


def _rates(product: MatrixProduct | None) -> list[float]:
    """FLOP/s of 20 large matrix products, after 5 warm-up calls."""
    if product is None:
        return []
    rates = []
    for _ in range(25):
        started = time.perf_counter()
        product()
        rates.append(product.flops / (time.perf_counter() - started))
    return rates[5:]


def _leaks(folder: Path, config: ValidationConfig, left: float) -> dict[str, Any]:
    """Memory on host and GPU over cycles of load, run and close, and over many calls of one session."""
    frame = scene(720, 1280, 0)
    until = time.perf_counter() + min(90.0, left * 0.5)
    host, free = [], []
    while time.perf_counter() < until and len(host) < 100:
        with _load_on_gpu(folder) as runtime:
            runtime(frame)
        host.append(environment.resident_mb())
        free.append(environment.free_gpu_memory_mb())
    cycles = len(host)
    warm = cycles // 10
    with _load_on_gpu(folder) as runtime:
        for _ in range(20):
            runtime(frame)
        before, free_before = environment.resident_mb(), environment.free_gpu_memory_mb()
        for _ in range(300):
            runtime(frame)
        grown, taken = environment.resident_mb() - before, free_before - environment.free_gpu_memory_mb()
    return {"cycles": cycles, "host_mb_grown_after_warm_up": host[-1] - host[warm],
            "device_mb_taken_after_warm_up": free[warm] - free[-1],
            "calls": 300, "host_mb_grown_over_calls": grown, "device_mb_taken_over_calls": taken}


def judge_goals(steps: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal with its bound, the measured value or None, what was measured, and whether the goal is met."""
    times = steps.get("engine time", {}).get("times", {})
    first, sixteen = times.get("batch 1", {}), times.get("batch 16", {})
    rows = steps.get("latency", {}).get("batches", {}).get("batch 1", {}).get("rows", [])
    faster = [(row["times_faster_than_compiled"]["median"], row["name"]) for row in rows
              if row["artifact"] and row["precision"] == "fp16" and "times_faster_than_compiled" in row]
    file = steps.get("engine time", {}).get("artifact")
    found = ((first.get("parts_ms", {}).get("engine", [None])[0], file),
             (sixteen.get("share_of_fp16_matrix_rate"), file), max(faster, default=(None, None)))
    judged = []
    for (goal, bound), (value, of) in zip(GOALS.items(), found, strict=True):
        met = None if value is None else value <= bound if goal.endswith("at most") else value >= bound
        judged.append({"goal": goal, "bound": bound, "value": value, "of": of, "met": met})
    return judged


def show(result: dict[str, Any]) -> None:
    """Print the steps, the engine times and the goals."""
    shown = Table("step", "status", "seconds", "what", title="GPU validation", title_justify="left")
    for name, step in result["steps"].items():
        what = step.get("reason") or step.get("verdict") or ", ".join(step.get("engines", [])) or ""
        shown.add_row(name, step["status"], f"{step.get('seconds', 0):.0f}", what)
    console = plain_console()
    console.print(shown)
    for batch, times in result["steps"].get("engine time", {}).get("times", {}).items():
        if times["status"] != "ran":
            console.print(f"{batch}: not run: {times['reason']}")
            continue
        steps = ", ".join(f"{name} {part[0]:.3f} ms" for name, part in times["parts_ms"].items())
        console.print(f"{batch}: {steps}, host to host {times['host_to_host_ms'][0]:.2f} ms")
    for one in result["goals"]:
        outcome = {None: "not measured", True: "met", False: "not met"}[one["met"]]
        value = "" if one["value"] is None else f": {one['value']:.2f} of {one['of']}"
        console.print(f"goal: {one['goal']} {one['bound']}{value}, {outcome}")


STEPS: dict[str, Callable[[Path, ValidationConfig, float], dict[str, Any]]] = {
    "build": _build, "parity": _parity, "engine time": _engine_time, "latency": _latency, "leaks": _leaks,
}

if __name__ == "__main__":
    cli.run(ValidationConfig, main, PROG, renamed=RENAMED)
