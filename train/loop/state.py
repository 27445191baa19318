"""last.pth: everything that a run needs to continue as if it had never stopped."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpt_deploy.core.errors import BadCheckpoint, BadInput
from dpt_deploy.core.files import existing_file
from dpt_deploy.model.checkpoint import save_torch

from ..config import RENAMED, TrainConfig

FORMAT = 2
FREE = ("out", "epochs", "config", "resume", "workers", "save_minutes", "keep", "device", "tensorboard", "samples",
        "check_data", "data_root", "max_broken", "max_pixels", "compile", "init")
"""Options that may differ between a run and its continuation."""
RESOLVED = ("amp", "backbone_lr_scale", "batch_size", "accumulate", "max_train_batches")
"""Options that are compared by their effect in the run: `resolved` in `save`."""


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Steps done in the current epoch."""
    total_steps: int = 0
    """Steps done since the start, including skipped ones."""
    best: float = float("inf")
    """Lowest validation loss."""
    best_epoch: int = 0
    """The epoch it belongs to."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the current epoch's losses over its batches."""
    batches: int = 0
    """Number of batches in these sums."""
    seconds: float = 0.0
    """Time the current epoch has taken so far."""
    skipped: int = 0
    """Steps skipped because a loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    overflows: int = 0
    """Steps that the loss scaler skipped."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per epoch."""
    planned: int = 0
    """Epochs over which the learning-rate schedule was laid at the last save."""
    best_table: dict[str, dict[str, float]] = field(default_factory=dict)
    """The validation metrics of the best epoch; empty in a state of earlier versions."""
    constants: dict[str, dict[str, float]] = field(default_factory=dict)
    """The scores of constant predictions on the validation samples."""


def random_state() -> dict[str, Any]:
    """The state of every random number generator that a run may use."""
    version, values, gauss = random.getstate()
    numpy_state = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": (version, list(values), gauss),
        "numpy": (numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


def save(
    path: Path, config: TrainConfig, resolved: dict[str, Any], progress: Progress, data: str, parts: dict[str, Any]
) -> None:
    """Write the full state, atomically.

    `resolved` is the effect of options on this machine, such as the precision that `--amp auto` chose; `data` is the
    fingerprint of the data; `parts` are state dicts by name.
    """
    save_torch(path, {
        "format": FORMAT, "config": config.to_json(), "resolved": resolved, "progress": dataclasses.asdict(progress),
        "data": data, "parts": parts,
    })


def load(path: Path, config: TrainConfig, resolved: dict[str, Any], data: str) -> tuple[Progress, dict[str, Any]]:
    """Read what `save` wrote, and compare it with options and data of the run that continues.

    Raises:
        BadInput: The file is missing, belongs to a run with other options or other data, or is beyond the last epoch.
        BadCheckpoint: The file is not the state of a run.
    """
    path = existing_file(path, "the full state of a run, last.pth")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise BadCheckpoint(f"{path}: expected format {FORMAT}, received {content['format']}. Start a new run.")
        progress = Progress(**content["progress"])
        was = present_names(content["config"]) | content["resolved"]
        parts, old_data = content["parts"], content["data"]
        progress.planned = was["epochs"]
    except BadCheckpoint:
        raise
    except Exception as error:  # torch raises many kinds of errors for a damaged file
        raise BadCheckpoint(
            f"{path}: expected the full state of a run (last.pth), but it cannot be read as such "
            f"({type(error).__name__}). To start from weights only, give --init {path}."
        ) from error
    now = {key: value for key, value in config.to_json().items() if key not in FREE + RESOLVED} | resolved
    changed = [f"{key} was {was.get(key)!r}, now {now[key]!r}" for key in now if was.get(key) != now[key]]
    if changed:
        raise BadInput(
            f"{path} belongs to a run with other options: {'; '.join(changed)}. Give the same options to continue it, "
            "or start a new run with --out ELSEWHERE --init best_model.pth."
        )
    if old_data != data:
        raise BadInput(f"{path} belongs to a run on other data (the fingerprints differ). Give the same --data-root, "
                       "or start a new run with --out ELSEWHERE --init best_model.pth.")
    begun = progress.epoch + (progress.step > 0)
    if config.epochs < begun:
        part = f" and {progress.step} steps of the next" if progress.step else ""
        raise BadInput(f"{path} is beyond --epochs {config.epochs}: {progress.epoch} epochs{part} are done. "
                       f"Give --epochs {begun} or more.")
    return progress, parts


def present_names(config: dict[str, Any]) -> dict[str, Any]:
    """The options that a run stored, under their present names and with their present values.

    Earlier runs stored the input size as one number, and 0 for what is None now.
    """
    config = {RENAMED.get(name, name): value for name, value in config.items()}
    if isinstance(size := config.get("input_size"), int):
        config["input_size"] = f"{size}x{size}" if size else None
    return config | {name: config.get(name) or None for name in ("max_train_batches", "max_val_batches")}
