"""Out of memory: how to recognise it, and which batch size fits instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import DptError

from .step import Stepper

_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a GPU or the machine ran out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def example_batch(size: int, contract: Contract, device: torch.device, channels_last: bool = False) -> dict[str, Any]:
    """A batch of `size` images with ground truth at every pixel, as `ForwardPass.to_device` returns it."""
    h, w = contract.input_size
    pixels = torch.zeros(size, 3, h, w, device=device)
    ones = torch.ones(size, 1, h, w, device=device)
    return {
        "pixels": pixels.contiguous(memory_format=torch.channels_last) if channels_last else pixels,
        "depth": ones, "normals": ones.expand(size, 3, h, w), "alpha": ones, "inside": ones > 0,
        "focal": torch.full((size,), float(w), device=device), "name": ["example"] * size,
    }


def largest_fitting(stepper: Stepper, model: nn.Module, below: int) -> int:
    """Find a batch size that fits, by trying forward and backward passes.

    Room for the state of the optimizer is included. The gradients of the model are cleared.

    Args:
        stepper: Makes the passes.
        model: The model itself, not the distributed one: the other processes do not take part.
        below: The batch size that did not fit.

    Returns:
        The first of below / 2, below / 4, ... that fits; 0 if none does.
    """
    forward = stepper.forward
    size = below // 2
    while size:
        network, stepper.network = stepper.network, model
        try:
            release()
            state = [] if stepper.optimizer.state else [torch.empty_like(p) for p in model.parameters() for _ in "mv"]
            losses = stepper.per_image(example_batch(size, forward.contract, forward.device, forward.channels_last))
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
    """Return cached GPU memory to the driver."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory(batch_size: int, accumulate: int, fits: int, device: torch.device) -> DptError:
    """The error for a step that did not fit; `fits` is a batch size that was tried and fits, 0 if none does."""
    what = "GPU memory" if device.type == "cuda" else "memory"
    images = batch_size * accumulate
    fits = max((size for size in range(1, fits + 1) if images % size == 0), default=0)
    if not fits:
        return DptError(f"out of {what}: not even one image fits. Give --grad-checkpointing, a smaller --backbone, "
                        "--features or --input-size, or --amp fp16.")
    return DptError(
        f"out of {what} at batch size {batch_size}. Tried and fits: --batch-size {fits} --accumulate {images // fits}, "
        "which makes the same steps; add --resume auto to continue from the last save. Or keep the batch size and add "
        "--grad-checkpointing."
    )
