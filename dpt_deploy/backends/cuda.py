"""GPU memory, streams and device arrays of other libraries, with cuda-python."""

from __future__ import annotations

import abc
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
"""Handle of the legacy default stream in the CUDA runtime, DLPack and `__cuda_array_interface__`."""
DEFAULT_STREAMS = (0, LEGACY_STREAM, 2)
"""Handles of CUDA's default streams: 0 is either of the others, 1 legacy, 2 per thread. They always exist."""


def cudart() -> Any:
    """Import cuda.bindings.runtime. Raises `MissingPackage` without cuda-python."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise missing_package("cuda-python", "tensorrt", "use the GPU") from error
    return runtime


def call(function: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime and return its result. Raises `BackendError` if its status is an error."""
    runtime = cudart()
    status, *values = getattr(runtime, function)(*arguments)
    if status != runtime.cudaError_t.cudaSuccess:
        reason = runtime.cudaGetErrorString(status)[1].decode()
        raise BackendError(f"CUDA: {function} failed ({int(status)}): {reason}.")
    return values[0] if len(values) == 1 else None


def current_device() -> int:
    """Index of this thread's current GPU. 0 if cuda-python or a GPU is missing."""
    with contextlib.suppress(BackendError, MissingPackage):
        return int(call("cudaGetDevice"))
    return 0


@contextlib.contextmanager
def on_device(device: int) -> Iterator[None]:
    """Context manager: make `device` this thread's current GPU."""
    before = call("cudaGetDevice")
    if before == device:
        yield
        return
    call("cudaSetDevice", device)
    try:
        yield
    finally:
        call("cudaSetDevice", before)


def wait_stream(stream: int, other: int) -> None:
    """Make `stream` wait for the work submitted to the stream `other` so far, without blocking the host."""
    event = call("cudaEventCreateWithFlags", cudart().cudaEventDisableTiming)
    try:
        call("cudaEventRecord", event, other)
        call("cudaStreamWaitEvent", stream, event, 0)
    finally:
        call("cudaEventDestroy", event)  # takes effect after the event has completed


