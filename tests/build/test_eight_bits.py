"""Eight bits in a certificate: what counts as such, islands, refusals, and the kernels that the builder lists."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from dpt_deploy.build import EngineOptions, build_engines
from dpt_deploy.build.certificate import certify
from dpt_deploy.build.eight_bits import Kernel, compare_kernels, product_operands, read_kernels
from dpt_deploy.build.flops import Work
from dpt_deploy.build.layers import Layer
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BuildError
from dpt_deploy.core.manifest import PrecisionPlan
from tests.eight_bits import WIDE, add_eight_bits
from tests.tiny import own_bundle, tiny_bundle  # noqa: F401

RTX = EngineOptions("tensorrt-rtx")
MODULES = {"patch": "backbone.patch_embed.proj", "fc": "backbone.blocks.0.mlp.fc1", "head": "heads.depth.conv3"}
WORK = [
    Work("patch", "Conv", 100, "fp32", MODULES["patch"]), Work("fc", "MatMul", 700, "fp32", MODULES["fc"]),
    Work("head", "Conv", 100, "fp32", MODULES["head"]), Work("resize", "MatMul", 50, "fp32", None),
    Work("up", "ConvTranspose", 50, "fp32", "decoder.reassemble.0.resample"),
]
INT8 = PrecisionPlan("int8", (), wide=("backbone.patch_embed", "heads.depth.conv3"))


def quantized(name, dtype="INT8", rest="FLOAT", source="QUANTIZE"):
    """What stands before an operand: a tensor, or a constant, in eight bits and dequantized to `NAME.d`."""
    stored = Layer(f"{name}/q", source, dtype, () if source == "CONSTANT" else (name,), (f"{name}.q",))
    return [stored, Layer(f"{name}/d", "DEQUANTIZE", rest, (f"{name}.q", f"{name}.s"), (f"{name}.d",))]


def network(activation="INT8", weight="INT8", rest="FLOAT", moves=()):
    """Two convolutions in floating point and a product between them. `moves`: layers after the dequantized weight."""
    layers = [Layer("patch", "CONVOLUTION", rest, ("image",), ("x",))]
    layers += quantized("x", activation, rest) if activation else []
    layers += quantized("w", weight, rest, "CONSTANT") if weight else [Layer("w", "CONSTANT", rest, (), ("w",))]
    second = "w.d" if weight else "w"
    for i, kind in enumerate(moves):
        layers.append(Layer(f"move{i}", kind, rest, (second,), (f"moved{i}",)))
        second = f"moved{i}"
    layers.append(Layer("fc", "MATRIX_MULTIPLY", rest, ("x.d" if activation else "x", second), ("y",)))
    return [*layers, Layer("head", "CONVOLUTION", rest, ("y",), ("depth",))]


def judged(layers, asked="int8", plan=INT8):
    return certify(asked, layers, WORK, MODULES, [], (160, 160), 20, plan)


def test_layers_and_flops_in_eight_bits():
    certificate = judged(network())
    assert certificate["status"] == "passed", certificate["reasons"]
    found = certificate["eight_bits"]
    assert (found["type"], found["layers"], found["flops"], found["share"]) == ("int8", 1, 700, 0.7)
    assert found["islands"] == [] and found["kernels"]["status"] == "not run"
    assert judged(network("FP8", "FP8"), "fp8", dataclasses.replace(INT8, precision="fp8"))["status"] == "passed"
    assert "eight_bits" not in judged(network(None, None), "fp32", PrecisionPlan("fp32", ()))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (network(), "int8"), (network(moves=("SHUFFLE",)), "int8"), (network(moves=("SHUFFLE", "SQUEEZE")), "int8"),
        (network(moves=("UNARY",)), None), (network(activation=None), None), (network(weight=None), None),
        (network(activation="FP8"), None), (network("INT4", "INT4"), None),
    ],
)
def test_both_operands_of_a_product_have_to_be_dequantized_from_the_same_type(layers, expected):
    operands = product_operands(layers)
    assert operands["fc"].eight_bits == expected and operands["patch"].eight_bits is None


@pytest.mark.parametrize(
    ("layers", "reason"),
    [(network(activation=None), "the activation is not quantized"),
     (network(weight=None), "the weight is not quantized"),
     (network(activation=None, weight=None), "not quantized")],
)
def test_a_network_without_work_in_eight_bits_is_refused_and_its_islands_are_named(layers, reason):
    certificate = judged(layers)
    assert certificate["status"] == "failed"
    assert "no layer multiplies in INT8: all of its matrix FLOPs are in floating point" in certificate["reasons"]
    (island,) = certificate["eight_bits"]["islands"]
    assert island == {"name": "backbone.blocks.0.mlp.fc1", "layers": 1, "flops": 700, "reason": reason}


def test_an_island_that_the_plan_does_not_keep_wide_is_refused():
    """Even if most work is in eight bits: it is not the network that was judged."""
    plan = dataclasses.replace(INT8, wide=("backbone.patch_embed",))
    certificate = judged(network(), plan=plan)
    assert certificate["eight_bits"]["share"] == 0.7
    assert certificate["reasons"] == ["these modules compute in floating point but are not wide in the precision plan: "
                                      "heads.depth.conv3"]
    assert judged(network(), plan=None)["status"] == "passed"  # nothing is known of the plan


def test_a_plan_may_keep_most_of_the_work_wide():
    work = [dataclasses.replace(WORK[0], flops=5000), *WORK[1:]]
    arguments = network(), work, MODULES, [], (160, 160), 20
    assert certify("int8", *arguments, INT8)["status"] == "passed"
    for plan in (None, dataclasses.replace(INT8, wide=("heads.depth.conv3",))):
        assert certify("int8", *arguments, plan)["reasons"] == ["only 11.9% of its matrix FLOPs are in INT8"]


def test_a_module_in_eight_bits_that_the_plan_keeps_wide_is_refused():
    plan = dataclasses.replace(INT8, wide=("backbone", "heads.depth.conv3"))
    (reason,) = judged(network(), plan=plan)["reasons"]
    assert reason == "these modules compute in INT8 but are wide in the precision plan: backbone.blocks.0.mlp.fc1"


def test_the_other_eight_bit_type_is_refused():
    reasons = judged(network("FP8", "FP8"))["reasons"]
    assert "1 of its layers multiply in another eight-bit type" in reasons and len(reasons) == 2


@pytest.mark.parametrize("asked", ["fp32", "fp16", "bf16"])
def test_quantizers_in_another_network_are_refused(asked):
    certificate = judged(network(rest="FLOAT" if asked == "fp32" else "HALF"), asked, PrecisionPlan(asked, ()))
    assert "3 of its layers quantize to eight bits or dequantize from them" in certificate["reasons"]


def test_weights_alone_are_not_work_in_eight_bits():
    plan = dataclasses.replace(INT8, weights_only=True)
    certificate = judged(network(activation=None), plan=plan)
    assert certificate["status"] == "passed" and certificate["eight_bits"]["islands"] == []
    assert certificate["eight_bits"]["weights_only"] == 1 and certificate["eight_bits"]["share"] == 0
    (reason,) = judged(network(), plan=plan)["reasons"][1:]
    assert reason == "1 of its layers multiply in INT8, and the precision plan quantizes only weights"
    assert "no weight is stored in INT8" in judged(network(None, None), plan=plan)["reasons"]


def test_the_rest_is_in_the_type_that_the_plan_gives_it():
    half = dataclasses.replace(INT8, rest="fp16")
    found = judged(network(rest="HALF"), plan=half)
    assert found["reasons"] == ["these modules compute in FP32 but are not in the precision plan: resize, "
                                "decoder.reassemble.0.resample"]  # of no layer: this network does not have them
    layers = [*network(rest="HALF"), Layer("resize", "MATRIX_MULTIPLY", "HALF"), Layer("up", "DECONVOLUTION", "HALF")]
    certificate = judged(layers, plan=half)
    assert certificate["status"] == "passed"
    # What is in eight bits does not count as half precision as well.
    assert certificate["flops"] == {"total": 1000, "half": 300, "share": 0.3}
    assert judged(layers)["reasons"] == ["5 layers compute in half precision"]
    assert "of its matrix FLOPs are in FP32" in judged(network(), plan=half)["reasons"][0]


LISTED = """[X] Layers:
    Name: __myl_Move_myl0_0, LayerType: kgen, Inputs: [ { Name: image, Dimensions: [1,3,8,8], Datatype: Float, Format: \
(Linear) Row major linear format }], Constants: [], Outputs: [ { Name: x, Datatype: Int8 }], TacticName: t, Metadata: \

    Name: fc_myl0_1, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [1,256,384], StrideOrder: [2,1,0], Datatype: \
