"""One optimizer step: forward under autocast, losses, backward, clipping, and what to do when they are not finite."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .distributed import World
from .losses import Losses
from .network import depth_as_trained


@dataclass
class Outcome:
    """What came of a step."""

    losses: dict[str, float] = field(default_factory=dict)
    """Means over the step's images, of all processes; {} when it was skipped."""
    skipped: str = ""
    """What was not finite: loss or gradient; empty when nothing was."""
    names: list[str] = field(default_factory=list)
    """The samples of a skipped step."""
    overflow: bool = False
    """The loss scaler found its scale too large, and skipped."""
    requests: tuple[float, ...] = ()
    """The requests of all processes, summed."""


class Stepper:
    """Makes steps; holds what they need."""

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, losses: Losses,
        amp: torch.dtype, world: World, clip_norm: float, canonical_focal: float = 0.0,
    ) -> None:
        self.network, self.optimizer, self.scaler, self.losses = network, optimizer, scaler, losses
        self.amp, self.world, self.clip_norm, self.canonical_focal = amp, world, clip_norm, canonical_focal

    def __call__(self, micro_batches: list[dict[str, Any]], requests: tuple[float, ...] = ()) -> Outcome:
        """One step over `micro_batches`, whose gradients are averaged.

        `requests` are numbers (0 or 1) to sum over all processes on the way, such as "save now". A
        loss that is not finite on one process skips the step on all.
        """
        outcome = Outcome(requests=(0.0,) * len(requests))
        self.optimizer.zero_grad(set_to_none=True)
        for i, batch in enumerate(micro_batches):
            last = i + 1 == len(micro_batches)
            with contextlib.nullcontext() if last or self.world.size == 1 else self.network.no_sync():
                losses = {name: value.mean() for name, value in self.per_image(batch).items()}
                values = torch.stack(list(losses.values())).tolist()
                finite = all(map(math.isfinite, values))
                # One exchange for all: is any loss bad, who wants what, the losses.
                bad, *asked = self.world.sum(not finite, *requests, *values)
                outcome.requests, values = tuple(asked[: len(requests)]), asked[len(requests) :]
                if bad:
                    return self._skip("loss", [] if finite else batch["name"], outcome.requests)
                self.scaler.scale(losses["loss"] / len(micro_batches)).backward()
            share = 1 / (len(micro_batches) * self.world.size)
            for name, value in zip(losses, values, strict=True):
                outcome.losses[name] = outcome.losses.get(name, 0.0) + value * share
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm or float("inf"))
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            return self._skip("gradient", [name for batch in micro_batches for name in batch["name"]], outcome.requests)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        outcome.overflow = self.scaler.get_scale() < scale
        if outcome.overflow and scale < 1:  # no scale is to blame: the gradient itself is not finite
            return self._skip("gradient", [name for batch in micro_batches for name in batch["name"]], outcome.requests)
        return outcome

    def per_image(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Every loss per image (N,), in float32."""
        with torch.autocast(self.world.device.type, self.amp, enabled=self.amp != torch.float32):
            outputs = self.network(batch["pixels"])
        return self.losses.per_image(outputs, depth_as_trained(batch, self.canonical_focal))

    def _skip(self, what: str, names: list[str], requests: tuple[float, ...]) -> Outcome:
        self.optimizer.zero_grad(set_to_none=True)
        names = [name for part in self.world.gather(names) for name in part]
        return Outcome(skipped=what, names=names, requests=requests)
