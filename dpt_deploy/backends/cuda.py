"""GPU memory, streams and foreign device arrays, through NVIDIA's own cuda-python."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import BackendError, ContractError, MissingPackage, missing_package
from . import dlpack

LEGACY_STREAM = 1
"""CUDA's default stream, as the CUDA runtime, DLPack and `__cuda_array_interface__` number it."""
DEFAULT_STREAMS = (0, LEGACY_STREAM, 2)
"""CUDA's default streams: 0 is one of the others, 2 each thread's own. They wait for each other, and never end."""


def cudart() -> Any:
    """The module cuda.bindings.runtime. Raises `MissingPackage` without cuda-python."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise missing_package("cuda-python", "tensorrt", "reach the GPU") from error
    return runtime


def call(function: str, *arguments: Any) -> Any:
    """What a function of the CUDA runtime returns besides its status; `BackendError` with CUDA's words on failure."""
    runtime = cudart()
    status, *values = getattr(runtime, function)(*arguments)
    if status != runtime.cudaError_t.cudaSuccess:
        words = runtime.cudaGetErrorString(status)[1]
        raise BackendError(f"CUDA: {function} failed ({int(status)}): {words.decode()}.")
    return values[0] if len(values) == 1 else None


def current_device() -> int:
    """This thread's current GPU; 0 where cuda-python or a GPU is missing, which what comes next will say."""
    with contextlib.suppress(BackendError, MissingPackage):
        return int(call("cudaGetDevice"))
    return 0


@contextlib.contextmanager
def on_device(device: int) -> Iterator[None]:
    """Make `device` current for this thread while the block runs."""
    before = call("cudaGetDevice")
    if before == device:
        yield
        return
    call("cudaSetDevice", device)
    try:
        yield
    finally:
        call("cudaSetDevice", before)


def make_wait(stream: int, other: int) -> None:
    """Let `stream` wait for what is on the stream `other` by now; the host does not wait."""
    event = call("cudaEventCreateWithFlags", cudart().cudaEventDisableTiming)
    try:
        call("cudaEventRecord", event, other)
        call("cudaStreamWaitEvent", stream, event, 0)
    finally:
        call("cudaEventDestroy", event)  # released once it has passed


def capture(stream: int, enqueue: Callable[[], Any]) -> Any:
    """What `enqueue` puts on `stream` as an instantiated CUDA graph; nothing of it runs.

    For cudaGraphLaunch, and cudaGraphExecDestroy in the end. Raises `BackendError` where it cannot be captured.
    """
    call("cudaStreamBeginCapture", stream, cudart().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
    graph = None
    try:
        try:
            enqueue()
        except BaseException:
            with contextlib.suppress(BackendError):  # the first error is the one to tell
                graph = call("cudaStreamEndCapture", stream)
            raise
        graph = call("cudaStreamEndCapture", stream)
        return call("cudaGraphInstantiate", graph, 0)
    finally:
        if graph is not None:
            with contextlib.suppress(BackendError):
                call("cudaGraphDestroy", graph)


class DeviceBuffer:
    """GPU memory that grows to the largest size asked for. Its owner sees to it that nothing uses it meanwhile."""

    def __init__(self) -> None:
        self.pointer = 0
        self.nbytes = 0

    def reserve(self, nbytes: int) -> int:
        """A pointer to at least `nbytes` bytes; the content is lost when the buffer grows."""
        if nbytes > self.nbytes:
            self.free()
            self.pointer = int(call("cudaMalloc", nbytes))
            self.nbytes = nbytes
        return self.pointer

    def free(self) -> None:
        """Give the memory back; waits for the work that uses it."""
        if self.pointer:
            pointer, self.pointer, self.nbytes = self.pointer, 0, 0
            call("cudaFree", pointer)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at interpreter exit, CUDA may be gone before this object
            self.free()


class PinnedBuffer:
    """Page-locked host memory: the GPU copies from and to it without a detour, while the host goes on."""

    def __init__(self, nbytes: int) -> None:
        self.pointer = int(call("cudaHostAlloc", nbytes, cudart().cudaHostAllocDefault))
        self.nbytes = nbytes

    def array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """The memory as an array; it must not be used after `free`."""
        memory = (ctypes.c_uint8 * self.nbytes).from_address(self.pointer)
        return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)

    def free(self) -> None:
        """Give the memory back."""
        if self.pointer:
            pointer, self.pointer = self.pointer, 0
            call("cudaFreeHost", pointer)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # as above
            self.free()


class StreamMemory:
    """GPU memory from the device's pool, taken and given back in the order of a stream: the host never waits.

    A stream that is not one of CUDA's own must live as long as this object.
    """

    def __init__(self, nbytes: int, stream: int) -> None:
        self.stream = LEGACY_STREAM if stream in DEFAULT_STREAMS else stream
        self.readers: set[int | None] = set()
        """Other streams that may use the memory; None for one that is not known."""
        self.device = call("cudaGetDevice")
        _keep_pool(self.device)
        self.pointer = int(call("cudaMallocAsync", nbytes, self.stream))

    def free(self) -> None:
        """Give the memory back, after the work on the stream and of the readers."""
        if not self.pointer:
            return
        pointer, self.pointer = self.pointer, 0
        with on_device(self.device):
            others = {LEGACY_STREAM if reader in DEFAULT_STREAMS else reader for reader in self.readers} - {self.stream}
            if others == {LEGACY_STREAM}:
                make_wait(self.stream, LEGACY_STREAM)
            elif others:  # someone else's stream may have ended by now: it cannot be asked
                call("cudaDeviceSynchronize")
            call("cudaFreeAsync", pointer, self.stream)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # as above
            self.free()


