"""Apply a precision plan to a model, so that its exported graph is strongly typed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from ..core.errors import BadInput
from ..model.decoder import ResidualConvUnit
from .attention import SDPA, Attention, cast_up

if TYPE_CHECKING:  # casting a model does without pydantic
    from ..core.manifest import PrecisionPlan

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
UNITS = {
    "residual": "the backbone's residual stream and its norms; attention and MLP stay in half precision",
    "attention": "the sums of attention: query, key and value are cast up around the Attention operator",
    "activations": "softplus, tanh and sigmoid at the end of each head",
    "resize": "the matrix products that resize frames and maps",
}


def check_plan(model: nn.Module, plan: PrecisionPlan) -> None:
    """Raise `BadInput` if the plan has a name that the model does not have."""
    modules = dict(model.named_modules())
    if unknown := [name for name in plan.fp32 if name not in UNITS and name not in modules]:
        raise BadInput(
            f"precision plan: the model has no module {', '.join(unknown)}. Expected module names such as "
            f"decoder.fusion.2 or backbone.blocks.5.attn, or one of {', '.join(UNITS)}."
        )


def typed(model: nn.Module, plan: PrecisionPlan) -> Typed:
    """A copy of `model` (`MultiTaskDPT`) in the precisions of `plan`, with float32 inputs and outputs.

    Each module that has weights casts its floating-point inputs to the type of its weights, so the graph has casts only
    between modules of different precision. Raises `BadInput` if the plan has a name that the model does not have.
    """
    check_plan(model, plan)
    model = folded(model)
    modules = dict(model.named_modules())
    half = DTYPES[plan.precision]
    if half is torch.float32:
        return Typed(model)
    fp32_tensors = _fp32_tensors(model, plan)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and name not in fp32_tensors:
            tensor.data = tensor.data.to(half)
    if "residual" in plan.fp32:
        model.backbone.blocks[0].register_forward_pre_hook(cast_to(torch.float32))
    for name, module in modules.items():
        # Some of timm's attention and MLP modules read the weights of their children without calling them.
        is_block = name.rpartition(".")[2] in ("attn", "mlp")
        if hasattr(module, "fused_attn"):  # timm reads it from the environment
            module.fused_attn = True
        weight = next(module.parameters(recurse=is_block), None)
        if weight is not None and (is_block or not list(module.children())):
            module.register_forward_pre_hook(cast_to(weight.dtype))
    if "activations" in plan.fp32:
        for head in model.heads.values():
            head.activation.register_forward_pre_hook(cast_to(torch.float32))
    if half is torch.bfloat16:
        _replace_transposed_convolutions(model)
    return Typed(model, cast_up if "attention" in plan.fp32 else SDPA)


def folded(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode, in FP32, with what an exporter folds already folded.

    Batch norms become part of their convolutions, and separate biases of query, key and value (EVA) one of all three.
    """
    model = copy.deepcopy(model).eval()
    for module in model.backbone.modules():
        if getattr(module, "q_bias", None) is not None and getattr(module, "qkv", None) is not None:
            module.qkv.bias = nn.Parameter(torch.cat((module.q_bias, module.k_bias, module.v_bias)).detach())
            module.q_bias = module.k_bias = module.v_bias = None
    for unit in model.decoder.modules():
        if isinstance(unit, ResidualConvUnit) and isinstance(unit.bn1, nn.BatchNorm2d):
            unit.conv1 = fuse_conv_bn_eval(unit.conv1, unit.bn1)
            unit.conv2 = fuse_conv_bn_eval(unit.conv2, unit.bn2)
            unit.bn1 = unit.bn2 = nn.Identity()
    return model


def _fp32_tensors(model: nn.Module, plan: PrecisionPlan) -> set[str]:
    """Names of the parameters and buffers that the plan keeps in FP32."""
    roots = [f"{name}." for name in plan.fp32 if name not in UNITS]
    names = {name for name in model.state_dict(keep_vars=True) if name.startswith(tuple(roots))} if roots else set()
    names |= {name for name, _ in model.named_buffers() if roots and name.startswith(tuple(roots))}
    if "residual" in plan.fp32:  # tensors that are added to the stream, and the norms that read it
        names |= {f"backbone.{name}" for name, _ in model.backbone.named_parameters(recurse=False)}
        for i, block in enumerate(model.backbone.blocks):
            norms = [name for name, _ in block.named_parameters() if name.startswith("norm")]
            names |= {f"backbone.blocks.{i}.{name}" for name in norms}
    return names


class Typed(nn.Module):
    """A model with float32 outputs, as the contract requires, and one way to compute half-precision attention."""

    def __init__(self, model: nn.Module, attention: Callable[..., torch.Tensor] = SDPA) -> None:
        super().__init__()
        self.model = model
        self.attention = attention
        """Replaces `scaled_dot_product_attention` on FP16 and BF16 tensors."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        with Attention(self.attention):
            return {name: value.float() for name, value in self.model(image).items()}


class _DepthToSpaceConvolution(nn.Module):
    """A transposed convolution with kernel size equal to stride, as 1x1 convolution and depth-to-space."""

    def __init__(self, source: nn.ConvTranspose2d) -> None:
        super().__init__()
        (stride, _), channels = source.stride, source.out_channels
        self.convolution = nn.Conv2d(source.in_channels, channels * stride * stride, 1)
        weight = source.weight.detach()  # (in, out, k, k) -> (out * k * k, in, 1, 1), the order of pixel_shuffle
        self.convolution.weight = nn.Parameter(weight.permute(1, 2, 3, 0).reshape(-1, source.in_channels, 1, 1))
        self.convolution.bias = nn.Parameter(source.bias.detach().repeat_interleave(stride * stride))
        self.shuffle = nn.PixelShuffle(stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(self.convolution(x))


def _replace_transposed_convolutions(model: nn.Module) -> None:
    for layer in model.decoder.reassemble:
        if isinstance(layer.resample, nn.ConvTranspose2d):
            replacement = _DepthToSpaceConvolution(layer.resample)
            replacement.register_forward_pre_hook(cast_to(layer.resample.weight.dtype))
            layer.resample = replacement


def cast_to(dtype: torch.dtype):
    """A forward pre-hook that casts a module's floating inputs to `dtype`."""
    def hook(_module: nn.Module, args: tuple) -> tuple:
        return tuple(
            arg.to(dtype) if isinstance(arg, torch.Tensor) and arg.is_floating_point() and arg.dtype != dtype else arg
            for arg in args
        )

    return hook
