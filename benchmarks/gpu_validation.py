"""python benchmarks/gpu_validation.py [BUNDLE]: everything that only a GPU can show, in one command within 10 minutes.

Builds or loads engines, judges parity on the device, times the engines against all peers, and checks memory over many
calls. Each step has a share of the time; what fails or finds none left is `not run` with the reason, and the others go
on. Writes one JSON, after every step, and a summary. Without a GPU it says so, writes the JSON, and exits with 3.
"""

# ruff: noqa: E402 - this file is run by its path, and finds its neighbours through the line below
from __future__ import annotations

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
from rich.console import Console
from rich.table import Table

from benchmarks import latency, machine
from benchmarks.latency import RESULTS, LatencyConfig, default_bundle
from dpt_deploy import cli
from dpt_deploy.bundle import Bundle
from dpt_deploy.errors import BackendError, DptError
from dpt_deploy.files import write_json
from dpt_deploy.parity.images import scene
from dpt_deploy.parity.judge import judge
from dpt_deploy.runtime import cuda, load
from dpt_deploy.runtime import machine as device

PROG = "python benchmarks/gpu_validation.py"
NO_GPU = 3
GOALS = {  # ViT-B at 384 in FP16 on an H200-class device
    "engine time at batch 1 [ms], at most": 1.5,
    "share of the measured FP16 matrix rate at batch 16, at least": 0.6,
    "times faster than torch.compile FP16, at least": 1.3,
}


@dataclass(frozen=True)
class ValidationConfig:
    """Engines, parity, latency, memory and leaks on the GPU of this machine, in one JSON and a summary."""

    bundle: Annotated[Path | None, tyro.conf.Positional] = None
    """Bundle to validate; when not given, one of ViT-B at 384 with random weights is made."""
    seconds: float = 600.0
    """Time for everything; a step that would begin after it is not run."""
    rounds: int = 50
    """Timed calls of each contender."""
    batches: tuple[int, ...] = (1, 16)
    """Batch sizes to time."""
    out: Path = RESULTS
    """Folder for the JSON."""
    name: str = "gpu_validation"
    """Name of the file in it."""


def main(config: ValidationConfig) -> int:
    """Exit status 0 when every step ran and parity passed, 1 otherwise, 3 without a GPU."""
    path = config.out / f"{config.name}.json"
    result: dict[str, Any] = {"command": cli.command_line(PROG), "machine": machine.record(), "goals": GOALS,
                              "steps": {}}
    if device.compute_capability() is None:
        why = "no GPU is visible here: the NVIDIA driver or cuda-python is missing, or there is no device"
        result["steps"] = {name: {"status": "not run", "reason": why} for name in STEPS}
        write_json(path, result)
        print(f"not run: {why}. Run this command on a machine with an NVIDIA GPU. Written: {path}", file=sys.stderr)
        return NO_GPU
    started = time.perf_counter()
    folder = config.bundle or default_bundle()
    for name, step in STEPS.items():
        begun = time.perf_counter()
        if begun - started > config.seconds:
            result["steps"][name] = {"status": "not run", "reason": f"the {config.seconds:.0f} s were used up"}
            continue
        print(f"step     {name}")
        try:
            result["steps"][name] = {"status": "ran"} | step(folder, config, config.seconds - (begun - started))
        except (DptError, RuntimeError, OSError, subprocess.SubprocessError, MemoryError) as error:
            words = str(error).strip().splitlines() or [type(error).__name__]
            result["steps"][name] = {"status": "not run", "reason": words[0]}
        result["steps"][name]["seconds"] = time.perf_counter() - begun
        write_json(path, result)
    _summary(result)
    print(f"written: {path}")
    steps = result["steps"]
    right = all(step["status"] == "ran" for step in steps.values()) and steps["parity"].get("passed", False)
    return 0 if right else 1


def _build(folder: Path, config: ValidationConfig, left: float) -> dict[str, Any]:
    """Engines of every builder that is here; a builder's refusal is kept in its own words."""
    found: dict[str, Any] = {}
    for builder in ("tensorrt", "tensorrt-rtx"):
        command = [sys.executable, "-m", "dpt_deploy.build", str(folder), "--builder", builder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=max(30.0, left * 0.4))
        lines = (done.stdout + done.stderr).strip().splitlines()
        found[builder] = {"exit": done.returncode, "said": lines[-3:]}
    engines = [artifact.file for artifact in Bundle.open(folder).find("engine")]
    return {"builders": found, "engines": engines}


def _parity(folder: Path, config: ValidationConfig, left: float) -> dict[str, Any]:
    """Every stage of the bundle that can run here; the report and the verdict go into the bundle as well."""
    report = judge(Bundle.open(folder), command=cli.command_line(PROG))
    return {"passed": bool(report), "verdict": report.verdict, "report": report.to_json()}


