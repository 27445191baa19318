"""last.pth: everything a run needs to go on as if it had never stopped."""

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
from train.config import TrainConfig

FORMAT = 2
FREE = ("out", "config", "resume", "workers", "save_minutes", "keep", "device", "tensorboard", "samples", "check_data",
        "data_root", "max_broken", "compile", "init")
"""Options that may change between a run and its continuation."""
RESOLVED = ("amp", "backbone_lr_scale", "batch_size", "accumulate", "limit_train_batches")
"""Options that count by what they came to in the run: `save`'s `resolved`."""


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Steps done in the current epoch."""
    total_steps: int = 0
    """Steps done in all, skipped ones included."""
    best: float = float("inf")
    """Lowest validation loss."""
    best_epoch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the current epoch's losses over its batches."""
    batches: int = 0
    """How many batches they hold."""
    seconds: float = 0.0
    """Time the current epoch has taken so far."""
    skipped: int = 0
    """Steps skipped for a loss or gradient that was not finite."""
    skipped_in_a_row: int = 0
    overflows: int = 0
    """Steps the loss scaler skipped."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per epoch."""
    constants: dict[str, dict[str, float]] = field(default_factory=dict)
    """What constant predictions score on the validation set."""


def random_state() -> dict[str, Any]:
    """The state of every random number generator a run may draw from."""
    version, values, gauss = random.getstate()
    numpy_state = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": (version, list(values), gauss),
        "numpy": (numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`."""
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

    `resolved` is what options and machine came to, such as the precision that `--amp auto` is; `data`
    is the fingerprint; `parts` are state dicts by name.
    """
    save_torch(path, {
        "format": FORMAT, "config": config.to_json(), "resolved": resolved, "progress": dataclasses.asdict(progress),
        "data": data, "parts": parts,
    })


def load(path: Path, config: TrainConfig, resolved: dict[str, Any], data: str) -> tuple[Progress, dict[str, Any]]:
    """Read what `save` wrote.

    Raises `BadCheckpoint` for a file of another kind, `BadInput` when it is a run of another config
    or on other data.
    """
    path = existing_file(path, "the full state of a run, last.pth")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise BadCheckpoint(f"{path}: expected format {FORMAT}, received {content['format']}. Start a new run.")
        progress = Progress(**content["progress"])
        was, parts, old_data = content["config"] | content["resolved"], content["parts"], content["data"]
    except BadCheckpoint:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        raise BadCheckpoint(
            f"{path}: expected the full state of a run (last.pth), but it cannot be read as one "
            f"({type(error).__name__}). To start from weights alone, give --init {path}."
        ) from error
    now = {key: value for key, value in config.to_json().items() if key not in FREE + RESOLVED} | resolved
    changed = [f"{key} {was.get(key)!r} then, {now[key]!r} now" for key in now if was.get(key) != now[key]]
    if changed:
        raise BadInput(
            f"{path} is of a run with another config: {'; '.join(changed)}. Give the same options to continue it, or "
            "start a new run with --out ELSEWHERE --init best_model.pth."
        )
    if old_data != data:
        raise BadInput(f"{path}: the data are not those the run began with (another fingerprint). "
                       "Give the same --data-root, or start a new run with --out ELSEWHERE --init best_model.pth.")
    return progress, parts
