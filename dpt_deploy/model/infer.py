"""Infer the architecture of a state dict without a description from its keys and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..core.contract import HEADS
from ..core.errors import BadCheckpoint
from .dpt import ModelConfig, MultiTaskDPT

# Shapes show neither the number of attention heads nor mean and std, which differ between families. Families are
# tried in this order: augreg before deit, because it is the training guide's backbone.
_FAMILIES = {
    192: ("vit_tiny_patch16_384", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"),
    384: (
        "vit_small_patch16_384", "deit3_small_patch16_384", "vit_small_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3",
    ),
    768: (
        "vit_base_patch16_384", "deit3_base_patch16_384", "vit_base_patch14_dinov2",
        "vit_base_patch14_reg4_dinov2", "vit_base_patch16_dinov3", "vit_base_patch16_siglip_384",
    ),
    1024: (
        "vit_large_patch16_384", "deit3_large_patch16_384", "vit_large_patch14_dinov2",
        "vit_large_patch14_reg4_dinov2", "vit_large_patch16_dinov3",
    ),
    64: ("test_vit",),
}


def infer_config(state: Mapping[str, torch.Tensor]) -> ModelConfig:
    """The `ModelConfig` whose model has exactly these keys and shapes.

    Raises `BadCheckpoint` if the keys are not those of `create_multitask_dpt_model`, or if no known backbone matches.
    """
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    patch = shapes.get("backbone.patch_embed.proj.weight")
    fusion = shapes.get("decoder.fusion.0.out.weight")
    heads = tuple(head for head in HEADS if f"heads.{head}.conv3.weight" in shapes)
    if patch is None or fusion is None or not heads:
        raise BadCheckpoint(
            "the checkpoint has another architecture: expected the keys of create_multitask_dpt_model() "
            "(backbone.patch_embed.proj.weight, decoder.fusion.0.out.weight, heads.depth.conv3.weight, ...), "
            f"received {len(shapes)} keys such as {', '.join(sorted(shapes)[:4])}."
        )
    dim, _, patch_h, _ = patch
    depth = 1 + max(int(key.split(".")[2]) for key in shapes if key.startswith("backbone.blocks."))
    use_bn = "decoder.fusion.0.unit.bn1.weight" in shapes
    for name in _FAMILIES.get(dim, ()):
        if config := _match(name, {"patch_size": patch_h, "depth": depth}, fusion[0], use_bn, heads, shapes):
            return config
    raise BadCheckpoint(
        f"the checkpoint has another architecture: its backbone (width {dim}, {depth} blocks, patch {patch_h}) matches "
        f"none of {', '.join(_FAMILIES.get(dim, ())) or 'the known widths ' + str(sorted(_FAMILIES))}. Save it with "
        "dpt_deploy.model.save_checkpoint(path, model), which writes the architecture to the file."
    )


def _match(
    name: str, kwargs: dict[str, Any], features: int, use_bn: bool, heads: tuple[str, ...], shapes: dict[str, tuple]
) -> ModelConfig | None:
    """The config with backbone `name` that has exactly `shapes`, or None. Allocates no memory."""
    with torch.device("meta"):
        try:
            native = MultiTaskDPT(ModelConfig(name, features, use_bn, heads=heads))
        except RuntimeError:
            return None
        defaults = {"patch_size": native.backbone.patch_embed.patch_size[0], "depth": len(native.backbone.blocks)}
        kwargs = {key: value for key, value in kwargs.items() if defaults[key] != value}
        tokens = shapes.get("backbone.pos_embed")
        if tokens:
            prefix = 0 if native.backbone.no_embed_class else native.backbone.num_prefix_tokens
            side = int((tokens[1] - prefix) ** 0.5 + 0.5)
            size = side * kwargs.get("patch_size", defaults["patch_size"])
            if size != native.input_size[0]:
                kwargs["img_size"] = size
        config = ModelConfig(name, features, use_bn, backbone_kwargs=kwargs, heads=heads)
        model = MultiTaskDPT(config) if kwargs else native
    return config if {key: tuple(value.shape) for key, value in model.state_dict().items()} == shapes else None
