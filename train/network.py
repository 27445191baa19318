"""The model of a run, what goes into it and what comes out."""

from __future__ import annotations

import functools
from typing import Any

import torch

from dpt_deploy.core.contract import Contract
from dpt_deploy.model import MultiTaskDPT, create_multitask_dpt_model
from train.config import TrainConfig
from train.statistics import Statistics


def create_model(config: TrainConfig, statistics: Statistics, pretrained: bool) -> MultiTaskDPT:
    """A model whose heads start at the data's typical depth and coverage."""
    kwargs = config.timm_kwargs
    if config.input_size:
        kwargs["img_size"] = config.input_size
    model = create_multitask_dpt_model(
        config.backbone, config.features, config.use_bn, pretrained, config.depth_scale, kwargs, config.tasks
    )
    depth = statistics.depth
    if config.canonical_focal:
        depth *= config.canonical_focal / (statistics.focal * model.input_size[1])
    model.initialise(depth, min(max(statistics.coverage, 0.02), 0.98))
    return model


@functools.cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


def to_device(
    batch: dict[str, Any], device: torch.device, contract: Contract, channels_last: bool = False
) -> dict[str, Any]:
    """The batch's tensors on `device`, and "pixels": the image as the network takes it, float32 (N, 3, H, W)."""
    batch = {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }
    mean, std = (_per_channel(tuple(values), device) for values in (contract.mean, contract.std))
    pixels = (batch["image"].float() / 255 - mean) / std
    return batch | {"pixels": pixels.contiguous(memory_format=torch.channels_last) if channels_last else pixels}


def depth_as_trained(batch: dict[str, Any], canonical_focal: float) -> dict[str, Any]:
    """The batch with depth times canonical over own focal length; as it is when `canonical_focal` is 0."""
    if not canonical_focal:
        return batch
    return batch | {"depth": batch["depth"] * (canonical_focal / batch["focal"]).view(-1, 1, 1, 1)}


def maps_of(outputs: dict[str, torch.Tensor], focal_factor: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """The model's outputs as maps: depth [m], normals, alpha in [0, 1], float32 (N, C, H, W).

    `focal_factor` (N,): focal length over canonical focal length, where depth was trained in it.
    """
    maps = {name: value.float() for name, value in outputs.items() if name != "alpha_logits"}
    if "depth" in maps and focal_factor is not None:
        maps["depth"] = maps["depth"] * focal_factor.view(-1, 1, 1, 1)
    if "alpha_logits" in outputs:
        maps["alpha"] = outputs["alpha_logits"].float().sigmoid()
    return maps
