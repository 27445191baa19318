"""AMP training of ViT-B, with the trainer's own step: speed, memory, and switches of it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import timm.layers
import torch

from benchmarks import environment
from benchmarks.timing import interleave, speedup
from benchmarks.train_step import guide_claim, matrix_rate, new_model, new_stepper, per_call
from benchmarks.train_step import measure as measure_step
from dpt_deploy.core.errors import first_line
from train.loop.memory import example_batch, release

from .rows import outcome
from .step import NotRun, Result, Run, seconds_left

SWITCHES: dict[str, tuple[tuple[float, float], str]] = {
    "channels-last": ((1.0, 1.4), "cuDNN computes FP16 convolutions in NHWC; the decoder is 62 % of the FLOPs"),
    "LayerNorm in FP16": ((1.0, 1.08), "autocast casts every norm to FP32 and its result back; timm's fast norm keeps "
                                       "FP16 inputs and accumulates in FP32"),
}
"""How many times faster than the plain step each should be, at least and at most, and why; written before any run."""


def measure(run: Run, batch: int, compiled: bool) -> Result:
    """Images per second, share of the FP16 matrix rate (MFU), and peak memory; then, without compile, the switches."""
    device, backend = ("cpu", "eager") if run.dry else ("cuda", "inductor")
    warm_up, steps = (1, 1) if run.dry else (8, 30)
    ceiling = matrix_rate(device, "fp16", warm_up, steps)
    release()
    # FP16 autocast on a CPU is not what trains there, so a rehearsal takes BF16.
    row = measure_step(device, "bf16" if run.dry else "fp16", batch, compiled, ceiling, warm_up, steps, backend)
    found: Result = {"amp": "fp16", "matrix_flops_per_s": ceiling, "rows": [row],
                     "under_load": [environment.gpu_state()], "guide": guide_claim([row], device)}
    found["guide"] |= {"note": "memory that PyTorch reserved, without the CUDA context"}
    if not run.dry:
        free, total = torch.cuda.mem_get_info()
        found["guide"] |= {"device_used_gib": (total - free) / 2**30}
    run.report(found)
    if row["status"] != "ran":
        raise NotRun(row["reason"])
    if not run.dry and not row["peak_gib"]:
        raise NotRun("no GPU memory was used, so the GPU did not compute the step")
    if not compiled:
        found["switches"] = _switches(run, device, batch)
    found["doubts"] = environment.gpu_doubts([*found["under_load"], environment.gpu_state()])
    return found | ({"ran_on": "cpu"} if run.dry else {"ran_on": "gpu", "device": torch.cuda.get_device_name()})


def _switches(run: Run, device: str, batch: int) -> list[Result]:
    """Each switch beside the plain step, in interleaved rounds."""
    calls: dict[str, Any] = {}
    rows: list[Result] = []
    for name in ("plain", *SWITCHES):
        try:
            fast = name.startswith("LayerNorm")
            with _fast_norm() if fast else nullcontext():  # timm's norms read the switch when they are made
                model = new_model(device)
            stepper = new_stepper(model, "bf16" if run.dry else "fp16", False, channels_last=name == "channels-last")
            images = example_batch(batch, model.contract(), torch.device(device), name == "channels-last")

            if fast and not getattr(model.backbone.blocks[0].norm1, "_fast_norm", False):
                raise NotRun("this version of timm does not make fast norms")

            def call(stepper: Any = stepper, images: Any = images) -> None:
                stepper([images])
                if device == "cuda":
                    torch.cuda.synchronize()

            per_call(call, device, 1, 1 if run.dry else 5)
            calls[name] = call
        except Exception as error:  # out of memory, or a version of timm without the switch
            rows.append({"name": name, "status": "not run", "reason": first_line(error), "error": type(error).__name__})
    timings = interleave(calls, 2 if run.dry else 15, 1, deadline=seconds_left(run, 0.8), pause=0)
    for name, (expected, why) in SWITCHES.items():
        if name in timings and "plain" in timings:
            ratio = speedup(timings[name], timings["plain"])
            rows.append({"name": name, "status": "ran", "ms_per_step": timings[name].summary()["p50_ms"],
                         "against": "plain", "times_faster": ratio,
                         "expected": {"times_faster": list(expected), "why": why,
                                      "outcome": outcome(run, ratio, *expected)}})
    return rows


class _fast_norm:
    """timm's fast norm within a block."""

    def __enter__(self) -> None:
        self.before = timm.layers.is_fast_norm()
        timm.layers.set_fast_norm(True)

    def __exit__(self, *_: object) -> None:
        timm.layers.set_fast_norm(self.before)
