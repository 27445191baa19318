"""The model, its configuration and its factory function."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..core.contract import HEADS, Contract, ResizeRule, check_heads
from ..core.errors import BadInput
from . import backbone as vits
from .decoder import Decoder
from .heads import create_head, initial_bias

OUTPUT_NAMES = {"depth": "depth", "normals": "normals", "alpha": "alpha_logits"}
DESCRIPTION_KEY = "dpt_deploy"


@dataclass(frozen=True)
class ModelConfig:
    """The arguments that build the same model again; every checkpoint has them in its description."""

    backbone: str = "vit_base_patch16_384"
    """timm name of the backbone, a plain patch transformer."""
    features: int = 256
    """Channels of the decoder."""
    use_bn: bool = False
    """Use batch norm in the residual convolution units."""
    depth_scale: float = 5.0
    """Depth is softplus(x) * depth_scale [m]."""
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model: img_size, patch_size, depth, ..."""
    heads: tuple[str, ...] = HEADS
    """Non-empty subset of depth, normals, alpha."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_json`. Raises `BadInput` for fields that this version does not know."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := set(value) - known:
            raise BadInput(f"model description: expected fields among {sorted(known)}, received {sorted(unknown)}. "
                           "A newer dpt-deploy wrote the checkpoint; upgrade.")
        return cls(**value | {"heads": tuple(value.get("heads", HEADS))})


class MultiTaskDPT(nn.Module):
    """Dense Prediction Transformer (Ranftl et al. 2021) with depth, normals and alpha heads.

    `backbone` is the timm model itself, so its keys in the state dict are those of timm.
    """

    def __init__(self, config: ModelConfig, pretrained: bool = False) -> None:
        super().__init__()
        if config.features < 2 or config.features % 2:
            raise BadInput(f"features: expected an even number of at least 2, received {config.features}.")
        check_heads(config.heads)
        _check_depth_scale(config.depth_scale)
        self.config = config
        self.backbone = vits.create_backbone(config.backbone, pretrained, **config.backbone_kwargs)
        class_token = vits.has_class_token(self.backbone)
        self.decoder = Decoder(self.backbone.embed_dim, config.features, config.use_bn, class_token)
        self.heads = nn.ModuleDict({h: create_head(h, config.features, config.depth_scale) for h in config.heads})
        self.initialise()
        self._register_state_dict_hook(_describe)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input [pixels]."""
        return vits.input_size(self.backbone)

    def set_input_size(self, size: tuple[int, int]) -> None:
        """Set height and width [pixels], resampling positional embeddings. Raises `BadInput` if patches do not fit."""
        vits.set_input_size(self.backbone, size)

    def initialise(self, depth: float = 2.0, foreground: float = 0.3) -> None:
        """Initialise decoder and heads; the backbone keeps timm's initialisation or its pretrained weights.

        He initialisation for convolutions, truncated normal (std 0.02) for the readout. The last convolution of each
        head gets small weights, and a bias that predicts `depth` [m], normals that face the camera, and `foreground`
        as alpha.
        """
        for module in (*self.decoder.modules(), *self.heads.modules()):
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, head in self.heads.items():
            nn.init.normal_(head.conv3.weight, std=1e-3)
            with torch.no_grad():
                head.conv3.bias.copy_(torch.tensor(initial_bias(name, self.config.depth_scale, depth, foreground)))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """`image`: (N, 3, H, W), normalised RGB.

        Returns depth (N, 1, H, W) [m] > 0, normals (N, 3, H, W) in [-1, 1], alpha_logits (N, 1, H, W).
        """
        size = image.shape[2:]
        patch = vits.patch_size(self.backbone)
        grid = (size[0] // patch[0], size[1] // patch[1])
        features = self.decoder(vits.token_maps(self.backbone, image), grid)  # (N, features, 8 gh, 8 gw)
        return {OUTPUT_NAMES[name]: head(features, size) for name, head in self.heads.items()}

    def select_heads(self, heads: tuple[str, ...]) -> None:
        """Keep only `heads`, in place. Raises `BadInput` for a head that the model does not have."""
        if absent := [head for head in heads if head not in self.heads]:
            raise BadInput(f"heads: expected names among {', '.join(self.heads)}, received {', '.join(absent)}.")
        for head in [head for head in self.heads if head not in heads]:
            del self.heads[head]
        self.config = dataclasses.replace(self.config, heads=tuple(h for h in HEADS if h in heads))

    def set_depth_scale(self, depth_scale: float) -> None:
        """Set the factor in depth = softplus(x) * depth_scale [m]. Raises `BadInput` unless it is positive."""
        _check_depth_scale(depth_scale)
        self.config = dataclasses.replace(self.config, depth_scale=depth_scale)
        if "depth" in self.heads:
            self.heads["depth"].activation.depth_scale = depth_scale

    def contract(self, resize: ResizeRule = "stretch") -> Contract:
        """The contract of this model: its input size, its heads, and the mean and std of timm."""
        cfg = self.backbone.pretrained_cfg
        return Contract(self.input_size, tuple(cfg["mean"]), tuple(cfg["std"]), resize, self.config.heads)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        # depth_scale is not a tensor: weights trained with another one would load and give wrong depth.
        if description := local_metadata.get(DESCRIPTION_KEY):
            self.set_depth_scale(json.loads(description)["model"]["depth_scale"])
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def _describe(model: MultiTaskDPT, _state: dict[str, Any], _prefix: str, metadata: dict[str, Any]) -> None:
    """Add the description to the metadata of a state dict: torch.save(model.state_dict()) describes itself too."""
    description = {"model": model.config.to_json(), "contract": model.contract().to_json(), "assumed": ["resize"]}
    metadata[DESCRIPTION_KEY] = json.dumps(description)


def _check_depth_scale(depth_scale: float) -> None:
    if not 0 < depth_scale < math.inf:
        raise BadInput(f"depth_scale: expected a positive number [m], received {depth_scale}.")


def create_multitask_dpt_model(
    backbone: str = "vit_base_patch16_384", features: int = 256, use_bn: bool = False, pretrained: bool = False,
    depth_scale: float = 5.0, backbone_kwargs: dict[str, Any] | None = None, heads: tuple[str, ...] = HEADS,
) -> MultiTaskDPT:
    """Create the model of the training guide, with new weights for decoder and heads.

    Args:
        backbone: timm name of a ViT that is a plain patch transformer.
        features: Channels of the decoder, an even number.
        use_bn: Use batch norm in the residual convolution units.
        pretrained: Load timm's pretrained weights of the backbone; they are downloaded if they are not cached.
        depth_scale: Depth is softplus(x) * depth_scale [m].
        backbone_kwargs: Further arguments of `timm.create_model`, such as img_size.
        heads: Non-empty subset of depth, normals, alpha.

    Raises:
        BadInput: An argument is outside its range, or timm cannot create the backbone.
    """
    config = ModelConfig(backbone, features, use_bn, depth_scale, dict(backbone_kwargs or {}), tuple(heads))
    return MultiTaskDPT(config, pretrained)
