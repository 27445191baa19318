"""The three heads: depth, normals, alpha."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class DepthActivation(nn.Module):
    """softplus(x) * depth_scale: positive depth [m]."""

    def __init__(self, depth_scale: float) -> None:
        super().__init__()
        self.depth_scale = depth_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.softplus(x) * self.depth_scale

    def extra_repr(self) -> str:
        return f"depth_scale={self.depth_scale}"


class Head(nn.Module):
    """3x3 conv to features/2 channels, bilinear upsampling to `size`, 3x3 conv to 32, ReLU, 1x1 conv, activation."""

    def __init__(self, features: int, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(features // 2, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, channels, 1)
        self.activation = activation

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """`x`: (N, features, h, w) -> (N, channels, *size)."""
        x = F.interpolate(self.conv1(x), size=size, mode="bilinear", align_corners=True)
        x = F.relu(self.conv2(x))
        return self.activation(self.conv3(x))


def create_head(name: str, features: int, depth_scale: float) -> Head:
    """The head `name`: depth (softplus times depth_scale), normals (tanh) or alpha (logits)."""
    activations = {"depth": DepthActivation(depth_scale), "normals": nn.Tanh(), "alpha": nn.Identity()}
    return Head(features, 3 if name == "normals" else 1, activations[name])


def initial_bias(name: str, depth_scale: float, depth: float, foreground: float) -> list[float]:
    """Bias of a head's last convolution with which an untrained model makes a plausible prediction.

    `depth` is a typical depth [m], `foreground` the share of foreground pixels in (0, 1). Normals face the camera:
    (0, 0, tanh(1.5) = 0.905).
    """
    if name == "depth":
        return [math.log(math.expm1(depth / depth_scale))]
    if name == "normals":
        return [0.0, 0.0, 1.5]
    return [math.log(foreground / (1.0 - foreground))]
