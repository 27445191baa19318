"""What a result was measured on: processor, memory, GPU, versions and load; and how much memory is in use."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpt_deploy import cli
from dpt_deploy.backends import cuda
from dpt_deploy.core.errors import DptError

with cli.needing("dev"):
    import psutil
    import pynvml

MAX_CLOCK_CHANGE = 0.05  # a result is not called stable if the GPU's clock changed by more than this
PACKAGES = ("dpt-deploy", "numpy", "opencv-python", "torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt",
            "tensorrt_rtx", "cuda-python", "cuda-bindings")
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "amx_int8",
                    "asimd", "bf16", "fphp")


def record() -> dict[str, Any]:
    """Processor, memory, GPU, versions, date and load, as plain JSON values; nothing that identifies the host."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": processor(),
        "memory_gb": round(psutil.virtual_memory().total / 1024e6, 1),
        "gpu": gpu_state(),
        "load": list(psutil.getloadavg()),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": _versions(),
    }


def processor() -> dict[str, Any]:
    """Name, usable cores and instruction sets. psutil reports neither the name nor the instruction sets."""
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*:\s*(.*)", text)
    flags = set((re.search(r"(?:flags|Features)\s*:\s*(.*)", text) or [None, ""])[1].split())
    return {"name": name[1].strip() if name else platform.machine(), "cores": len(os.sched_getaffinity(0)),
            "units": [unit for unit in INSTRUCTION_SETS if unit in flags]}


def gpu_state() -> dict[str, Any] | None:
    """Clocks [MHz], power [W], memory [MiB], throttling and other processes of the first GPU; None without one.

    The keys are those of `nvidia-smi --query-gpu`. A value that the driver does not report is None.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        queries = {
            "name": lambda: pynvml.nvmlDeviceGetName(gpu),
            "driver_version": pynvml.nvmlSystemGetDriverVersion,
            "clocks.sm": lambda: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
            "clocks.mem": lambda: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_MEM),
            "clocks.max.sm": lambda: pynvml.nvmlDeviceGetMaxClockInfo(gpu, pynvml.NVML_CLOCK_SM),
            "power.draw": lambda: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
            "power.limit": lambda: pynvml.nvmlDeviceGetPowerManagementLimit(gpu) / 1e3,
            "temperature.gpu": lambda: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
            "pstate": lambda: f"P{pynvml.nvmlDeviceGetPerformanceState(gpu)}",
            "clocks_event_reasons.active": lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu),
            "memory.total": lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu).total / 2**20,
            "memory.used": lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu).used / 2**20,
            "other_processes": lambda: len([process for process in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
                                            if process.pid != os.getpid()]),
        }
        return {key: _value_or_none(query) for key, query in queries.items()}
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _value_or_none(query: Callable[[], Any]) -> Any:
    try:
        return query()
    except pynvml.NVMLError:
        return None


def gpu_doubts(states: list[dict[str, Any] | None]) -> list[str]:
    """Reasons not to call a result on the GPU stable, from its states under load."""
    found, known = [], [state for state in states if state]
    for state in known:
        reasons = (state.get("clocks_event_reasons.active") or 0) & ~pynvml.nvmlClocksEventReasonGpuIdle
        if reasons:
            found.append(f"the GPU was throttled: clocks_event_reasons.active is {reasons:#x}")
            break
    clocks = [state["clocks.sm"] for state in known if state.get("clocks.sm")]
    if clocks and max(clocks) > (1 + MAX_CLOCK_CHANGE) * min(clocks):
        found.append(f"the GPU's clock changed during the run: {min(clocks)} to {max(clocks)} MHz")
    return found


def free_gpu_memory_mb() -> float:
    """Free memory of the current GPU [MB]; 0 without one."""
    try:
        runtime = cuda.cudart()
    except DptError:
        return 0.0
    status, free, _ = runtime.cudaMemGetInfo()
    return free / 1e6 if status == runtime.cudaError_t.cudaSuccess else 0.0


def resident_mb() -> float:
    """Resident memory of this process, in the unit of the committed results: 1000 KiB, which is 1.024 MB."""
    return psutil.Process().memory_info().rss / 1024e3


def peak_resident_mb() -> float:
    """Largest resident memory of this process so far, in the unit of `resident_mb`.

    Read by hand: psutil has no peak on Linux, and getrusage starts with the parent's peak after a fork.
    """
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3


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
