"""Parameter groups, the learning rate's schedule, and the weights' moving average."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import nn


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, backbone_scale: float, layer_decay: float = 1.0
) -> list[dict]:
    """AdamW groups: each with its own `peak_lr`, and no decay on vectors, tokens and positions.

    Patch embedding and tokens count as layer 0, block i as layer i + 1; the rate of a layer is
    `lr * backbone_scale * layer_decay ** (layers above it)`.
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
    """The learning rate of `step` over its peak: linear warm-up, then a cosine down to `floor`."""
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    progress = min(1.0, (step - rise) / max(1.0, steps - rise))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


class Ema:
    """Exponential moving average of a model's floating-point state (float32)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.updates = model, decay, 0
        own = model.state_dict()  # shares the model's memory, so that one look-up serves every update
        self.state = {key: value.clone() for key, value in own.items()}
        floats = [key for key, value in own.items() if value.is_floating_point()]
        self._averages, self._weights = ([tensors[key] for key in floats] for tensors in (self.state, own))
        self._counters = [(self.state[key], own[key]) for key in own.keys() - set(floats)]

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's weights in; the decay rises to its value over the first updates."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        for mine, its in self._counters:
            mine.copy_(its)

    def load(self, state: dict[str, torch.Tensor], updates: int) -> None:
        """Go on from a saved `state` after so many updates."""
        self.updates = updates
        for key, value in state.items():
            self.state[key].copy_(value)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the averaged weights, within the block."""
        own = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.state)
        try:
            yield
        finally:
            self.model.load_state_dict(own)
