"""The rows that every other figure is compared with: eager FP32, TF32 and FP16, and torch.compile."""

from __future__ import annotations

import torch
from torch import nn

from dpt_deploy.model import MultiTaskDPT

from .hardware import tf32
from .network import Call, Half, Outputs
from .rows import Variant, measure_variants
from .step import Result, Run


def measure(run: Run, batch: int) -> Result:
    """The network on images that are on the device, in interleaved rounds."""
    return measure_variants(run, batch, [
        Variant("eager fp32", "fp32", lambda model, run, pixels: without_tf32(model)),
        # TF32 keeps as many bits as FP16, so it is held to that budget.
        Variant("eager tf32", "fp16", lambda model, run, pixels: with_tf32(model), "eager fp32",
                {1: (1.5, 5.0), 16: (2.0, 8.0)}, "the matrix units compute TF32; memory traffic stays that of FP32"),
        Variant("eager fp16", "fp16", eager, "eager fp32", {1: (1.5, 6.0), 16: (4.0, 14.0)},
                "twice the rate of TF32 and half the bytes; at batch 1 the host launches kernels more slowly than the "
                "GPU runs them"),
        compiled_graphs("eager fp16"),
    ])


def compiled_graphs(against: str) -> Variant:
    """torch.compile with CUDA graphs: the peer of the goals."""
    return Variant("compile reduce-overhead", "fp16", lambda model, run, pixels: compiled(model, run,
                   mode="reduce-overhead"), against, {1: (1.5, 5.0), 16: (1.1, 1.6)},
                   "one launch for the whole network, and fused norms, activations and sums")


def eager(model: MultiTaskDPT, run: Run, pixels: torch.Tensor) -> Call:
    """FP16 as PyTorch runs it by default."""
    return Half(model)


def without_tf32(module: nn.Module) -> Call:
    """A call in which FP32 is FP32."""
    return _in_tf32(module, False)


def with_tf32(module: nn.Module) -> Call:
    """A call in which FP32 products may use TF32."""
    return _in_tf32(module, True)


def _in_tf32(module: nn.Module, on: bool) -> Call:
    def call(pixels: torch.Tensor) -> Outputs:
        with tf32(on):
            return module(pixels)

    return call


def compiled(model: MultiTaskDPT, run: Run, **options: object) -> Call:
    """FP16 through torch.compile; a rehearsal traces the network and runs it with the backend "eager"."""
    torch._dynamo.config.recompile_limit = 64  # every variant is a network of its own with the same code
    network = torch.compile(Half(model), **({"backend": "eager"} if run.dry else options))

    def call(pixels: torch.Tensor) -> Outputs:
        torch.compiler.cudagraph_mark_step_begin()
        return network(pixels)

    return call
