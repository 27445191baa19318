"""Eight-bit graphs of a bundle without calibration images, search and verdict: what the runtime has to load."""

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


def add_eight_bits(
    bundle: Bundle, precision: str = "int8", graphs: Sequence[Graph] = ("frame",), wide: tuple[str, ...] = (),
    weights_only: bool = False,
) -> None:
    """Write and register GRAPH.int8.onnx or GRAPH.fp8.onnx for each of `graphs`; modules in `wide` stay in FP32."""
    height, width = bundle.contract.input_size
    plan = PrecisionPlan(precision, fp32=(), wide=wide, weights_only=weights_only)
    for graph in graphs:
        source = bundle.find("onnx", graph=graph, precision="fp32")[0]
        model = onnx.load(bundle.path(source))
        layers, _ = layers_of(model, bundle.contract.input_size)
        frames = [scene(height, width, seed) for seed in (1, 2)]
        inputs = frames if graph == "frame" else [preprocess(frame[None], bundle.contract)[0] for frame in frames]
        ranges = measure_ranges(bundle.path(source), layers, inputs)
        nodes = {layer.node for layer in layers_in_eight_bits(layers, wide)}
        small = insert(model, nodes, clips(ranges, int(FORMATS[precision].largest), largest=precision == "fp8"), plan)
        file = f"{graph}.{precision}.onnx"
        onnx.save(small, bundle.folder / file)
        bundle.add(file, "onnx", graph=graph, precision=precision,
                   details={"opset": model.opset_import[0].version, "plan": plan})


def eight_bit(bundle: Bundle, graph: Graph = "frame", precision: str = "int8") -> Artifact:
    """The artefact that `add_eight_bits` registered."""
    return bundle.find("onnx", graph=graph, precision=precision)[0]
