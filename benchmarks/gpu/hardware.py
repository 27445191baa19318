"""The GPU itself: properties, clocks under load, and the rates that a network is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks import environment
from benchmarks.timing import Timings, interleave

from .step import Result, Run, ran_on


def measure(run: Run) -> Result:
    """Properties, matrix rates [FLOP/s], bandwidth [bytes/s], and the state of the GPU idle and under load."""
    found: Result = {"torch": _properties(run), "idle": environment.gpu_state()}
    run.report(found)
    n, megabytes = (256, 1) if run.dry else (8192, 1024)
    products = {"fp32": (torch.float32, False), "tf32": (torch.float32, True), "fp16": (torch.float16, False),
                "bf16": (torch.bfloat16, False)}
    calls, results = {}, []
    for name, (dtype, tf32) in products.items():
        calls[name], out = product(device_of(run), n, dtype, tf32)
        results.append(out)
    source = torch.randn(megabytes * 2**18, device=device_of(run))
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        synchronize(run)

    calls["copy"] = copy
    under_load: list[Any] = []
    timings = interleave(calls, 2 if run.dry else 15, 1 if run.dry else 5,
                         lambda done: under_load.append(environment.gpu_state()) if done in (1, 10) else None, pause=0)
    found["matrix_flops_per_s"] = {name: 2.0 * n**3 / _median(timings[name]) for name in products}
    found["spread"] = {name: timings[name].summary()["spread"] for name in calls}
    found["copy_bytes_per_s"] = 2.0 * source.nbytes / _median(timings["copy"])
    found["launch_us"] = launch_cost(run)
    found["under_load"] = under_load
    found["doubts"] = environment.gpu_doubts(under_load)
    note = f"square products of {n} on random values, PyTorch; a copy counts the bytes read and those written"
    return found | {"note": note} | ran_on(run, target, *results)


def device_of(run: Run) -> torch.device:
    """The GPU; in a rehearsal the CPU."""
    return torch.device("cpu" if run.dry else "cuda")


def synchronize(run: Run) -> None:
    """Wait until the GPU has finished."""
    if not run.dry:
        torch.cuda.synchronize()


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Let FP32 matrix products and convolutions use TF32, or not."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def product(
    device: torch.device, n: int, dtype: torch.dtype, in_tf32: bool = False
) -> tuple[Callable[[], None], torch.Tensor]:
    """A call that multiplies two (n, n) matrices and waits, and the tensor that it writes."""
    a = torch.randn(n, n, device=device).to(dtype)
    out = torch.empty_like(a)

    def multiply() -> None:
        with tf32(in_tf32):
            torch.mm(a, a, out=out)
            if device.type == "cuda":
                torch.cuda.synchronize()

    return multiply, out


def launch_cost(run: Run) -> float:
    """Host time of one operation without work [us]: what a CUDA graph saves for each kernel, at most."""
    x = torch.zeros(1, device=device_of(run))
    for _ in range(100):
        x.add_(1)
    synchronize(run)
    begin, count = time.perf_counter(), 100 if run.dry else 2000
    for _ in range(count):
        x.add_(1)
    synchronize(run)
    return 1e6 * (time.perf_counter() - begin) / count


def _properties(run: Run) -> Result:
    found: Result = {"version": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    if run.dry:
        return found
    properties = torch.cuda.get_device_properties(0)
    return found | {
        "name": properties.name, "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count, "memory_gib": properties.total_memory / 2**30,
        "l2_mib": properties.L2_cache_size / 2**20, "visible_gpus": torch.cuda.device_count(),
    }


def _median(timings: Timings) -> float:
    return sorted(timings.seconds)[len(timings.seconds) // 2]
