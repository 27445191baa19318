"""The C++ runtime as a session through its C ABI, for parity and tests.

Python applications do not need it, because the other backends compute the same maps.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.bundle import Bundle
from ..core.contract import Graph
from ..core.errors import BackendError, BadBundle, BadInput, Cause, ContractError, DptError, MissingPackage
from ..core.manifest import EIGHT_BITS, Artifact, Precision
from .base import Backend, Refusal, SessionOptions, StageTask
from .session import Session, host_array, reject_stream

VARIABLE = "DPT_RUNTIME_LIBRARY"
ABI = 1
NOT_BUILT = f"the C++ runtime is not built. Run: make cpp, or set {VARIABLE} to the library's path."
BACKENDS = ("auto", "tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu")
PRECISIONS = ("auto", "fp16", "bf16", "fp32", "int8", "fp8")
FORMATS = {"rgb": 0, "bgr": 1, "rgba": 2, "bgra": 3, "gray": 4}
ERRORS: dict[int, type[DptError]] = {
    1: BadInput, 2: BadBundle, 3: ContractError, 4: MissingPackage, 5: BackendError, 6: BackendError, 7: BackendError,
}


class Options(ctypes.Structure):
    """dpt_options of dpt_runtime.h."""

    _fields_ = (
        ("size", ctypes.c_uint32), ("backend", ctypes.c_int32), ("precision", ctypes.c_int32),
        ("threads", ctypes.c_int32), ("device", ctypes.c_int32), ("no_cuda_graph", ctypes.c_int32),
        ("onnxruntime_library", ctypes.c_char_p), ("backend_folder", ctypes.c_char_p),
        ("reserved", ctypes.c_uint64 * 8),
    )


class Frames(ctypes.Structure):
    """dpt_frames of dpt_runtime.h."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("batch", ctypes.c_int32), ("height", ctypes.c_int32), ("width", ctypes.c_int32),
        ("format", ctypes.c_int32), ("row_stride", ctypes.c_int64), ("frame_stride", ctypes.c_int64),
    )


class Maps(ctypes.Structure):
    """dpt_maps of dpt_runtime.h."""

    _fields_ = (("depth", ctypes.c_void_p), ("normals", ctypes.c_void_p), ("alpha", ctypes.c_void_p))


