"""Write eight bits into a graph: QuantizeLinear and DequantizeLinear around the products that a plan quantizes.

The form is the one that OpenVINO, ONNX Runtime, TensorRT and TensorRT-RTX all read: signed and symmetric, activations
with one scale per tensor, weights stored in eight bits with one scale per output channel, biases as they are. A tensor
that several layers read is quantized once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...core.errors import BuildError
from ...core.manifest import PrecisionPlan

PREFIX = "quantization/"
"""Of the names of all tensors and nodes that are added."""
OUTPUT_CHANNELS = {"Conv": 0, "MatMul": -1, "Gemm": -1}  # axis of the weight
# Without a bias, OpenVINO 2026.4 computes a convolution with signed eight-bit activations wrongly, silently; a bias of
# zeros it removes first.
ALMOST_ZERO = {TensorProto.FLOAT: np.float32(1e-30), TensorProto.FLOAT16: np.float16(6e-8)}


@dataclass(frozen=True)
class Format:
    """An eight-bit type."""

    onnx_type: int
    largest: float
    """The largest magnitude that is used."""

    def quantize(self, values: np.ndarray) -> bytes:
        """Round float64 values in [-largest, largest] to the type."""
        values = np.clip(values, -self.largest, self.largest)
        if self.onnx_type == TensorProto.INT8:
            return np.rint(values).astype(np.int8).tobytes()
        import ml_dtypes

        return values.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).tobytes()


FORMATS = {"int8": Format(TensorProto.INT8, 127.0), "fp8": Format(TensorProto.FLOAT8E4M3FN, 448.0)}


def insert(
    model: onnx.ModelProto, nodes: Collection[str], clips: Mapping[str, float], plan: PrecisionPlan,
    bias_everywhere: bool = True,
) -> onnx.ModelProto:
    """A copy of a model graph with the products of `nodes` in eight bits.

    Args:
        model: The graph in `plan.rest`, with weights.
        nodes: Names of MatMul, Gemm and Conv nodes whose second input is an initializer.
        clips: The largest magnitude of each activation that they read.
        plan: In int8 or fp8.
        bias_everywhere: Give convolutions without a bias one that is almost zero.

    Raises:
        BuildError: A node is of another form.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    writer = _Writer(copy.graph, FORMATS[plan.precision], plan.weight_bits)
    written: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        if node.name in nodes:
            if node.op_type not in OUTPUT_CHANNELS or _is_transposed(node):
                raise BuildError(f"{node.op_type} {node.name} cannot be quantized: expected Conv, MatMul or Gemm with "
                                 "a weight that is not transposed. Use the torch version in constraints.txt.")
            written += writer.weight(node)
            if not plan.weights_only:
                written += writer.activation(node, clips[node.input[0]])
                if bias_everywhere and node.op_type == "Conv" and len(node.input) == 2:
                    writer.add_bias(node)
        written.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(written)
    return copy


class _Writer:
    """Adds tensors to a graph and returns the nodes that read them."""

    def __init__(self, graph: onnx.GraphProto, form: Format, weight_bits: int) -> None:
        self.graph, self.form = graph, form
        self.largest_weight = form.largest // 2 if weight_bits == 7 else form.largest
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.dequantized: dict[str, str] = {}

    def activation(self, node: onnx.NodeProto, clip: float) -> list[onnx.NodeProto]:
        """Quantize the first input of a node."""
        name, new = node.input[0], []
        if name not in self.dequantized:
            # Bias and weight are of the same float type as the activation.
            float_type = self.tensors[f"{self._base(node)}/scale"].data_type
            # An activation that was always 0 may have any step.
            self._add_scale(name, np.array(clip / self.form.largest or 1.0), float_type, f"{PREFIX}{name}")
            base = f"{PREFIX}{name}"
            parameters = [f"{base}/scale", f"{base}/zero_point"]
            new = [helper.make_node("QuantizeLinear", [name, *parameters], [f"{base}/quantized"], f"{base}/quantize"),
                   helper.make_node("DequantizeLinear", [f"{base}/quantized", *parameters], [f"{base}/dequantized"],
                                    f"{base}/dequantize")]
            self.dequantized[name] = f"{base}/dequantized"
        node.input[0] = self.dequantized[name]
        return new

    def weight(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Store the second input of a node in eight bits."""
        name, new = node.input[1], []
        base = f"{PREFIX}{name}"
        if name not in self.dequantized:
            tensor = self.tensors[name]
            values = numpy_helper.to_array(tensor).astype(np.float64)
            axis = OUTPUT_CHANNELS[node.op_type] % values.ndim
            others = tuple(i for i in range(values.ndim) if i != axis)
            wanted = np.abs(values).max(axis=others) / self.largest_weight
            scale = self._add_scale(name, np.where(wanted > 0, wanted, 1.0), tensor.data_type, base)
            steps = values / np.expand_dims(scale.astype(np.float64), others)
            tensor.CopyFrom(helper.make_tensor(name, self.form.onnx_type, values.shape, self.form.quantize(steps),
                                               raw=True))
            new = [helper.make_node("DequantizeLinear", [name, f"{base}/scale", f"{base}/zero_point"],
                                    [f"{base}/dequantized"], f"{base}/dequantize", axis=axis)]
            self.dequantized[name] = f"{base}/dequantized"
        node.input[1] = self.dequantized[name]
        return new

    def add_bias(self, node: onnx.NodeProto) -> None:
        """Give a convolution a bias that is almost zero."""
        scale = self.tensors[f"{self._base(node)}/scale"]
        name = f"{PREFIX}{node.name}/bias"
        self._add(numpy_helper.from_array(np.full(scale.dims[0], ALMOST_ZERO[scale.data_type]), name))
        node.input.append(name)

    def _base(self, node: onnx.NodeProto) -> str:
        """The start of the names of what belongs to a node's weight, which comes first."""
        return node.input[1].removesuffix("/dequantized")

    def _add_scale(self, name: str, scale: np.ndarray, float_type: int, base: str) -> np.ndarray:
        """Add the scale, in the type of the tensor's values, and a zero point of zeros. Returns the rounded scale."""
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(float_type))
        # Below the normal numbers, the rounding of a scale would be coarse. Such steps are finer than FP16 itself.
        with np.errstate(over="ignore"):
            rounded = np.maximum(scale, np.finfo(dtype).tiny).astype(dtype)
        if not np.isfinite(rounded).all():
            raise BuildError(f"{name}: expected steps up to 65504, the largest number in FP16, received "
                             f"{scale.max():.3g}. Use --precision int8 with --rest fp32.")
        self._add(numpy_helper.from_array(rounded, f"{base}/scale"))
        self._add(helper.make_tensor(f"{base}/zero_point", self.form.onnx_type, scale.shape, bytes(scale.size),
                                     raw=True))
        return rounded

    def _add(self, tensor: onnx.TensorProto) -> None:
        self.graph.initializer.append(tensor)
        self.tensors[tensor.name] = self.graph.initializer[-1]


def _is_transposed(node: onnx.NodeProto) -> bool:
    return any(attribute.name in ("transA", "transB") and attribute.i for attribute in node.attribute)
