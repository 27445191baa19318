"""Q/DQ nodes: the arithmetic is that of integers, each tensor is quantized once, and every backend reads the form."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from dpt_deploy.core.errors import BuildError
from dpt_deploy.core.manifest import Artifact, PrecisionPlan
from dpt_deploy.export.quantization.insertion import insert
from dpt_deploy.parity.weights import compare_weights

INT8 = PrecisionPlan("int8", ())
# Sums of full range saturate on processors without VNNI.
SEVEN_BITS = PrecisionPlan("int8", (), weight_bits=7)


def convolution(opset: int = 20, bias: bool = True, readers: int = 1) -> tuple[onnx.ModelProto, np.ndarray]:
    """A graph with one 3x3 convolution, or several of the same input, and its weight."""
    rng = np.random.default_rng(0)
    weight = (rng.normal(0, 1, (5, 4, 3, 3)) * np.array([0.01, 1, 3, 0.2, 1])[:, None, None, None]).astype(np.float32)
    nodes, tensors, outputs = [], [], []
    for i in range(readers):
        inputs = ["x", f"layer{i}.weight", *([f"layer{i}.bias"] if bias else [])]
        nodes.append(helper.make_node("Conv", inputs, [f"y{i}"], f"conv{i}", pads=[1, 1, 1, 1]))
        tensors.append(numpy_helper.from_array(weight, f"layer{i}.weight"))
        if bias:
            tensors.append(numpy_helper.from_array(np.arange(5, dtype=np.float32), f"layer{i}.bias"))
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["n", 5, 8, 8]))
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 8, 8])
    graph = helper.make_graph(nodes, "g", [source], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), weight


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def rounded(values: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    return np.clip(np.rint(values / scale), -127, 127)


@pytest.mark.parametrize("opset", [20, 23])
def test_the_products_are_those_of_integers(opset: int) -> None:
    model, weight = convolution(opset)
    x = np.random.default_rng(1).normal(0, 1, (2, 4, 8, 8)).astype(np.float32)
    (y,) = run(insert(model, {"conv0"}, {"x": 2.0}, SEVEN_BITS), x)
    scale = np.abs(weight).max(axis=(1, 2, 3)) / 63
    q, w = np.clip(np.rint(x / (2.0 / 127)), -128, 127), rounded(weight, scale[:, None, None, None])
    padded = np.pad(q, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    sums = np.einsum("ncijkl,ockl->noij", windows, w)
    expected = sums * (2.0 / 127) * scale[:, None, None] + np.arange(5)[:, None, None]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_every_output_channel_has_a_scale_of_its_own() -> None:
    model, weight = convolution()
    graph = insert(model, {"conv0"}, {"x": 2.0}, INT8).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert tensors["layer0.weight"].dtype == np.int8
    assert np.abs(tensors["layer0.weight"]).max(axis=(1, 2, 3)).tolist() == [127] * 5
    np.testing.assert_allclose(tensors["quantization/layer0.weight/scale"], np.abs(weight).max((1, 2, 3)) / 127, 1e-6)


def test_a_tensor_that_two_layers_read_is_quantized_once() -> None:
    model, _ = convolution(readers=2)
    operators = [node.op_type for node in insert(model, {"conv0", "conv1"}, {"x": 2.0}, INT8).graph.node]
    assert operators.count("QuantizeLinear") == 1
    assert operators.count("DequantizeLinear") == 3


def test_a_layer_that_is_not_named_reads_the_tensor_as_it_was() -> None:
    model, _ = convolution(readers=2)
    x = np.random.default_rng(1).normal(0, 1, (1, 4, 8, 8)).astype(np.float32)
    before, after = run(model, x), run(insert(model, {"conv0"}, {"x": 2.0}, INT8), x)
    assert np.array_equal(before[1], after[1]) and not np.array_equal(before[0], after[0])


def test_the_given_graph_is_left_as_it_is() -> None:
    model, _ = convolution()
    before = model.SerializeToString()
    insert(model, {"conv0"}, {"x": 2.0}, INT8)
    assert model.SerializeToString() == before


def test_weights_only_stores_weights_in_eight_bits_and_quantizes_no_activation() -> None:
    model, _weight = convolution()
    small = insert(model, {"conv0"}, {}, PrecisionPlan("int8", (), weights_only=True))
    assert [node.op_type for node in small.graph.node] == ["DequantizeLinear", "Conv"]
    x = np.random.default_rng(1).normal(0, 1, (1, 4, 8, 8)).astype(np.float32)
    (before,), (after,) = run(model, x), run(small, x)
    assert 0 < np.abs(before - after).max() < 0.01 * np.abs(before).max()


def test_fp8_stores_the_nearest_values_of_e4m3() -> None:
    model, weight = convolution()
    graph = insert(model, {"conv0"}, {"x": 2.0}, PrecisionPlan("fp8", ())).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    stored = tensors["layer0.weight"]
    assert stored.data_type == TensorProto.FLOAT8E4M3FN
    values = np.frombuffer(stored.raw_data, ml_dtypes.float8_e4m3fn).astype(np.float64).reshape(weight.shape)
    assert np.abs(values).max() == 448
    scale = numpy_helper.to_array(tensors["quantization/layer0.weight/scale"]).astype(np.float64)[:, None, None, None]
    assert (np.abs(values * scale - weight) <= np.maximum(np.abs(weight) / 16, scale * 2.0**-10) * 1.001).all()


def test_a_channel_of_zeros_and_a_silent_activation_stay_zero() -> None:
    model, _ = convolution(bias=False)
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[2] = 0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "layer0.weight"))
    (y,) = run(insert(model, {"conv0"}, {"x": 0.0}, INT8), np.zeros((1, 4, 8, 8), np.float32))
    assert np.abs(y).max() < 1e-20


def in_fp16(factor: float) -> onnx.ModelProto:
    model, _ = convolution()
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor) * (factor if tensor.name.endswith("weight") else 1)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
    return model


@pytest.mark.parametrize("factor", [1.0, 1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_small_weights_in_fp16_are_rounded_and_not_clipped(factor: float, precision: str, tmp_path: Path) -> None:
    model = in_fp16(factor)
    expected = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float32)
    path = tmp_path / "graph.onnx"
    onnx.save(insert(model, {"conv0"}, {"x": 2.0}, PrecisionPlan(precision, (), rest="fp16")), path)
    artifact = Artifact(file=path.name, kind="onnx", sha256="0" * 64, bytes=1, graph="model", precision=precision)
    bias = np.arange(5, dtype=np.float32)
    stage = compare_weights(path, artifact, {"layer0.weight": expected, "layer0.bias": bias})
    assert stage.passed, stage.reasons


def test_a_scale_beyond_the_range_of_fp16_is_an_error() -> None:
    with pytest.raises(BuildError, match="the largest number in FP16"):
        insert(in_fp16(1.0), {"conv0"}, {"x": 1e8}, INT8)


def test_another_operator_is_refused() -> None:
    model, _ = convolution()
    model.graph.node[0].op_type = "ConvTranspose"
    with pytest.raises(BuildError, match="cannot be quantized"):
        insert(model, {"conv0"}, {"x": 2.0}, INT8)


@pytest.mark.parametrize("bias", [True, False])
def test_openvino_computes_a_convolution_of_signed_activations(bias: bool, tmp_path: Path) -> None:
    """Without a bias, OpenVINO gives other values for the form alone; `insert` adds one that is almost zero."""
    openvino = pytest.importorskip("openvino")
    model, _ = convolution(bias=bias)
    # A convolution before it, as in the decoder: the fault needs a signed result of another layer.
    first = helper.make_node("Conv", ["input", "first.weight"], ["x"], "first")
    model.graph.node.insert(0, first)
    identity = np.eye(4, dtype=np.float32)[:, :, None, None]
    model.graph.initializer.append(numpy_helper.from_array(identity, "first.weight"))
    model.graph.input[0].name = "input"
    path = tmp_path / "graph.onnx"
    onnx.save(insert(model, {"first", "conv0"}, {"input": 3.0, "x": 3.0}, SEVEN_BITS), path)
    x = np.random.default_rng(1).normal(0, 1, (1, 4, 8, 8)).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"input": x})[0]
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled(x)[0], expected, atol=1e-4)
