"""python benchmarks/gpu_validation.py [BUNDLE]: everything that only a GPU can show, in one command within 10 minutes.

Builds or loads engines, judges parity on the device, times the engines by themselves and against all peers, holds the
figures against their goals, and checks memory over many calls. Each step has a share of the time; what fails or finds
none left is `not run` with the reason, and the others go on. Writes one JSON, after every step, and a summary. Without
a GPU it says so, writes nothing, so that an earlier result stays, and exits with 2.
"""

# ruff: noqa: E402 - this file is run by its path, and finds its neighbours through the line below
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
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks import gpu, latency, machine
from benchmarks.contenders import ON_GPU, flops
from benchmarks.latency import RESULTS, LatencyConfig
from benchmarks.models import default_bundle
from dpt_deploy import cli
from dpt_deploy.backends import cuda, device
from dpt_deploy.backends.session import first_line
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BackendError, DptError
from dpt_deploy.core.files import write_json
from dpt_deploy.parity.images import scene
from dpt_deploy.parity.judge import judge
from dpt_deploy.runtime import load

PROG = "python benchmarks/gpu_validation.py"
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
    """Batch sizes to time, at 1280 x 720; at 640 x 480 where that is more than an engine takes."""
    out: Path = RESULTS
    """Folder for the JSON."""
    name: str = "gpu_validation"
    """Name of the file in it."""


def main(config: ValidationConfig) -> int:
    """Exit status 0 when every step ran and parity passed, 1 otherwise. Raises `BackendError` without a GPU."""
    if device.compute_capability() is None:
        raise BackendError("no GPU is visible here: the NVIDIA driver or cuda-python is missing, or there is no "
                           "device. Run this command on a machine with an NVIDIA GPU.")
    path = config.out / f"{config.name}.json"
    result: dict[str, Any] = {"command": cli.command_line(PROG), "machine": machine.record(),
                              "goals": judge_goals({}), "steps": {}}
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
        except Exception as error:  # ONNX Runtime's share no other base class
            result["steps"][name] = {"status": "not run", "reason": first_line(error)}
        result["steps"][name]["seconds"] = time.perf_counter() - begun
        result["goals"] = judge_goals(result["steps"])
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
        batches = [str(bound) for bound in (min(config.batches), max(config.batches))]
        # The command python -m dpt_deploy.build without its parity, which is the next step here.
        code = ("import sys; from dpt_deploy.build import *; from dpt_deploy.bundle import Bundle; "
                "build_engines(Bundle.open(sys.argv[1]), EngineOptions(builder=sys.argv[2], "
                "batch=(int(sys.argv[3]), int(sys.argv[4]))))")
        status, lines = _within([sys.executable, "-c", code, str(folder), builder, *batches], max(30.0, left * 0.25))
        found[builder] = {"status": "not run" if status else "ran", "exit": status,
                          "said": lines[-1:] if status else lines}
    if all(one["status"] != "ran" for one in found.values()):
        said = "; ".join(f"{builder}: {(one['said'] or ['without a word'])[-1]}" for builder, one in found.items())
        raise BackendError(f"no engine was built. {said}")
    engines = [artifact.file for artifact in Bundle.open(folder).find("engine")]
    return {"builders": found, "engines": engines}


def _within(command: list[str], seconds: float) -> tuple[int, list[str]]:
    """Exit status and lines of a command; what it started goes with it when the time is up."""
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
    """Every stage of the bundle that can run here; the report and the verdict go into the bundle as well."""
    report = judge(Bundle.open(folder), command=cli.command_line(PROG))
    return {"passed": bool(report), "verdict": report.verdict, "report": report.to_json()}


def _latency(folder: Path, config: ValidationConfig, left: float) -> dict[str, Any]:
    """From frame to maps, against all peers, at each batch size."""
    found = {}
    for batch in config.batches:
        asked = LatencyConfig(folder, frame=_frame(batch), batch=batch, rounds=config.rounds, warm_up=10,
                              parity=batch == 1, only=("cuda", "tensorrt"), seconds=left * 0.7 / len(config.batches))
        found[f"batch {batch}"] = latency.measure(Bundle.open(folder), asked, say=lambda line: None)
    return {"batches": found}


