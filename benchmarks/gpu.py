"""Steps on a GPU, each timed by itself: host to device, engine, device to host."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from dpt_deploy.backends import cuda
from dpt_deploy.backends.session import Session
from dpt_deploy.core.errors import BackendError

WARM_UP = 5  # rounds before those that count: clocks rise, TensorRT-RTX specialises its kernels
LAUNCHES = 20  # between two events, so that the time to start one does not count

Launch = Callable[[], Any]


def engine_parts(session: Session, inputs: Mapping[str, np.ndarray], rounds: int = 20) -> dict[str, list[float]]:
    """p50, p90 and p99 [ms] of h2d, engine and d2h, each repeated by itself on fixed buffers.

    A TensorRT engine is captured as a CUDA graph, and launched back to back between two events. ONNX Runtime
    waits at the end of every call: its steps are told apart by the host's clock, from and to pageable memory.
    """
    found = {}
    if not hasattr(session, "steps"):
        return _waiting(session, inputs, rounds)
    session.run(inputs)  # what a first call compiles or captures is not timed
    with session.steps(inputs) as (stream, steps):
        for name, step in steps.items():
            graph = name == "engine" and not session.captures_itself
            with _captured(stream, step) if graph else contextlib.nullcontext(step) as launch:
                found[name] = events(stream, launch, rounds)
    return found


def events(stream: int, launch: Launch, rounds: int, launches: int = LAUNCHES) -> list[float]:
    """p50, p90 and p99 [ms] of one launch, from `launches` of them between two events of the stream."""
    start, end = cuda.call("cudaEventCreate"), cuda.call("cudaEventCreate")
    times = []
    try:
        for i in range(WARM_UP + rounds):
            cuda.call("cudaEventRecord", start, stream)
            for _ in range(launches):
                launch()
            cuda.call("cudaEventRecord", end, stream)
            cuda.call("cudaEventSynchronize", end)
            if i >= WARM_UP:
                times.append(cuda.call("cudaEventElapsedTime", start, end) / launches)
    finally:
        cuda.call("cudaEventDestroy", start)
        cuda.call("cudaEventDestroy", end)
    return percentiles(times)


def percentiles(times: list[float]) -> list[float]:
    """p50, p90 and p99."""
    return [float(x) for x in np.percentile(times, (50, 90, 99))]


@contextlib.contextmanager
def _captured(stream: int, step: Launch) -> Iterator[Launch]:
    """`step` as a CUDA graph; as it is, where it cannot be captured."""
    try:
        graph = cuda.capture(stream, step)
    except BackendError:
        yield step
        return
    try:
        yield lambda: cuda.call("cudaGraphLaunch", graph, stream)
    finally:
        cuda.call("cudaGraphExecDestroy", graph)


def _waiting(session: Session, inputs: Mapping[str, np.ndarray], rounds: int) -> dict[str, list[float]]:
    """p50, p90 and p99 [ms] of upload, a call on arrays on the GPU that returns when it is done, and download."""
    (name, array), = inputs.items()
    array = np.ascontiguousarray(array)
    on_gpu = cuda.DeviceArray.empty(array.shape, array.dtype, cuda.LEGACY_STREAM)
    kind = cuda.cudart().cudaMemcpyKind.cudaMemcpyHostToDevice
    times: dict[str, list[float]] = {"h2d": [], "engine": [], "d2h": []}
    for i in range(WARM_UP + rounds):
        clock = [time.perf_counter()]
        cuda.call("cudaMemcpyAsync", on_gpu.pointer, array.ctypes.data, array.nbytes, kind, cuda.LEGACY_STREAM)
        cuda.call("cudaStreamSynchronize", cuda.LEGACY_STREAM)
        clock.append(time.perf_counter())
        maps = session.run({name: on_gpu}, stream=cuda.LEGACY_STREAM)
        clock.append(time.perf_counter())
        for value in maps.values():
            value.numpy()
        clock.append(time.perf_counter())
        if i >= WARM_UP:
            for part, seconds in zip(times.values(), np.diff(clock), strict=True):
                part.append(1e3 * seconds)
    return {part: percentiles(values) for part, values in times.items()}


class TorchOnGpu:
    """A PyTorch module on the GPU from host arrays to host arrays, by way of pinned memory that is kept."""

    def __init__(self, module: Any) -> None:
        import torch

        self.torch, self.module = torch, module
        self.pinned: dict[str, Any] = {}
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]

    def __call__(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """Maps by name, complete on return."""
        with self.torch.inference_mode():
            source = self._memory("frame", frames.shape, self.torch.uint8)
            np.copyto(source.numpy(), frames)
            self.events[0].record()
            on_gpu = source.to("cuda", non_blocking=True)
            self.events[1].record()
            maps = self.module(on_gpu)
            self.events[2].record()
            host = {name: self._memory(name, value.shape, value.dtype).copy_(value, non_blocking=True)
                    for name, value in maps.items()}
            self.events[3].record()
            self.events[3].synchronize()
            return {name: value.numpy().copy() for name, value in host.items()}

    def parts(self) -> dict[str, float]:
        """Seconds of the last call's steps, by CUDA events."""
        between = zip(("h2d", "engine", "d2h"), self.events, self.events[1:], strict=False)
        return {name: start.elapsed_time(end) / 1e3 for name, start, end in between}

    def _memory(self, name: str, shape: Any, dtype: Any) -> Any:
        if name not in self.pinned or self.pinned[name].shape != tuple(shape):
            self.pinned[name] = self.torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
        return self.pinned[name]
