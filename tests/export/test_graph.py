"""The graphs are what they claim: strongly typed, dynamic, named after the checkpoint, equal to PyTorch."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto

from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput, BuildError
from dpt_deploy.core.manifest import Artifact, PrecisionPlan
from dpt_deploy.export import graph
from dpt_deploy.export.frame_graph import export_frame_graph
from dpt_deploy.export.graph import export_graph
from dpt_deploy.export.precision import folded, typed
from dpt_deploy.export.pytorch_reference import postprocess, preprocess
from dpt_deploy.model import create_multitask_dpt_model
from dpt_deploy.parity.images import scene
from dpt_deploy.parity.weights import compare_weights
from tests.tiny import lively_model


def count_nodes(path):
    """How many nodes of each operator a graph file has."""
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def described(path, precision):
    """A model graph as a manifest describes it."""
    return Artifact(file=path.name, kind="onnx", sha256="0" * 64, bytes=0, graph="model", precision=precision)


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def model():
    return lively_model()


@pytest.fixture(scope="module")
def frame_graphs(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frame")
    plan = PrecisionPlan("fp32", ())
    network = folder / "model.onnx"
    export_graph(typed(model, plan), model.contract(), network, 23, {})
    for resize in ("stretch", "letterbox"):
        export_frame_graph(model.contract(resize), network, folder / f"{resize}.onnx", {})
    return folder


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("size", [(64, 64), (333, 517), (517, 333), (160, 160), (97, 1000)])
def test_frame_graph_equals_independent_processing(model, frame_graphs, resize, size):
    contract = model.contract(resize)
    image = scene(*size, seed=3)
    with torch.no_grad():
        want = postprocess(model(preprocess(image, contract)[None]), size, contract)
    runner = session(frame_graphs / f"{resize}.onnx")
    have = dict(zip([o.name for o in runner.get_outputs()], runner.run(None, {"frame": image[None]}), strict=True))
    for name, value in want.items():
        np.testing.assert_allclose(have[name][0], value, atol=2e-4)
    assert np.abs(np.linalg.norm(have["normals"], axis=-1) - 1).max() < 1e-5


def test_the_network_in_a_frame_graph_is_that_of_the_model_graph(frame_graphs):
    """Node by node, so that a verdict on one is a verdict on the arithmetic of both."""
    network = onnx.load(frame_graphs / "model.onnx").graph
    frame = onnx.load(frame_graphs / "stretch.onnx").graph
    names = {value.name: f"network/{value.name}" for value in network.output}
    inside = [node for node in frame.node if not node.name.startswith(("before/", "after/"))]
    assert [node.op_type for node in inside] == [node.op_type for node in network.node]
    assert [list(node.output) for node in inside] == [[names.get(n, n) for n in node.output] for node in network.node]
    weights = {tensor.name: tensor.raw_data for tensor in frame.initializer}
    assert all(weights[tensor.name] == tensor.raw_data for tensor in network.initializer)


def test_frame_graph_takes_any_batch(frame_graphs):
    runner = session(frame_graphs / "stretch.onnx")
    frames = np.stack([scene(120, 90, seed) for seed in range(3)])
    batch = runner.run(["depth"], {"frame": frames})[0]
    singles = [runner.run(["depth"], {"frame": frame[None]})[0][0] for frame in frames]
    np.testing.assert_allclose(batch, np.stack(singles), rtol=1e-4)


def test_resize_weights_are_those_of_torch():
    from dpt_deploy.core.contract import resize_weights

    for size_in, size_out in ((1080, 384), (100, 384), (384, 384), (7, 3)):
        signal = np.random.default_rng(0).random(size_in)
        want = F.interpolate(
            torch.from_numpy(signal)[None, None, None], (1, size_out), mode="bilinear", antialias=True,
            align_corners=False,
        ).numpy()[0, 0, 0]
        np.testing.assert_allclose(resize_weights(size_in, size_out) @ signal, want, atol=1e-6)


def test_fp16_plan_of_the_default_keeps_attention_whole_and_casts_few(tmp_path):
    """One Attention per block and a handful of casts, whatever the model's size: ViT-B has 12 and at most 8."""
    model = create_multitask_dpt_model("vit_tiny_patch16_384", features=32).eval()
    path = tmp_path / "model.onnx"
    export_graph(typed(model, PrecisionPlan()), model.contract(), path, 23, {})
    counts = count_nodes(path)
    assert counts["Attention"] == 12
    assert counts["Cast"] <= 8
    types = {t.data_type for t in onnx.load(path).graph.initializer if t.name.startswith(("backbone", "decoder"))}
    assert types == {TensorProto.FLOAT16}


