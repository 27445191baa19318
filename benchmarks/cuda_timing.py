"""Steps of a call on a GPU, each timed on its own: host to device, engine, device to host."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from dpt_deploy.backends import cuda
from dpt_deploy.backends.session import Session
from dpt_deploy.core.errors import BackendError

WARM_UP = 5  # untimed rounds: the clocks rise
LAUNCHES = 20  # between two events, so that the cost of one launch does not count

Launch = Callable[[], Any]


def time_steps(session: Session, inputs: Mapping[str, np.ndarray], rounds: int = 20) -> dict[str, list[float]]:
    """Repeat each step on fixed buffers.

    A TensorRT engine is captured as a CUDA graph and launched back to back between two events. ONNX Runtime waits at
    the end of every call: the host's clock times its steps, and host memory is pageable.

    Returns:
        p50, p90 and p99 [ms] of `h2d`, `engine` and `d2h`.
    """
    if not hasattr(session, "steps"):
        return _time_blocking_steps(session, inputs, rounds)
    for _ in range(2):  # the first call compiles, the second captures
        session.run(inputs)
    found = {}
    with session.steps(inputs) as (stream, steps):
        for name, step in steps.items():
            capture = name == "engine" and not session.captures_internally
            with _captured(stream, step) if capture else contextlib.nullcontext(step) as launch:
                found[name] = _time_launches(stream, launch, rounds)
    return found


def percentiles(times: list[float]) -> list[float]:
    """p50, p90 and p99."""
    return [float(x) for x in np.percentile(times, (50, 90, 99))]


def _time_launches(stream: int, launch: Launch, rounds: int) -> list[float]:
    """p50, p90 and p99 [ms] of one launch, from `LAUNCHES` launches between two events."""
    start, end = cuda.call("cudaEventCreate"), cuda.call("cudaEventCreate")
    times = []
    try:
        for i in range(WARM_UP + rounds):
            cuda.call("cudaEventRecord", start, stream)
            for _ in range(LAUNCHES):
                launch()
            cuda.call("cudaEventRecord", end, stream)
            cuda.call("cudaEventSynchronize", end)
            if i >= WARM_UP:
                times.append(cuda.call("cudaEventElapsedTime", start, end) / LAUNCHES)
    finally:
        cuda.call("cudaEventDestroy", start)
        cuda.call("cudaEventDestroy", end)
    return percentiles(times)


@contextlib.contextmanager
def _captured(stream: int, step: Launch) -> Iterator[Launch]:
    """`step` as a CUDA graph, or `step` itself if it cannot be captured."""
    try:
        graph = cuda.capture(stream, step)
    except BackendError:
        yield step
        return
    try:
        yield lambda: cuda.call("cudaGraphLaunch", graph, stream)
    finally:
        cuda.call("cudaGraphExecDestroy", graph)


def _time_blocking_steps(session: Session, inputs: Mapping[str, np.ndarray], rounds: int) -> dict[str, list[float]]:
    """p50, p90 and p99 [ms] of the upload, a blocking call on device arrays, and the download."""
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
            for step, seconds in zip(times.values(), np.diff(clock), strict=True):
                step.append(1e3 * seconds)
    return {step: percentiles(values) for step, values in times.items()}
