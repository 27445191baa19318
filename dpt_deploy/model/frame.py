"""From a uint8 frame to maps of the frame's size in PyTorch: the contract's pre- and post-processing around a model.

It resizes with `torch.nn.functional.interpolate`. Frame graphs and runtimes, which have code of their own for that, are
judged against it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..core.contract import Contract


class FrameModel(nn.Module):
    """A `MultiTaskDPT` with pre- and post-processing around it."""

    def __init__(self, model: nn.Module, contract: Contract) -> None:
        """`model` has `contract.input_size`."""
        super().__init__()
        self.model = model
        self.contract = contract
        self.register_buffer("mean", torch.tensor(contract.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(contract.std).view(3, 1, 1), persistent=False)

    def forward(self, frame: torch.Tensor) -> dict[str, torch.Tensor]:
        """Predict the maps of `frame`, uint8 (N, H, W, 3) RGB; returns what `after` returns."""
        return self.after(self.model(self.before(frame)), frame.shape[1:3])

    def before(self, frame: torch.Tensor) -> torch.Tensor:
        """uint8 (N, H, W, 3) RGB -> float32 (N, 3, h, w), the input of the model graph."""
        box, (h, w) = self.contract.content_box(tuple(frame.shape[1:3])), self.contract.input_size
        x = frame.permute(0, 3, 1, 2).float() / 255
        x = F.interpolate(x, (box.height, box.width), mode="bilinear", antialias=True, align_corners=False)
        x = F.pad(x, (box.left, w - box.left - box.width, box.top, h - box.top - box.height), mode="replicate")
        return (x - self.mean) / self.std

    def after(self, outputs: dict[str, torch.Tensor], size: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Outputs of the model graph -> maps of the frame's `size` (H, W).

        For the heads of the contract, float32 depth (N, H, W) [m], or without unit if the contract says relative,
        normals (N, H, W, 3) of unit length, and alpha (N, H, W) in [0, 1].
        """
        box = self.contract.content_box(tuple(size))

        def resize(x: torch.Tensor) -> torch.Tensor:
            x = x[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
            return F.interpolate(x, tuple(size), mode="bilinear", antialias=True, align_corners=False)

        maps = {}
        if "depth" in outputs:
            maps["depth"] = resize(outputs["depth"])[:, 0]
        if "normals" in outputs:
            maps["normals"] = F.normalize(resize(outputs["normals"]), dim=1).permute(0, 2, 3, 1).contiguous()
        if "alpha_logits" in outputs:
            maps["alpha"] = resize(torch.sigmoid(outputs["alpha_logits"]))[:, 0]
        return maps
