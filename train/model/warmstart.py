"""Start from other weights: a checkpoint of this project, of the official DPT release, or of transformers.

From the official release (Ranftl et al. 2021, isl-org/DPT and MiDaS 3) and from the `DPTForDepthEstimation` of
transformers come backbone, reassemble and fusion. Their depth head is not used, because it predicts another quantity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

from dpt_deploy.core.errors import BadCheckpoint
from dpt_deploy.model import MultiTaskDPT, read_checkpoint
from dpt_deploy.model.checkpoint import read_tensors

_OURS = "checkpoint of this project"
_UNIT = {"resConfUnit1": "skip_unit", "resConfUnit2": "unit", "residual_layer1": "skip_unit", "residual_layer2": "unit"}
_LAYER = {"convolution1": "conv1", "convolution2": "conv2", "batch_norm1": "bn1", "batch_norm2": "bn2"}
_BLOCK = {
    "attention.output.dense": "attn.proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
    "layernorm_before": "norm1", "layernorm_after": "norm2",
}
_UNUSED = (r"pretrained\.model\.(norm|head|fc_norm)\..*|scratch\.output_conv.*|scratch\.refinenet4\.resConfUnit1\..*|"
           r"auxlayer.*|dpt\.(layernorm|pooler)\..*|head\.head\..*|"
           r"neck\.fusion_stage\.layers\.0\.residual_layer1\..*")


def initialise_from(model: MultiTaskDPT, path: Path, canonical_focal: float = 0.0) -> list[str]:
    """Load the tensors of a checkpoint that fit a model.

    A checkpoint of this project that was trained with other units or another normalisation is used all the same, and
    the lines returned name the difference.

    Args:
        model: The model to initialise.
        path: The checkpoint.
        canonical_focal: What the model will be trained with [pixels]; 0 for depth in metres.

    Returns:
        Lines that say what was loaded and what was not.

    Raises:
        BadInput: There is no such file.
        BadCheckpoint: The file cannot be read, has an architecture that cannot fit, or none of its blocks fits.
    """
    state, notes = read_tensors(path)
    origin, state = translated(path, state)
    own = model.state_dict()
    if "backbone.pos_embed" in state and "backbone.pos_embed" in own:
        state["backbone.pos_embed"] = resized_positions(state["backbone.pos_embed"], model)
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if not any(key.startswith("backbone.blocks.") for key in fitting):
        misshaped = [f"{key} {list(state[key].shape)} for {list(own[key].shape)}" for key in state if key in own]
        raise BadCheckpoint(
            f"{path}: no block of this {origin} fits {model.config.backbone}"
            + (f" ({', '.join(misshaped[:2])})" if misshaped else f" (its keys begin {', '.join(sorted(state)[:3])})")
            + ". Choose the backbone that the file was made with: --backbone, --backbone-kwargs."
        )
    model.load_state_dict(fitting, strict=False)
    lines = [*(f"{path}: {note}" for note in notes),
             f"{path}: {origin}; initialised {len(fitting)} of the model's {len(own)} tensors from it"]
    for what, keys in (("of the model missing in the file, or of another shape", set(own) - set(fitting)),
                       ("of the file not used", set(state) - set(fitting))):
        if keys:
            lines.append(f"{len(keys)} tensors {what}: {_summary(keys)}")
    return lines + (_other_units(model, path, canonical_focal) if origin == _OURS else [])


def _other_units(model: MultiTaskDPT, path: Path, canonical_focal: float) -> list[str]:
    """A line for each property of inputs and outputs in which a checkpoint and the model differ."""
    try:
        checkpoint = read_checkpoint(path)
    except BadCheckpoint:  # weights of parts of a model, which carry no description
        return []
    if checkpoint.contract is None:
        return []
    own = model.contract()
    pairs = {
        "depth_scale": (checkpoint.config.depth_scale, model.config.depth_scale),
        "canonical_focal": (checkpoint.training.get("canonical_focal", 0.0), canonical_focal),
        "mean": (tuple(checkpoint.contract.mean), tuple(own.mean)),
        "std": (tuple(checkpoint.contract.std), tuple(own.std)),
    }
    return [f"{name} is {there} in the file and {here} here; the first predictions are off accordingly"
            for name, (there, here) in pairs.items() if there != here]


def translated(path: Path, state: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor]]:
    """The kind of a checkpoint, and its tensors under the names of this project; unknown tensors keep their names."""
    if any(key.startswith("backbone.blocks.") for key in state):
        return _OURS, dict(state)
    if any(key.startswith("pretrained.model.") for key in state):
        _refuse(path, state, {
            "a hybrid backbone (convolutions before the transformer)": "pretrained.model.patch_embed.backbone.",
            "a BEiT backbone": "relative_position_bias_table", "a Swin backbone": "pretrained.model.layers.",
        }, "pretrained.act_postprocess1.0.project.0.weight")
        return "checkpoint of the official DPT release", {_official(key): value for key, value in state.items()}
    if any(key.startswith("dpt.encoder.") for key in state):
        _refuse(path, state, {"a hybrid backbone (convolutions before the transformer)": "dpt.embeddings.backbone."},
                "neck.reassemble_stage.readout_projects.0.0.weight")
        return "checkpoint of transformers' DPT", _with_qkv({_transformers(k): v for k, v in state.items()})
    raise BadCheckpoint(
        f"{path}: expected a checkpoint of this project (backbone.blocks...), of the official DPT release "
        f"(pretrained.model..., scratch...) or of transformers' DPT (dpt.encoder...), received keys {_summary(state)}."
    )


def _refuse(path: Path, state: Mapping[str, torch.Tensor], unfit: dict[str, str], readout: str) -> None:
    """Raise `BadCheckpoint`, which names the architecture, if it cannot fit.

    `unfit` maps architectures to a part of a key that only they have; `readout` is the key of a readout "project".
    """
    reasons = [name for name, part in unfit.items() if any(part in key for key in state)]
    if not reasons and readout not in state:
        reasons = ["a readout other than project"]
    if reasons:
        raise BadCheckpoint(f"{path}: expected a DPT with a plain vision transformer and readout project, such as "
                            f"DPT-Large, received one with {reasons[0]}.")


def _official(key: str) -> str:
    """The name in this project of a tensor of the official release."""
    if key.startswith("pretrained.model."):
        return key.replace("pretrained.model.", "backbone.", 1)
    if found := re.fullmatch(r"pretrained\.act_postprocess([1-4])\.(0\.project\.0|3|4)\.(weight|bias)", key):
        part = {"0.project.0": "readout.project", "3": "project", "4": "resample"}[found[2]]
        return f"decoder.reassemble.{int(found[1]) - 1}.{part}.{found[3]}"
    if found := re.fullmatch(r"scratch\.layer([1-4])_rn\.weight", key):
        return f"decoder.reassemble.{int(found[1]) - 1}.out.weight"
    if found := re.fullmatch(r"scratch\.refinenet([1-4])\.(.+)", key):
        rest = found[2].replace("out_conv.", "out.")
        unit, _, tail = rest.partition(".")
        return f"decoder.fusion.{int(found[1]) - 1}.{_UNIT.get(unit, unit)}.{tail}"
    return key


def _transformers(key: str) -> str:
    """The name in this project of a tensor of `DPTForDepthEstimation`; fusion_stage.layers.j is refinenet(4 - j)."""
    embeddings = {"cls_token": "cls_token", "position_embeddings": "pos_embed",
                  "patch_embeddings.projection.weight": "patch_embed.proj.weight",
                  "patch_embeddings.projection.bias": "patch_embed.proj.bias"}
    if key.startswith("dpt.embeddings."):
        return "backbone." + embeddings.get(key.removeprefix("dpt.embeddings."), key)
    if found := re.fullmatch(r"dpt\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", key):
        part = _BLOCK.get(found[2], found[2].replace("attention.attention.", "attn."))
        return f"backbone.blocks.{found[1]}.{part}.{found[3]}"
    if found := re.fullmatch(r"neck\.reassemble_stage\.layers\.(\d)\.(projection|resize)\.(weight|bias)", key):
        part = {"projection": "project", "resize": "resample"}[found[2]]
        return f"decoder.reassemble.{found[1]}.{part}.{found[3]}"
    if found := re.fullmatch(r"neck\.reassemble_stage\.readout_projects\.(\d)\.0\.(weight|bias)", key):
        return f"decoder.reassemble.{found[1]}.readout.project.{found[2]}"
    if found := re.fullmatch(r"neck\.convs\.(\d)\.weight", key):
        return f"decoder.reassemble.{found[1]}.out.weight"
    if found := re.fullmatch(r"neck\.fusion_stage\.layers\.(\d)\.(.+)", key):
        names = _UNIT | _LAYER | {"projection": "out"}
        parts = [names.get(part, part) for part in found[2].split(".")]
        return ".".join(("decoder.fusion", str(3 - int(found[1])), *parts))
    return key


def _with_qkv(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Concatenate query, key and value of each block, as in timm."""
    state = dict(state)
    for key in [key for key in state if ".attn.query." in key]:
        parts = [state.pop(key.replace(".query.", f".{name}."), None) for name in ("query", "key", "value")]
        if all(part is not None for part in parts):
            state[key.replace(".query.", ".qkv.")] = torch.cat(parts)
    return state


def resized_positions(pos_embed: torch.Tensor, model: MultiTaskDPT) -> torch.Tensor:
    """Positional embedding (1, L, D) for the model's grid: bilinear, align_corners=False, as in the DPT release."""
    vit = model.backbone
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    side = round((pos_embed.shape[1] - prefix) ** 0.5)
    grid = tuple(vit.patch_embed.grid_size)
    if side * side != pos_embed.shape[1] - prefix or (side, side) == grid:
        return pos_embed
    tokens, patches = pos_embed[:, :prefix], pos_embed[:, prefix:]
    patches = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, D, side, side)
    patches = F.interpolate(patches, size=grid, mode="bilinear", align_corners=False)
    return torch.cat((tokens, patches.flatten(2).transpose(1, 2)), dim=1)  # (1, L, D)


def _summary(keys) -> str:
    keys = sorted(key for key in keys if not re.fullmatch(_UNUSED, key)) or sorted(keys)
    return ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
