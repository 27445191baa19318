"""One optimizer step: forward under autocast, losses, backward, clipping, and what to do when they are not finite."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from train.distributed import World
from train.losses import Losses
from train.network import depth_as_trained


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
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        for i, batch in enumerate(micro_batches):
            last = i + 1 == len(micro_batches)
            with contextlib.nullcontext() if last or self.world.size == 1 else self.network.no_sync():
                losses = self.per_image(batch)
                self.scaler.scale(losses["loss"].mean() / len(micro_batches)).backward()
            parts.append({name: value.detach() for name, value in losses.items()})
        values = torch.stack([torch.stack([part[name].mean() for part in parts]).mean() for name in parts[0]])
        # One exchange and one wait for all: is any loss bad, who wants what, the losses.
        asked = torch.tensor(requests, dtype=torch.float64, device=values.device)
        bad = (~values.isfinite()).any().double()
        bad, *sums = self.world.sum(torch.cat((bad[None], asked, values.double())))
        outcome = Outcome(requests=tuple(sums[: len(requests)]))
        if bad:
            return self._skip("loss", _not_finite(parts, micro_batches), outcome.requests)
        outcome.losses = {name: value / self.world.size
                          for name, value in zip(parts[0], sums[len(requests) :], strict=True)}
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


def _not_finite(parts: list[dict[str, torch.Tensor]], micro_batches: list[dict[str, Any]]) -> list[str]:
    """The names of the images whose loss is not finite."""
    return [name for part, batch in zip(parts, micro_batches, strict=True)
            for name, finite in zip(batch["name"], part["loss"].isfinite().tolist(), strict=True) if not finite]
