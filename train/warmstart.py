"""Start from other weights: checkpoints of ours, the official DPT release's, transformers'."""

from __future__ import annotations

from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed

from dpt_deploy.model import MultiTaskDPT, read_checkpoint


def initialise_from(model: MultiTaskDPT, path: Path) -> list[str]:
    """Load what fits of `path` into `model`; lines for people that say what was taken and what was not.

    Raises `BadInput` or `BadCheckpoint` when the file cannot be read.
    """
    state = read_checkpoint(path).state_dict
    own = model.state_dict()
    state = {key: _resized(value, own[key], model) if key == "backbone.pos_embed" and key in own else value
             for key, value in state.items()}
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    missing, left = sorted(set(own) - set(fitting)), sorted(set(state) - set(fitting))
    lines = [f"{path}: {len(fitting)} of {len(own)} tensors taken"]
    for what, keys in (("not in the file, or of another shape", missing), ("not taken from the file", left)):
        if keys:
            lines.append(f"{len(keys)} {what}: {', '.join(keys[:6])}{', ...' if len(keys) > 6 else ''}")
    return lines


def _resized(pos_embed: torch.Tensor, like: torch.Tensor, model: MultiTaskDPT) -> torch.Tensor:
    """Positional embedding (1, L, D) at `like`'s number of tokens, resampled bicubically as timm does."""
    if pos_embed.shape == like.shape or pos_embed.shape[2] != like.shape[2]:
        return pos_embed
    vit = model.backbone
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    return resample_abs_pos_embed(pos_embed, list(vit.patch_embed.grid_size), num_prefix_tokens=prefix)
