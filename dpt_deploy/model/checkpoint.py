"""Read and write self-describing checkpoints.

A checkpoint is a plain state dict of CPU tensors. Its description (architecture, contract, training record) is JSON
in the state dict's `_metadata`, which survives `torch.load(weights_only=True)` and strict loading.
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
from .dpt import DESCRIPTION_KEY, ModelConfig, MultiTaskDPT
from .infer import infer_config

WRAPPERS = ("state_dict", "model_state_dict", "model", "ema")
PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file."""

    path: Path
    sha256: str
    state_dict: dict[str, torch.Tensor]
    config: ModelConfig
    contract: Contract | None
    """The contract in the description; None if the file has no description."""
    training: dict[str, Any]
    """The training record; empty if there is none."""
    notes: tuple[str, ...]
    """What was unwrapped or inferred, as messages for the user."""


def save_checkpoint(
    path: Path | str, model: MultiTaskDPT, contract: Contract | None = None, training: dict[str, Any] | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a checkpoint with its description, atomically.

    Args:
        path: The file to write.
        model: The model; its configuration becomes part of the description.
        contract: The contract; `model.contract()` by default.
        training: The training record, as plain JSON values.
        state_dict: Weights to write instead of the model's own, such as their moving average.

    Raises:
        BadInput: The file cannot be written.
    """
    state = model.state_dict()
    metadata = state._metadata  # torch reads only "version" from the root entry, so further keys are safe
    for key, value in (state_dict if state_dict is not None else dict(state)).items():
        state[key] = value.detach().to("cpu", copy=True).contiguous()
    contract = contract or model.contract()
    description = {"model": model.config.to_json(), "contract": contract.to_json(), "training": training or {}}
    metadata[""] = metadata.get("", {}) | {DESCRIPTION_KEY: json.dumps(description)}
    save_torch(path, state)


def save_torch(path: Path | str, value: Any) -> None:
    """`torch.save`, atomically. Raises `BadInput` if the file cannot be written."""
    with replacing(path) as temporary:
        try:
            torch.save(value, temporary)
        except RuntimeError as error:  # torch's zip writer reports a full disk this way
            raise cannot_write(path, error) from error


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a `.pth`, `.pt` or `.safetensors` file with `weights_only=True`: no code in it is executed.

    Accepts a state dict, plain or under `state_dict`, `model_state_dict`, `model` or `ema`, with or without the
    prefixes `module.` and `_orig_mod.`. Without a description, the architecture is inferred from the shapes.

    Raises:
        BadInput: There is no such file.
        BadCheckpoint: The file cannot be read, has weights that are not finite, or is of an unknown architecture.
    """
    path, state, metadata, notes = _read(path)
    description = _description(path, metadata)
    if description:
        config, contract = ModelConfig.from_json(description["model"]), Contract.from_json(description["contract"])
    else:
        config, contract = infer_config(state), None
        notes.append(
            f"the checkpoint has no description; architecture inferred from the shapes: {config.backbone} "
            f"{config.backbone_kwargs or ''} features {config.features}, use_bn {config.use_bn}, "
            f"heads {', '.join(config.heads)}, depth_scale {config.depth_scale} (the default; shapes do not show it: "
            "use --depth-scale if you trained with another value)"
        )
    return Checkpoint(path, sha256(path), state, config, contract, description.get("training", {}), tuple(notes))


def read_tensors(path: Path | str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Tensors by name, and notes on what was unwrapped.

    Reads the files that `read_checkpoint` reads, of any architecture. Raises `BadInput` or `BadCheckpoint`.
    """
    _, state, _, notes = _read(path)
    return state, notes


def _read(path: Path | str) -> tuple[Path, dict[str, torch.Tensor], Mapping[str, Any], list[str]]:
    """Path, tensors without wrappers and prefixes, metadata, and notes."""
    path = existing_file(path, "a checkpoint file such as best_model.pth")
    content, metadata = _load_file(path)
    notes: list[str] = []
    for wrapper in WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, Mapping) and any(isinstance(v, torch.Tensor) for v in inner.values()):
            notes.append(f"weights read from the entry {wrapper!r}")
            content, metadata = inner, metadata or getattr(inner, "_metadata", {})
            break
    state = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    for prefix in PREFIXES * 2:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
            notes.append(f"prefix {prefix!r} removed")
    if not state:
        raise BadCheckpoint(
            f"{path}: expected a state dict of tensors, received the keys {sorted(map(str, content))[:8]}. "
            "Save it with torch.save(model.state_dict(), path)."
        )
    _check_finite(path, state)
    return path, state, metadata, notes


def load_model(checkpoint: Checkpoint | Path | str) -> MultiTaskDPT:
    """The model of a checkpoint, float32, in eval mode on the CPU.

    Raises `BadCheckpoint` with the missing keys, the unexpected keys and the keys of another shape.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint)
    model = MultiTaskDPT(checkpoint.config)
    expected, received = model.state_dict(), checkpoint.state_dict
    problems = {
        "missing": sorted(set(expected) - set(received)),
        "unexpected": sorted(set(received) - set(expected)),
        "of another shape": [
            f"{key} {list(received[key].shape)} instead of {list(value.shape)}"
            for key, value in expected.items() if key in received and received[key].shape != value.shape
        ],
    }
    if any(problems.values()):
        raise BadCheckpoint(f"{checkpoint.path} does not match {checkpoint.config.backbone}: " + "; ".join(
            f"{len(keys)} {kind} ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})"
            for kind, keys in problems.items() if keys
        ) + ". Expected the state dict of create_multitask_dpt_model().")
    model.load_state_dict(received)
    return model.float().eval()


def _load_file(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The mapping in a file, and its metadata by module name."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, {"": file.metadata() or {}}  # noqa: SIM118
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch raises exceptions of many types for a damaged file
        raise BadCheckpoint(
            f"{path}: expected a PyTorch checkpoint, but torch.load with weights_only=True failed "
            f"({type(error).__name__}): the file is truncated, has another format, or contains other objects than "
            "tensors. Copy it again, or save it with torch.save(model.state_dict(), path)."
        ) from error
    if not isinstance(content, Mapping):
        raise BadCheckpoint(
            f"{path}: expected a state dict, received a {type(content).__name__}. "
            "Save it with torch.save(model.state_dict(), path)."
        )
    return content, getattr(content, "_metadata", {})


def _description(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The description in the metadata, or {}."""
    text = (metadata.get("") or {}).get(DESCRIPTION_KEY) or next(
        (entry[DESCRIPTION_KEY] for entry in metadata.values() if entry and DESCRIPTION_KEY in entry), None
    )
    if text is None:
        return {}
    try:
        description = json.loads(text)
        description["model"], description["contract"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"{path}: its description is not valid ({error}). Save the checkpoint again.") from error
    return description


def _check_finite(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    bad = [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise BadCheckpoint(
            f"{path}: expected finite weights, but {len(bad)} tensors contain NaN or Inf ({', '.join(bad[:4])}). "
            "Use an earlier checkpoint."
        )
