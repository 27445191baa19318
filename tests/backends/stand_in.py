"""A stand-in for the CUDA runtime and for an execution context, which keeps the books in host memory.

It shows that calls are made in a right order, without a GPU; that a device does the same, tests marked gpu show.
"""

from __future__ import annotations

import collections
import ctypes
import queue
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dpt_deploy.backends import cuda
from dpt_deploy.backends.engines import EngineProfile
from dpt_deploy.backends.session import Session
from dpt_deploy.backends.stream_worker import StreamWorker
from dpt_deploy.backends.tensorrt_session import TensorRTSession
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BackendError


class StandIn:
    """The CUDA runtime as far as a worker uses it: memory is the host's, work is done at once unless captured."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.capturing: list[Callable[[], None]] | None = None
        self.alive: set[Any] = set()
        self.can_capture = True
        self.scratch_fails = False
        self.full = False
        self.most: int | None = None
        """The largest allocation that succeeds [bytes]."""
        self.recorded: dict[int, int] = {}
        self.order: list[tuple[Any, ...]] = []
        """What waited for what, and what memory came and went in the order of a stream."""
        self._next = 1000

    def cudart(self) -> Any:
        kinds = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
        modes = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
        pools = types.SimpleNamespace(cudaMemPoolAttrReleaseThreshold=4)
        return types.SimpleNamespace(cudaMemcpyKind=kinds, cudaStreamCaptureMode=modes, cudaStreamNonBlocking=1,
                                     cudaMemPoolAttr=pools,
                                     cudaEventDisableTiming=2, cudaHostAllocDefault=0)

    def call(self, function: str, *arguments: Any) -> Any:
        self.counts[function] += 1
        action = getattr(self, function, None)
        return action(*arguments) if action else None

    def enqueue(self, work: Callable[[], None]) -> None:
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    def _handle(self) -> int:
        self._next += 1
        self.alive.add(self._next)
        return self._next

    def cudaMalloc(self, nbytes: int) -> int:
        assert self.capturing is None, "allocated within a capture"
        if self.full or (self.most is not None and nbytes > self.most):
            raise BackendError("CUDA: cudaMalloc failed (2): out of memory.")
        block = ctypes.create_string_buffer(max(1, nbytes))
        self.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def cudaHostAlloc(self, nbytes: int, flags: int) -> int:
        return self.cudaMalloc(nbytes)

    def cudaFree(self, pointer: int) -> None:
        del self.memory[pointer]

    cudaFreeHost = cudaFree

    def cudaMallocAsync(self, nbytes: int, stream: int) -> int:
        self.order.append(("allocate", stream))
        return self.cudaMalloc(nbytes)

    def cudaFreeAsync(self, pointer: int, stream: int) -> None:
        self.order.append(("free", stream))
        self.cudaFree(pointer)

    def cudaGetDevice(self) -> int:
        return 0

    def cudaEventRecord(self, event: int, stream: int) -> None:
        self.recorded[event] = stream

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        if event in self.recorded:
            self.order.append((stream, "waits for", self.recorded[event]))

    def cudaDeviceSynchronize(self) -> None:
        self.order.append(("all wait",))

    def cudaMemcpyAsync(self, to: int, source: int, nbytes: int, kind: int, stream: int) -> None:
        self.enqueue(lambda: ctypes.memmove(to, source, nbytes) and None)

    def cudaStreamCreateWithFlags(self, flags: int) -> int:
        return self._handle()

    cudaEventCreateWithFlags = cudaStreamCreateWithFlags

    def cudaEventCreate(self) -> int:
        return self._handle()

    def cudaEventElapsedTime(self, start: int, end: int) -> float:
        return 40.0

    def cudaStreamDestroy(self, handle: int) -> None:
        self.alive.remove(handle)

    cudaEventDestroy = cudaGraphDestroy = cudaStreamDestroy

    def cudaGraphExecDestroy(self, graph: Any) -> None:
        self.alive.remove(id(graph))

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> None:
        self.capturing = []

    def cudaStreamEndCapture(self, stream: int) -> Any:
        work, self.capturing = self.capturing, None
        self.work = work
        if not self.can_capture:
            raise BackendError("CUDA: cudaStreamEndCapture failed")
        return self._handle()

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:
        captured = tuple(self.work)
        self.alive.add(id(captured))
        return captured

    def cudaGraphLaunch(self, graph: Any, stream: int) -> None:
        assert id(graph) in self.alive, "launched a graph that was destroyed"
        for work in graph:
            work()


class Context:
    """depth = the sum of a frame's channels, by way of scratch memory whose size follows the shape."""

    def __init__(self, device: StandIn) -> None:
        device.counts["create_context"] += 1
        self.device, self.addresses, self.scratch = device, {}, (0, 0)
        self.streams: list[int] = []
        self.changes = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.device.counts["set_input_shape"] += 1
        self.shape = shape
        self.changes += 1
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape[:3]

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.addresses[name] = pointer
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return 0 if self.device.scratch_fails else int(np.prod(self.shape)) * 4

    def is_stream_capturable(self, stream: int) -> bool:
        """Of TensorRT-RTX alone."""
        assert self.streams, "asked before anything ran"
        return self.device.can_capture

    def set_device_memory(self, pointer: int, nbytes: int) -> None:
        self.scratch = (pointer, nbytes)

    def execute_async_v3(self, stream: int) -> bool:
        shape, addresses, (scratch, nbytes) = self.shape, dict(self.addresses), self.scratch
        changes = self.changes
        self.streams.append(stream)

        def work() -> None:
            assert changes == self.changes, "a graph was launched after its context had changed"
            assert scratch in self.device.memory and nbytes >= np.prod(shape) * 4, "scratch memory is gone or too small"
            frame = array_at(addresses["frame"], shape, np.uint8)
            array_at(scratch, shape, np.float32)[...] = frame
            depth = array_at(scratch, shape, np.float32).sum(axis=-1)
            for name, sign in (("depth", 1), ("alpha", -1)):
                if name in addresses:
                    array_at(addresses[name], shape[:3], np.float32)[...] = sign * depth

        self.device.enqueue(work)
        return True


def array_at(pointer: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(pointer), dtype).reshape(shape)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(cuda, "call", stand_in.call)
    monkeypatch.setattr(cuda, "cudart", stand_in.cudart)
    return stand_in


def worker(device: StandIn, capture: bool = True, outputs: tuple[str, ...] = ("depth",)) -> StreamWorker:
    def expect(succeeded: bool, what: str) -> None:
        if not succeeded:
            raise BackendError(what)

    return StreamWorker(lambda: Context(device), {"frame": "uint8"}, dict.fromkeys(outputs, "float32"), expect, capture)


def session_on(device: StandIn, builder: str = "tensorrt") -> TensorRTSession:
    """A session with two workers, and without an engine."""
    session = object.__new__(TensorRTSession)
    Session.__init__(session, Contract((32, 32), heads=("depth",)), "frame")
    session.backend, session.file, session._rebuild = builder, "a.engine", ""
    session.profile = EngineProfile("a", {})
    session._closing, session._device, session._cache = threading.Lock(), 0, None
    session.captures_internally, session._graphs_refused = builder == "tensorrt-rtx", False
    session._logger = types.SimpleNamespace(errors=[], last_errors=lambda: "")
    session._free = queue.LifoQueue()
    session._all = [worker(device, not session.captures_internally) for _ in range(2)]
    for one in session._all:
        session._free.put(one)
    return session
