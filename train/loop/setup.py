"""What a run needs before its first step: an output folder, data, a model, and an optimizer."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dpt_deploy.core.errors import BadInput, DptError
from dpt_deploy.core.files import cannot_write, existing_file
from dpt_deploy.model import MultiTaskDPT, create_multitask_dpt_model

from ..config import TrainConfig
from ..data.conventions import compare_conventions, require_assumed
from ..data.plausibility import plausible
from ..data.sources import BrokenSamples, Source, open_source, split
from ..data.statistics import Statistics, measure, readable, spread
from ..model.warmstart import initialise_from
from .optim import MovingAverage, parameter_groups
from .process import World


@dataclass(frozen=True)
class TrainingData:
    """The samples of a run."""

    source: Source
    fingerprint: str
    train_positions: list[int]
    val_positions: list[int]
    statistics: Statistics
    """Of the training samples."""
    broken: BrokenSamples
    """Counts samples that cannot be used."""


@dataclass(frozen=True)
class Optimization:
    """What turns gradients into weights, and in which precision."""

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: MovingAverage | None
    """The moving average of the weights, if the run has one."""
    amp: torch.dtype
    """Precision of autocast; float32 is without."""
    resolved: dict[str, str | float]
    """The options that depend on the machine or on other options, as they are in this run."""


def state_to_resume(config: TrainConfig) -> Path | None:
    """The last.pth that the run continues from; None if it starts anew. Raises `BadInput` if it does not exist."""
    if config.resume == "auto":
        last = config.out / "last.pth"
        return last if os.path.exists(last) else None  # Path.exists raises for a name that is too long
    return existing_file(config.resume, "the last.pth of a run") if config.resume else None


@contextlib.contextmanager
def claimed_output(out: Path, resumed: Path | None, main: bool) -> Iterator[None]:
    """Create the output folder; an error in the block removes it again if it is empty.

    `resumed` is the last.pth that the run continues from. Only the main process writes. Raises `BadInput` if the folder
    holds another run or cannot be written.
    """
    last = out / "last.pth"
    if os.path.exists(last) and not (resumed and last.samefile(resumed)):
        raise BadInput(f"{out} holds a run already. Continue it with --resume auto, or give another --out.")
    if main:
        try:
            out.mkdir(parents=True, exist_ok=True)
            probe = out / ".probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise cannot_write(out, error) from error
    try:
        yield
    except (DptError, KeyboardInterrupt):
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            out.rmdir()
        raise


def open_data(config: TrainConfig, say: Callable[..., None]) -> TrainingData:
    """Open the samples of a run, split them, and check depth and the convention of normals. `say` is `RunLog.say`.

    Raises `BadInput` if there are no samples, too many are incomplete, depth is implausible, or normals follow another
    convention.
    """
    source = open_source(config.data_root, config.normal_axes, config.max_pixels)
    broken = BrokenSamples(source, config.max_broken, say, functools.partial(say, any_rank=True))
    train_positions, val_positions = split(source.names, source.kinds, config.val_fraction)
    measured = readable(source, spread(train_positions, 64))
    statistics = measure(plausible(measured) if config.check_data and "depth" in config.heads else measured)
    if config.check_data and {"depth", "normals"} <= set(config.heads):
        samples = readable(source, spread(train_positions, 12))
        require_assumed(compare_conventions(samples, source.normal_axes), prepared=source.input_size is not None)
    return TrainingData(source, source.fingerprint(), train_positions, val_positions, statistics, broken)


def build_model(
    config: TrainConfig, statistics: Statistics, device: torch.device, resumes: bool
) -> tuple[MultiTaskDPT, list[str]]:
    """Create the model of a run, with heads that start at the typical depth and coverage of the data.

    If the run `resumes`, an earlier state will replace the weights, and none are downloaded or loaded.

    Returns:
        The model, and lines that say what was loaded with --init.
    """
    torch.manual_seed(config.seed)
    pretrained = config.pretrained and not config.init and not resumes  # else they would be downloaded for nothing
    model = create_multitask_dpt_model(
        config.backbone, config.features, config.use_bn, pretrained, config.depth_scale, config.timm_kwargs,
        config.heads,
    )
    depth = statistics.depth
    if config.canonical_focal:
        depth *= config.canonical_focal / (statistics.focal * model.input_size[1])
    model.initialise(depth, min(max(statistics.coverage, 0.02), 0.98))
    model.to(device)
    notes = initialise_from(model, config.init, config.canonical_focal) if config.init and not resumes else []
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    if config.grad_checkpointing:
        model.backbone.set_grad_checkpointing(True)
    return model, notes


def build_optimization(config: TrainConfig, model: MultiTaskDPT, device: torch.device) -> Optimization:
    """Create optimizer, loss scaler and moving average, with the options that depend on the machine resolved."""
    on_gpu = device.type == "cuda"
    scale = config.backbone_lr_scale
    if scale is None:
        scale = 0.1 if config.pretrained or config.init else 1.0
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.lr, config.weight_decay, scale, config.layer_decay),
        fused=True if on_gpu else None,
    )
    name = config.amp
    if name == "auto":
        name = "fp16" if on_gpu else "fp32"
    return Optimization(
        optimizer, torch.amp.GradScaler(device.type, enabled=name == "fp16"),
        MovingAverage(model, config.ema) if config.ema else None,
        {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[name],
        {"amp": name, "backbone_lr_scale": scale},
    )


def wrapped(model: MultiTaskDPT, world: World, compiled: bool) -> nn.Module:
    """The model as a step calls it: compiled, and distributed if there are several processes."""
    network: nn.Module = torch.compile(model) if compiled else model
    if world.size > 1:
        ids = [world.device.index] if world.device.type == "cuda" else None
        network = DistributedDataParallel(network, device_ids=ids)
    return network
