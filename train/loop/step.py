"""One optimizer step: forward under autocast, losses, backward, clipping, and skipping if something is not finite."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..model.forward import ForwardPass
from ..model.losses import Losses
from .process import World


@dataclass
class Outcome:
    """The outcome of a step."""

    losses: dict[str, float] = field(default_factory=dict)
    """Means over the images of the step, of all processes; empty if it was skipped."""
    skipped: str = ""
    """What was not finite, "loss" or "gradient"; empty if the step was made."""
    names: list[str] = field(default_factory=list)
    """The samples of a skipped step."""
    overflow: bool = False
    """Whether the loss scaler skipped the step because of its own scale."""
    requests: tuple[float, ...] = ()
    """The requests of all processes, summed."""


class Stepper:
    """Makes optimizer steps, together with the other processes of `world`.

    `network` is the model, perhaps compiled or distributed; `scaler` is disabled except for FP16; a `clip_norm` of 0 is
    no clipping.
    """

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, losses: Losses,
        forward: ForwardPass, world: World, clip_norm: float,
    ) -> None:
        self.network, self.optimizer, self.scaler, self.losses = network, optimizer, scaler, losses
        self.forward, self.world, self.clip_norm = forward, world, clip_norm

    def __call__(self, micro_batches: list[dict[str, Any]], requests: tuple[float, ...] = ()) -> Outcome:
        """Make one step with the mean gradient of several batches.

        A loss that is not finite in one process skips the step in all of them.

        Args:
            micro_batches: Batches on the device.
            requests: Numbers (0 or 1) to sum over all processes on the way, such as "save now".
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
        # One exchange between processes, and one wait for the GPU, for everything: is a loss bad, the requests, the
        # losses.
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
        if outcome.overflow and scale < 1:  # such a small scale cannot be the cause, so the gradient is not finite
            return self._skip("gradient", [name for batch in micro_batches for name in batch["name"]], outcome.requests)
        return outcome

    def per_image(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Every loss per image (N,), in float32."""
        return self.losses.per_image(self.forward(self.network, batch), self.forward.truth(batch))

    def _skip(self, what: str, names: list[str], requests: tuple[float, ...]) -> Outcome:
        self.optimizer.zero_grad(set_to_none=True)
        names = [name for part in self.world.gather(names) for name in part]
        return Outcome(skipped=what, names=names, requests=requests)


def _not_finite(parts: list[dict[str, torch.Tensor]], micro_batches: list[dict[str, Any]]) -> list[str]:
    """The names of the images whose loss is not finite."""
    return [name for part, batch in zip(parts, micro_batches, strict=True)
            for name, finite in zip(batch["name"], part["loss"].isfinite().tolist(), strict=True) if not finite]
