"""TrainConfig: the command line, the YAML file and the record of a run are one dataclass."""

from __future__ import annotations

import ast
import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar, get_args

from dpt_deploy.core.contract import HEADS, ResizeRule
from dpt_deploy.core.errors import BadInput, missing_package
from dpt_deploy.core.files import existing_file
from train.augment import Augment, AugmentOptions
from train.geometry import AXES, parse_axes
from train.losses import Losses, LossOptions

Part = TypeVar("Part", Augment, Losses)

Precision = Literal["auto", "fp16", "bf16", "fp32"]
POSITIVE = ("epochs", "batch_size", "lr", "accumulate", "depth_scale", "layer_decay", "save_minutes", "samples")
NOT_NEGATIVE = ("backbone_lr_scale", "weight_decay", "clip_norm", "early_stopping", "seed", "features", "input_size",
                "w_depth", "w_normal", "w_alpha", "w_gradient", "canonical_focal", "limit_train_batches",
                "limit_val_batches", "max_broken", "keep")


@dataclass(frozen=True, kw_only=True)
class MainOptions:
    """What stands first in --help."""

    data_root: Path
    """Folder of samples: one chunk (SynthHuman_0000), the chunks' parent, a flat folder, or a prepared cache."""
    out: Path = Path("runs/train")
    """Folder for checkpoints, samples and logs."""
    config: Path | None = None
    """YAML file with any of these fields; options on the command line win over it."""

    epochs: int = 20
    """Passes over the training samples."""
    batch_size: int = 6
    """Images per step, process and accumulation."""
    lr: float = 8e-4
    """Peak learning rate of decoder and heads."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LossOptions, AugmentOptions, MainOptions):
    """Train a Dense Prediction Transformer for depth, normals and alpha on SynthHuman-format data."""

    backbone_lr_scale: float | None = None
    """The backbone's rate over `lr`; by default 0.1 when it starts from trained weights, else 1."""
    layer_decay: float = 1.0
    """Rate of each transformer block over that of the next deeper one."""
    weight_decay: float = 0.01
    """AdamW's decay; none on norms, biases, tokens and positions."""
    warmup: float = 0.05
    """Share of all steps over which the rate rises; it then falls as a cosine to 1 % of its peak."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 is no clipping."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    ema: float = 0.0
    """Decay of the weights' moving average, which is then validated and saved; 0 is off, 0.999 is usual."""
    early_stopping: int = 0
    """Stop after so many epochs without a better validation loss; 0 is never."""
    seed: int = 0
    """Seed of weights, order and augmentation."""

    backbone: str = "vit_base_patch16_384"
    """timm name of a plain vision transformer."""
    backbone_kwargs: tuple[str, ...] = ()
    """Further arguments of timm.create_model, as name=value: img_size=128 patch_size=8 depth=6."""
    features: int = 256
    """Channels of the decoder."""
    use_bn: bool = False
    """Batch norm in the decoder's residual units."""
    pretrained: bool = True
    """Start the backbone from timm's trained weights (downloaded once)."""
    depth_scale: float = 5.0
    """Depth is softplus(x) * depth_scale [m]; `python -m train.check DATA` suggests one."""
    init: Path | None = None
    """Start from these weights: a checkpoint of ours, the official DPT release's, or transformers'."""
    input_size: int = 0
    """Height and width of the network's input [pixels]; 0 is the backbone's own."""
    resize: ResizeRule = "stretch"
    """How images reach the input size."""

    canonical_focal: float = 0.0
    """Train depth * this / focal length [pixels], for data of many cameras; 0 trains depth in metres."""

    normal_axes: str = AXES
    """What the files' three normal components are; `python -m train.check DATA` finds out."""
    val_fraction: float = 0.05
    """Share of samples held out for validation."""
    augment: bool = True
    """Change training images at random, by mirror, zoom, color, blur, noise and jpeg."""
    limit_train_batches: int = 0
    """Stop every epoch after so many batches, for trials; 0 is all."""
    limit_val_batches: int = 0
    """Stop every validation after so many batches, for trials; 0 is all."""
    max_broken: int = 20
    """Broken samples that are named and skipped before the run stops."""
    check_data: bool = True
    """Compare normals with depth before training, and stop when their convention is another."""

    amp: Precision = "auto"
    """Precision of the network: auto is fp16 with loss scaling on a GPU and fp32 on a CPU."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:0."""
    workers: int = -1
    """Processes that read samples; -1 is one per core, up to 8."""
    channels_last: bool = False
    """Keep feature maps channels last, which is often faster."""
    grad_checkpointing: bool = False
    """Recompute the backbone's activations in the backward pass: less memory, slower."""
    compile: bool = False
    """Compile the network with torch.compile."""

    resume: str = ""
    """Continue a run: auto (from last.pth in `out` where there is one) or a file."""
    save_minutes: float = 5.0
    """Write last.pth, the full state, at least this often."""
    keep: int = 0
    """Keep the latest so many checkpoint_epoch_XX.pth; 0 is all."""
    samples: int = 6
    """Validation samples shown in training_samples/."""
    tensorboard: bool = True
    """Write TensorBoard event files where the package is installed."""

    def __post_init__(self) -> None:
        for name in POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(f"{name}: expected a number above 0, received {getattr(self, name)}.")
        for name in NOT_NEGATIVE:
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise BadInput(f"{name}: expected 0 or a number above it, received {getattr(self, name)}.")
        if self.workers < -1:
            raise BadInput(f"workers: expected -1 (one per core) or a number of processes, received {self.workers}.")
        for name, choices in {"amp": Precision, "resize": ResizeRule}.items():
            if getattr(self, name) not in get_args(choices):
                raise BadInput(f"{name}: expected {', '.join(get_args(choices))}, received {getattr(self, name)!r}.")
        parse_axes(self.normal_axes)
        ranges = {"ema": (0, 1), "warmup": (0, 1), "val_fraction": (0, 0.9), "mirror": (0, 1), "blur": (0, 1),
                  "noise": (0, 1), "jpeg": (0, 1), "color": (0, 1), "zoom": (1, 4)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high or (name == "ema" and self.ema == 1):
                raise BadInput(f"{name}: expected a number from {low} to {high}, received {getattr(self, name)}.")
        unknown = [task for task in self.tasks if task not in HEADS]
        if unknown or not self.tasks:
            raise BadInput(f"tasks: expected some of {' '.join(HEADS)}, received {' '.join(self.tasks) or 'none'}.")
        object.__setattr__(self, "tasks", tuple(head for head in HEADS if head in self.tasks))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @property
    def timm_kwargs(self) -> dict[str, Any]:
        """`backbone_kwargs` as keyword arguments. Raises `BadInput` for an entry that is not name=value."""
        kwargs = {}
        for entry in self.backbone_kwargs:
            name, equals, value = entry.partition("=")
            if not equals or not name.isidentifier():
                raise BadInput(f"backbone_kwargs: expected entries such as img_size=128, received {entry!r}.")
            try:
                kwargs[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                kwargs[name] = value
        return kwargs

    @property
    def augmentation(self) -> Augment | None:
        """The augmentation that this asks for."""
        return self._part(Augment) if self.augment else None

    @property
    def losses(self) -> Losses:
        """The losses that this asks for."""
        return self._part(Losses)

    def _part(self, kind: type[Part]) -> Part:
        """The dataclass `kind` with this config's values of its fields."""
        return kind(**{field.name: getattr(self, field.name) for field in dataclasses.fields(kind)})


def from_command_line() -> TrainConfig:
    """The defaults for the command line: those of the class, or of the YAML file that --config names."""
    import tyro

    arguments = sys.argv[1:]
    path = next((arguments[i + 1] for i, a in enumerate(arguments[:-1]) if a == "--config"), None)
    path = next((a.removeprefix("--config=") for a in arguments if a.startswith("--config=")), path)
    values = read_yaml(path) if path else {}
    return TrainConfig(**{"data_root": tyro.MISSING} | values)


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The fields in a YAML file, converted to `TrainConfig`'s types. Raises `BadInput` for what does not fit."""
    yaml = _yaml()
    path = existing_file(path, "a YAML file of training options")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: expected YAML, but it cannot be read ({' '.join(str(error).split())}).") from error
    known = {field.name: field for field in dataclasses.fields(TrainConfig)}
    if not isinstance(values, dict) or (unknown := set(values) - set(known)):
        what = f"the unknown {', '.join(sorted(map(str, unknown)))}" if isinstance(values, dict) else "something else"
        raise BadInput(f"{path}: expected some of the options of python -m train --help, received {what}.")
    return {name: _converted(path, name, str(known[name].type), value) for name, value in values.items()}


def _converted(path: Path, name: str, kind: str, value: Any) -> Any:
    """`value` as YAML gives it, as the field's type."""
    if value is None and "None" in kind:
        return None
    try:
        if kind.startswith("Path"):
            return Path(value)
        if kind.startswith("tuple"):
            entries = [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else value
            return tuple(entries.split() if isinstance(entries, str) else map(str, entries))
        if kind.startswith("float"):
            return float(value)  # YAML reads 8e-4 as text
        if kind in ("int", "bool"):
            if type(value).__name__ != kind:
                raise TypeError(kind)
            return value
        return str(value)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{path}: {name}: expected {kind}, received {value!r}.") from error


def to_yaml(config: TrainConfig) -> str:
    """The config as a file that --config reads back."""
    values = {key: value for key, value in config.to_json().items() if key != "config"}
    return _yaml().safe_dump(values, sort_keys=False)


def _yaml() -> ModuleType:
    try:
        import yaml
    except ImportError as error:
        raise missing_package("PyYAML", "train", "read and write a run's config") from error
    return yaml