def find_library() -> Path | None:
    """Path of libdpt_runtime: $DPT_RUNTIME_LIBRARY, or the output of `make cpp` in a clone. None if not found."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    built = Path(__file__).parents[2] / "build-cpp" / "release" / f"libdpt_runtime.so.{ABI}"
    return built if built.is_file() else None


def find_onnxruntime() -> Path | None:
    """Path of libonnxruntime in the installed onnxruntime package. None if not found."""
    spec = importlib.util.find_spec("onnxruntime")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return next((path for folder in folders for path in sorted(Path(folder, "capi").glob("libonnxruntime.so.*"))), None)


@functools.cache
def load_library(path: Path) -> ctypes.CDLL:
    """Load libdpt_runtime and declare its functions. Raises `MissingPackage` if it cannot be loaded."""
    try:
        library = ctypes.CDLL(str(path))
        library.dpt_options_default.restype = Options
        library.dpt_load.argtypes = (ctypes.c_char_p, ctypes.POINTER(Options), ctypes.POINTER(ctypes.c_void_p))
        library.dpt_unload.argtypes = (ctypes.c_void_p,)
        library.dpt_unload.restype = None
        call = (ctypes.c_void_p, ctypes.POINTER(Frames), ctypes.POINTER(Maps))
        library.dpt_infer.argtypes = call
        library.dpt_infer_device.argtypes = (*call, ctypes.c_void_p)
        library.dpt_largest_batch.argtypes = (ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)
        library.dpt_heads.argtypes = (ctypes.c_void_p,)
        library.dpt_heads.restype = ctypes.c_uint32
        for name in ("dpt_contract_json", "dpt_backend_name", "dpt_reason", "dpt_last_error", "dpt_version"):
            getattr(library, name).argtypes = () if name in ("dpt_last_error", "dpt_version") else (ctypes.c_void_p,)
            getattr(library, name).restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        raise MissingPackage(f"{path}: expected the C++ runtime, but {error}. Build it with: make cpp") from error
    return library


class CppRuntime(Backend):
    """The C++ runtime with its ONNX Runtime backend, as C and C++ applications use it."""

    name = "cpp"
    title = "C++ runtime"
    runs = "the frame graph, in C and C++ programs"
    automatic = False  # the other backends compute the same maps

    def unavailable(self) -> Refusal | None:
        return None if find_library() else Refusal(Cause.NOT_BUILT, NOT_BUILT)

    def candidates(self, bundle: Bundle, graph: Graph, precision: Precision | None) -> list[Artifact]:
        return bundle.find("onnx", graph="frame", precision=precision or "fp32") if graph == "frame" else []

    def open(self, bundle: Bundle, artifact: Artifact, options: SessionOptions) -> Session:
        return CppSession(bundle, "onnxruntime-cpu", artifact.precision, options.threads)

    def stages(self, bundle: Bundle) -> list[StageTask]:
        return [task for task in super().stages(bundle) if task.id.precision in ("fp32", *EIGHT_BITS)]


class CppSession(Session):
    """A bundle's frame graph in the C++ runtime. Takes and returns host arrays. Thread-safe."""

    def __init__(
        self, bundle: Bundle, backend: str = "auto", precision: str | None = None, threads: int | None = None,
        library: Path | None = None,
    ) -> None:
        """Load a bundle in the C++ runtime, which selects the artefact.

        Args:
            bundle: The bundle to load.
            backend: One of `BACKENDS`.
            precision: fp16, bf16, fp32, int8 or fp8. None leaves the choice to the library.
            threads: CPU threads per operator. None uses the library's default.
            library: Path of libdpt_runtime. Default: `find_library()`.

        Raises:
            BackendError: The library is not built.
            DptError: The library reports an error. The subclass is that of the Python runtime.
        """
        super().__init__(bundle.contract, "frame")
        self.handle = ctypes.c_void_p()
        path = library or find_library()
        if path is None:
            raise BackendError(NOT_BUILT, Cause.NOT_BUILT)
        self.library = load_library(Path(path))
        options = self.library.dpt_options_default()
        options.backend = BACKENDS.index(backend)
        options.precision = PRECISIONS.index(precision or "auto")
        options.threads = threads or 0
        wheel = None if os.environ.get("DPT_ONNXRUNTIME_LIBRARY") else find_onnxruntime()
        options.onnxruntime_library = os.fsencode(wheel) if wheel else None
        self.check(self.library.dpt_load(os.fsencode(bundle.folder), options, self.handle))
        self.backend = self.library.dpt_backend_name(self.handle).decode()
        self._reason = self.reason

    @property
    def reason(self) -> str:
        """Which backend and file run, why the preferred ones do not, and whether CUDA graphs are used."""
        if self.handle:
            self._reason = self.library.dpt_reason(self.handle).decode()
        return self._reason

    def check(self, status: int) -> None:
        """Raise the error for a non-zero status, with the library's message."""
        if status:
            raise ERRORS[status](self.library.dpt_last_error().decode())

    def _run(self, inputs: Mapping[str, Any], outputs: list[str], stream: int | None) -> dict[str, Any]:
        reject_stream(stream, "the C++ runtime in Python")
        return self.infer(host_array(inputs["frame"], "frame"), outputs=outputs)

    def infer(
        self, pixels: np.ndarray, pixel_format: str = "rgb", outputs: list[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Compute the maps and return them by head, as the frame graph outputs them.

        Args:
            pixels: uint8 (N, H, W, C), or (N, H, W) for gray. Pixels within a row must be contiguous; rows and frames
                may have any strides.
            pixel_format: A key of `FORMATS`.
            outputs: The heads to compute. Default: all.
        """
        return self.prepare(pixels, pixel_format, outputs)()

    def prepare(
        self, pixels: np.ndarray, pixel_format: str = "rgb", outputs: list[str] | None = None
    ) -> Callable[[], dict[str, np.ndarray]]:
        """Return a function that runs `infer` on the current content of `pixels` and reuses the output arrays."""
        n, h, w = pixels.shape[:3]
        frames = Frames(pixels.ctypes.data, n, h, w, FORMATS[pixel_format], pixels.strides[1], pixels.strides[0])
        wanted = list(self.outputs if outputs is None else outputs)
        shapes = {"depth": (n, h, w), "normals": (n, h, w, 3), "alpha": (n, h, w)}
        results = {head: np.empty(shapes[head], np.float32) for head in wanted}
        maps = Maps(**{head: array.ctypes.data for head, array in results.items()})

        def call(pixels: np.ndarray = pixels) -> dict[str, np.ndarray]:  # the default argument keeps the pixels alive
            self.check(self.library.dpt_infer(self.handle, frames, maps))
            return results

        return call

    def largest_batch(self, size: tuple[int, int]) -> int | None:
        return self.library.dpt_largest_batch(self.handle, *size) or None

    def close(self) -> None:
        super().close()
        if self.handle:
            self.library.dpt_unload(self.handle)
            self.handle = ctypes.c_void_p()

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.close()