@pytest.mark.slow
def test_vit_base_has_twelve_attentions_and_at_most_eight_casts(tmp_path):
    model = create_multitask_dpt_model().eval()
    path = tmp_path / "model.onnx"
    export_graph(typed(model, PrecisionPlan()), model.contract(), path, 23, {})
    counts = count_nodes(path)
    assert counts["Attention"] == 12
    assert counts["Cast"] <= 8


def test_plan_units_keep_their_part_in_fp32(model, tmp_path):
    plan = PrecisionPlan("fp16", ("activations", "resize", "residual", "decoder.fusion.2"))
    module = typed(model, plan)
    path = tmp_path / "model.onnx"
    export_graph(module, model.contract(), path, 23, {})
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    types = {t.name: t.data_type for t in graph.initializer}
    assert types["decoder.fusion.2.unit.conv1.weight"] == TensorProto.FLOAT
    assert types["decoder.fusion.1.unit.conv1.weight"] == TensorProto.FLOAT16
    assert types["backbone.blocks.3.norm1.weight"] == TensorProto.FLOAT
    assert types["backbone.blocks.3.attn.qkv.weight.transposed"] == TensorProto.FLOAT16
    produced = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    attention = [node.output[0] for node in graph.node if node.op_type == "Attention"]
    assert {produced[name] for name in attention} == {TensorProto.FLOAT16}


def test_residual_in_fp32_survives_a_stream_beyond_the_range_of_half():
    model = lively_model()
    with torch.no_grad():
        for block, sign in ((1, 1), (2, -1)):  # each sum fits half, both together do not; no tap lies between
            model.backbone.blocks[block].attn.proj.bias += sign * 40_000.0
            model.backbone.blocks[block].mlp.fc2.bias += sign * 40_000.0
        image = torch.zeros(1, 3, *model.input_size)
        plain = typed(model, PrecisionPlan())(image)
        mended = typed(model, PrecisionPlan("fp16", (*PrecisionPlan.fp32, "residual")))(image)
    assert not torch.isfinite(plain["depth"]).all()
    assert torch.isfinite(mended["depth"]).all()


def test_an_unknown_module_in_a_plan_is_refused(model):
    with pytest.raises(BadInput, match=r"decoder\.fusion\.9"):
        typed(model, PrecisionPlan("fp16", ("decoder.fusion.9",)))


