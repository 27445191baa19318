"""The options of the export. Importing this module takes no torch, so wrong options are refused at once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..build import EngineOptions, choose_builder
from ..cli.options import Count, Heads, Name, Names, Pairs, Place, Size, Triple, check_companions
from ..core.contract import ResizeRule
from ..core.errors import BadInput
from ..core.files import existing_file
from ..core.image_files import MAX_PIXELS
from ..core.manifest import EIGHT_BITS, Precision
from ..hub import check_repository
from ..parity import load_budget
from .calibration_images import calibration_items

BF16_OPSET = 23  # of the two that --opset offers
CALIBRATION = (64, 256)
"""How many images a calibration should have, and how many are used at most."""


@dataclass(frozen=True)
class ExportConfig:
    """Export a trained checkpoint to a bundle: ONNX graphs and engines, each with a parity verdict."""

    checkpoint: tyro.conf.Positional[Path]
    """Checkpoint file such as best_model.pth."""
    out: Path | None = None
    """Folder of the bundle. Default: engines/ followed by the name of the checkpoint."""
    input_size: Size | None = None
    """Size of the network's input, such as 384 or 384x512. Default: the size in the checkpoint."""
    precision: Precision = "fp16"
    """Precision of the graphs that are exported in addition to the FP32 graphs; fp32 exports only those. int8 and fp8
    need --calibrate."""
    fp32_modules: Names = ()
    """Modules to keep in FP32, such as decoder.fusion.2; also residual (the backbone's residual stream) and attention
    (its sums: query, key and value are cast up)."""
    resize: ResizeRule | None = None
    """How frames are resized to the network's input. Default: the rule in the checkpoint, or stretch."""
    heads: Heads | None = None
    """Heads to export, among depth, normals and alpha. Default: all heads of the checkpoint."""
    depth_scale: float | None = None
    """Depth scale of the training, for checkpoints without a description."""
    backbone: Name | None = None
    """timm name of the backbone, for checkpoints without a description whose shapes fit several."""
    backbone_kwargs: Pairs = field(default_factory=dict)
    """Architectural options of that backbone, such as num_heads=6."""
    mean: Triple | None = None
    """Mean of RGB in [0, 1] that the training subtracted, for checkpoints without a description."""
    std: Triple | None = None
    """Standard deviation that the training divided by, for checkpoints without a description."""
    weights_entry: Name | None = None
    """Entry of the checkpoint that holds the weights, such as state_dict or ema. Default: averaged weights if any."""
    opset: Literal[23, 20] = 23
    """ONNX opset. 23 has the Attention operator; 20 is for older versions of TensorRT."""
    engines: Annotated[EngineOptions, tyro.conf.arg(name="engine")] = field(default_factory=EngineOptions)
    images: Path | None = None
    """Image or folder of images for the parity verdict. Default: built-in scenes."""
    max_images: Count = 8
    """Use at most this many images of a folder, evenly spaced."""
    parity: Literal["full", "quick"] = "full"
    """quick: judge on three inputs only. The verdict says so."""
    max_pixels: Count = MAX_PIXELS
    """Refuse images with more pixels than this."""
    budget: Path | None = None
    """JSON file with parity budgets that replace the default ones. The report names it."""
    search: bool = True
    """If half precision is out of budget, search for the smallest part that must stay in FP32; in eight bits, for the
    smallest part that must not be quantized."""
    calibrate: Place | None = None
    """For int8 and fp8: folder of 64 to 256 images like those that the model will see, or tar shards or an address with
    them."""
    calibration_images: Count = CALIBRATION[0]
    """Use at most this many images of that folder, evenly spaced; up to 256."""
    wide_modules: Names | None = None
    """For int8 and fp8: modules that are not quantized, such as decoder.reassemble. Default: the first layer of the
    network and the last of each head."""
    rest: Literal["fp32", "fp16"] | None = None
    """For int8 and fp8: the type of everything that is not quantized. Default: fp32, and fp16 for fp8."""
    weights_only: bool = False
    """For int8 and fp8: store weights in eight bits, and compute in the type of --rest. Needs no --calibrate
    and no search."""
    seven_bit_weights: bool = False
    """For int8: weights use 7 of the 8 bits. For processors without VNNI, where sums of full range saturate."""
    data_root: Place | None = None
    """For int8 and fp8: labelled data as for training; the verdict is then the change of the task metrics."""
    data_images: Count = 128
    """Use at most this many samples of --data-root, evenly spaced: half of them for the search, the others for the
    verdict."""
    compat: Literal["david"] | None = None
    """david: also write david.onnx, which the estimator of the DAViD project runs unchanged."""
    push: Name | None = None
    """Upload the bundle to this repository of the Hugging Face Hub, OWNER/NAME, if the verdict passed."""
    normal_axes: Name | None = None
    """How the files of --data-root store the components of normals. Default: as in the training."""

    @property
    def rest_type(self) -> Literal["fp32", "fp16"]:
        """In eight bits, the type of everything that is not quantized."""
        return self.rest or ("fp16" if self.precision == "fp8" else "fp32")


