"""From a batch of samples to maps: normalisation, precision and units around the network."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dpt_deploy.core.contract import Contract


@dataclass(frozen=True)
class ForwardPass:
    """How a network is called; the same in training, validation and evaluation."""

    contract: Contract
    """Gives mean and standard deviation of the input."""
    device: torch.device
    amp: torch.dtype = torch.float32
    """Precision of autocast; float32 is without."""
    channels_last: bool = False
    """Memory format of the network's input."""
    canonical_focal: float = 0.0
    """Focal length that depth is scaled to for the network [pixels]; 0 leaves it in metres."""

    def to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch on the device, with "pixels": the network's input, float32 (N, 3, H, W)."""
        batch = {
            key: value.to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for key, value in batch.items()
        }
        mean, std = (_per_channel(tuple(values), self.device) for values in (self.contract.mean, self.contract.std))
        pixels = (batch["image"].float() / 255 - mean) / std
        if self.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return batch | {"pixels": pixels}

    def __call__(self, network: nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The network's outputs for a batch from `to_device`."""
        with torch.autocast(self.device.type, self.amp, enabled=self.amp != torch.float32):
            return network(batch["pixels"])

    def truth(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with depth in the unit that the network predicts."""
        if not self.canonical_focal:
            return batch
        return batch | {"depth": batch["depth"] * (self.canonical_focal / batch["focal"]).view(-1, 1, 1, 1)}

    def maps(self, outputs: dict[str, torch.Tensor], batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The network's outputs as depth [m], normals, and alpha in [0, 1], each float32 (N, C, H, W)."""
        maps = {name: value.float() for name, value in outputs.items() if name != "alpha_logits"}
        if "depth" in maps:
            maps["depth"] = in_metres(maps["depth"], batch, self.canonical_focal)
        if "alpha_logits" in outputs:
            maps["alpha"] = outputs["alpha_logits"].float().sigmoid()
        return maps


def in_metres(depth: torch.Tensor, batch: dict[str, Any], canonical_focal: float) -> torch.Tensor:
    """Depth (N, 1, H, W) of a network that was trained with `canonical_focal`, in metres."""
    if not canonical_focal:
        return depth
    return depth * (batch["focal"] / canonical_focal).view(-1, 1, 1, 1)


@functools.cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device).view(1, 3, 1, 1)
