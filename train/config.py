"""TrainConfig: the command line, the YAML file and the record of a run are one dataclass."""

from __future__ import annotations

import ast
import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from dpt_deploy.cli.options import Count, Heads, Limit, Names, Place, Size, Workers, size_text
from dpt_deploy.core.contract import HEADS, ResizeRule
from dpt_deploy.core.errors import BadInput, missing_package
from dpt_deploy.core.files import existing_file
from dpt_deploy.core.image_files import MAX_PIXELS

from .commands import command
from .data.augmentation import Augment, AugmentOptions
from .data.conventions import AXES, parse_axes
from .model.losses import Losses, LossOptions

Part = TypeVar("Part", Augment, Losses)

Precision = Literal["auto", "fp16", "bf16", "fp32"]
RENAMED = {"tasks": "heads", "limit_train_batches": "max_train_batches", "limit_val_batches": "max_val_batches"}
"""Old name of an option -> the present one."""
POSITIVE = ("epochs", "batch_size", "lr", "accumulate", "depth_scale", "layer_decay", "save_minutes", "samples",
            "features", "max_pixels")
NOT_NEGATIVE = ("backbone_lr_scale", "weight_decay", "clip_norm", "early_stopping", "seed", "w_depth", "w_normal",
                "w_alpha", "w_gradient", "canonical_focal", "max_broken", "keep")


