"""What this machine has, each thing tried and not merely listed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import platform
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..backends import device
from ..backends.tensorrt_faults import known_faults
from ..core.install import install_command, install_onnxruntime
from . import Check

SEE_GPU = "nvidia-smi"  # what it prints tells whether driver and GPU still answer
NO_GPU = "no NVIDIA GPU is visible"
LEAST_FREE = 4e9  # bytes; an export of a ViT-B with both engines takes 1.8 GB
PROVIDERS = ("TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider", "CUDAExecutionProvider",
             "OpenVINOExecutionProvider", "CPUExecutionProvider")


def check_machine(folder: Path) -> list[Check]:
    """Every check of the machine; `folder` is where free disk is counted."""
    checks = [Check("Python", "ok", f"{platform.python_version()} on {platform.machine()}, {sys.platform}")]
    for look in (driver, gpu, tensorrt, tensorrt_rtx, onnxruntime, openvino, opencv, torch):
        checks += _guarded(look)
    return [*checks, disk(folder)]


def driver() -> list[Check]:
    """NVIDIA's driver, and CUDA."""
    file = Path("/proc/driver/nvidia/version")
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    version = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", text)
    found = [Check("driver", "ok", f"NVIDIA {version[1]}") if version else
             Check("driver", "not checked", "no NVIDIA driver is loaded")]
    try:
        from cuda.bindings import runtime as cudart
    except ImportError:
        return [*found, Check("CUDA", "not installed", "cuda-python is missing: no GPU can be seen without it",
                              install_command("tensorrt-rtx", "cuda-python"))]
    built = _cuda(cudart.getLocalRuntimeVersion()[1])
    supported = cudart.cudaDriverGetVersion()[1]
    driver_says = f"driver supports up to {_cuda(supported)}" if supported else "no driver to ask"
    return [*found, Check("CUDA", "ok" if supported else "not checked", f"runtime {built}; {driver_says}")]


def gpu() -> list[Check]:
    """The first GPU with its compute capability and memory."""
    capability = device.compute_capability()
    if capability is None:
        return [Check("GPU", "not checked", NO_GPU)]
    from cuda.bindings import runtime as cudart

    properties = cudart.cudaGetDeviceProperties(0)[1]
    status, free, total = cudart.cudaMemGetInfo()
    if status != cudart.cudaError_t.cudaSuccess:
        raise RuntimeError(f"cudaMemGetInfo answers {status.name}")
    name = properties.name.decode() if isinstance(properties.name, bytes) else properties.name
    return [Check("GPU", "ok", f"{name}, compute capability {capability}, {free / 1e9:.1f} of "
                  f"{total / 1e9:.1f} GB free")]


def tensorrt() -> list[Check]:
    """TensorRT, and what is documented against the version that is installed."""
    trt = _imported("tensorrt")
    if trt is None:
        return [Check("TensorRT", "not installed", "engines for one GPU, built on it", install_command("tensorrt"))]
    capability = device.compute_capability()
    first = _builds(trt, "TensorRT", trt.__version__) if capability else \
        Check("TensorRT", "not checked", f"{trt.__version__} imports; {NO_GPU}, so it cannot build")
    return [first, *against(trt.__version__, capability)]


def against(version: str, capability: str | None) -> list[Check]:
    """One check for each fault documented for this TensorRT version; one that says so where there is none."""
    found = []
    for fault, sure in known_faults(version, capability):
        only = "" if sure else f" (on GPUs of compute capability {', '.join(fault.capabilities)} alone)"
        status = "not checked" if not sure else "warning" if fault.refit_only else "failed"
        found.append(Check("TensorRT for ViT", status, f"{version}: {fault.what}{only}; see {fault.source}",
                           install_command("tensorrt", "tensorrt", flags=("--upgrade",)) if sure else ""))
    nothing = f"nothing is known against {version}; parity on the GPU is the proof"
    return found or [Check("TensorRT for ViT", "ok", nothing)]


def tensorrt_rtx() -> list[Check]:
    """TensorRT-RTX: a builder is made, which needs no GPU."""
    trt = _imported("tensorrt_rtx")
    if trt is None:
        return [Check("TensorRT-RTX", "not installed", "engines built without a GPU", install_command("tensorrt-rtx"))]
    return [_builds(trt, "TensorRT-RTX", trt.__version__)]


def onnxruntime() -> list[Check]:
    """ONNX Runtime, and each provider it lists, by opening a session with it."""
    ort = _imported("onnxruntime")
    if ort is None:
        return [Check("ONNX Runtime", "not installed", "runs the ONNX graphs",
                      install_onnxruntime())]
    listed = [name for name in ort.get_available_providers() if name in PROVIDERS]
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it cannot find
            ort.preload_dlls()
    found = [Check("ONNX Runtime", "ok", f"{ort.__version__}, lists {', '.join(listed)}")]
    for provider in listed:
        found.append(_tried(ort, provider))
    return found