def _latency(folder: Path, config: ValidationConfig, left: float) -> dict[str, Any]:
    """From frame to maps, against all peers, at each batch size."""
    found = {}
    for batch in config.batches:
        asked = LatencyConfig(folder, batch=batch, rounds=config.rounds, warm_up=10, parity=batch == 1,
                              only=("cuda", "tensorrt"))
        found[f"batch {batch}"] = latency.measure(Bundle.open(folder), asked, say=lambda line: None)
    return {"batches": found}


def _engine_time(folder: Path, config: ValidationConfig, left: float) -> dict[str, Any]:
    """The engine alone, by CUDA events around calls on device memory; uploads and downloads beside it."""
    found = {}
    call, runtime = cuda.call, load(folder)
    with runtime:
        if not runtime.backend.startswith(("tensorrt", "onnxruntime-cuda")):
            raise BackendError(f"nothing of the bundle runs on the GPU. {runtime.reason}")
        stream = int(call("cudaStreamCreateWithFlags", cuda.cudart().cudaStreamNonBlocking))
        to_device = cuda.cudart().cudaMemcpyKind.cudaMemcpyHostToDevice
        for batch in config.batches:
            frames = np.stack([scene(720, 1280, seed) for seed in range(batch)])
            inputs = cuda.DeviceArray.empty(frames.shape, frames.dtype, stream)
            upload = _events(stream, config.rounds, lambda i=inputs, f=frames: call(
                "cudaMemcpyAsync", i.pointer, f.ctypes.data, f.nbytes, to_device, stream))
            engine = _events(stream, config.rounds, lambda i=inputs: runtime.session.run({"frame": i}, stream=stream))
            whole = []
            for _ in range(config.rounds):
                started = time.perf_counter()
                runtime.session.run({"frame": frames})
                whole.append((time.perf_counter() - started) * 1e3)
            found[f"batch {batch}"] = {"engine_ms": engine, "upload_ms": upload,
                                       "host_to_host_ms": [float(x) for x in np.percentile(whole, (50, 90, 99))]}
            del inputs
        call("cudaStreamDestroy", stream)
    note = "p50, p90, p99 [ms]; the frame engine holds pre- and post-processing; no CUDA graph around device arrays"
    return {"backend": runtime.backend, "artifact": runtime.artifact.file, "note": note, "times": found}


def _events(stream: int, rounds: int, work: Callable[[], Any]) -> list[float]:
    call = cuda.call
    start, end = call("cudaEventCreate"), call("cudaEventCreate")
    times = []
    for i in range(rounds + 10):
        call("cudaEventRecord", start, stream)
        kept = work()
        call("cudaEventRecord", end, stream)
        call("cudaEventSynchronize", end)
        del kept
        if i >= 10:
            times.append(call("cudaEventElapsedTime", start, end))
    call("cudaEventDestroy", start)
    call("cudaEventDestroy", end)
    return [float(x) for x in np.percentile(times, (50, 90, 99))]


def _leaks(folder: Path, config: ValidationConfig, left: float) -> dict[str, Any]:
    """Memory on host and device over loads, runs and closes, and over many calls of one session."""
    frame = scene(720, 1280, 0)
    until = time.perf_counter() + min(90.0, left * 0.5)
    host, free = [], []
    while time.perf_counter() < until and len(host) < 100:
        with load(folder) as runtime:
            runtime(frame)
        host.append(machine.resident_mb())
        free.append(cuda.cudart().cudaMemGetInfo()[1] / 1e6)
    cycles = len(host)
    warm = cycles // 10
    with load(folder) as runtime:
        for _ in range(20):
            runtime(frame)
        before, free_before = machine.resident_mb(), cuda.cudart().cudaMemGetInfo()[1] / 1e6
        for _ in range(300):
            runtime(frame)
        grown, taken = machine.resident_mb() - before, free_before - cuda.cudart().cudaMemGetInfo()[1] / 1e6
    return {"cycles": cycles, "host_mb_grown_after_warm_up": host[-1] - host[warm],
            "device_mb_taken_after_warm_up": free[warm] - free[-1],
            "calls": 300, "host_mb_grown_over_calls": grown, "device_mb_taken_over_calls": taken}


def _summary(result: dict[str, Any]) -> None:
    shown = Table("step", "status", "seconds", "what", title="GPU validation", title_justify="left")
    for name, step in result["steps"].items():
        what = step.get("reason") or step.get("verdict") or ", ".join(step.get("engines", [])) or ""
        shown.add_row(name, step["status"], f"{step.get('seconds', 0):.0f}", what)
    console = Console()
    console.print(shown)
    for batch, times in result["steps"].get("engine time", {}).get("times", {}).items():
        console.print(f"{batch}: engine {times['engine_ms'][0]:.2f} ms, upload {times['upload_ms'][0]:.2f} ms, host to "
                      f"host {times['host_to_host_ms'][0]:.2f} ms")
    for goal, bound in GOALS.items():
        console.print(f"goal: {goal} {bound}")


STEPS: dict[str, Callable[[Path, ValidationConfig, float], dict[str, Any]]] = {
    "build": _build, "parity": _parity, "engine time": _engine_time, "latency": _latency, "leaks": _leaks,
}

if __name__ == "__main__":
    cli.run(ValidationConfig, main, PROG)
