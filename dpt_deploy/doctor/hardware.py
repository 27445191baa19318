"""Check the software and hardware of this machine by using it."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from .. import backends
from ..backends import Check, device
from ..core import processor
from ..core.bundle import MANIFEST
from ..core.files import unwritable
from ..core.install import install_command, reinstall_command

MIN_FREE_BYTES = 4e9  # an export of a ViT-B with both engines takes 1.8 GB


def check_machine(folder: Path) -> list[Check]:
    """All checks of the machine, with free space and permissions at `folder`, the bundle's or the working folder."""
    checks = [Check("Python", "ok", f"{platform.python_version()} on {platform.machine()}, {sys.platform}")]
    checks += [eight_bits()]
    checks += _guarded("driver", driver) + _guarded("GPU", gpu)
    for backend in backends.registered():
        checks += _guarded(backend.title, backend.diagnose, backend.package)
    checks += _guarded("OpenCV", opencv, "opencv-python") + _guarded("PyTorch", torch, "torch", "torchvision")
    return [*checks, disk(folder), *writable(folder)]


def eight_bits() -> Check:
    """The processor's instructions for 8-bit products, and what they mean for INT8 graphs."""
    if processor.eight_bit_units():
        meaning = "INT8 graphs can run several times as fast as FP32"
    elif processor.may_saturate():
        meaning = "INT8 graphs run, gain less, and 8-bit products may saturate in 16 bits"
    else:
        meaning = "measure INT8 graphs before using them"
    return Check("eight bits", "ok", f"{processor.eight_bit_summary()}: {meaning}")


def driver() -> list[Check]:
    """The NVIDIA driver and CUDA."""
    file = Path("/proc/driver/nvidia/version")
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    version = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", text)
    found = [Check("driver", "ok", f"NVIDIA {version[1]}") if version else
             Check("driver", "not checked", "no NVIDIA driver is loaded")]
    try:
        from cuda.bindings import runtime as cudart
    except ImportError:
        return [*found, Check("CUDA", "not installed", "cuda-python is missing and is needed to detect a GPU",
                              install_command("tensorrt-rtx", "cuda-python"))]
    built = _cuda(cudart.getLocalRuntimeVersion()[1])
    supported = cudart.cudaDriverGetVersion()[1]
    limit = f"the driver supports up to {_cuda(supported)}" if supported else "no driver"
    return [*found, Check("CUDA", "ok" if supported else "not checked", f"runtime {built}; {limit}")]


def gpu() -> list[Check]:
    """The first GPU, its compute capability and its memory."""
    capability = device.compute_capability()
    if capability is None:
        return [Check("GPU", "not checked", device.NO_GPU)]
    from cuda.bindings import runtime as cudart

    properties = cudart.cudaGetDeviceProperties(0)[1]
    status, free, total = cudart.cudaMemGetInfo()
    if status != cudart.cudaError_t.cudaSuccess:
        raise RuntimeError(f"cudaMemGetInfo returned {status.name}")
    name = properties.name.decode() if isinstance(properties.name, bytes) else properties.name
    return [Check("GPU", "ok", f"{name}, compute capability {capability}, {free / 1e9:.1f} of "
                  f"{total / 1e9:.1f} GB free")]


def opencv() -> list[Check]:
    """OpenCV, by encoding and decoding an image."""
    cv2 = _imported("cv2")
    if cv2 is None:
        return [Check("OpenCV", "failed", "not installed, but required by every command", install_command(""))]
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    same = np.array_equal(cv2.imdecode(cv2.imencode(".png", image)[1], cv2.IMREAD_COLOR), image)
    status, note = ("ok", "") if same else ("failed", " decodes a PNG incorrectly")
    return [Check("OpenCV", status, cv2.__version__ + note)]


def torch() -> list[Check]:
    """PyTorch, needed only for training and export, by computing on its GPU."""
    module = _imported("torch")
    if module is None:
        return [Check("PyTorch", "not installed", "needed only for training and export",
                      install_command("export"))]
    if not module.cuda.is_available():
        return [Check("PyTorch", "ok", f"{module.__version__}, on the CPU")]
    total = float(module.ones(8, device="cuda").sum())
    return [Check("PyTorch", "ok" if total == 8 else "failed", f"{module.__version__}, CUDA {module.version.cuda}")]


def disk(folder: Path) -> Check:
    """The free disk space at a folder, which need not exist."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    enough = free >= MIN_FREE_BYTES
    return Check("disk", "ok" if enough else "warning", f"{free / 1e9:.0f} GB free" + ("" if enough else
                 f", and an export needs up to {MIN_FREE_BYTES / 1e9:.0f} GB"), "" if enough else f"df -h {folder}")


def writable(folder: Path) -> list[Check]:
    """Whether files can be created in the folders that commands write to."""
    uses = {
        folder.absolute(): "export, build and parity write a bundle" if (folder / MANIFEST).exists() else
                           "commands write their results",
        Path.cwd(): "commands write their results, unless --out names another folder",
    }
    checks = []
    for place, use in uses.items():
        if reason := unwritable(place):
            checks.append(Check("output folder", "warning", f"{use} to {place}, which cannot be written", reason))
    try:
        tempfile.gettempdir()
    except OSError as error:
        checks.append(Check("temporary folder", "failed", error.strerror or str(error),
                            "Set TMPDIR to a folder that can be written."))
    return checks or [Check("output folder", "ok", f"{folder.absolute()} can be written")]


def _guarded(subject: str, check: Callable[[], list[Check]], *packages: str) -> list[Check]:
    """Run a check and report any exception, so that a broken library does not stop the doctor."""
    try:
        return check()
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        remedy = reinstall_command(*packages) if packages else "nvidia-smi"
        return [Check(subject, "failed", f"installed but broken: {type(error).__name__}: {first}", remedy)]


def _imported(name: str) -> ModuleType | None:
    """Import a module. None if it is not installed; errors of a broken module are raised."""
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def _cuda(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