def check_options(config: ExportConfig) -> None:
    """Refuse what cannot work, in less than a second: before torch is imported and the checkpoint is read.

    Raises:
        BadInput: There is no such checkpoint, the budget is not valid, or options exclude each other.
        BackendError: The builder is not available, or does not support its options on this machine.
    """
    if config.precision == "bf16" and config.opset < BF16_OPSET:
        raise BadInput(f"--precision bf16: expected --opset {BF16_OPSET}, received --opset {config.opset}, whose "
                       "convolutions have no BF16 type. Omit --opset, or use --precision fp16.")
    if config.precision == "fp32" and config.fp32_modules:
        raise BadInput(f"--fp32-modules {','.join(config.fp32_modules)}: with --precision fp32, everything is FP32. "
                       "Omit one of the two.")
    check_companions(config, {"images": ("max_images",), "calibrate": ("calibration_images",),
                              "data_root": ("data_images", "normal_axes")})
    _check_eight_bits(config)
    if not os.path.isdir(config.checkpoint):
        existing_file(config.checkpoint, "a checkpoint file such as best_model.pth")
    load_budget(config.budget)
    if config.push is not None:
        check_repository(config.push)
    choose_builder(config.engines)


def _check_eight_bits(config: ExportConfig) -> None:
    """Refuse wrong combinations of the options of int8 and fp8."""
    if config.precision not in EIGHT_BITS:
        given = {"--calibrate": config.calibrate, "--wide-modules": config.wide_modules, "--rest": config.rest,
                 "--weights-only": config.weights_only or None, "--data-root": config.data_root,
                 "--seven-bit-weights": config.seven_bit_weights or None}
        if used := [option for option, value in given.items() if value is not None]:
            raise BadInput(f"{used[0]}: expected --precision int8 or fp8, received {config.precision}. Omit the "
                           "option, or choose one of these.")
        return
    name = f"--precision {config.precision}"
    if config.calibrate is None and not config.weights_only:
        raise BadInput(
            f"{name}: expected --calibrate DIR, a folder of {CALIBRATION[0]} to {CALIBRATION[1]} images like those "
            "that the model will see. To take them from a video: ffmpeg -i clip.mp4 -vf fps=2 frames/%04d.png; for the "
            "demonstration model: python -m train.synthetic --out data/calibration --count 64 --image-size 128"
        )
    if config.calibration_images > CALIBRATION[1]:
        raise BadInput(f"--calibration-images: expected at most {CALIBRATION[1]}, received "
                       f"{config.calibration_images}. More images change the ranges little.")
    if config.calibrate is not None:
        if config.weights_only:
            raise BadInput("--weights-only: activations are not quantized, so nothing is calibrated. Omit --calibrate.")
        calibration_items(config.calibrate)
    if config.seven_bit_weights and (config.precision != "int8" or config.weights_only):
        raise BadInput("--seven-bit-weights: expected --precision int8 with quantized activations. Omit the option.")
    if config.rest == "fp32" and config.precision == "fp8":
        raise BadInput("--rest fp32: with --precision fp8, which is for engines, expected fp16. Omit the option.")
    if config.fp32_modules and config.rest_type == "fp32":
        raise BadInput(f"--fp32-modules {','.join(config.fp32_modules)}: expected --rest fp16, received fp32, with "
                       "which everything that is not quantized is FP32. To quantize less, use --wide-modules.")
