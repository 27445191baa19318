"""The trainer's own step on images that are already on the device: its speed and its memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dpt_deploy.model import MultiTaskDPT, create_multitask_dpt_model
from train.loop.memory import example_batch, is_out_of_memory, release
from train.loop.optim import parameter_groups
from train.loop.process import World
from train.loop.step import Stepper
from train.model.forward import ForwardPass
from train.model.losses import Losses

GUIDE_BATCH, GUIDE_GB = 6, 8.0  # "Minimum: 8GB GPU memory for batch_size=6"
# The defaults of train.config, which needs the packages of the command line. Speed and memory do not depend on them.
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 8e-4, 0.01, 1.0
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def new_model(device: str) -> MultiTaskDPT:
    """The model of the training guide with random weights; on the CPU a tiny one, for smoke tests."""
    torch.manual_seed(0)
    if device == "cpu":
        return create_multitask_dpt_model("test_vit", 8, backbone_kwargs={"img_size": 64})
    return create_multitask_dpt_model("vit_base_patch16_384", 256).to(device)


def new_stepper(model: MultiTaskDPT, amp: str, compiled: bool, backend: str = "inductor",
                channels_last: bool = False) -> Stepper:
    """The trainer's step with its default options, in `fp16` (with loss scaling) or `bf16`."""
    device = next(model.parameters()).device
    torch.backends.cudnn.benchmark = device.type == "cuda"
    optimizer = torch.optim.AdamW(parameter_groups(model, LEARNING_RATE, WEIGHT_DECAY, 0.1),
                                  fused=True if device.type == "cuda" else None)
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    forward = ForwardPass(model.contract(), device, TYPES[amp], channels_last)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    network = torch.compile(model, backend=backend) if compiled else model
    return Stepper(network, optimizer, scaler, Losses(), forward, World(0, 1, device), CLIP_NORM)


def measure(device: str, amp: str, batch: int, compiled: bool, ceiling: float, warm_up: int, steps: int,
            backend: str = "inductor") -> dict[str, Any]:
    """One row: `batch` images per step, with or without torch.compile.

    Args:
        device: `cuda`, or `cpu` for a smoke test with a tiny model.
        amp: `fp16` or `bf16`.
        batch: Images per step.
        compiled: Compile the network.
        ceiling: Rate of a large matrix product in that precision [FLOP/s].
        warm_up: Untimed steps; the first ones compile.
        steps: Timed steps.
        backend: Backend of torch.compile.
    """
    row: dict[str, Any] = {"batch": batch, "compiled": compiled}
    release()
    try:
        model = new_model(device)
        stepper = new_stepper(model, amp, compiled, backend)
        images = example_batch(batch, model.contract(), torch.device(device))
        operations = step_flops(model, images["pixels"])
        if device == "cuda":
            release()
            torch.cuda.reset_peak_memory_stats()
        seconds = per_call(lambda: stepper([images]), device, warm_up, steps)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return row | {"status": "not run", "reason": "out of memory"}
    on_gpu = device == "cuda"
    return row | {
        "status": "ran", "ms_per_step": 1e3 * seconds, "images_per_s": batch / seconds,
        "gflop_per_image": operations / batch / 1e9, "share_of_matrix_rate": operations / seconds / ceiling,
        "peak_gib": torch.cuda.max_memory_reserved() / 2**30 if on_gpu else None,
        "allocated_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
    }


def step_flops(model: MultiTaskDPT, pixels: torch.Tensor) -> float:
    """FLOPs that a step needs: three times those of the forward pass, without what the implementation recomputes."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pixels[:1])
    return 3.0 * len(pixels) * counter.get_total_flops()


def matrix_rate(device: str, amp: str, warm_up: int, steps: int) -> float:
    """FLOP/s of a large square matrix product in the precision of the run."""
    n = 8192 if device == "cuda" else 256
    a = torch.randn(n, n, device=device).to(TYPES[amp])
    out = torch.empty_like(a)
    return 2.0 * n**3 / per_call(lambda: torch.mm(a, a, out=out), device, warm_up, steps)


def per_call(call: Callable[[], object], device: str, warm_up: int, steps: int) -> float:
    """Mean time of a call over `steps` consecutive calls, after the warm-up [s]."""
    for _ in range(warm_up):
        call()
    wait(device)
    begin = time.perf_counter()
    for _ in range(steps):
        call()
    wait(device)
    return (time.perf_counter() - begin) / steps


def wait(device: str) -> None:
    """Wait until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()


def guide_claim(rows: list[dict[str, Any]], device: str) -> dict[str, Any]:
    """Whether batch 6 fits the 8 GB of the training guide; None if that was not measured."""
    row = next((row for row in rows if row["batch"] == GUIDE_BATCH and not row["compiled"]), None)
    peak = row.get("peak_gib") if row and device == "cuda" else None
    return {"batch": GUIDE_BATCH, "claimed_gb": GUIDE_GB, "peak_gib": peak,
            "holds": None if peak is None else peak * 2**30 <= GUIDE_GB * 1e9}
