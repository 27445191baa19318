"""python -m benchmarks.cpp_overhead: what the C++ runtime adds to ONNX Runtime's own time, within the same calls.

Run `make cpp` first. The C++ runtime loads a libonnxruntime that times `Run` (timed_onnxruntime.cpp, compiled here), so
that each call of dpt_infer gives its total time and the session's time within it. The difference is input checks, pixel
conversion and wrapping the caller's buffers in tensors. Without --bundle the model is a random ViT-S: time does not
depend on the weights.
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

from benchmarks import environment
from benchmarks.random_models import frame_graph_bundle
from benchmarks.results import write_result
from dpt_deploy import cli
from dpt_deploy.backends.cpp import FORMATS, CppSession, find_library, find_onnxruntime
from dpt_deploy.cli.options import Json, Names, Size
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BadInput, BuildError, MissingPackage
from dpt_deploy.core.install import install_command

PROG = "python -m benchmarks.cpp_overhead"
RENAMED = {"--size": "--frame-size", "--runs": "--calls"}
CHANNELS = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "gray": 1}


@dataclass(frozen=True)
class OverheadConfig:
    """Measure the overhead of the C++ runtime over ONNX Runtime's session."""

    bundle: Path | None = None
    """Bundle to run. Default: a random model with `backbone`."""
    backbone: str = "vit_small_patch16_384"
    """Backbone of the random model."""
    frame_size: Size = (720, 1280)
    """Size of the frames [pixels]."""
    formats: Names = ("rgb", "bgra")
    """Pixel formats. rgb is used in place, the others are converted."""
    threads: int | None = None
    """CPU threads per operator. Default: ONNX Runtime's choice."""
    warm_up: int = 2
    """Untimed calls before the timed ones."""
    calls: int = 20
    """Timed calls."""
    out: Path | None = None
    """Folder of the result file. Default: benchmarks/results."""
    name: str = "cpp_overhead"
    """Name of the result file: NAME.json."""
    json: Json = False


def main(config: OverheadConfig) -> None:
    if unknown := set(config.formats) - set(FORMATS):
        raise BadInput(f"--formats: expected names among {', '.join(FORMATS)}, received {', '.join(unknown)}.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timer = compile_timer(folder)
        real = find_onnxruntime()
        if real is None:
            raise MissingPackage(f"ONNX Runtime is not installed. Run: {install_command('cpu')}")
        os.environ |= {"REAL_ONNXRUNTIME": str(real), "DPT_ONNXRUNTIME_LIBRARY": str(timer)}
        clock = ctypes.CDLL(str(timer))
        clock.timed_run_seconds.restype = ctypes.c_double
        bundle = Bundle.open(config.bundle or frame_graph_bundle(folder / "random", config.backbone))
        with CppSession(bundle, "onnxruntime-cpu", precision="fp32", threads=config.threads) as session:
            result = {
                "command": cli.command_line(PROG), "machine": environment.record(),
                "libonnxruntime": real.name.removeprefix("libonnxruntime.so."), "backend": session.backend,
                "model": config.bundle.name if config.bundle else f"random {config.backbone}", "precision": "fp32",
                "size": list(config.frame_size), "batch": 1, "threads": config.threads or "default",
                "warm_up": config.warm_up, "runs": config.calls,
                "formats": {name: measure(config, session, clock, name) for name in config.formats},
            }
    write_result(config, result, show)


def compile_timer(folder: Path) -> Path:
    """A libonnxruntime that times `Run`, compiled with the headers that `make cpp` found."""
    library = find_library()
    cache = library.parent / "CMakeCache.txt" if library else None
    if cache is None or not cache.is_file():
        raise MissingPackage("the C++ runtime is not built. Run: make cpp")
    headers = re.search(r"^ONNXRUNTIME_INCLUDE_DIR:\w+=(.*)$", cache.read_text(), re.MULTILINE)[1]
    timer, source = folder / "libonnxruntime.so.1", Path(__file__).resolve().parent / "timed_onnxruntime.cpp"
    command = ["c++", "-std=c++17", "-O2", "-shared", "-fPIC", f"-I{headers}", str(source), "-o", str(timer), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr}")
    return timer


def measure(config: OverheadConfig, session: CppSession, clock: ctypes.CDLL, pixel_format: str) -> dict[str, Any]:
    """Percentiles [ms] of the whole call, of the session within it and of the difference, and its relative size."""
    shape = (1, *config.frame_size, CHANNELS[pixel_format])
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    call = session.prepare(frames, pixel_format)  # allocates the caller's buffers once, as an application does
    whole, inside = [], []
    for i in range(config.warm_up + config.calls):
        clock.timed_run_seconds()  # resets it
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        if i >= config.warm_up:
            whole.append(1000 * seconds)
            inside.append(1000 * clock.timed_run_seconds())
    session_ms, overhead = percentiles(inside), percentiles([a - b for a, b in zip(whole, inside, strict=True)])
    return {"dpt_infer [ms]": percentiles(whole), "session [ms]": session_ms, "overhead [ms]": overhead,
            "overhead / session": {q: round(value / session_ms["p50"], 6) for q, value in overhead.items()}}


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p90 and p99."""
    return {f"p{q}": round(float(np.percentile(values, q)), 4) for q in (50, 90, 99)}


def show(result: dict[str, Any]) -> None:
    """Print one line per pixel format."""
    for name, numbers in result["formats"].items():
        session, added = numbers["session [ms]"]["p50"], numbers["overhead [ms]"]["p50"]
        print(f"{name}: session {session:.1f} ms, overhead {added:.3f} ms, {100 * added / session:.3f} %")


if __name__ == "__main__":
    cli.run(OverheadConfig, main, PROG, renamed=RENAMED)
