"""Where the time of the network goes: by operator, by kernel, and how much of it the GPU waits for the host."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .hardware import synchronize
from .network import Half, forward_flops, images, new_model
from .step import NotRun, Result, Run, ran_on

KINDS = {  # parts of the names of ATen's operators, in order
    "attention": ("scaled_dot_product", "_flash_attention", "_efficient_attention", "_cudnn_attention", "softmax",
                  "bmm"),
    "convolution": ("convolution", "conv2d"),
    "matrix product": ("addmm", "::mm", "linear", "matmul"),
    "norm": ("layer_norm", "batch_norm"),
    "resize": ("upsample",),
    "copy": ("copy_", "clone", "_to_copy", "cat", "contiguous"),
    "elementwise": ("add", "mul", "gelu", "relu", "tanh", "softplus", "sigmoid", "clamp", "sub", "div", "threshold"),
}
FLOPS = {"attention": ("_scaled", "_flash", "_efficient", "_cudnn", "bmm"), "convolution": ("convolution",),
         "matrix product": ("addmm", "mm")}


def measure(run: Run, batch: int) -> Result:
    """Profile eager FP16: shares of the time by kind of operator, rate of each kind, and the longest kernels."""
    model = new_model(run)
    pixels = images(model, batch)
    flops = forward_flops(model, pixels)
    network, count = Half(model), 1 if run.dry else 10
    with torch.inference_mode():
        for _ in range(1 if run.dry else 5):
            network(pixels)
        synchronize(run)
        begin = time.perf_counter()
        for _ in range(count):
            outputs = network(pixels)
        synchronize(run)
        wall = (time.perf_counter() - begin) / count
        activities = [ProfilerActivity.CPU] + ([] if run.dry else [ProfilerActivity.CUDA])
        with profile(activities=activities) as profiled:
            for _ in range(count):
                network(pixels)
            synchronize(run)
    events = profiled.key_averages()
    operators = {event.key: _time_of(event, run) / count for event in events if event.key.startswith("aten::")}
    total = sum(operators.values())
    if not total:
        raise NotRun("the profiler recorded no time of operators")
    by_kind: dict[str, float] = {}
    for name, microseconds in operators.items():
        by_kind[kind_of(name)] = by_kind.get(kind_of(name), 0.0) + microseconds
    kinds = [{"kind": kind, "share": spent / total, "us": spent} | _rate(kind, spent, flops, batch)
             for kind, spent in sorted(by_kind.items(), key=lambda item: -item[1])]
    kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    # The time of operators counts every kernel once: it is the kernels' time under the name of what launched them.
    return {"batch": batch, "wall_ms": 1e3 * wall, "gpu_busy_ms": total / 1e3, "gpu_busy_share": total / 1e6 / wall,
            "kinds": kinds, "operators": _top(operators), "launches": sum(event.count for event in kernels) // count,
            "kernels": _top({event.key: _time_of(event, run) / count for event in kernels})} | \
        ran_on(run, *outputs.values())


def kind_of(operator: str) -> str:
    """The kind of an ATen operator such as "aten::cudnn_convolution"."""
    return next((kind for kind, parts in KINDS.items() if any(part in operator for part in parts)), "other")


def _time_of(event: Any, run: Run) -> float:
    """Time of an event itself [us]: on the GPU; in a rehearsal on the CPU."""
    return float(event.self_cpu_time_total if run.dry else event.self_device_time_total)


def _rate(kind: str, microseconds: float, flops: dict[str, float], batch: int) -> Result:
    """The rate of a kind of operator [FLOP/s]; nothing for kinds without FLOPs."""
    operations = batch * sum(count for name, count in flops.items() if name.startswith(FLOPS.get(kind, ("-",))))
    return {"flops_per_s": operations / (microseconds / 1e6)} if operations and microseconds else {}


def _top(times: dict[str, float], count: int = 20) -> list[Result]:
    """The longest of some times [us]."""
    total = sum(times.values())
    longest = sorted(times.items(), key=lambda item: -item[1])[:count]
    return [{"name": name[:120], "us": spent, "share": spent / total} for name, spent in longest if spent]
