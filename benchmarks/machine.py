"""What a result was measured on, and what this machine can do at most."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpt_deploy.errors import DptError
from dpt_deploy.runtime import cuda

IDLE = 0x1  # of nvidia-smi's clocks_event_reasons: nothing to do; every other one holds the clocks down
CLOCKS = 0.05  # a result whose GPU clock moved by more than this is not called stable
PACKAGES = ("dpt-deploy", "numpy", "opencv-python", "torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt",
            "tensorrt_rtx", "cuda-python", "cuda-bindings")
UNITS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "amx_int8", "asimd",
         "bf16", "fphp")
GPU_FIELDS = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit",
              "temperature.gpu", "pstate", "clocks_event_reasons.active", "memory.total", "memory.used")


def record() -> dict[str, Any]:
    """Processor, memory, GPU, versions, date and load, as plain JSON values; nothing that names the host."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _processor(),
        "memory_gb": round(_meminfo("MemTotal") / 1e6, 1),
        "gpu": gpu_state(),
        "load": list(os.getloadavg()),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": _versions(),
    }


def gpu_state() -> dict[str, str] | None:
    """Clocks, power and throttle state of the first GPU, and other processes on it; None without one."""
    query = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        apps = subprocess.run(["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader", "--id=0"],
                              capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    state = dict(zip(GPU_FIELDS, (value.strip() for value in done.stdout.strip().split(",")), strict=False))
    others = [pid for pid in apps.stdout.split() if pid != str(os.getpid())]
    return state | {"other_processes": str(len(others))}


def gpu_doubts(states: list[dict[str, str] | None]) -> list[str]:
    """Why the GPU of a run was not the same all along, from its states under load; empty when it was."""
    found, known = [], [state for state in states if state]
    for state in known:
        reasons = _number(state.get("clocks_event_reasons.active"), 16)
        if reasons and int(reasons) & ~IDLE:
            found.append(f"something held the GPU's clocks down: clocks_event_reasons.active is {int(reasons):#x}")
            break
    clocks = [clock for state in known if (clock := _number(state.get("clocks.sm")))]
    if clocks and max(clocks) > (1 + CLOCKS) * min(clocks):
        found.append(f"the GPU's clock went from {min(clocks):.0f} to {max(clocks):.0f} MHz during the run")
    return found


def _number(text: str | None, base: int = 10) -> float | None:
    try:
        return float(int(text, 16) if base == 16 else float(text))
    except (TypeError, ValueError):  # [N/A], or a field that this driver does not have
        return None


def device_free_mb() -> float:
    """Free memory of the current GPU [MB]; 0 without one."""
    with contextlib.suppress(DptError):
        runtime = cuda.cudart()
        status, free, _ = runtime.cudaMemGetInfo()
        if status == runtime.cudaError_t.cudaSuccess:
            return free / 1e6
    return 0.0


def resident_mb() -> float:
    """Resident memory of this process [MB]; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1e3


def peak_mb() -> float:
    """The largest resident memory of this process so far [MB]; of its own program, not of what started it."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's would begin with the parent's at the fork
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1e3
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


@dataclass(frozen=True)
class MatrixProduct:
    """A large matrix product that can be timed."""

    precision: str
    library: str
    call: Callable[[], None]
    """One product, done on return."""
    flops: float


def matrix_products() -> list[MatrixProduct]:
    """Large matrix products by precision and library; the fastest of a precision is the machine's own ceiling.

    On a GPU fp32 (without TF32) and fp16; on a processor fp32, and bf16 where it has the units. A
    processor's come from several libraries, because none has the best kernel on every one.
    """
    a = np.random.default_rng(0).standard_normal((3072, 3072)).astype(np.float32)
    into = np.empty_like(a)

    def numpy_product() -> None:
        np.matmul(a, a, out=into)

    by_numpy = MatrixProduct("fp32", "NumPy", numpy_product, 2.0 * len(a) ** 3)
    try:
        import torch
    except ImportError:
        return [by_numpy]

    def by_torch(precision: str, n: int, device: str) -> MatrixProduct:
        factor = torch.randn(n, n, device=device).to({"fp32": torch.float32, "fp16": torch.float16,
                                                      "bf16": torch.bfloat16}[precision])
        out = torch.empty_like(factor)

        def product() -> None:
            torch.mm(factor, factor, out=out)
            if device == "cuda":
                torch.cuda.synchronize()

        return MatrixProduct(precision, "PyTorch", product, 2.0 * n**3)

    if torch.cuda.is_available():
        return [by_torch(precision, 8192, "cuda") for precision in ("fp32", "fp16")]
    bf16 = {"avx512_bf16", "amx_bf16"} & set(_processor()["units"])
    return [by_numpy, *(by_torch(precision, 3072, "cpu") for precision in ("fp32", "bf16")[: 1 + bool(bf16)])]


def _processor() -> dict[str, Any]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {"name": platform.processor(), "cores": os.cpu_count(), "units": []}
    name = re.search(r"model name\s*:\s*(.*)", text)
    flags = set((re.search(r"(?:flags|Features)\s*:\s*(.*)", text) or [None, ""])[1].split())
    return {"name": name[1].strip() if name else platform.machine(), "cores": len(os.sched_getaffinity(0)),
            "units": [unit for unit in UNITS if unit in flags]}


def _meminfo(key: str) -> int:
    try:
        return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/meminfo").read_text()).group(1))
    except OSError:
        return 0


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                              timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
