"""Eight-bit graphs of a bundle, without calibration images, search and verdict, for builders and runtimes to load."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import Graph
from dpt_deploy.core.manifest import Artifact, PrecisionPlan
from dpt_deploy.export.quantization.calibration import clips, measure_ranges
from dpt_deploy.export.quantization.insertion import FORMATS, insert
from dpt_deploy.export.quantization.layers import eight_bit as layers_in_eight_bits
from dpt_deploy.export.quantization.layers import layers_of
from dpt_deploy.parity.images import scene
from dpt_deploy.runtime.image import preprocess

WIDE = ("decoder.reassemble",)
"""Modules that are not quantized."""


def add_eight_bits(
    bundle: Bundle, precision: str = "int8", graphs: Sequence[Graph] = ("frame",), wide: tuple[str, ...] = WIDE,
    weights_only: bool = False,
) -> None:
    """Write and register GRAPH.int8.onnx or GRAPH.fp8.onnx for each of `graphs`; modules in `wide` stay in FP32."""
    plan = PrecisionPlan(precision, fp32=(), wide=wide, weights_only=weights_only)
    for graph in graphs:
        model = quantized(bundle, graph, plan)
        file = f"{graph}.{precision}.onnx"
        onnx.save(model, bundle.folder / file)
        bundle.add(file, "onnx", graph=graph, precision=precision,
                   details={"opset": model.opset_import[0].version, "plan": plan})


def quantized(bundle: Bundle, graph: Graph, plan: PrecisionPlan) -> onnx.ModelProto:
    """The FP32 graph of a bundle with the products of a plan in eight bits."""
    model = onnx.load(bundle.path(bundle.find("onnx", graph=graph, precision="fp32")[0]))
    layers, _ = layers_of(model, bundle.contract.input_size)
    ranges = {} if plan.weights_only else measured_ranges(bundle, graph, plan.precision)
    return insert(model, {layer.node for layer in layers_in_eight_bits(layers, plan.wide)}, ranges, plan)


def measured_ranges(bundle: Bundle, graph: Graph, precision: str = "int8") -> dict[str, float]:
    """The clip of every activation of the FP32 graph, over two images."""
    path = bundle.path(bundle.find("onnx", graph=graph, precision="fp32")[0])
    layers, _ = layers_of(onnx.load(path), bundle.contract.input_size)
    frames = [scene(*bundle.contract.input_size, seed) for seed in (1, 2)]
    inputs = frames if graph == "frame" else [preprocess(frame[None], bundle.contract)[0] for frame in frames]
    return clips(measure_ranges(path, layers, inputs), int(FORMATS[precision].largest), largest=precision == "fp8")


def eight_bit(bundle: Bundle, graph: Graph = "frame", precision: str = "int8") -> Artifact:
    """The artefact that `add_eight_bits` registered."""
    return bundle.find("onnx", graph=graph, precision=precision)[0]
