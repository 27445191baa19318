"""What you asked is what you got: real networks, and the faults that a certificate exists for."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import onnx
import pytest

from dpt_deploy.build import EngineOptions, build_engines
from dpt_deploy.build.certificate import certify, failure_message, read_inspection
from dpt_deploy.build.flops import Work
from dpt_deploy.build.layers import Layer
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BuildError
from dpt_deploy.core.manifest import PrecisionPlan
from dpt_deploy.report.model_card import reset_model_card
from tests.tiny import own_bundle, tiny_bundle  # noqa: F401

RTX = EngineOptions("tensorrt-rtx")


def silent(line):
    """No progress."""


def replace_graph(bundle, file, model_file):
    """Put another graph where the manifest says `file`, as a careless script would, and describe it again."""
    (artifact,) = [a for a in bundle.artifacts if a.file == file]
    if model_file != bundle.folder / file:
        shutil.copyfile(model_file, bundle.folder / file)
    fields = {name: getattr(artifact, name) for name in ("graph", "precision", "key", "details")}
    bundle.add(file, "onnx", **fields)


def test_engines_carry_their_certificate(tiny_bundle):  # noqa: F811
    bundle = Bundle.open(tiny_bundle)
    for graph in ("model", "frame"):
        (engine,) = bundle.find("engine", graph=graph)
        certificate = engine.details.certificate.to_json()
        assert certificate["status"] == "passed" and certificate["asked"] == "fp16" and not certificate["reasons"]
        assert certificate["attention"] == {
            "status": "passed", "reason": "", "blocks": 6, "layers": 6, "half": 6, "cast_up": 0,
            "decomposable": 0, "sums": "fp16",
        }
        assert certificate["plan_bytes"] == engine.bytes
        assert certificate["profile"] == engine.details.to_json()["profile"]
        assert "STRONGLY_TYPED" in certificate["flags"] and certificate["builder"] == "tensorrt-rtx"
        # Scratch memory follows the frame's size, and all of it is the caller's: needed to capture CUDA graphs.
        assert {"RUNTIME_ACTIVATION_RESIZE_10_10", "REQUIRE_USER_ALLOCATION"} <= set(certificate["flags"])
        assert certificate["size"] == [160, 160]
        assert json.loads(json.dumps(certificate)) == certificate
    assert bundle.find("engine", graph="model")[0].details.certificate.flops.share == 1
    tensors = {t["name"]: (t["mode"], t["dtype"], t["shape"]) for t in certificate["tensors"]}
    assert tensors["frame"] == ("input", "UINT8", [-1, -1, -1, 3])
    assert tensors["normals"] == ("output", "FLOAT", [-1, -1, -1, 3])
    # Resizing computes in FP32, by plan, and nothing else that multiplies matrices does.
    islands = certificate["fp32_islands"]
    assert [island["flops"] > 0 for island in islands] == [True, True], "before and after the network"
    assert any("input frame" in island["name"] for island in islands)


def test_what_needs_a_gpu_says_not_run(tiny_bundle):  # noqa: F811
    certificate = Bundle.open(tiny_bundle).find("engine")[0].details.certificate.to_json()
    assert certificate["inspector"]["status"] == "not run" and certificate["inspector"]["reason"]


@pytest.mark.parametrize("graph", ["model", "frame"])
def test_an_fp32_graph_passed_off_as_fp16_is_refused(own_bundle, graph):  # noqa: F811
    bundle = Bundle.open(own_bundle, reset_model_card)
    replace_graph(bundle, f"{graph}.fp16.onnx", own_bundle / f"{graph}.fp32.onnx")
    with pytest.raises(BuildError, match=f"{graph}.fp16.onnx: expected a network in fp16.*100.0% of its matrix "
                                         "FLOPs are in FP32.*Export the checkpoint again"):
        build_engines(bundle, RTX, silent)
    kept = Bundle.open(own_bundle)
    assert not kept.find("engine", graph=graph)  # neither the refused one nor the stale one of the earlier graph
    assert {path.name for path in own_bundle.iterdir()} <= {a.file for a in kept.artifacts} | {"manifest.json"}


def test_attention_taken_apart_in_the_graph_is_refused(own_bundle):  # noqa: F811
    """One block's Attention written as MatMul, Softmax, MatMul: right numbers, no fused kernel."""
    path = own_bundle / "model.fp16.onnx"
    model = onnx.load(path)
    index, node = next((i, n) for i, n in enumerate(model.graph.node) if n.op_type == "Attention")
    q, k, v = node.input[:3]
    make = onnx.helper.make_node
    scale = onnx.helper.make_tensor("scale", onnx.TensorProto.FLOAT16, [], [32**-0.5])
    model.graph.initializer.append(scale)
    parts = [
        make("Transpose", [k], ["kt"], "kt", perm=[0, 1, 3, 2]), make("MatMul", [q, "kt"], ["scores"], "scores"),
        make("Mul", ["scores", "scale"], ["scaled"], "scaled"), make("Softmax", ["scaled"], ["shares"], "shares"),
        make("MatMul", ["shares", v], [node.output[0]], "mixed"),
    ]
    model.graph.node.remove(node)
    for part in reversed(parts):
        model.graph.node.insert(index, part)
    onnx.save(model, path)
    bundle = Bundle.open(own_bundle)
    replace_graph(bundle, "model.fp16.onnx", path)
    with pytest.raises(BuildError, match="attention is not fused: the network has 5 attention layers for 6 blocks"):
        build_engines(bundle, RTX, silent)


