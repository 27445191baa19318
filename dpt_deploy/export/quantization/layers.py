"""The layers of a graph that can compute in eight bits, and the units that a plan names them by."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx

from ...build.flops import Work, input_sizes, matrix_work
from ...core.plan import covers

OPERATORS = ("MatMul", "Gemm", "Conv")
"""Transposed convolutions are not quantized: ONNX Runtime has no eight-bit kernel, and they are 0.1 % of the work."""


@dataclass(frozen=True)
class Layer:
    """A matrix product of an activation and a weight."""

    node: str
    """Name of the ONNX node."""
    module: str
    """Name of the PyTorch module, such as backbone.blocks.0.attn.qkv."""
    activation: str
    """Name of the tensor that the weight is multiplied with."""
    flops: int
    """For one image."""


def layers_of(model: onnx.ModelProto, size: tuple[int, int]) -> tuple[list[Layer], int]:
    """The layers of a model graph without quantized nodes, in its order, and the FLOPs of all its matrix products.

    Args:
        model: The graph, with weights.
        size: The network's input size (H, W) [pixels].
    """
    work: dict[str, Work] = {item.node: item for item in matrix_work(model, input_sizes(size))}
    weights = {tensor.name for tensor in model.graph.initializer}
    layers = [
        Layer(node.name, work[node.name].module or node.name, node.input[0], work[node.name].flops)
        for node in model.graph.node
        if node.op_type in OPERATORS and node.input[1] in weights and node.name in work
    ]
    return layers, sum(item.flops for item in work.values())


def ends(layers: Sequence[Layer]) -> tuple[str, ...]:
    """The first layer of the network and the last of each head, which stay wide by default.

    The first reads pixels and the last write the maps: both are sensitive, and together they are less than 1 % of the
    work of a ViT-B.
    """
    last = {layer.module.rpartition(".")[0]: layer.module for layer in layers if layer.module.startswith("heads.")}
    return (layers[0].module, *last.values())


def eight_bit(layers: Sequence[Layer], wide: Collection[str]) -> list[Layer]:
    """The layers that a plan quantizes."""
    return [layer for layer in layers if not covers(wide, layer.module)]


def units(layers: Sequence[Layer]) -> list[str]:
    """What the search keeps wide first: attention and MLP of each block, parts of the decoder, heads; in order."""
    names = []
    for layer in layers:
        parts = layer.module.split(".")
        length = {"blocks": 4, "decoder": 3, "heads": 2}.get(parts[1] if parts[0] == "backbone" else parts[0], 2)
        names.append(".".join(parts[:length]))
    return list(dict.fromkeys(names))
