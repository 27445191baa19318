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

from dpt_deploy.core.errors import DptError
from dpt_deploy.core.processor import flags, model_name

try:
    import pynvml
except ImportError:  # nvidia-smi answers the same questions
    pynvml = None

MAX_CLOCK_CHANGE = 0.05  # a result is not called stable if the GPU's clock changed by more than this
IDLE = 1  # the bit of clocks_event_reasons.active that says that the GPU has nothing to do
PACKAGES = ("dpt-deploy", "numpy", "opencv-python", "torch", "triton", "timm", "onnx", "onnxscript", "onnxruntime",
            "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt_rtx", "cuda-python", "cuda-bindings")
NVIDIA_SMI_KEYS = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit",
                   "temperature.gpu", "pstate", "clocks_event_reasons.active", "memory.total", "memory.used")
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "amx_int8",
                    "avx_vnni", "asimd", "asimddp", "i8mm", "bf16", "fphp")


def record() -> dict[str, Any]:
    """Processor, memory, GPU, versions, date and load, as plain JSON values; nothing that identifies the host."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": processor(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024e6, 1),
        "gpu": gpu_state(),
        "load": list(os.getloadavg()),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": _versions(),
    }


def processor() -> dict[str, Any]:
    """Name, usable cores and instruction sets."""
    return {"name": model_name(), "cores": len(os.sched_getaffinity(0)),
            "units": [unit for unit in INSTRUCTION_SETS if unit in flags()]}


def gpu_state() -> dict[str, Any] | None:
    """Clocks [MHz], power [W], memory [MiB], throttling and other processes of the first GPU; None without one.

    The keys are those of `nvidia-smi --query-gpu`. A value that the driver does not report is None.
    """
    if pynvml is None:
        return _gpu_state_of_nvidia_smi()
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


def _gpu_state_of_nvidia_smi() -> dict[str, Any] | None:
    """`gpu_state` without nvidia-ml-py; None if nvidia-smi is missing or sees no GPU."""
    first = _nvidia_smi("gpu", NVIDIA_SMI_KEYS)
    if not first:
        return None
    state: dict[str, Any] = dict(zip(NVIDIA_SMI_KEYS, map(_parsed, first[0]), strict=True))
    reasons = state["clocks_event_reasons.active"]
    state["clocks_event_reasons.active"] = int(reasons, 16) if isinstance(reasons, str) else reasons
    others = [row for row in _nvidia_smi("compute-apps", ("pid",)) if row != [str(os.getpid())]]
    return state | {"other_processes": len(others)}


def _nvidia_smi(what: str, keys: tuple[str, ...]) -> list[list[str]]:
    """Rows of `nvidia-smi --query-WHAT` for the first GPU; none if it cannot be run."""
    command = ["nvidia-smi", f"--query-{what}={','.join(keys)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def _parsed(cell: str) -> Any:
    """A cell of nvidia-smi as number or text; None for "[N/A]" and the like."""
    if cell.startswith("["):
        return None
    try:
        return float(cell) if "." in cell else int(cell)
    except ValueError:
        return cell


def _value_or_none(query: Callable[[], Any]) -> Any:
    try:
        return query()
    except pynvml.NVMLError:
        return None


def gpu_doubts(states: list[dict[str, Any] | None]) -> list[str]:
    """Reasons not to call a result on the GPU stable, from its states under load."""
    found, known = [], [state for state in states if state]
    for state in known:
        reasons = (state.get("clocks_event_reasons.active") or 0) & ~IDLE
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
        from dpt_deploy.backends import cuda

        runtime = cuda.cudart()
    except (DptError, ImportError):
        return 0.0
    status, free, _ = runtime.cudaMemGetInfo()
    return free / 1e6 if status == runtime.cudaError_t.cudaSuccess else 0.0


def resident_mb() -> float:
    """Resident memory of this process, in the unit of the committed results: 1000 KiB, which is 1.024 MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024e3


def peak_resident_mb() -> float:
    """Largest resident memory of this process so far, in the unit of `resident_mb`.

    getrusage would start with the parent's peak after a fork.
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