def network(dtype="HALF", attention="HALF", kinds=("CONVOLUTION", "MATRIX_MULTIPLY"), decomposable=False):
    """A network of one block and a head, as the certificate sees it."""
    return [
        Layer("frame_cast", "CAST", "HALF", ("image",), ("x",)),
        Layer("w", "CONSTANT", "HALF", (), ("w",)),
        Layer("patch", kinds[0], "HALF", ("x",), ("y",)),
        Layer("attend_AttentionInput", "ATTENTION_INPUT", attention, ("y", "y", "y"), ("a",), False, decomposable),
        Layer("attend_AttentionOutput", "ATTENTION_OUTPUT", attention, ("a",), ("z",)),
        Layer("head", kinds[1], dtype, ("z", "w"), ("h",)),
        Layer("out", "ACTIVATION", "FLOAT", ("f",), ("depth",)),
    ]


WORK = [
    Work("patch", "Conv", 600, "fp16", "backbone.patch_embed.proj"),
    Work("attend", "Attention", 200, "fp16", "backbone.blocks.0.attn.qkv"),
    Work("head", "MatMul", 200, "fp16", "heads.depth.conv3"),
]
MODULES = {"patch": "backbone.patch_embed.proj", "attend": "backbone.blocks.0.attn.qkv", "head": "heads.depth.conv3"}
TENSORS = [{"name": "image", "mode": "input"}, {"name": "depth", "mode": "output"}]


def judged(layers, asked="fp16", opset=23, plan=("activations", "resize"), work=WORK):
    precision_plan = None if plan is None else PrecisionPlan(asked, tuple(plan))
    return certify(asked, layers, work, MODULES, TENSORS, (160, 160), opset, precision_plan)


def test_shares_and_islands():
    certificate = judged(network(dtype="FLOAT"), plan=["heads.depth"])
    assert certificate["flops"] == {"total": 1000, "half": 800, "share": 0.8}
    assert certificate["layers"]["computing"] == 5 and certificate["layers"]["half"] == 3
    names = {island["name"]: island["flops"] for island in certificate["fp32_islands"]}
    assert names == {"heads.depth.conv3": 200, "output depth": 0}
    assert certificate["status"] == "passed"


def test_fp32_that_the_plan_does_not_name_is_refused():
    certificate = judged(network(dtype="FLOAT"))
    assert certificate["status"] == "failed" and "heads.depth.conv3" in certificate["reasons"][0]
    assert "heads.depth.conv3" in failure_message("model.fp16.onnx", certificate)
    assert judged(network(dtype="FLOAT"), plan=["heads.dep"])["status"] == "failed"  # not a module, but its beginning
    assert judged(network(dtype="FLOAT"), plan=None)["status"] == "passed"  # nothing is known of the plan


def test_a_plan_may_keep_most_of_the_work_in_fp32():
    """As a search finds it, or a user asks for it: the rest is half, and there is nothing else to ask for."""
    layers = [dataclasses.replace(layer, dtype="FLOAT") if layer.name in ("patch", "head") else layer
              for layer in network()]
    certificate = judged(layers, plan=["backbone.patch_embed", "heads.depth"])
    assert certificate["status"] == "passed" and certificate["flops"]["share"] == 0.2
    for plan in (["heads.depth"], None):
        assert judged(layers, plan=plan)["reasons"] == ["80.0% of its matrix FLOPs are in FP32"]


