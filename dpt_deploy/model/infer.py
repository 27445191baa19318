"""Infer the architecture of a state dict without a description from its keys and shapes.

Shapes show neither the number of attention heads nor mean and std. If they fit models that differ in these, the file
does not say which one it is, and the user has to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..core.contract import HEADS, Contract
from ..core.errors import BadCheckpoint, BadInput
from .dpt import ModelConfig, MultiTaskDPT
from .names import ANCHOR, another_architecture

_FAMILIES = {
    192: ("vit_tiny_patch16_384", "deit_tiny_patch16_224"),
    384: (
        "vit_small_patch16_384", "deit_small_patch16_224", "deit3_small_patch16_384", "vit_small_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3",
    ),
    768: (
        "vit_base_patch16_384", "deit_base_patch16_384", "deit3_base_patch16_384", "vit_base_patch14_dinov2",
        "vit_base_patch14_reg4_dinov2", "vit_base_patch16_dinov3", "vit_base_patch16_siglip_384",
    ),
    1024: (
        "vit_large_patch16_384", "vit_large_patch16_224.mae", "deit3_large_patch16_384", "vit_large_patch14_dinov2",
        "vit_large_patch14_reg4_dinov2", "vit_large_patch16_dinov3",
    ),
    64: ("test_vit",),
}


@dataclass(frozen=True)
class Candidate:
    """A model that a file may hold."""

    config: ModelConfig
    contract: Contract
    shapes: dict[str, tuple[int, ...]]
    attention_heads: int


def infer_model(
    state: Mapping[str, torch.Tensor], backbone: str | None = None, backbone_kwargs: Mapping[str, Any] | None = None,
    normalisation_is_known: bool = False,
) -> Candidate:
    """The model that has exactly these keys and shapes.

    Args:
        state: Tensors by name.
        backbone: timm name of the backbone, if it is known.
        backbone_kwargs: Architectural options of the backbone that are known, such as num_heads.
        normalisation_is_known: Models that differ in mean and std alone are one and the same.

    Raises:
        BadCheckpoint: The keys are not those of `create_multitask_dpt_model`, no known backbone matches, or several do.
    """
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    patch = shapes.get(ANCHOR)
    fusion = shapes.get("decoder.fusion.0.out.weight")
    heads = tuple(head for head in HEADS if f"heads.{head}.conv3.weight" in shapes)
    if patch is None or len(patch) != 4 or not fusion or not heads:
        raise BadCheckpoint(another_architecture(shapes))
    dim, _, patch_h, _ = patch
    numbers = [key.split(".")[2] for key in shapes if key.startswith("backbone.blocks.")]
    depth = 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
    use_bn = "decoder.fusion.0.unit.bn1.weight" in shapes
    names = (backbone,) if backbone else _FAMILIES.get(dim, ())
    shape = {"patch_size": patch_h, "depth": depth}
    candidates = [one for name in names
                  if (one := _candidate(name, shape, dict(backbone_kwargs or {}), fusion[0], use_bn, heads, shapes))]
    fits = [one for one in candidates if one.shapes == shapes]
    if not fits:
        raise BadCheckpoint(f"the checkpoint has another architecture (width {dim}, {depth} blocks, patch {patch_h}). "
                            + _nearest(candidates, shapes, names))
    different = {}
    for fit in reversed(fits):
        normalisation = () if normalisation_is_known else (fit.contract.mean, fit.contract.std)
        different[fit.attention_heads, *normalisation] = fit
    if len(different) > 1:
        listed = "; ".join(f"--backbone {fit.config.backbone}: mean {_text(fit.contract.mean)}, "
                           f"std {_text(fit.contract.std)}, {fit.attention_heads} attention heads"
                           for fit in reversed(different.values()))
        raise BadCheckpoint(f"the checkpoint has no description, and its shapes fit several backbones. Say which one "
                            f"it was trained with (options of dpt export; arguments of read_checkpoint): {listed}.")
    return fits[0]


def _text(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _nearest(candidates: list[Candidate], shapes: dict[str, tuple], names: tuple[str, ...]) -> str:
    """What separates a file from the known model that is nearest to it, and what to do."""
    advice = ("Name it with --backbone and --backbone-kwargs, such as img_size=128x192, or save the file with "
              "dpt_deploy.model.save_checkpoint(path, model), which writes the architecture to it.")
    if not candidates:
        known = ", ".join(names) or f"the known widths {sorted(_FAMILIES)}"
        return f"It matches none of {known}. {advice}"
    nearest = min(candidates, key=lambda one: len(set(one.shapes.items()) ^ set(shapes.items())))
    return f"Compared with {nearest.config.backbone}, the nearest: {differences(nearest.shapes, shapes)}. {advice}"


def differences(expected: Mapping[str, tuple], received: Mapping[str, tuple]) -> str:
    """What separates two sets of tensors, given by name and shape; "" for nothing."""
    kinds = {
        "missing": sorted(set(expected) - set(received)),
        "unexpected": sorted(set(received) - set(expected)),
        "of another shape": [f"{key} {list(received[key])} instead of {list(shape)}" for key, shape in expected.items()
                             if key in received and received[key] != shape],
    }
    return "; ".join(f"{len(keys)} {kind} ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})"
                     for kind, keys in kinds.items() if keys)


def _candidate(
    name: str, shape: dict[str, int], stated: dict[str, Any], features: int, use_bn: bool, heads: tuple[str, ...],
    shapes: dict[str, tuple],
) -> Candidate | None:
    """The model with backbone `name` that may have `shapes`; None if there is none. Allocates no memory."""
    with torch.device("meta"):
        try:
            native = MultiTaskDPT(ModelConfig(name, features, use_bn, heads=heads))
            defaults = {"patch_size": native.backbone.patch_embed.patch_size[0], "depth": len(native.backbone.blocks)}
            kwargs = {key: value for key, value in shape.items() if defaults[key] != value} | stated
            tokens = shapes.get("backbone.pos_embed")
            if tokens and len(tokens) == 3 and "img_size" not in kwargs:
                prefix = 0 if native.backbone.no_embed_class else native.backbone.num_prefix_tokens
                side = int(max(tokens[1] - prefix, 0) ** 0.5 + 0.5)
                size = side * kwargs.get("patch_size", defaults["patch_size"])
                if size != native.input_size[0]:
                    kwargs["img_size"] = size
            config = ModelConfig(name, features, use_bn, backbone_kwargs=kwargs, heads=heads)
            model = MultiTaskDPT(config) if kwargs else native
        except BadInput:
            if not stated and any(name in family for family in _FAMILIES.values()):
                return None
            raise
        except RuntimeError:
            return None
    built = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return Candidate(config, model.contract(), built, model.backbone.blocks[0].attn.num_heads)