def _frame(batch: int) -> tuple[int, int]:
    """720p as long as an engine takes such a batch, else a frame that is small enough."""
    return (720, 1280) if batch * 720 * 1280 <= 2160 * 3840 else (480, 640)


def _engine_time(folder: Path, config: ValidationConfig, left: float) -> dict[str, Any]:
    """The engine, uploads and downloads, each by itself; and the engine's share of the matrix rate around it."""
    found: dict[str, Any] = {}
    operations = flops(Bundle.open(folder))
    product = next((one for one in machine.matrix_products() if one.precision == "fp16"), None)
    with load(folder) as runtime:
        if runtime.backend not in ON_GPU:
            raise BackendError(f"nothing of the bundle runs on the GPU. {runtime.reason}")
        for batch in config.batches:
            frames = np.stack([scene(*_frame(batch), seed) for seed in range(batch)])
            inputs = {"frame": frames}
            try:
                rates = _rates(product)
                parts = gpu.engine_parts(runtime.session, inputs, config.rounds)
                rates += _rates(product)
                whole = []
                for _ in range(config.rounds):
                    started = time.perf_counter()
                    runtime.session.run(inputs)
                    whole.append((time.perf_counter() - started) * 1e3)
            except DptError as error:
                found[f"batch {batch}"] = {"status": "not run", "reason": str(error)}
                continue
            times = {"status": "ran", "frame": list(_frame(batch)), "parts_ms": parts,
                     "host_to_host_ms": gpu.percentiles(whole)}
            if operations and rates:
                reached = operations * batch / (parts["engine"][0] / 1e3)
                times |= {"fp16_matrix_flops_per_s": float(np.median(rates)),
                          "share_of_fp16_matrix_rate": reached / float(np.median(rates))}
            found[f"batch {batch}"] = times
        note = ("p50, p90, p99 [ms], each step repeated by itself; the frame engine holds pre- and post-processing, "
                f"which are not among the {operations or 0:.3g} FLOPs per frame; host to host {runtime.session.note}")
        return {"backend": runtime.backend, "artifact": runtime.artifact.file, "note": note, "times": found}


def _rates(product: machine.MatrixProduct | None) -> list[float]:
    """FLOPs per second of 20 large matrix products."""
    if product is None:
        return []
    rates = []
    for _ in range(25):
        started = time.perf_counter()
        product.call()
        rates.append(product.flops / (time.perf_counter() - started))
    return rates[5:]


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


def judge_goals(steps: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal with its bound, the value measured (None: not measured), of what, and whether it is met."""
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


def _summary(result: dict[str, Any]) -> None:
    shown = Table("step", "status", "seconds", "what", title="GPU validation", title_justify="left")
    for name, step in result["steps"].items():
        what = step.get("reason") or step.get("verdict") or ", ".join(step.get("engines", [])) or ""
        shown.add_row(name, step["status"], f"{step.get('seconds', 0):.0f}", Text(what))
    console = Console()
    console.print(shown)
    for batch, times in result["steps"].get("engine time", {}).get("times", {}).items():
        if times["status"] != "ran":
            console.print(f"{batch}: not run: {times['reason']}", markup=False)
            continue
        steps = ", ".join(f"{name} {part[0]:.3f} ms" for name, part in times["parts_ms"].items())
        console.print(f"{batch}: {steps}, host to host {times['host_to_host_ms'][0]:.2f} ms")
    for one in result["goals"]:
        outcome = {None: "not measured", True: "met", False: "not met"}[one["met"]]
        value = "" if one["value"] is None else f": {one['value']:.2f} of {one['of']}"
        console.print(f"goal: {one['goal']} {one['bound']}{value}, {outcome}", markup=False)


STEPS: dict[str, Callable[[Path, ValidationConfig, float], dict[str, Any]]] = {
    "build": _build, "parity": _parity, "engine time": _engine_time, "latency": _latency, "leaks": _leaks,
}

if __name__ == "__main__":
    cli.run(ValidationConfig, main, PROG)