@functools.cache
def _keep_pool(device: int) -> None:
    """Let the device's pool keep what is given back: by default it returns it at every synchronisation."""
    from cuda.bindings import driver

    pool = call("cudaDeviceGetDefaultMemPool", device)
    call("cudaMemPoolSetAttribute", pool, cudart().cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold,
         driver.cuuint64_t(2**64 - 1))


def trim_pool(device: int) -> None:
    """Return to the device what its pool keeps and nothing uses."""
    call("cudaMemPoolTrimTo", call("cudaDeviceGetDefaultMemPool", device), 0)


class DeviceArray:
    """A C-contiguous array in GPU memory, which lives as long as this object.

    torch.from_dlpack(array) and cupy.from_dlpack(array) use the memory in place; so do libraries that
    read `__cuda_array_interface__`. `numpy()` copies it to the host.
    """

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: Any, owner: Any, stream: int | None) -> None:
        """`owner` keeps the memory alive. `stream`: where the content is being written; None if it is complete."""
        self.pointer = pointer
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.stream = stream
        self._owner = owner

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: Any, stream: int | None) -> DeviceArray:
        """New memory, which work on `stream` will fill; with None, work that waits for CUDA's default stream."""
        memory = StreamMemory(math.prod(shape) * np.dtype(dtype).itemsize, stream or LEGACY_STREAM)
        return cls(memory.pointer, shape, dtype, memory, stream)

    def _shared_with(self, stream: int | None) -> None:
        if isinstance(self._owner, StreamMemory):
            self._owner.readers.add(stream)

    @property
    def nbytes(self) -> int:
        """Size [bytes]."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        stream = None if self.stream is None else self.stream or LEGACY_STREAM
        self._shared_with(None)
        return {"version": 3, "shape": self.shape, "typestr": self.dtype.str, "data": (self.pointer, False),
                "strides": None, "stream": stream}

    def __dlpack_device__(self) -> tuple[int, int]:
        """CUDA memory, and the GPU it lies on."""
        return dlpack.CUDA, int(call("cudaPointerGetAttributes", self.pointer).device)

    def __dlpack__(self, *, stream: int | None = None, copy: bool | None = None, **_: Any) -> Any:
        """A capsule of this memory; the consumer's `stream` is made to wait for what writes it."""
        if copy:
            raise BufferError("this memory is shared as it is: copy it afterwards.")
        if self.stream is not None and stream != -1:
            make_wait(stream or LEGACY_STREAM, self.stream)
        self._shared_with(None if stream == -1 else stream or LEGACY_STREAM)
        return dlpack.make_capsule(self.pointer, self.shape, self.dtype, self.__dlpack_device__(), self)

    def numpy(self) -> np.ndarray:
        """A copy in host memory, after the work that writes it."""
        host = np.empty(self.shape, self.dtype)
        stream = self.stream or 0
        call("cudaMemcpyAsync", host.ctypes.data, self.pointer, self.nbytes,
             cudart().cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)
        call("cudaStreamSynchronize", stream)
        return host


@dataclass(frozen=True)
class DeviceView:
    """Someone else's contiguous GPU memory."""

    pointer: int
    keep: Any
    """Keeps the memory alive."""


def device_view(array: Any, name: str, stream: int, ready: bool, device: int | None = None) -> DeviceView | None:
    """The memory of `array` if it lies on a GPU, None if it lies in host memory.

    `ready` says that the array is ready on `stream`; if not, `stream` is made to wait for the array's
    producer as far as its protocol tells. Raises `ContractError` unless the array is C-contiguous, and,
    where `device` is given, on that GPU.
    """
    if hasattr(array, "__dlpack_device__"):
        kind, found = (int(part) for part in array.__dlpack_device__())
        if kind not in (dlpack.CUDA, dlpack.CUDA_MANAGED):
            return None
        _check_device(name, found, device)
        try:
            capsule = array.__dlpack__(stream=-1 if ready else stream or LEGACY_STREAM)
        except (BufferError, RuntimeError, TypeError) as error:
            raise ContractError(f"{name}: a {type(array).__name__} that cannot be shared ({error}).") from error
        pointer, shape, strides = dlpack.memory(capsule)
        _check_contiguous(name, shape, strides)
        return DeviceView(pointer, capsule)
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        return None
    if device is not None:
        _check_device(name, int(call("cudaPointerGetAttributes", interface["data"][0]).device), device)
    strides = interface.get("strides")
    if strides is not None:
        itemsize = np.dtype(interface["typestr"]).itemsize
        strides = tuple(step // itemsize for step in strides)
    _check_contiguous(name, interface["shape"], strides)
    producer = interface.get("stream")
    if producer is not None and not ready:
        make_wait(stream, producer)
    return DeviceView(int(interface["data"][0]), array)


def _check_device(name: str, found: int, expected: int | None) -> None:
    if expected is not None and found != expected:
        raise ContractError(f"{name}: expected an array on GPU {expected}, where the session was loaded, received one "
                            f"on GPU {found}. Copy it there, or load the bundle with that GPU as the current one.")


def _check_contiguous(name: str, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
    """Raise `ContractError` unless strides [elements] are those of a C-contiguous array."""
    if strides is None:
        return
    expected = 1
    for size, step in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and step != expected:
            raise ContractError(
                f"{name}: expected a C-contiguous device array, received shape {list(shape)} with strides "
                f"{list(strides)} [elements]. Call .contiguous() (torch) or ascontiguousarray (CuPy) first."
            )
        expected *= size
