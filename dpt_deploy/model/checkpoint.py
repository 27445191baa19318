"""Read and write self-describing checkpoints.

A checkpoint that `save_checkpoint` writes is a plain state dict of CPU tensors. Its description (architecture,
contract, training record) is JSON in the state dict's `_metadata`, which survives `torch.load(weights_only=True)` and
strict loading.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.contract import Contract
from ..core.errors import BadCheckpoint, BadInput
from ..core.files import cannot_write, replacing, sha256
from .checkpoint_file import check_tensors, choose, read_weights
from .description import check_architecture, read_description
from .dpt import DESCRIPTION_KEY, ModelConfig, MultiTaskDPT
from .infer import differences, infer_model
from .names import own_tensors, without_insertions

if TYPE_CHECKING:  # the network and what writes a checkpoint do without pydantic
    from ..core.manifest import Assumption

UNDESCRIBED = "the checkpoint has no description"


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
    """What was unwrapped, dropped or inferred, as messages for the user."""
    assumed: tuple[Assumption, ...] = ()
    """What neither the file nor an argument states."""


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


def read_checkpoint(
    path: Path | str, *, backbone: str | None = None, backbone_kwargs: Mapping[str, Any] | None = None,
    weights: str | None = None, normalisation_is_known: bool = False,
) -> Checkpoint:
    """Read a checkpoint file or folder: no code in it is executed.

    Accepts what `checkpoint_file` reads, with the weights in any entry, and under any prefix before the model's names.
    Tensors of something else are dropped, with a note. Without a description, the architecture is
    inferred from names and shapes.

    Args:
        path: The file, or the folder of a Hugging Face or distributed checkpoint.
        backbone: timm name of the backbone, for a file without a description.
        backbone_kwargs: Its architectural options, such as num_heads, for a file without a description.
        weights: The entry with the weights, such as state_dict or ema. Default: averaged weights if there are any.
        normalisation_is_known: Whether the caller has mean and std, so that the file need not decide them.

    Raises:
        BadInput: There is no such file, or no such entry in it.
        BadCheckpoint: The file cannot be read, has weights that are not finite floating-point numbers, an unknown
            architecture, or one that could be any of several.
    """
    from ..core.manifest import Assumption

    path = Path(path)
    chosen, note = choose(path, read_weights(path), weights)
    state, notes, prefix = own_tensors(path, chosen.tensors)
    state = check_tensors(path, state)
    notes = [*([note] if note else []), *notes]
    described = read_description(path, chosen.metadata, prefix)
    digest = _folder_digest(path) if path.is_dir() else sha256(path)
    if described is not None:
        config, contract, training, unknown = described
        if backbone not in (None, config.backbone):
            raise BadInput(f"--backbone: {path.name} describes itself as {config.backbone}, received {backbone}. Omit "
                           "the option.")
        own = config.backbone_kwargs
        other = {key: value for key, value in (backbone_kwargs or {}).items() if own.get(key) != value}
        if other:
            raise BadInput(f"--backbone-kwargs: {path.name} describes itself with {own}, received "
                           f"{other}. Omit the option.")
        assumed = tuple(Assumption(
            fact=name, value=contract.to_json().get(name), reason="the model that wrote the file does not know it",
            option=f"--{name.replace('_', '-')}") for name in unknown)
        return Checkpoint(path, digest, state, config, contract, training, tuple(notes), assumed)
    check_architecture("--backbone-kwargs", backbone_kwargs or {})
    inferred = infer_model(state, backbone, backbone_kwargs, normalisation_is_known)
    config, contract = inferred.config, inferred.contract
    notes.append(
        f"{UNDESCRIBED}; architecture inferred from the shapes: {config.backbone} {config.backbone_kwargs or ''} "
        f"features {config.features}, use_bn {config.use_bn}, heads {', '.join(config.heads)}"
    )
    facts = [("depth_scale", config.depth_scale, "--depth-scale"), ("resize", contract.resize, "--resize")]
    if "img_size" not in (backbone_kwargs or {}):
        facts.append(("input_size", contract.input_size, "--input-size"))
    if backbone is None:
        facts.append(("backbone", config.backbone, "--backbone"))
        facts += [("mean", contract.mean, "--mean"), ("std", contract.std, "--std")]
        if "num_heads" not in (backbone_kwargs or {}):
            facts.append(("num_heads", inferred.attention_heads, "--backbone-kwargs num_heads=N"))
    assumed = tuple(Assumption(fact=fact, value=json.loads(json.dumps(value)), reason=UNDESCRIBED, option=option)
                    for fact, value, option in facts)
    return Checkpoint(path, digest, state, config, None, {}, tuple(notes), assumed)


def read_tensors(path: Path | str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Tensors by name, of any architecture, and notes on what was unwrapped. Raises `BadInput` or `BadCheckpoint`."""
    path = Path(path)
    chosen, note = choose(path, read_weights(path))
    notes = [note] if note else []
    try:
        state, more, _ = own_tensors(path, chosen.tensors)
    except BadCheckpoint:  # another architecture, or a part of a model
        state, more = without_insertions(path, chosen.tensors)
    return check_tensors(path, state), notes + more


def _folder_digest(folder: Path) -> str:
    """SHA-256 over names and hashes of the files in a folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return hashlib.sha256("".join(f"{path.name} {sha256(path)}\n" for path in files).encode()).hexdigest()


def load_model(checkpoint: Checkpoint | Path | str) -> MultiTaskDPT:
    """The model of a checkpoint, float32, in eval mode on the CPU.

    Raises `BadCheckpoint` with the missing keys, the unexpected keys and the keys of another shape.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint)
    with torch.device("meta"):  # a description may ask for any amount of memory
        expected = MultiTaskDPT(checkpoint.config).state_dict()
    received = checkpoint.state_dict
    if problems := differences(
        {key: tuple(value.shape) for key, value in expected.items()},
        {key: tuple(value.shape) for key, value in received.items()},
    ):
        raise BadCheckpoint(f"{checkpoint.path} does not match {checkpoint.config.backbone}: {problems}. Expected the "
                            "state dict of create_multitask_dpt_model().")
    model = MultiTaskDPT(checkpoint.config)
    model.load_state_dict(received)
    return model.float().eval()