def test_attention_in_fp32_needs_the_plan_to_say_so():
    layers = network(attention="FLOAT", decomposable=True)
    assert judged(layers)["status"] == "failed"
    certificate = judged(layers, plan=["backbone.blocks.0.attn"])
    assert certificate["status"] == "passed" and "no fused kernel" in certificate["attention"]["reason"]


def cast_up_network(decomposable=False, casts=("q", "k", "v")):
    """A block whose query, key and value are cast to FP32 around attention; query and key are scaled after it."""
    layers = [Layer(f"{name}_cast", "CAST", "FLOAT", ("y",), (f"{name}32",)) for name in casts]
    layers += [Layer(f"{name}_scale", "ELEMENTWISE", "FLOAT", (f"{name}32", "s"), (f"{name}s",)) for name in "qk"]
    layers += [
        Layer("attend_AttentionInput", "ATTENTION_INPUT", "FLOAT", ("qs", "ks", "v32"), ("a",), False, decomposable),
        Layer("attend_AttentionOutput", "ATTENTION_OUTPUT", "FLOAT", ("a",), ("z32",)),
        Layer("back", "CAST", "HALF", ("z32",), ("z",)),
    ]
    rest = network()
    return [*rest[:3], *layers, *rest[5:]]


ATTENTION_WORK = [dataclasses.replace(item, is_attention=item.operator == "Attention") for item in WORK]


def test_attention_that_is_cast_up_sums_in_fp32_and_needs_the_plan_to_say_so():
    certificate = judged(cast_up_network(), plan=["attention"], work=ATTENTION_WORK)
    attention = certificate["attention"]
    assert certificate["status"] == "passed" and certificate["flops"]["share"] == 0.8
    assert (attention["layers"], attention["half"], attention["cast_up"], attention["sums"]) == (1, 0, 1, "fp32")
    assert "attention after backbone.blocks.0.attn.qkv" in [island["name"] for island in certificate["fp32_islands"]]
    assert judged(cast_up_network(), work=ATTENTION_WORK)["status"] == "failed"
    # Only attention may be in FP32 by that plan: the projection before it, of the same module, may not.
    qkv = Work("qkv", "MatMul", 100, "fp32", "backbone.blocks.0.attn.qkv")
    assert judged(cast_up_network(), plan=["attention"], work=[*ATTENTION_WORK, qkv])["status"] == "failed"


def test_a_builder_without_a_kernel_for_casts_is_told_apart():
    attention = judged(cast_up_network(decomposable=True), plan=["attention"], work=ATTENTION_WORK)["attention"]
    assert attention["status"] == "passed" and "cast up" in attention["reason"] and attention["decomposable"] == 1


def test_attention_with_one_input_that_is_no_cast_is_not_cast_up():
    layers = [*cast_up_network(casts=("q", "k")), Layer("v", "MATRIX_MULTIPLY", "FLOAT", ("y",), ("v32",))]
    assert judged(layers, plan=["attention"], work=ATTENTION_WORK)["attention"]["cast_up"] == 0


def test_half_attention_that_may_be_taken_apart_is_refused():
    certificate = judged(network(decomposable=True))
    assert certificate["attention"]["status"] == "failed" and "not fused" in certificate["reasons"][0]


def test_without_the_operator_fusion_is_not_run_and_nothing_fails():
    layers = [layer for layer in network() if "Attention" not in layer.name]
    work = [item for item in WORK if item.operator != "Attention"]
    old = judged(layers, opset=20, work=work)
    assert old["status"] == "passed" and old["attention"]["status"] == "not run" and "opset 20" in str(old["attention"])
    assert judged(layers, opset=23, work=work)["attention"]["status"] == "failed"


def test_half_where_fp32_was_asked_for_is_refused():
    assert judged(network(), asked="fp32")["status"] == "failed"


def test_work_that_no_layer_of_the_network_does_is_not_counted_as_half():
    lost = [dataclasses.replace(item, node="elsewhere") for item in WORK]
    assert judged(network(), work=lost)["flops"]["share"] == 0


