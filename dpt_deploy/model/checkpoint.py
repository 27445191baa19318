"""Read and write checkpoints that describe themselves.

A checkpoint is a plain state dict of CPU tensors. The description (architecture, contract, training
record) is JSON in the state dict's `_metadata`, where it survives `torch.load(weights_only=True)`
and strict loading alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.contract import Contract
from ..core.errors import BadCheckpoint
from ..core.files import cannot_write, existing_file, replacing, sha256
from . import infer
from .dpt import DESCRIPTION_KEY, ModelConfig, MultiTaskDPT

WRAPPERS = ("state_dict", "model_state_dict", "model", "ema")
PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    path: Path
    sha256: str
    state_dict: dict[str, torch.Tensor]
    config: ModelConfig
    contract: Contract | None
    """What the checkpoint says of its inputs; None where it says nothing."""
    training: dict[str, Any]
    """The training record, {} where there is none."""
    notes: tuple[str, ...]
    """What had to be unwrapped or inferred, for people."""


def save_checkpoint(
    path: Path | str, model: MultiTaskDPT, contract: Contract | None = None, training: dict[str, Any] | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write `model` (or `state_dict`, such as its EMA weights) to `path`, atomically, with its description.

    `contract` defaults to `model.contract()`. Raises `BadInput` when the file cannot be written.
    """
    state = model.state_dict()
    metadata = state._metadata  # the root entry is a dict of ours to extend; torch reads only "version"
    for key, value in (state_dict if state_dict is not None else dict(state)).items():
        state[key] = value.detach().to("cpu", copy=True).contiguous()
    description = {
        "model": model.config.to_json(),
        "contract": (contract or model.contract()).to_json(),
        "training": training or {},
    }
    metadata[""] = metadata.get("", {}) | {DESCRIPTION_KEY: json.dumps(description)}
    save_torch(path, state)


def save_torch(path: Path | str, value: Any) -> None:
    """`torch.save`, atomically. Raises `BadInput` when the file cannot be written."""
    with replacing(path) as temporary:
        try:
            torch.save(value, temporary)
        except RuntimeError as error:  # torch's zip writer reports a full disk this way
            raise cannot_write(path, error) from error


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a `.pth`, `.pt` or `.safetensors` file; `weights_only=True`, nothing in it is executed.

    Accepts a plain state dict, one wrapped under `state_dict`, `model_state_dict`, `model` or `ema`,
    and `module.` and `_orig_mod.` prefixes. Without a description the architecture is inferred from
    the shapes. Raises `BadInput` or `BadCheckpoint`.
    """
    path, state, metadata, notes = _read(path)
    description = _description(path, metadata)
    if description:
        config, contract = ModelConfig.from_json(description["model"]), Contract.from_json(description["contract"])
    else:
        config, contract = infer.config(state), None
        notes.append(
            f"no description inside; architecture inferred from the shapes: {config.backbone} "
            f"{config.backbone_kwargs or ''} features {config.features}, use_bn {config.use_bn}, "
            f"heads {', '.join(config.heads)}, depth_scale {config.depth_scale} (not visible in shapes; "
            "give --depth-scale if you trained with another)"
        )
    return Checkpoint(path, sha256(path), state, config, contract, description.get("training", {}), tuple(notes))


def read_tensors(path: Path | str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors of any checkpoint file under their own names, and notes on what was unwrapped.

    Reads the same files as `read_checkpoint`, of whatever architecture. Raises `BadInput` or `BadCheckpoint`.
    """
    _, state, _, notes = _read(path)
    return state, notes


def _read(path: Path | str) -> tuple[Path, dict[str, torch.Tensor], Mapping[str, Any], list[str]]:
    """Path, finite tensors without wrappers and prefixes, metadata, and notes."""
    path = existing_file(path, "a checkpoint file such as best_model.pth")
    content, metadata = _load_file(path)
    notes: list[str] = []
    for wrapper in WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, Mapping) and any(isinstance(v, torch.Tensor) for v in inner.values()):
            notes.append(f"weights taken from the entry {wrapper!r}")
            content, metadata = inner, metadata or getattr(inner, "_metadata", {})
            break
    state = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    for prefix in PREFIXES * 2:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
            notes.append(f"prefix {prefix!r} removed")
    if not state:
        raise BadCheckpoint(
            f"{path}: expected a state dict of tensors, received entries {sorted(map(str, content))[:8]}. "
            "Save it with torch.save(model.state_dict(), path)."
        )
    _check_finite(path, state)
    return path, state, metadata, notes


def load_model(checkpoint: Checkpoint | Path | str) -> MultiTaskDPT:
    """The model of a checkpoint, in eval mode on the CPU, loaded strictly.

    Raises `BadCheckpoint` naming the missing, the left-over and the mis-shaped keys.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint)
    model = MultiTaskDPT(checkpoint.config)
    want, have = model.state_dict(), checkpoint.state_dict
    problems = {
        "missing": sorted(set(want) - set(have)),
        "left over": sorted(set(have) - set(want)),
        "mis-shaped": [
            f"{key} {list(have[key].shape)} for {list(want[key].shape)}"
            for key in want if key in have and have[key].shape != want[key].shape
        ],
    }
    if any(problems.values()):
        raise BadCheckpoint(f"{checkpoint.path} does not fit {checkpoint.config.backbone}: " + "; ".join(
            f"{len(keys)} {kind} ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})"
            for kind, keys in problems.items() if keys
        ) + ". Expected the state dict of create_multitask_dpt_model().")
    model.load_state_dict(have)
    return model.float().eval()


def _load_file(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The mapping in a file, and the metadata of its root."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, {"": file.metadata() or {}}  # noqa: SIM118
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file; none of them tells what to do
        raise BadCheckpoint(
            f"{path}: expected a PyTorch checkpoint, but it cannot be read with weights_only=True "
            f"({type(error).__name__}); it is truncated, of another kind, or holds more than tensors. "
            "Copy it again, or save it with torch.save(model.state_dict(), path)."
        ) from error
    if not isinstance(content, Mapping):
        raise BadCheckpoint(
            f"{path}: expected a state dict, received a {type(content).__name__}. "
            "Save it with torch.save(model.state_dict(), path)."
        )
    return content, getattr(content, "_metadata", {})


def _description(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The description that travelled with the weights, or {}."""
    text = (metadata.get("") or {}).get(DESCRIPTION_KEY) or next(
        (entry[DESCRIPTION_KEY] for entry in metadata.values() if entry and DESCRIPTION_KEY in entry), None
    )
    if text is None:
        return {}
    try:
        description = json.loads(text)
        description["model"], description["contract"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"{path}: its description cannot be read ({error}). Save it again.") from error
    return description


def _check_finite(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    bad = [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise BadCheckpoint(
            f"{path}: expected finite weights, but {len(bad)} tensors hold NaN or Inf ({', '.join(bad[:4])}). "
            "Take an earlier checkpoint."
        )