def capture(stream: int, enqueue: Callable[[], Any]) -> Any:
    """Capture the work that `enqueue` submits to `stream` as an executable CUDA graph, without running it.

    The caller destroys the graph with cudaGraphExecDestroy. Raises `BackendError` if capture fails.
    """
    call("cudaStreamBeginCapture", stream, cudart().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
    graph = None
    try:
        try:
            enqueue()
        except BaseException:
            with contextlib.suppress(BackendError):  # report the first error
                graph = call("cudaStreamEndCapture", stream)
            raise
        graph = call("cudaStreamEndCapture", stream)
        return call("cudaGraphInstantiate", graph, 0)
    finally:
        if graph is not None:
            with contextlib.suppress(BackendError):
                call("cudaGraphDestroy", graph)


class _Memory(abc.ABC):
    """Memory that is freed with its owner."""

    @abc.abstractmethod
    def free(self) -> None:
        """Free the memory."""

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # CUDA may already be unloaded at interpreter exit
            self.free()


class _Buffer(_Memory):
    """Memory that grows to the largest requested size. It must not be in use when it grows."""

    def __init__(self) -> None:
        self.pointer = 0
        self.nbytes = 0

    def reserve(self, nbytes: int) -> int:
        """Return a pointer to at least `nbytes` bytes. Growing discards the content.

        A buffer grows by half its size or more, so that sizes that rise step by step cause few allocations. If there
        is not enough memory for that, it grows to `nbytes`.
        """
        if nbytes > self.nbytes:
            ample = max(nbytes, self.nbytes + self.nbytes // 2)
            self.free()
            try:
                self.pointer = self._allocate(ample)
            except BackendError:
                if ample == nbytes:
                    raise
                ample = nbytes
                self.pointer = self._allocate(nbytes)
            self.nbytes = ample
        return self.pointer

    def free(self) -> None:
        """Free the memory after the work that uses it."""
        if self.pointer:
            pointer, self.pointer, self.nbytes = self.pointer, 0, 0
            self._release(pointer)

    @abc.abstractmethod
    def _allocate(self, nbytes: int) -> int:
        """Allocate memory and return its address."""

    @abc.abstractmethod
    def _release(self, pointer: int) -> None:
        """Free what `_allocate` returned."""


class DeviceBuffer(_Buffer):
    """Growing GPU memory."""

    def _allocate(self, nbytes: int) -> int:
        return int(call("cudaMalloc", nbytes))

    def _release(self, pointer: int) -> None:
        call("cudaFree", pointer)


class PinnedBuffer(_Buffer):
    """Growing page-locked host memory, which allows asynchronous copies to and from the GPU."""

    def array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """A view of the start of the memory as an array, invalid once the buffer grows or is freed."""
        memory = (ctypes.c_uint8 * self.nbytes).from_address(self.pointer)
        return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)

    def _allocate(self, nbytes: int) -> int:
        return int(call("cudaHostAlloc", nbytes, cudart().cudaHostAllocDefault))

    def _release(self, pointer: int) -> None:
        call("cudaFreeHost", pointer)


class StreamMemory(_Memory):
    """GPU memory from the device's pool, allocated and freed in stream order without blocking the host.

    Unless it is a default stream, the stream must outlive this object.
    """

    def __init__(self, nbytes: int, stream: int) -> None:
        self.stream = LEGACY_STREAM if stream in DEFAULT_STREAMS else stream
        self.readers: set[int | None] = set()
        """Other streams that may use the memory. None stands for an unknown stream."""
        self.device = call("cudaGetDevice")
        _keep_pool(self.device)
        self.pointer = int(call("cudaMallocAsync", nbytes, self.stream))

    def free(self) -> None:
        """Free the memory after the work on its stream and on the readers' streams."""
        if not self.pointer:
            return
        pointer, self.pointer = self.pointer, 0
        with on_device(self.device):
            others = {LEGACY_STREAM if reader in DEFAULT_STREAMS else reader for reader in self.readers} - {self.stream}
            if others == {LEGACY_STREAM}:
                wait_stream(self.stream, LEGACY_STREAM)
            elif others:  # the caller may have destroyed the stream
                call("cudaDeviceSynchronize")
            call("cudaFreeAsync", pointer, self.stream)


@functools.cache
def _keep_pool(device: int) -> None:
    """Keep freed memory in the device's pool. By default, the pool releases it at every synchronisation."""
    from cuda.bindings import driver

    pool = call("cudaDeviceGetDefaultMemPool", device)
    call("cudaMemPoolSetAttribute", pool, cudart().cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold,
         driver.cuuint64_t(2**64 - 1))


def trim_pool(device: int) -> None:
    """Release the unused memory of the device's pool."""
    call("cudaMemPoolTrimTo", call("cudaDeviceGetDefaultMemPool", device), 0)


class DeviceArray:
    """A C-contiguous array in GPU memory.

    torch.from_dlpack(array), cupy.from_dlpack(array) and `__cuda_array_interface__` share the memory.
    `numpy()` copies it to the host.
    """

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: Any, owner: Any, stream: int | None) -> None:
        """`owner` keeps the memory alive. `stream` is writing the content; None if it is complete."""
        self.pointer = pointer
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.stream = stream
        self._owner = owner

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: Any, stream: int | None) -> DeviceArray:
        """Allocate memory for work on `stream`, or on a stream that waits for the default stream if None."""
        memory = StreamMemory(math.prod(shape) * np.dtype(dtype).itemsize, stream or LEGACY_STREAM)
        return cls(memory.pointer, shape, dtype, memory, stream)

    def _add_reader(self, stream: int | None) -> None:
        if isinstance(self._owner, StreamMemory):
            self._owner.readers.add(stream)

    @property
    def nbytes(self) -> int:
        """Size [bytes]."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        stream = None if self.stream is None else self.stream or LEGACY_STREAM
        self._add_reader(None)
        return {"version": 3, "shape": self.shape, "typestr": self.dtype.str, "data": (self.pointer, False),
                "strides": None, "stream": stream}

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLDeviceType and the index of the GPU."""
        return dlpack.CUDA, int(call("cudaPointerGetAttributes", self.pointer).device)

    def __dlpack__(self, *, stream: int | None = None, copy: bool | None = None, **_: Any) -> Any:
        """Create a capsule and make the consumer's `stream` wait for the work that writes the content."""
        if copy:
            raise BufferError("expected copy=False or None: the memory is always shared. Copy the result instead.")
        if self.stream is not None and stream != -1:
            wait_stream(stream or LEGACY_STREAM, self.stream)
        self._add_reader(None if stream == -1 else stream or LEGACY_STREAM)
        return dlpack.make_capsule(self.pointer, self.shape, self.dtype, self.__dlpack_device__(), self)

    def numpy(self) -> np.ndarray:
        """Copy the array to host memory after the work that writes it."""
        host = np.empty(self.shape, self.dtype)
        stream = self.stream or 0
        call("cudaMemcpyAsync", host.ctypes.data, self.pointer, self.nbytes,
             cudart().cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)
        call("cudaStreamSynchronize", stream)
        return host


@dataclass(frozen=True)
class DeviceView:
    """Contiguous GPU memory of another library."""

    pointer: int
    owner: Any
    """Keeps the memory alive."""


def device_view(array: Any, name: str, stream: int, ready: bool, device: int | None = None) -> DeviceView | None:
    """The GPU memory of an array, or None if it is in host memory.

    Args:
        array: Anything with `__dlpack__` or `__cuda_array_interface__`, or a host array.
        name: Name of the array for error messages.
        stream: The stream that will read the memory.
        ready: Whether the array is ready on `stream`. If not, `stream` waits for the producer's stream.
        device: Index of the required GPU, or None for any.

    Raises:
        ContractError: The array is not C-contiguous, is on another GPU, or cannot be shared.
    """
    if hasattr(array, "__dlpack_device__"):
        kind, found = (int(part) for part in array.__dlpack_device__())
        if kind not in (dlpack.CUDA, dlpack.CUDA_MANAGED):
            return None
        _check_device(name, found, device)
        try:
            capsule = array.__dlpack__(stream=-1 if ready else stream or LEGACY_STREAM)
        except (BufferError, RuntimeError, TypeError) as error:
            raise ContractError(f"{name}: expected an array that can be shared, but {type(array).__name__}.__dlpack__ "
                                f"failed ({error}).") from error
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
        wait_stream(stream, producer)
    return DeviceView(int(interface["data"][0]), array)


def _check_device(name: str, found: int, expected: int | None) -> None:
    if expected is not None and found != expected:
        raise ContractError(f"{name}: expected an array on GPU {expected}, where the session was loaded, received one "
                            f"on GPU {found}. Copy it to GPU {expected}, or load the bundle with GPU {found} as the "
                            "current one.")


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