def openvino() -> list[Check]:
    """OpenVINO, and the precisions that this processor computes in."""
    ov = _imported("openvino")
    if ov is None:
        return [Check("OpenVINO", "not installed", "optional: fast on CPUs", install_command("cpu", "openvino"))]
    core = ov.Core()
    able = [name for name in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") if name in ("FP32", "FP16", "BF16")]
    return [Check("OpenVINO", "ok", f"{ov.__version__.split('-')[0]}, devices {', '.join(core.available_devices)}, "
                  f"this CPU computes in {', '.join(sorted(able))}")]


def opencv() -> list[Check]:
    """OpenCV: an image is written and read again."""
    cv2 = _imported("cv2")
    if cv2 is None:
        return [Check("OpenCV", "failed", "not installed, and nothing runs without it",
                      install_command("", "opencv-python"))]
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    same = np.array_equal(cv2.imdecode(cv2.imencode(".png", image)[1], cv2.IMREAD_COLOR), image)
    return [Check("OpenCV", "ok" if same else "failed", f"{cv2.__version__}" + ("" if same else " changes a PNG"))]


def torch() -> list[Check]:
    """PyTorch: needed to train and to export, by nothing else. Its GPU is tried."""
    module = _imported("torch")
    if module is None:
        return [Check("PyTorch", "not installed", "needed to train and to export alone",
                      install_command("export"))]
    if not module.cuda.is_available():
        return [Check("PyTorch", "ok", f"{module.__version__}, on the CPU")]
    total = float(module.ones(8, device="cuda").sum())
    return [Check("PyTorch", "ok" if total == 8 else "failed", f"{module.__version__}, CUDA {module.version.cuda}")]


def disk(folder: Path) -> Check:
    """Free disk where a bundle is, or would be."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    enough = free >= LEAST_FREE
    return Check("disk", "ok" if enough else "warning", f"{free / 1e9:.0f} GB free" + ("" if enough else
                 f", and an export needs up to {LEAST_FREE / 1e9:.0f} GB"), "" if enough else f"df -h {folder}")


def _guarded(look: Callable[[], list[Check]]) -> list[Check]:
    """A check, or what went wrong in it: a broken library breaks in many ways, and must not stop the doctor."""
    try:
        return look()
    except Exception as error:
        first, name = (str(error).strip().splitlines() or [""])[0], look.__name__
        remedy = install_command(*PACKAGES[name], flags=("--force-reinstall",)) if name in PACKAGES else SEE_GPU
        return [Check(name, "failed", f"installed but broken: {type(error).__name__}: {first}", remedy)]


# Check -> the extra, and the packages of it that are installed again.
PACKAGES = {"tensorrt": ("tensorrt", "tensorrt"), "tensorrt_rtx": ("tensorrt-rtx", "tensorrt_rtx"),
            "openvino": ("cpu", "openvino"), "onnxruntime": ("cpu", "onnxruntime"), "opencv": ("", "opencv-python"),
            "torch": ("export", "torch", "torchvision")}


def _imported(name: str) -> ModuleType | None:
    """The module, None where it is not installed. What its import raises is raised."""
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def _builds(trt: Any, name: str, version: str) -> Check:
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    if builder is None:
        return Check(name, "failed", f"{version} gives no builder")
    missing = "" if importlib.util.find_spec("polygraphy") else "; polygraphy is missing"
    return Check(name, "warning" if missing else "ok", f"{version}, its builder starts{missing}",
                 install_command("tensorrt-rtx", "polygraphy", "onnx") if missing else "")


def _tried(ort: Any, provider: str) -> Check:
    """Whether a session really runs on a provider: ONNX Runtime falls back to the CPU without a word."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    chain = [provider] if provider == "CPUExecutionProvider" else [provider, "CPUExecutionProvider"]
    try:
        session = ort.InferenceSession(doubling_graph(), options, providers=chain)
        active = session.get_providers()[0]
        (answer,) = session.run(None, {"x": np.array([1, 2], np.float32)})
    except Exception as error:  # its exceptions share no base class but this one
        return Check(provider, "failed", f"listed, and fails: {(str(error).strip().splitlines() or ['?'])[0]}")
    if active == provider and answer.tolist() == [2.0, 4.0]:
        return Check(provider, "ok", "runs a graph")
    reason = NO_GPU if device.compute_capability() is None else "its libraries are not found"
    return Check(provider, "warning", f"listed, and falls back to {active}: {reason}",
                 "" if reason == NO_GPU else install_command("gpu", "onnxruntime-gpu"))


def doubling_graph() -> bytes:
    """The smallest ONNX graph that computes: y = x + x, float32 (2,). Written by hand, for onnx may be absent."""
    def field(number: int, payload: bytes) -> bytes:
        return bytes([number << 3 | 2, len(payload)]) + payload

    def value(name: bytes) -> bytes:  # ValueInfoProto: name, tensor type float, shape (2,)
        shape = field(1, b"\x08\x02")
        return field(1, name) + field(2, field(1, b"\x08\x01" + field(2, shape)))

    node = field(1, b"x") + field(1, b"x") + field(2, b"y") + field(3, b"n") + field(4, b"Add")
    graph = field(1, node) + field(2, b"g") + field(11, value(b"x")) + field(12, value(b"y"))
    return b"\x08\x08" + field(7, graph) + field(8, b"\x10\x0d")  # IR version 8, opset 13


def _cuda(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
