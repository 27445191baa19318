"""What a result was measured on, and what this machine can do at most."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpt_deploy.backends import cuda
from dpt_deploy.core.errors import DptError

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
    call: Callable[[], object]
    """One product, done on return."""
    flops: float


def matrix_products(quick: bool = False) -> list[MatrixProduct]:
    """Large matrix products by precision and library; the fastest of a precision is the machine's own ceiling.

    On a GPU fp32 (without TF32) and fp16; on a processor fp32, and bf16 where it has the units. A
    processor's come from every library that is here, because none has the best kernel on every one.
    `quick` makes them small, and leaves out OpenVINO's, for smoke tests.
    """
    n, on_gpu = (256, 256) if quick else (3072, 8192)
    types = ("fp32", "bf16") if {"avx512_bf16", "amx_bf16"} & set(_processor()["units"]) else ("fp32",)
    by_torch = importlib.util.find_spec("torch") is not None
    if by_torch:
        import torch

        if torch.cuda.is_available():
            return [_torch_product(precision, on_gpu, "cuda") for precision in ("fp32", "fp16")]
    found = [_numpy_product(n)]
    if by_torch:
        found += [_torch_product(precision, n, "cpu") for precision in types]
    if importlib.util.find_spec("openvino") is not None and not quick:
        found += [_openvino_product(precision, n) for precision in types]
    return found


def _numpy_product(n: int) -> MatrixProduct:
    a = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)
    out = np.empty_like(a)

    def product() -> None:
        np.matmul(a, a, out=out)

    return MatrixProduct("fp32", "NumPy", product, 2.0 * n**3)


def _torch_product(precision: str, n: int, device: str) -> MatrixProduct:
    import torch

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    a = torch.randn(n, n, device=device).to(dtype)
    out = torch.empty_like(a)

    def product() -> None:
        torch.mm(a, a, out=out)
        if device == "cuda":
            torch.cuda.synchronize()

    return MatrixProduct(precision, "PyTorch", product, 2.0 * n**3)


def _openvino_product(precision: str, n: int) -> MatrixProduct:
    import openvino
    from openvino import opset13

    from dpt_deploy.backends.openvino import shared_core

    a = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)
    x = opset13.parameter([n, n], np.float32)
    graph = openvino.Model([opset13.matmul(x, opset13.constant(a), False, False)], [x], "product")
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    request = shared_core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": hint}).create_infer_request()
    tensor = openvino.Tensor(a, shared_memory=True)

    def product() -> None:
        request.set_input_tensor(tensor)  # and so keeps the memory alive
        request.infer()

    return MatrixProduct(precision, "OpenVINO", product, 2.0 * n**3)


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