@pytest.mark.parametrize(
    "schema",
    [
        {"Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}]},
        {"Outputs": [{"Name": "y", "DataType": "Half", "Format": "kLINEAR"}]},
    ],
    ids=["TensorRT 10", "TensorRT 11"],
)
def test_the_inspectors_answer_is_read(schema):
    layers = [{"Name": "__myl_mha_v2_0", "LayerType": "kgen"} | schema, {"Name": "conv", "Outputs": []},
              {"Name": "narrow", "Inputs": [{"Name": "x", "Format/Datatype": "Int8 NHWC"}], "Outputs": []}]
    seen = read_inspection(json.dumps({"Layers": layers}))
    assert seen == {"status": "passed", "layers": 3, "half": 1, "eight_bits": 1, "fused_attention": 1}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": ["conv", "relu"]}', '{"Layers": null}'])
def test_an_answer_that_cannot_be_read_is_not_run(text):
    assert read_inspection(text)["status"] == "not run"


def build_tiny(folder, opset, fp32):
    """The certificate of a model graph whose plan keeps `fp32` in FP32 as well."""
    from dpt_deploy.build.engine import build_engine, default_profile, find_builder
    from dpt_deploy.export.graph import export_graph
    from dpt_deploy.export.precision import typed
    from tests.tiny import lively_model

    model, plan = lively_model(), PrecisionPlan("fp16", (*PrecisionPlan.fp32, *fp32))
    contract, path = model.contract(), folder / "model.fp16.onnx"
    export_graph(typed(model, plan), contract, path, opset, {})
    profile = default_profile(contract, "model", (1, 2), ((64, 64), (64, 64)))
    details = build_engine(
        path, folder / "engine", find_builder("tensorrt-rtx"), profile, "fp16", contract.input_size, plan
    )
    return details["certificate"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("opset", "extra", "status", "half", "sums"),
    [(20, (), "not run", 0, ""), (20, ("attention",), "not run", 0, ""),
     (23, ("backbone.blocks.2.attn",), "passed", 5, "fp16 and fp32")],
)
def test_graphs_that_are_exported_otherwise(tmp_path, opset, extra, status, half, sums):
    """No Attention operator; and one block's attention in FP32, which the builder must be free to take apart."""
    certificate = build_tiny(tmp_path, opset, extra)
    attention = certificate["attention"]
    assert certificate["status"] == "passed" and attention["status"] == status and attention["blocks"] == 6
    assert attention["half"] == half and attention["sums"] == sums and attention["cast_up"] == 0
    assert (certificate["flops"]["share"] == 1) == (not extra)


WITHOUT_A_KERNEL_FOR_CASTS = """
import json, sys
import polygraphy.backend.trt as loaders
from polygraphy.exception import PolygraphyException
from dpt_deploy.build.builder_process import build
build_network = loaders.engine_bytes_from_network
def refuse(parsed, *args, **kwargs):
    import tensorrt_rtx as trt
    for layer in (parsed[1].get_layer(i) for i in range(parsed[1].num_layers)):
        if layer.type.name == "ATTENTION_INPUT":
            layer.__class__ = trt.IAttentionInputLayer
            if not layer.attention.decomposable:
                raise PolygraphyException("Attention operation was not supported by a dedicated kernel.")
    return build_network(parsed, *args, **kwargs)
loaders.engine_bytes_from_network = refuse
print(json.dumps(build(json.load(sys.stdin))))
"""


@pytest.mark.slow
def test_a_builder_without_a_kernel_for_attention_that_is_cast_up_may_take_it_apart(tmp_path, monkeypatch):
    """As TensorRT before 11.3: the engine is built, and its certificate says that attention is not fused."""
    from dpt_deploy.build import engine

    def run(request, builder, failure):
        environment = os.environ | {"POLYGRAPHY_USE_TENSORRT_RTX": "1"}
        process = subprocess.run([sys.executable, "-c", WITHOUT_A_KERNEL_FOR_CASTS], input=json.dumps(request),
                                 text=True, env=environment, stdout=subprocess.PIPE, check=True)
        return json.loads(process.stdout.strip().splitlines()[-1])

    monkeypatch.setattr(engine, "run_builder", run)
    certificate = build_tiny(tmp_path, 23, ("attention",))
    attention = certificate["attention"]
    assert certificate["status"] == "passed" and (attention["cast_up"], attention["decomposable"]) == (6, 6)
    assert "6 layers in FP32 are not fused" in attention["reason"]


@pytest.mark.slow
def test_the_builder_has_a_fused_kernel_for_attention_that_is_cast_up(tmp_path):
    """Not decomposable, and built all the same: TensorRT-RTX recognises the casts. It refuses plain FP32."""
    certificate = build_tiny(tmp_path, 23, ("attention",))
    assert certificate["status"] == "passed" and 0.9 < certificate["flops"]["share"] < 1
    assert certificate["attention"] == {
        "status": "passed", "reason": "", "blocks": 6, "layers": 6, "half": 0, "cast_up": 6, "decomposable": 0,
        "sums": "fp32",
    }
