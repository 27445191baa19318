"""A timm ViT as backbone: it returns the token maps of four evenly spaced blocks, without hooks."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ..core.errors import BadInput

EXAMPLES = (
    "vit_tiny_patch16_384, vit_small_patch16_384, vit_base_patch16_384, vit_large_patch16_384, "
    "deit3_small_patch16_384, vit_small_patch14_dinov2, vit_small_patch14_reg4_dinov2, vit_small_patch16_dinov3"
)
COMPUTED_FIRST = ("freqs", "lambda_q1")  # of learned rotary embeddings and of differential attention


def create_backbone(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Create a plain patch transformer of timm, without its final norm and classifier.

    Args:
        name: timm name of the model.
        pretrained: Load timm's pretrained weights; they are downloaded if they are not cached.
        kwargs: Passed to `timm.create_model`, such as img_size, patch_size or depth.

    Raises:
        BadInput: Unknown name, unsupported architecture or arguments, or failed download.
    """
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name.split('.')[0][:12]}*")[:8]
        raise BadInput(
            f"backbone: timm has no model {name!r}. Similar: {', '.join(similar) or 'none'}. Supported: {EXAMPLES}."
        )
    try:
        vit = timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
    except (TypeError, AssertionError) as error:
        raise BadInput(f"backbone: timm rejected {name} with {kwargs}: {error}. Check backbone_kwargs.") from error
    except Exception as error:
        if not pretrained:
            raise
        raise BadInput(
            f"backbone: the pretrained weights of {name} could not be downloaded ({type(error).__name__}). "
            "Use pretrained=False (--no-pretrained), run once with network access and copy the HF_HOME cache, or "
            "give a local file: backbone_kwargs={'pretrained_cfg_overlay': {'file': 'weights.safetensors'}}."
        ) from error
    if not is_plain(vit):
        raise BadInput(
            f"backbone: expected a plain patch transformer (one resolution, patch embedding by one convolution), "
            f"received {name}, a {type(vit).__name__}. Supported: {EXAMPLES}."
        )
    if computed := [name for name, _ in vit.named_parameters() if name.rpartition(".")[2] in COMPUTED_FIRST]:
        raise BadInput(
            f"backbone: expected weights that are applied to tokens, received {name}, which computes with "
            f"{computed[0]} before it sees an image. An exported graph would hold the result in its place. "
            f"Supported: {EXAMPLES}."
        )
    if len(vit.blocks) < 4:
        raise BadInput(f"backbone: expected at least 4 blocks, received {name} with {len(vit.blocks)}.")
    vit.prune_intermediate_layers(len(vit.blocks) - 1, prune_norm=True, prune_head=True)
    return vit


def is_plain(vit: nn.Module) -> bool:
    """Whether a timm model is a plain patch transformer: its tokens form a single grid."""
    return (
        isinstance(vit, VisionTransformer | Eva)
        and isinstance(vit.patch_embed, PatchEmbed)
        and isinstance(vit.patch_embed.proj, nn.Conv2d)
    )


def taps(depth: int) -> tuple[int, int, int, int]:
    """Indices of four evenly spaced blocks: 2, 5, 8, 11 of 12; 5, 11, 17, 23 of 24."""
    return tuple((i + 1) * depth // 4 - 1 for i in range(4))


def has_class_token(vit: nn.Module) -> bool:
    """Whether the first prefix token is a class token; the readout uses it."""
    return getattr(vit, "cls_token", None) is not None


def patch_size(vit: nn.Module) -> tuple[int, int]:
    """Height and width of a patch [pixels]."""
    return tuple(vit.patch_embed.patch_size)


def input_size(vit: nn.Module) -> tuple[int, int]:
    """Height and width of the current input [pixels]."""
    return tuple(vit.patch_embed.img_size)


def set_input_size(vit: nn.Module, size: tuple[int, int]) -> None:
    """Set height and width [pixels], resampling positional embeddings. Raises `BadInput` if patches do not fit."""
    check_divisible(size, patch_size(vit))
    if size != input_size(vit):
        vit.set_input_size(img_size=size)


def check_divisible(size: tuple[int, int], patch: tuple[int, int]) -> None:
    """Raise `BadInput`, with the nearest valid sizes, unless `size` is a multiple of `patch` (both (H, W) [pixels])."""
    if any(s % p or s < p for s, p in zip(size, patch, strict=True)):
        fitting = sorted({max(1, s // p + k) * p for s, p in zip(size, patch, strict=True) for k in (0, 1)})
        raise BadInput(
            f"input size: expected multiples of the patch size {patch[0]}x{patch[1]}, received {size[0]}x{size[1]}. "
            f"Try --input-size {' or '.join(str(s) for s in fitting)}."
        )


def token_maps(vit: nn.Module, image: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Outputs of the four tapped blocks for `image` (N, 3, H, W), before the final norm.

    Returns four pairs: patch tokens (N, L, D), and the class token (N, D) or None. Other prefix tokens, such as
    registers, are dropped.
    """
    layers = vit.forward_intermediates(
        image, indices=list(taps(len(vit.blocks))), return_prefix_tokens=True, norm=False, output_fmt="NLC",
        intermediates_only=True,
    )
    if not vit.num_prefix_tokens:
        return [(tokens[0] if isinstance(tokens, tuple) else tokens, None) for tokens in layers]
    use_class = has_class_token(vit)
    return [(tokens, prefix[:, 0] if use_class else None) for tokens, prefix in layers]
