"""What the C++ runtime adds to ONNX Runtime's own time, measured within the same calls.

    make cpp && python -m benchmarks.cpp_overhead [--runs 20] [--json benchmarks/results/cpp_overhead.json]

The C++ runtime runs on a libonnxruntime with a clock around `Run` (timed_onnxruntime.cpp, compiled here): each call of
dpt_infer gives its whole time and the session's time inside it. The difference is checking, pixel conversion and
tensors around the caller's buffers. Without --bundle the model is a random ViT-S: time does not depend on the weights.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.models import graph_bundle
from dpt_deploy import cli
from dpt_deploy.backends.cpp import FORMATS, CppSession, find_library, find_onnxruntime
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BuildError, MissingPackage
from dpt_deploy.core.files import write_json
from dpt_deploy.core.install import install_command

HERE = Path(__file__).resolve().parent
PROG = "python -m benchmarks.cpp_overhead"


@dataclass(frozen=True)
class OverheadConfig:
    """Measure the overhead of the C++ runtime over ONNX Runtime's session."""

    bundle: Path | None = None
    """A bundle to run; a random model with `backbone` when left out."""
    backbone: str = "vit_small_patch16_384"
    """Backbone of the random model."""
    size: tuple[int, int] = (720, 1280)
    """Height and width of the frames [pixels]."""
    formats: tuple[str, ...] = ("rgb", "bgra")
    """Pixel formats; rgb is used in place, the others are converted."""
    threads: int | None = None
    """CPU threads per operator; ONNX Runtime's own choice when left out."""
    warm_up: int = 2
    """Calls that are not counted."""
    runs: int = 20
    """Calls that are."""
    json: Path | None = None
    """Also write the result here."""


def compile_timer(folder: Path) -> Path:
    """The timing libonnxruntime, with the headers that `make cpp` found."""
    library = find_library()
    cache = library.parent / "CMakeCache.txt" if library else None
    if cache is None or not cache.is_file():
        raise MissingPackage("the C++ runtime is not built here. Run: make cpp")
    headers = re.search(r"^ONNXRUNTIME_INCLUDE_DIR:\w+=(.*)$", cache.read_text(), re.MULTILINE)[1]
    timer = folder / "libonnxruntime.so.1"
    command = ["c++", "-std=c++17", "-O2", "-shared", "-fPIC", f"-I{headers}", str(HERE / "timed_onnxruntime.cpp"),
               "-o", str(timer), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr}")
    return timer


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), 4) for q in (50, 90, 99)}


def measure(config: OverheadConfig, session: CppSession, timer: ctypes.CDLL, name: str) -> dict[str, Any]:
    """Percentiles of the whole call, the session inside it and the difference [ms]; the share of the medians."""
    channels = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "gray": 1}[name]
    frames = np.random.default_rng(0).integers(0, 256, (1, *config.size, channels), np.uint8)
    whole, inside = [], []
    call = session.prepare(frames, name)  # buffers are the caller's, made once as in an application
    for i in range(config.warm_up + config.runs):
        timer.timed_run_seconds()
        start = time.perf_counter()
        call()
        passed = time.perf_counter() - start
        if i >= config.warm_up:
            whole.append(1000 * passed)
            inside.append(1000 * timer.timed_run_seconds())
    added = [a - b for a, b in zip(whole, inside, strict=True)]
    return {
        "dpt_infer [ms]": percentiles(whole), "session [ms]": percentiles(inside), "overhead [ms]": percentiles(added),
        "overhead / session": {q: round(value / percentiles(inside)["p50"], 6)
                               for q, value in percentiles(added).items()},
    }


def describe(config: OverheadConfig, session: CppSession, version: str) -> dict[str, Any]:
    """What the numbers were made with."""
    return {
        "command": cli.command_line(PROG), "machine": machine.record(), "libonnxruntime": version,
        "backend": session.backend, "model": config.bundle.name if config.bundle else f"random {config.backbone}",
        "precision": "fp32", "size": list(config.size), "batch": 1, "threads": config.threads or "default",
        "warm_up": config.warm_up, "runs": config.runs,
    }


def main(config: OverheadConfig) -> None:
    if unknown := set(config.formats) - set(FORMATS):
        raise BuildError(f"--formats: expected names among {', '.join(FORMATS)}, received {', '.join(unknown)}.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timer = compile_timer(folder)
        real = find_onnxruntime()
        if real is None:
            raise MissingPackage(f"ONNX Runtime is needed. Run: {install_command('cpu', 'onnxruntime')}")
        os.environ |= {"REAL_ONNXRUNTIME": str(real), "DPT_ONNXRUNTIME_LIBRARY": str(timer)}
        clock = ctypes.CDLL(str(timer))
        clock.timed_run_seconds.restype = ctypes.c_double
        bundle = Bundle.open(config.bundle or graph_bundle(folder / "random", config.backbone))
        with CppSession(bundle, "onnxruntime-cpu", precision="fp32", threads=config.threads) as session:
            result = describe(config, session, real.name.removeprefix("libonnxruntime.so."))
            result["formats"] = {name: measure(config, session, clock, name) for name in config.formats}
    for name, numbers in result["formats"].items():
        session, added = numbers["session [ms]"]["p50"], numbers["overhead [ms]"]["p50"]
        print(f"{name}: session {session:.1f} ms, overhead {added:.3f} ms, {100 * added / session:.3f} %")
    if config.json:
        write_json(config.json, result)


if __name__ == "__main__":
    cli.run(OverheadConfig, main, PROG)
