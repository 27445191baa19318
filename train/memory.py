"""Out of memory: what it looks like, and which batch size fits instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import DptError
from train.step import Stepper

_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's memory, or the machine's, did not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def example_batch(size: int, contract: Contract, device: torch.device, channels_last: bool = False) -> dict[str, Any]:
    """A batch of `size` images with truth everywhere, as `to_device` gives it."""
    h, w = contract.input_size
    pixels = torch.zeros(size, 3, h, w, device=device)
    ones = torch.ones(size, 1, h, w, device=device)
    return {
        "pixels": pixels.contiguous(memory_format=torch.channels_last) if channels_last else pixels,
        "depth": ones, "normals": ones.expand(size, 3, h, w), "alpha": ones, "inside": ones > 0,
        "focal": torch.full((size,), float(w), device=device), "name": ["example"] * size,
    }


def largest_fitting(
    stepper: Stepper, model: nn.Module, contract: Contract, below: int, channels_last: bool = False
) -> int:
    """The largest of below / 2, below / 4, ... whose forward and backward pass fit now; 0 when none does.

    Counts the optimizer's state in, where it has none yet. The model's gradients are cleared.
    """
    size = below // 2
    while size:
        network, stepper.network = stepper.network, model  # not the distributed one: other processes do not join in
        try:
            release()
            state = [] if stepper.optimizer.state else [torch.empty_like(p) for p in model.parameters() for _ in "mv"]
            losses = stepper.per_image(example_batch(size, contract, stepper.world.device, channels_last))
            stepper.scaler.scale(losses["loss"].mean()).backward()
            del state
            return size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        finally:
            stepper.network = network
            model.zero_grad(set_to_none=True)
        size //= 2
    return 0


def release() -> None:
    """Give cached GPU memory back."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory(batch_size: int, accumulate: int, fits: int, device: torch.device) -> DptError:
    """The error for a step of `batch_size` that did not fit, where `fits` does (0: none does)."""
    what = "GPU memory" if device.type == "cuda" else "memory"
    images = batch_size * accumulate
    fits = max((size for size in range(1, fits + 1) if images % size == 0), default=0)
    if not fits:
        return DptError(f"out of {what}: not even one image fits. Give --grad-checkpointing, a smaller --backbone, "
                        "--features or --input-size, or --amp fp16.")
    return DptError(
        f"out of {what} at batch size {batch_size}. Tried and fits: --batch-size {fits} --accumulate {images // fits}, "
        "which makes the same steps; give it together with --resume auto to keep what was learnt. Or keep the batch "
        "and give --grad-checkpointing."
    )
