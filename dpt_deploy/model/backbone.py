"""timm ViT -> four token maps, returned and not hooked."""

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


def create_backbone(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A timm plain patch transformer without its final norm and classifier.

    `kwargs` go to `timm.create_model` (img_size, patch_size, depth, ...). Raises `BadInput` for a
    name that timm does not know, an architecture that is not a plain patch transformer, or weights
    that cannot be downloaded.
    """
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:12]}*")[:8]
        raise BadInput(
            f"backbone: timm has no model {name!r}. Near it: {', '.join(near) or 'none'}. Fitting: {EXAMPLES}."
        )
    try:
        vit = timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
    except (TypeError, AssertionError) as error:
        raise BadInput(f"backbone: timm refused {name} with {kwargs}: {error}. Check backbone_kwargs.") from error
    except Exception as error:
        if not pretrained:
            raise
        raise BadInput(
            f"backbone: the pretrained weights of {name} could not be fetched ({type(error).__name__}). "
            "Use pretrained=False (--no-pretrained), run once where there is a network and copy the HF_HOME cache, or "
            "name a local file: backbone_kwargs={'pretrained_cfg_overlay': {'file': 'weights.safetensors'}}."
        ) from error
    if not is_plain(vit):
        raise BadInput(
            f"backbone: {name} is a {type(vit).__name__}; expected a plain patch transformer "
            f"(one resolution, one convolution as patch embedding). Fitting: {EXAMPLES}."
        )
    if len(vit.blocks) < 4:
        raise BadInput(f"backbone: {name} has {len(vit.blocks)} blocks; four taps need at least 4.")
    vit.prune_intermediate_layers(len(vit.blocks) - 1, prune_norm=True, prune_head=True)
    return vit


def is_plain(vit: nn.Module) -> bool:
    """Whether a timm model is a plain patch transformer whose tokens form one grid."""
    return (
        isinstance(vit, VisionTransformer | Eva)
        and isinstance(vit.patch_embed, PatchEmbed)
        and isinstance(vit.patch_embed.proj, nn.Conv2d)
    )


def taps(depth: int) -> tuple[int, int, int, int]:
    """Indices of four evenly spaced blocks: 2, 5, 8, 11 of 12; 5, 11, 17, 23 of 24."""
    return tuple((i + 1) * depth // 4 - 1 for i in range(4))


def has_class_token(vit: nn.Module) -> bool:
    """Whether the first prefix token is a class token, which the readout uses."""
    return getattr(vit, "cls_token", None) is not None


def patch_size(vit: nn.Module) -> tuple[int, int]:
    """Height and width of a patch [pixels]."""
    return tuple(vit.patch_embed.patch_size)


def input_size(vit: nn.Module) -> tuple[int, int]:
    """Height and width of the input the positional embedding is made for [pixels]."""
    return tuple(vit.patch_embed.img_size)


def set_input_size(vit: nn.Module, size: tuple[int, int]) -> None:
    """Resize the input in place; positional embeddings are resampled. Raises `BadInput` if patches do not fit."""
    check_divisible(size, patch_size(vit))
    if size != input_size(vit):
        vit.set_input_size(img_size=size)


def check_divisible(size: tuple[int, int], patch: tuple[int, int]) -> None:
    """Raise `BadInput`, with the nearest sizes that fit, unless `patch` divides `size`."""
    if any(s % p or s < p for s, p in zip(size, patch, strict=True)):
        fitting = sorted({max(1, s // p + k) * p for s, p in zip(size, patch, strict=True) for k in (0, 1)})
        raise BadInput(
            f"input size: expected multiples of the patch size {patch[0]}x{patch[1]}, received {size[0]}x{size[1]}. "
            f"Try --input-size {' or '.join(str(s) for s in fitting)}."
        )


def token_maps(vit: nn.Module, image: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Raw outputs, without the final norm, of the four tapped blocks.

    `image`: (N, 3, H, W). Each entry: patch tokens (N, L, D) and the class token (N, D) or None;
    other prefix tokens are dropped.
    """
    layers = vit.forward_intermediates(
        image, indices=list(taps(len(vit.blocks))), return_prefix_tokens=True, norm=False, output_fmt="NLC",
        intermediates_only=True,
    )
    if not vit.num_prefix_tokens:
        return [(tokens[0] if isinstance(tokens, tuple) else tokens, None) for tokens in layers]
    use_class = has_class_token(vit)
    return [(tokens, prefix[:, 0] if use_class else None) for tokens, prefix in layers]
