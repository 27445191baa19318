"""Parameter groups, learning-rate schedule, and the moving average of the weights."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, backbone_scale: float, layer_decay: float = 1.0
) -> list[dict]:
    """Parameter groups for AdamW, each with its `peak_lr`; vectors, tokens and position embeddings do not decay.

    Patch embedding and tokens are layer 0, and block i is layer i + 1. The learning rate of a layer is
    `lr * backbone_scale * layer_decay ** (number of layers above it)`.

    Kept here instead of `timm.optim.param_groups_layer_decay`, which makes a group of every layer even without layer
    decay: the optimizer state of earlier runs would not load.

    Args:
        model: A model with a `backbone`.
        lr: Peak learning rate of decoder and heads.
        weight_decay: Weight decay of matrices.
        backbone_scale: Learning rate of the last block divided by `lr`.
        layer_decay: Learning rate of a block divided by that of the next deeper one.
    """
    blocks = len(model.backbone.blocks)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = lr
        if name.startswith("backbone."):
            layer = int(name.split(".")[2]) + 1 if name.startswith("backbone.blocks.") else 0
            rate *= backbone_scale * layer_decay ** (blocks - layer)
        tokens = ("pos_embed", "cls_token", "reg_token")
        decay = 0.0 if parameter.ndim < 2 or name.endswith(tokens) else weight_decay
        group = groups.setdefault((rate, decay), {"params": [], "weight_decay": decay, "peak_lr": rate, "lr": rate})
        group["params"].append(parameter)
    return list(groups.values())


def rate_factor(step: int, steps: int, warmup: float, floor: float = 0.01) -> float:
    """The learning rate of a step divided by its peak: linear warm-up, then a cosine down to `floor`.

    A function of the step, so that a resumed run needs no state of a scheduler. The schedulers of PyTorch and timm end
    at one absolute rate for all groups, and here every group ends at a share of its own peak.

    `warmup` is the share of all `steps` during which the rate rises.
    """
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    progress = min(1.0, (step - rise) / max(1.0, steps - rise))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of every group to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


class MovingAverage(AveragedModel):
    """Exponential moving average of the parameters and buffers of a model; `module` is the averaged model.

    It starts from the present weights, and the decay of update n is min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        def blend(averages: list[torch.Tensor], weights: list[torch.Tensor], _: torch.Tensor) -> None:
            n = self.updates + 1  # from the CPU; the argument lies on the model's device, and reading it would wait
            if averages[0].is_floating_point():
                torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + n) / (10 + n)))
            else:  # counters, such as those of batch norm
                torch._foreach_copy_(averages, weights)

        super().__init__(model, multi_avg_fn=blend, use_buffers=True)
        self.n_averaged += 1  # the present weights; else the first update would only copy the model

    @property
    def updates(self) -> int:
        """Number of updates so far."""
        return int(self.n_averaged) - 1

    def load(self, state: dict[str, torch.Tensor], updates: int) -> None:
        """Continue from the state dict of `module` after so many updates."""
        self.module.load_state_dict(state)
        self.n_averaged.fill_(updates + 1)