Int8, Format: (Linear) }], Constants: [ { Name: w, Dimensions: [1,384,192], Datatype: Int8, Format: (Linear) }, { \
Name: alpha, Dimensions: [1], Datatype: Float }], Outputs: [ { Name: y, Datatype: Float }], TacticName: t, StreamId: \
0, Metadata: [ONNX Layer: fc][ONNX Layer: w/dequantize]
[V] Engine generation completed
"""


def test_the_kernels_are_read_from_the_builders_log():
    assert read_kernels(LISTED) == [
        Kernel("__myl_Move_myl0_0", ("Float",), ()),
        Kernel("fc_myl0_1", ("Int8", "Int8", "Float"), ("fc", "w/dequantize")),
    ]


def test_kernels_in_floating_point_are_refused():
    passed = compare_kernels("int8", read_kernels(LISTED), network(), WORK)
    assert passed == {"status": "passed", "reason": "", "products": 1, "eight_bits": 1, "share": 1, "islands": []}
    for operands in (("Float", "Float"), ("Float", "Int8"), ("Int8", "Float")):  # dequantized before or in the kernel
        failed = compare_kernels("int8", [Kernel("fc", operands, ("fc",))], network(), WORK)
        assert failed["status"] == "failed" and failed["islands"] == ["backbone.blocks.0.mlp.fc1"]
        assert "kernels in INT8 for only 0.0% of the work" in failed["reason"]


@pytest.mark.parametrize("log", ["", "[I] Finished", "Name: fc, LayerType: gemm, Inputs: [], Outputs: ["])
def test_a_log_that_cannot_be_read_is_not_run(log):
    assert compare_kernels("int8", read_kernels(log), network(), WORK)["status"] == "not run"


@pytest.fixture
def bundle(own_bundle):  # noqa: F811
    """A bundle with the tiny model graph in eight bits."""
    made = Bundle.open(own_bundle)
    add_eight_bits(made, "int8", ("model",))
    return made


def take_file(bundle, precision, source, plan=None):
    """Register the file of another graph as the model graph in `precision`, as a careless script would."""
    file = f"model.{precision}.onnx"
    (artifact,) = bundle.find("onnx", file=file)
    if source != precision:
        shutil.copyfile(bundle.folder / f"model.{source}.onnx", bundle.folder / file)
    details = artifact.details if plan is None else {"opset": 23, "plan": plan}
    bundle.add(file, "onnx", graph="model", precision=precision, details=details)


@pytest.mark.parametrize("source", ["fp32", "fp16"])
def test_a_graph_in_floating_point_passed_off_as_int8_is_refused(bundle, source):
    rest = PrecisionPlan("int8", PrecisionPlan.fp32, rest=source, wide=WIDE)
    take_file(bundle, "int8", source, rest)
    with pytest.raises(BuildError, match=r"expected a network in int8, but no layer multiplies in INT8.*"
                                         r"--precision int8 --calibrate DIR"):
        build_engines(bundle, RTX, lambda line: None, ("int8",))
    assert not bundle.find("engine", precision="int8")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_quantized_graph_passed_off_as_another_is_refused(bundle, precision):
    take_file(bundle, precision, "int8")
    with pytest.raises(BuildError, match=rf"expected a network in {precision}, but \d+ of its layers quantize"):
        build_engines(bundle, RTX, lambda line: None, (precision,))


def test_a_plan_that_is_not_that_of_the_graph_is_refused(bundle):
    take = PrecisionPlan("int8", (), wide=("decoder.reassemble.0",))
    (artifact,) = bundle.find("onnx", file="model.int8.onnx")
    bundle.add("model.int8.onnx", "onnx", graph="model", precision="int8", details={"opset": 23, "plan": take})
    with pytest.raises(BuildError, match=r"computes? in floating point but are not wide in the precision plan: "
                                         r"decoder\.reassemble\.[123]"):
        build_engines(bundle, RTX, lambda line: None, ("int8",))
    assert artifact.details.plan.wide == WIDE
