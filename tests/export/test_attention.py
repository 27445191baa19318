"""Half attention as fused kernels compute it: FP16 sums, and FP32 sums where the plan casts query, key and value up."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from dpt_deploy.core.manifest import PrecisionPlan
from dpt_deploy.export import search
from dpt_deploy.export.attention import SDPA, sum_in_fp32, sum_in_half
from dpt_deploy.export.graph import export_graph
from dpt_deploy.export.precision import typed
from dpt_deploy.export.pytorch_reference import make_reference
from dpt_deploy.export.search import Search, judge_half, search_plan
from dpt_deploy.model import MultiTaskDPT, create_multitask_dpt_model
from dpt_deploy.parity import load_budget
from dpt_deploy.parity.images import built_in
from tests.tiny import lively_model

BUDGET, _ = load_budget(None)
CAST_UP = PrecisionPlan("fp16", (*PrecisionPlan.fp32, "attention"))


def large_logits(model: MultiTaskDPT, logit: float) -> MultiTaskDPT:
    """`model` with attention logits near `logit`: one channel of query and key is a constant of the first head.

    Softmax does not see what all logits of a row have in common. What they do not is enlarged, so that attention
    matters for the answers, as it does in a trained model.
    """
    for block in model.backbone.blocks:
        attention = block.attn
        dim = attention.num_heads * attention.head_dim
        with torch.no_grad():
            attention.qkv.weight[: 2 * dim] *= 6.0
            for row in (0, dim):  # of query and key
                attention.qkv.weight[row] = 0.0
                attention.qkv.bias[row] = (logit / attention.scale) ** 0.5
    return model


@pytest.fixture(scope="module")
def reference_of():
    inputs = [case for case in built_in() if not case[1]][:2]
    return lambda model: make_reference(model, model.contract(), inputs)


def kinder(monkeypatch):
    """Let the judge compute attention as PyTorch does, with FP32 sums."""
    monkeypatch.setattr(search, "sum_in_half", SDPA)


def random_heads(n=1, heads=2, tokens=45, channels=40, scale=3.0):
    torch.manual_seed(0)
    return [(scale * torch.randn(n, heads, tokens, channels)).half() for _ in range(3)]


def by_hand(q, k, v):
    """One head in NumPy: each sum a loop over steps of 16 products, in FP32 inside a step and FP16 between steps."""
    def products(a, b):
        sums = np.zeros((len(a), b.shape[1]), np.float16)
        for i in range(0, a.shape[1], 16):
            step = a[:, i : i + 16].astype(np.float32) @ b[i : i + 16].astype(np.float32)
            sums = (sums.astype(np.float32) + step).astype(np.float16)
        return sums.astype(np.float32)

    root = np.float16(q.shape[1] ** -0.25)
    scores = products(q * root, (k * root).T)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return products(weights.astype(np.float16), v) / weights.sum(1, keepdims=True)


def test_sums_are_those_of_a_loop_over_steps_of_the_tensor_core():
    q, k, v = random_heads()
    received = sum_in_half(q, k, v).float().numpy()
    expected = np.stack([by_hand(*(x[0, head].numpy() for x in (q, k, v))) for head in range(2)])[None]
    np.testing.assert_allclose(received, expected, rtol=2e-3, atol=2e-3)
    exact = SDPA(q.double(), k.double(), v.double()).numpy()
    assert np.abs(expected - exact).mean() > 5 * np.abs(expected - received).mean()  # it is FP16 sums that are compared


def test_heads_are_computed_in_groups_without_a_trace(monkeypatch):
    q, k, v = random_heads(n=2, heads=3)
    whole = sum_in_half(q, k, v)
    monkeypatch.setattr("dpt_deploy.export.attention.MAX_SCORES", 2 * 45 * 45)
    assert torch.equal(sum_in_half(q, k, v), whole)


def test_sums_in_fp32_are_as_exact_as_pytorchs():
    q, k, v = random_heads(tokens=577, channels=64, scale=1.5)
    exact = SDPA(q.double(), k.double(), v.double())
    error = [float((compute(q, k, v) - exact).abs().mean()) for compute in (SDPA, sum_in_fp32, sum_in_half)]
    assert error[1] < 1.5 * error[0] and error[2] > 3 * error[1]


def test_a_sum_beyond_the_range_of_fp16_is_infinite_where_pytorch_sees_nothing():
    q, k, v = (torch.full((1, 1, 32, 32), value, dtype=torch.float16) for value in (300.0, 300.0, 1.0))
    assert torch.isfinite(SDPA(q, k, v)).all() and torch.isfinite(sum_in_fp32(q, k, v)).all()
    assert not torch.isfinite(sum_in_half(q, k, v)).any()  # a logit of 509,000
    q, k, v = (torch.full((1, 1, 1024, 16), value, dtype=torch.float16) for value in (1.0, 1.0, 100.0))
    assert torch.equal(SDPA(q, k, v), v) and torch.equal(sum_in_fp32(q, k, v), v)
    assert not torch.isfinite(sum_in_half(q, k, v)).any()  # 1,024 values of 100 before they are divided


@pytest.mark.parametrize("logit", [3000.0, 70000.0], ids=["resolution", "overflow"])
def test_large_logits_that_the_kinder_judge_misses_are_caught_and_mended(monkeypatch, reference_of, logit):
    model = large_logits(lively_model(), logit)
    reference = reference_of(model)
    strict = judge_half(model, PrecisionPlan(), reference, BUDGET, "strict")
    assert not strict.passed
    plan, stage, trials = search_plan(model, reference, PrecisionPlan(), strict, BUDGET)
    assert stage.passed and plan == CAST_UP
    assert [trial.name for trial in trials[:2]] == ["as requested", "attention cast up"]
    assert not trials[0].passed and trials[1].passed and 0.5 < trials[1].backbone_half < trials[0].backbone_half
    kinder(monkeypatch)
    assert judge_half(model, PrecisionPlan(), reference, BUDGET, "kinder").passed


def test_bf16_is_judged_with_fp32_sums_and_has_no_attention_to_cast_up(reference_of):
    model = large_logits(lively_model(), 70000.0)
    stage = judge_half(model, PrecisionPlan("bf16"), reference_of(model), BUDGET, "bf16")
    assert all(np.isfinite(value) for metrics in stage.heads.values() for value in metrics.values())
    assert "attention" in search.units(model, "fp16") and "attention" not in search.units(model, "bf16")


def test_attention_joins_a_larger_set_if_it_is_needed(reference_of):
    """An overflow in the decoder and large logits: neither alone is enough, and nothing else is kept in FP32."""
    model = large_logits(lively_model(), 3000.0)
    fusion = model.decoder.fusion[2]
    with torch.no_grad():  # ReLU is positively homogeneous
        fusion.unit.conv1.weight *= 2.0**20
        fusion.unit.conv1.bias *= 2.0**20
        fusion.unit.conv2.weight /= 2.0**20
    reference = reference_of(model)
    plan = Search(model, reference, PrecisionPlan(), BUDGET).run()
    assert plan is not None and judge_half(model, plan, reference, BUDGET, "found").passed
    added = set(plan.fp32) - set(PrecisionPlan.fp32)
    assert "attention" in added and all(name == "attention" or name.startswith("decoder.") for name in added)


def test_a_module_in_fp32_is_not_cast(reference_of):
    """Attention of a block in FP32 stays FP32 from its input to its output."""
    plan = PrecisionPlan("fp16", ("activations", "attention", "backbone.blocks.0.attn"))
    model, seen = typed(lively_model(), plan), []
    compute = model.attention
    model.attention = lambda *args, **kwargs: seen.append(args[0].dtype) or compute(*args, **kwargs)
    with torch.no_grad():
        model(torch.zeros(1, 3, 160, 160))
    assert seen == [torch.float16] * 5


@pytest.mark.parametrize("opset", [23, pytest.param(20, marks=pytest.mark.slow)])
def test_the_graph_casts_query_key_and_value_and_the_result(tmp_path, opset):
    model = large_logits(lively_model(), 70000.0)
    path = tmp_path / "model.fp16.onnx"
    export_graph(typed(model, CAST_UP), model.contract(), path, opset, {})
    nodes = onnx.load(path).graph.node
    producers = {name: node for node in nodes for name in node.output}
    consumers = {name: node for node in nodes for name in node.input}

    def cast_of(name):
        """The nearest cast upstream."""
        while producers[name].op_type in ("Mul", "Reshape", "Transpose"):  # the scale, and K^T of opset 20
            name = producers[name].input[0]
        return producers[name].op_type == "Cast" and producers[name].attribute[0].i

    if opset == 23:
        inputs = [list(node.input[:3]) for node in nodes if node.op_type == "Attention"]
        results = [node.output[0] for node in nodes if node.op_type == "Attention"]
    else:
        softmax = [node for node in nodes if node.op_type == "Softmax"]
        after = [consumers[node.output[0]] for node in softmax]
        inputs = [[*producers[node.input[0]].input[:2], product.input[1]]
                  for node, product in zip(softmax, after, strict=True)]
        results = [product.output[0] for product in after]
    assert len(inputs) == 6
    for names, result in zip(inputs, results, strict=True):
        assert [cast_of(name) for name in names] == [onnx.TensorProto.FLOAT] * 3
        assert consumers[result].op_type == "Cast" and consumers[result].attribute[0].i == onnx.TensorProto.FLOAT16
    image = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(image)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for name, received in zip(names, session.run(names, {"image": image.numpy()}), strict=True):
        np.testing.assert_allclose(received, expected[name].numpy(), rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_attention_with_rotary_positions_is_reached():
    """DINOv3 backbones have another attention class, which rotates query and key first."""
    model = create_multitask_dpt_model("vit_small_patch16_dinov3", 32, backbone_kwargs={"img_size": 96}).eval()
    half, seen = typed(model, CAST_UP), []
    half.attention = lambda q, k, v, *args, **kwargs: seen.append(q.dtype) or sum_in_half(q, k, v, *args, **kwargs)
    with torch.no_grad():
        half(torch.zeros(1, 3, 96, 96))
    assert seen == [torch.float16] * len(model.backbone.blocks)