def test_bf16_replaces_transposed_convolutions_exactly(model, tmp_path):
    plan = PrecisionPlan("bf16")
    path = tmp_path / "model.onnx"
    module = typed(model, plan)
    export_graph(module, model.contract(), path, 23, {})
    counts = count_nodes(path)
    assert counts["DepthToSpace"] == 2 and "ConvTranspose" not in counts
    expected = {name: value.numpy() for name, value in model.state_dict().items() if value.is_floating_point()}
    stage = compare_weights(path, described(path, "bf16"), expected)
    assert stage.passed, stage.reasons
    image = torch.from_numpy(scene(160, 160, 1)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(module(image)["normals"], model(image)["normals"], atol=0.1, rtol=0.1)


def test_opset_20_has_no_attention_operator_and_the_same_answers(model, tmp_path):
    path = tmp_path / "model.onnx"
    export_graph(typed(model, PrecisionPlan("fp32", ())), model.contract(), path, 20, {})
    assert "Attention" not in count_nodes(path)
    assert {entry.version for entry in onnx.load(path).opset_import if entry.domain == ""} == {20}
    image = torch.rand(1, 3, *model.input_size)
    with torch.no_grad():
        want = model(image)["depth"].numpy()
    np.testing.assert_allclose(session(path).run(["depth"], {"image": image.numpy()})[0], want, rtol=1e-3)


def test_batch_norm_is_folded_and_every_weight_is_found(tmp_path):
    torch.manual_seed(0)
    model = create_multitask_dpt_model("test_vit", features=32, use_bn=True).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    path = tmp_path / "model.onnx"
    export_graph(typed(model, PrecisionPlan("fp32", ())), model.contract(), path, 23, {})
    expected = {name: value.numpy() for name, value in folded(model).state_dict().items()}
    assert compare_weights(path, described(path, "fp32"), expected).passed
    image = torch.rand(1, 3, *model.input_size)
    with torch.no_grad():
        want = model(image)["depth"].numpy()
    np.testing.assert_allclose(session(path).run(["depth"], {"image": image.numpy()})[0], want, rtol=1e-3)


def test_the_contract_stands_in_the_metadata_and_no_path_of_the_machine_does(frame_graphs):
    model = onnx.load(frame_graphs / "letterbox.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert Contract.from_json(json.loads(metadata["contract"])).resize == "letterbox"
    assert metadata["graph"] == "frame"
    assert b"site-packages" not in model.SerializeToString()


def test_external_data_is_replaced_with_its_graph_and_goes_with_it(model, tmp_path, monkeypatch):
    path, image = tmp_path / "model.onnx", np.zeros((1, 3, *model.input_size), np.float32)
    want = []
    for threshold, files in ((1000, {"model.onnx", "model.onnx.data"}), (1000, {"model.onnx", "model.onnx.data"}),
                             (1_900_000_000, {"model.onnx"})):
        monkeypatch.setattr(graph, "EXTERNAL_DATA_BYTES", threshold)
        export_graph(typed(model, PrecisionPlan("fp32", ())), model.contract(), path, 23, {})
        assert {file.name for file in tmp_path.iterdir()} == files
        want.append(session(path).run(["depth"], {"image": image})[0])
    assert all(np.array_equal(one, want[0]) for one in want)


def test_a_graph_that_is_refused_leaves_the_earlier_one(model, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"earlier")

    def refuse(*_):
        raise BuildError("not right")

    monkeypatch.setattr(graph, "check", refuse)
    with pytest.raises(BuildError, match="not right"):
        export_graph(typed(model, PrecisionPlan("fp32", ())), model.contract(), path, 23, {})
    assert path.read_bytes() == b"earlier" and [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_graph_of_other_types_or_sizes_than_the_contracts_is_refused(model, tmp_path):
    half = tmp_path / "half.onnx"
    with pytest.raises(BuildError, match=r"expected inputs.*float32.*received.*float16"):
        export_graph(model_in_half(model), model.contract(), half, 23, {})
    other = dataclasses.replace(model.contract(), input_size=(192, 160))
    with pytest.raises(BuildError, match=r"depth: expected the shape .*, received \[None, 1, 160, 160\]"):
        export_graph(ForAnySize(model), other, tmp_path / "size.onnx", 23, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_copy_to_export_has_no_two_equal_weights(dtype):
    """Half precision has few numbers: two biases of one element each were equal for some architectures."""
    module = torch.nn.Module()
    for i in range(100):
        module.register_parameter(f"bias{i}", torch.nn.Parameter(torch.zeros(1, dtype=dtype)))
    values = [float(value) for value in graph._distinct_copy(module).state_dict().values()]
    assert len(set(values)) == 100


class Undecided(torch.nn.Module):
    """A module that torch.export cannot follow."""

    def forward(self, image):
        return {"depth": image[:, :1] if image.sum() > 0 else image[:, 1:2]}


def test_a_module_that_torch_cannot_export_is_one_sentence(model, tmp_path):
    with pytest.raises(BuildError, match=r"^graph\.onnx: torch\.onnx could not export it .*constraints\.txt\.$"):
        export_graph(Undecided(), model.contract(), tmp_path / "graph.onnx", 23, {})
    assert not list(tmp_path.iterdir())


def model_in_half(model):
    """The FP16 model without the casts of its outputs."""
    return typed(model, PrecisionPlan("fp16", ())).model


class ForAnySize(torch.nn.Module):
    """A model that cuts its input to 160x160, whatever is promised."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return self.model(image[:, :, :160, :160])


@pytest.mark.parametrize("backbone", [
    "vit_small_patch16_dinov3", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_336",
])
def test_other_backbones_export_with_every_weight_found(tmp_path, backbone, capfd):
    size = 56 if "14" in backbone else 64
    model = create_multitask_dpt_model(backbone, features=16, backbone_kwargs={"img_size": size, "depth": 4}).eval()
    path = tmp_path / "model.onnx"
    export_graph(typed(model, PrecisionPlan()), model.contract(), path, 23, {})
    assert count_nodes(path)["Attention"] == 4
    expected = {name: value.numpy() for name, value in folded(model).state_dict().items() if value.is_floating_point()}
    stage = compare_weights(path, described(path, "fp16"), expected)
    assert stage.passed, stage.reasons
    assert capfd.readouterr().err == "", "the exporter's own log is of no use to users"
