"""Losses in float32, averaged over the valid pixels of each image and then over images.

So it makes no difference how a batch is divided into steps or processes. An image without valid pixels contributes 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dpt_deploy.core.contract import HEADS


def image_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of values (N, 1, H, W) over a mask of the same shape, per image: (N,); 0 if the mask is empty."""
    total = torch.where(mask, values, 0.0).sum(dim=(1, 2, 3))
    return total / mask.sum(dim=(1, 2, 3)).clamp(min=1)


def berhu(depth: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Reverse Huber loss (Laina et al. 2016, section 3.3), per image (N,) [m].

    |e| up to c = 0.2 max|e| of the image, and (e^2 + c^2) / 2c above that.

    Args:
        depth: float32 (N, 1, H, W) [m].
        truth: float32 (N, 1, H, W) [m].
        mask: bool (N, 1, H, W), the valid pixels.
    """
    error = torch.where(mask, depth - truth, 0.0).abs()
    c = (0.2 * error.detach().amax(dim=(1, 2, 3), keepdim=True)).clamp(min=1e-6)
    return image_mean(torch.where(error <= c, error, (error**2 + c**2) / (2 * c)), mask)


def gradient_matching(depth: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor, scales: int = 4) -> torch.Tensor:
    """Multi-scale gradients of the depth error (Li and Snavely 2018, section 4.2), per image (N,) [m].

    Arguments as for `berhu`; each scale takes every second pixel of the one before.
    """
    error = torch.where(mask, depth - truth, 0.0)
    total = torch.zeros(len(depth), device=depth.device)
    for scale in range(scales):
        e, m = error[..., :: 2**scale, :: 2**scale], mask[..., :: 2**scale, :: 2**scale]
        total = total + image_mean((e[..., 1:] - e[..., :-1]).abs(), m[..., 1:] & m[..., :-1])
        total = total + image_mean((e[..., 1:, :] - e[..., :-1, :]).abs(), m[..., 1:, :] & m[..., :-1, :])
    return total


def cosine(normals: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """1 - cosine between predicted vectors (N, 3, H, W) and unit vectors, per image (N,)."""
    return image_mean(1 - (F.normalize(normals, dim=1, eps=1e-6) * truth).sum(dim=1, keepdim=True), mask)


def alpha_loss(logits: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy plus Dice (Milletari et al. 2016, section 3, without squares), per image (N,)."""
    entropy = image_mean(F.binary_cross_entropy_with_logits(logits, truth, reduction="none"), mask)
    alpha, truth = torch.where(mask, logits.sigmoid(), 0.0), torch.where(mask, truth, 0.0)
    overlap, total = (alpha * truth).sum(dim=(1, 2, 3)), (alpha + truth).sum(dim=(1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    return entropy + torch.where(mask.any(dim=3).any(dim=2).any(dim=1), dice, 0.0)


@dataclass(frozen=True)
class LossOptions:
    """Which heads are trained, and the weights of their losses."""

    heads: tuple[str, ...] = HEADS
    """Heads to train, separated by commas."""
    w_depth: float = 1.0
    """Weight of the depth loss."""
    w_normal: float = 1.0
    """Weight of the normals loss."""
    w_alpha: float = 1.0
    """Weight of the alpha loss."""
    w_gradient: float = 0.0
    """Weight of the multi-scale gradient loss on depth; 0 is off, 0.5 is usual."""


class Losses(LossOptions):
    """The weighted sum of the losses of all heads."""

    def per_image(self, outputs: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The loss of each head and their weighted sum "loss", each float32 (N,). Call it outside autocast.

        Args:
            outputs: Outputs of the model.
            batch: Ground truth: depth and normals (0 where they are unknown), alpha, inside.
        """
        inside, losses = batch["inside"], {}
        if "depth" in self.heads:
            depth, truth = outputs["depth"].float(), batch["depth"]
            mask = inside & (truth > 0)
            losses["depth"] = berhu(depth, truth, mask)
            if self.w_gradient:
                losses["gradient"] = gradient_matching(depth, truth, mask)
        if "normals" in self.heads:
            truth = batch["normals"]
            mask = inside & (truth.abs().sum(dim=1, keepdim=True) > 0)
            losses["normals"] = cosine(outputs["normals"].float(), truth, mask)
        if "alpha" in self.heads:
            losses["alpha"] = alpha_loss(outputs["alpha_logits"].float(), batch["alpha"], inside)
        weights = {"depth": self.w_depth, "gradient": self.w_gradient, "normals": self.w_normal, "alpha": self.w_alpha}
        losses["loss"] = sum(weights[name] * value for name, value in losses.items())
        return losses