@dataclass(frozen=True, kw_only=True)
class MainOptions:
    """The first options in --help."""

    data_root: Place
    """Folder of samples: one chunk (SynthHuman_0000), the parent of chunks, a flat folder, or a prepared cache; or tar
    shards: a folder of them, a pattern such as shard-{000000..000123}.tar, or an address such as s3://bucket/shards."""
    out: Path = Path("runs/train")
    """Folder for checkpoints, sample pictures and logs."""
    config: Path | None = None
    """YAML file of these options, written with _ instead of -. The command line takes precedence."""

    epochs: int = 20
    """Passes over the training samples."""
    batch_size: int = 6
    """Images per batch of each process."""
    lr: float = 8e-4
    """Peak learning rate of decoder and heads."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(AugmentOptions, LossOptions, MainOptions):
    """Train a Dense Prediction Transformer for depth, normals and alpha on data in SynthHuman's format."""

    heads: Heads = HEADS  # with the parser of the command line, which the losses do without
    """Heads to train, separated by commas."""
    backbone_lr_scale: float | None = None
    """Learning rate of the backbone divided by --lr; by default 0.1 from trained weights, else 1."""
    layer_decay: float = 1.0
    """Learning rate of each transformer block divided by that of the next deeper block."""
    weight_decay: float = 0.01
    """Weight decay of AdamW; norms, biases, tokens and position embeddings have none."""
    warmup: float = 0.05
    """Share of all steps during which the learning rate rises. A cosine to 1 % of the peak follows."""
    clip_norm: float = 1.0
    """Gradients are scaled down to at most this norm; 0 turns clipping off."""
    accumulate: int = 1
    """Batches per optimizer step."""
    ema: float = 0.0
    """Decay of a moving average of the weights, such as 0.999. The average is then validated and saved. 0 is off."""
    early_stopping: int = 0
    """Stop after this many epochs without a lower validation loss; 0 never does."""
    seed: int = 0
    """Seed of weights, sample order and augmentation."""

    backbone: str = "vit_base_patch16_384"
    """timm name of a plain vision transformer."""
    backbone_kwargs: Annotated[Names, tyro.conf.arg(metavar="NAME=VALUE,...")] = ()
    """Further arguments of timm.create_model, such as img_size=128,patch_size=8,depth=6."""
    features: int = 256
    """Channels of the decoder."""
    use_bn: bool = False
    """Use batch norm in the residual units of the decoder."""
    pretrained: bool = True
    """Start the backbone from timm's trained weights, which are downloaded once."""
    depth_scale: float = 5.0
    """Depth is softplus(x) * depth_scale [m]. The command that checks data suggests a value."""
    init: Path | None = None
    """Start from the weights of this checkpoint: of this project, the official DPT release, or transformers."""
    input_size: Size | None = None
    """Size of the network's input [pixels]; by default that of the backbone."""
    resize: ResizeRule = "stretch"
    """How images are brought to the input size."""

    canonical_focal: float = 0.0
    """Train on depth * canonical_focal / focal length [pixels], for data of many cameras; 0 is depth in metres."""

    normal_axes: str = AXES
    """How the files store the components of normals. The command that checks data finds out."""
    val_fraction: float = 0.05
    """Share of the samples held out for validation."""
    augment: bool = True
    """Augment training images by --mirror, --zoom, --color, --blur, --noise and --jpeg."""
    max_train_batches: Limit = None
    """End each epoch after this many batches, for trials."""
    max_val_batches: Limit = None
    """End each validation after this many batches, for trials."""
    max_broken: int = 20
    """Broken samples that are skipped and named before the run stops with an error."""
    max_pixels: Count = MAX_PIXELS
    """Skip samples with more pixels than this."""
    check_data: bool = True
    """Before training, check the range of depth and compare normals with it; stop if they follow another convention."""

    amp: Precision = "auto"
    """Precision of the network: auto is fp16 with loss scaling on a GPU, and fp32 on a CPU."""
    device: str = "auto"
    """auto, cpu, cuda, or a GPU such as cuda:0."""
    workers: Workers = "auto"
    """Processes that read samples; 0 is in this process, auto is one per core, at most 8."""
    channels_last: bool = False
    """Use the channels-last memory format, which is often faster."""
    grad_checkpointing: bool = False
    """Recompute the activations of the backbone in the backward pass: less memory, slower."""
    compile: bool = False
    """Compile the network with torch.compile."""

    resume: str | None = None
    """Continue a run: auto (from last.pth in --out, if there is one), or the path of a last.pth."""
    save_minutes: float = 5.0
    """Write last.pth, the full state of the run, at least this often."""
    keep: int = 0
    """Keep only this many of the latest checkpoint_epoch_XX.pth; 0 keeps all."""
    samples: int = 6
    """Validation samples shown in training_samples/."""
    tensorboard: bool = True
    """Write TensorBoard event files, if the package is installed."""

    def __post_init__(self) -> None:
        for name in POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(f"{name}: expected a number above 0, received {getattr(self, name)}.")
        for name in NOT_NEGATIVE:
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise BadInput(f"{name}: expected 0 or a number above 0, received {getattr(self, name)}.")
        for name in ("max_train_batches", "max_val_batches"):
            if (limit := getattr(self, name)) is not None and limit < 1:
                raise BadInput(f"{name}: expected a number above 0, received {limit}. Leave it out for no limit.")
        if self.workers != "auto" and self.workers < 0:
            raise BadInput(f"workers: expected auto or a number of processes, received {self.workers}.")
        for name, choices in {"amp": Precision, "resize": ResizeRule}.items():
            if getattr(self, name) not in get_args(choices):
                raise BadInput(f"{name}: expected {', '.join(get_args(choices))}, received {getattr(self, name)!r}.")
        parse_axes(self.normal_axes)
        ranges = {"ema": (0, 1), "warmup": (0, 1), "val_fraction": (0, 0.9), "mirror": (0, 1), "blur": (0, 1),
                  "noise": (0, 1), "jpeg": (0, 1), "color": (0, 1), "zoom": (1, 4)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high or (name == "ema" and self.ema == 1):
                raise BadInput(f"{name}: expected a number from {low} to {high}, received {getattr(self, name)}.")
        unknown = [head for head in self.heads if head not in HEADS]
        if unknown or not self.heads:
            raise BadInput(f"heads: expected some of {','.join(HEADS)}, received {','.join(self.heads) or 'none'}.")
        object.__setattr__(self, "heads", tuple(head for head in HEADS if head in self.heads))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = dataclasses.asdict(self) | {"input_size": size_text(self.input_size) if self.input_size else None}
        return {
            key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
        }

    @property
    def timm_kwargs(self) -> dict[str, Any]:
        """`backbone_kwargs` and the input size as keyword arguments. Raises `BadInput` for a malformed entry."""
        kwargs = {}
        for entry in self.backbone_kwargs:
            name, equals, value = entry.partition("=")
            if not equals or not name.isidentifier():
                raise BadInput(f"backbone_kwargs: expected entries such as img_size=128, received {entry!r}.")
            try:
                kwargs[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                kwargs[name] = value
        if self.input_size:
            height, width = self.input_size
            kwargs["img_size"] = height if height == width else self.input_size
        return kwargs

    @property
    def augmentation(self) -> Augment | None:
        """The augmentations; None if they are turned off."""
        return self._part(Augment) if self.augment else None

    @property
    def losses(self) -> Losses:
        """The losses, with their weights."""
        return self._part(Losses)

    def _part(self, kind: type[Part]) -> Part:
        """An instance of the dataclass `kind` with the values of this config."""
        return kind(**{field.name: getattr(self, field.name) for field in dataclasses.fields(kind)})


def from_command_line() -> TrainConfig:
    """Defaults of the options: those of the class, or of the YAML file that --config names on the command line."""
    arguments = sys.argv[1:]
    path = next((arguments[i + 1] for i, a in enumerate(arguments[:-1]) if a == "--config"), None)
    path = next((a.removeprefix("--config=") for a in arguments if a.startswith("--config=")), path)
    values = read_yaml(path) if path else {}
    return TrainConfig(**{"data_root": tyro.MISSING} | values)


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The options in a YAML file, with the types of `TrainConfig`.

    Raises:
        BadInput: The file is not valid YAML, or has an unknown or renamed option or a wrong value.
    """
    yaml = _yaml()
    path = existing_file(path, "a YAML file of training options")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid YAML ({' '.join(str(error).split())}).") from error
    known = {field.name: field for field in dataclasses.fields(TrainConfig)}
    if not isinstance(values, dict):
        raise BadInput(f"{path}: expected options and their values, received a {type(values).__name__}.")
    for old in RENAMED.keys() & values.keys():
        raise BadInput(f"{path}: {old} was renamed: use {RENAMED[old]}.")
    if unknown := set(values) - set(known):
        raise BadInput(f"{path}: unknown {', '.join(sorted(map(str, unknown)))}. For the options, run: "
                       f"{command('train')} --help")
    return {name: _converted(path, known[name], value) for name, value in values.items()}


def _converted(path: Path, field: dataclasses.Field, value: Any) -> Any:
    """The value of a YAML file with the type of the field."""
    kind, parser = str(field.type), _parser(field.name)
    if value is None and field.default is None:
        return None
    try:
        if parser:  # the command line's own
            if isinstance(value, dict):
                value = [f"{k}={v}" for k, v in value.items()]
            if value in ([], ()):
                return ()
            return parser.instance_from_str([",".join(map(str, value)) if isinstance(value, list) else str(value)])
        if kind.startswith("Path"):
            return Path(value)
        if kind.startswith("float"):
            return float(value)  # YAML reads 8e-4 as text
        if kind in ("int", "bool"):
            if type(value).__name__ != kind:
                raise TypeError(f"expected {kind}, received {value!r}")
            return value
        return str(value)
    except (TypeError, ValueError) as error:
        reason = str(error) if str(error).startswith("expected") else f"expected {kind}, received {value!r}"
        raise BadInput(f"{path}: {field.name}: {reason}.") from error


def _parser(name: str) -> PrimitiveConstructorSpec | None:
    """What reads an option on the command line, if its type brings its own parser."""
    hint = get_type_hints(TrainConfig, include_extras=True)[name]
    found = [one for kind in (hint, *get_args(hint)) for one in getattr(kind, "__metadata__", ())
             if isinstance(one, PrimitiveConstructorSpec)]
    return found[0] if found else None


def to_yaml(config: TrainConfig) -> str:
    """The config as a file that --config reads."""
    values = {key: value for key, value in config.to_json().items() if key != "config"}
    return _yaml().safe_dump(values, sort_keys=False)


def _yaml() -> ModuleType:
    try:
        import yaml
    except ImportError as error:
        raise missing_package("PyYAML", "train", "read and write the options of a run") from error
    return yaml
