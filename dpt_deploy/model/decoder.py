"""DPT decoder: reassemble and fuse four token maps into one feature map (Ranftl et al. 2021, section 3, figure 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

TokenMap = tuple[torch.Tensor, torch.Tensor | None]


def reassemble_channels(dim: int) -> tuple[int, int, int, int]:
    """Channels of the four reassembled maps: those of the paper for ViT-B and ViT-L, in proportion for other widths."""
    if dim == 1024:
        return (256, 512, 1024, 1024)
    return (dim // 8, dim // 4, dim // 2, dim)


class Readout(nn.Module):
    """The "project" readout of the paper: GELU(Linear([patch, class]))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(2 * dim, dim)
        self.activation = nn.GELU()

    def forward(self, tokens: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
        paired = torch.cat((tokens, cls.unsqueeze(1).expand_as(tokens)), dim=-1)  # (N, L, 2D)
        return self.activation(self.project(paired))  # (N, L, D)


class Reassemble(nn.Module):
    """Token map -> feature map at 4, 2, 1 or 1/2 times the token grid."""

    def __init__(self, dim: int, channels: int, features: int, scale: float, class_token: bool) -> None:
        super().__init__()
        self.readout = Readout(dim) if class_token else None
        self.project = nn.Conv2d(dim, channels, 1)
        self.resample = {
            4: lambda: nn.ConvTranspose2d(channels, channels, 4, stride=4),
            2: lambda: nn.ConvTranspose2d(channels, channels, 2, stride=2),
            1: nn.Identity,
            0.5: lambda: nn.Conv2d(channels, channels, 3, stride=2, padding=1),
        }[scale]()
        self.out = nn.Conv2d(channels, features, 3, padding=1, bias=False)

    def forward(self, token_map: TokenMap, grid: tuple[int, int]) -> torch.Tensor:
        tokens, cls = token_map
        if self.readout is not None:
            tokens = self.readout(tokens, cls)
        x = tokens.transpose(1, 2).unflatten(2, grid)  # (N, D, H/p, W/p)
        return self.out(self.resample(self.project(x)))  # (N, features, ...)


class ResidualConvUnit(nn.Module):
    """x + conv(ReLU(conv(ReLU(x)))), with batch norm after each convolution when `use_bn`."""

    def __init__(self, features: int, use_bn: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1, bias=not use_bn)
        self.bn1 = nn.BatchNorm2d(features) if use_bn else nn.Identity()
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=not use_bn)
        self.bn2 = nn.BatchNorm2d(features) if use_bn else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn1(self.conv1(F.relu(x)))
        return x + self.bn2(self.conv2(F.relu(y)))


class FeatureFusion(nn.Module):
    """Add the skip connection through a residual unit, refine, upsample to `size`, project."""

    def __init__(self, features: int, use_bn: bool, skip: bool) -> None:
        super().__init__()
        self.skip_unit = ResidualConvUnit(features, use_bn) if skip else None
        self.unit = ResidualConvUnit(features, use_bn)
        self.out = nn.Conv2d(features, features, 1)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor:
        if self.skip_unit is not None:
            x = x + self.skip_unit(skip)
        x = F.interpolate(self.unit(x), size=size, mode="bilinear", align_corners=True)
        return self.out(x)  # (N, features, *size)


class Decoder(nn.Module):
    """Four token maps -> (N, features, 8 * grid height, 8 * grid width)."""

    def __init__(self, dim: int, features: int, use_bn: bool, class_token: bool) -> None:
        super().__init__()
        self.reassemble = nn.ModuleList(
            Reassemble(dim, channels, features, scale, class_token)
            for channels, scale in zip(reassemble_channels(dim), (4, 2, 1, 0.5), strict=True)
        )
        # fusion[i] takes reassemble[i] as its skip connection; the deepest block has no skip.
        self.fusion = nn.ModuleList(FeatureFusion(features, use_bn, skip=i < 3) for i in range(4))

    def forward(self, token_maps: list[TokenMap], grid: tuple[int, int]) -> torch.Tensor:
        return self.fuse(token_maps, grid)[0]

    def fuse(self, token_maps: list[TokenMap], grid: tuple[int, int]) -> list[torch.Tensor]:
        """The four fused maps, finest first; `forward` returns the finest."""
        maps = [layer(tokens, grid) for layer, tokens in zip(self.reassemble, token_maps, strict=True)]
        sizes = [(2 * maps[0].shape[2], 2 * maps[0].shape[3]), *(m.shape[2:] for m in maps[:3])]
        fused = [self.fusion[3](maps[3], None, sizes[3])]
        for i in (2, 1, 0):
            fused.insert(0, self.fusion[i](fused[0], maps[i], sizes[i]))
        return fused
