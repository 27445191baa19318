"""FP16 out of range is mended by the smallest FP32 part, on models whose FP32 answers do not change."""

from __future__ import annotations

import pytest
import torch

from dpt_deploy.core.manifest import PrecisionPlan
from dpt_deploy.export.precision import typed
from dpt_deploy.export.pytorch_reference import make_reference
from dpt_deploy.export.search import Search, _sum_in_fp32, half_shares, judge_half, measure, overflowing, search_plan
from dpt_deploy.model import MultiTaskDPT, create_multitask_dpt_model
from dpt_deploy.parity import load_budget
from dpt_deploy.parity.images import built_in
from tests.tiny import lively_model

BUDGET, _ = load_budget(None)
LIMIT = torch.finfo(torch.float16).max


def hot_stream(model: MultiTaskDPT, peak: float = 2.0 * LIMIT) -> MultiTaskDPT:
    """`model` with a residual stream that passes FP16's range in its middle, and the same FP32 answers.

    Pre-norm transformers do not see the scale of their stream: what writes it is scaled up and what
    reads it without a norm, the readout, is scaled down.
    """
    vit = model.backbone
    image = torch.rand(1, 3, *model.input_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    middle = len(vit.blocks) // 2
    factor = 2.0 ** torch.tensor(peak / measure(model, image).outputs[f"backbone.blocks.{middle}"]).log2().ceil()
    with torch.no_grad():
        for block in vit.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight *= factor
                layer.bias *= factor
            for norm in (block.norm1, block.norm2):
                norm.eps *= float(factor) ** 2
        vit.patch_embed.proj.weight *= factor
        vit.patch_embed.proj.bias *= factor
        vit.pos_embed *= factor
        vit.cls_token *= factor
        for layer in model.decoder.reassemble:
            layer.readout.project.weight /= factor
    return model


def hot_fusion(model: MultiTaskDPT, block: int = 2, peak: float = 2.0 * LIMIT) -> MultiTaskDPT:
    """`model` with activations beyond FP16's range in a fusion block, and the same FP32 answers."""
    image = torch.rand(1, 3, *model.input_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    name = f"decoder.fusion.{block}.unit.conv1"
    return scale_fusion(model, block, 2.0 ** torch.tensor(peak / measure(model, image).outputs[name]).log2().ceil())


def scale_fusion(model: MultiTaskDPT, block: int, factor: float) -> MultiTaskDPT:
    fusion = model.decoder.fusion[block]
    with torch.no_grad():  # ReLU is positively homogeneous
        fusion.unit.conv1.weight *= factor
        fusion.unit.conv1.bias *= factor
        fusion.unit.conv2.weight /= factor
    return model


@pytest.fixture(scope="module")
def inputs():
    return [case for case in built_in() if not case[1]][:2]


def answers(model, inputs):
    return make_reference(model, model.contract(), inputs)


@pytest.mark.parametrize("heat", [hot_stream, hot_fusion])
def test_the_rescaled_models_give_the_same_fp32_answers(heat, inputs):
    plain, hot = answers(lively_model(), inputs), answers(heat(lively_model()), inputs)
    for a, b in zip(plain.cases, hot.cases, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(a.maps["model"]["depth"]), torch.from_numpy(b.maps["model"]["depth"]), rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("heat", [hot_stream, hot_fusion])
def test_search_ends_within_budget_with_nearly_all_flops_in_half(heat, inputs):
    # The smallest test backbone spends a seventh of its FLOPs in the patch embedding; real ones do not.
    torch.manual_seed(0)
    model = heat(create_multitask_dpt_model("vit_tiny_patch16_384", 32, backbone_kwargs={"img_size": 160}).eval())
    reference = answers(model, inputs)
    assert not judge_half(model, PrecisionPlan(), reference, BUDGET, "plain").passed
    search = Search(model, reference, PrecisionPlan(), BUDGET)
    plan = search.run()
    assert plan is not None and judge_half(model, plan, reference, BUDGET, "found").passed
    backbone, decoder = half_shares(model, plan, search.ranges)
    assert min(backbone, decoder) >= 0.9, (plan, backbone, decoder)
    assert not [name for name in plan.fp32 if name.endswith((".attn", ".qkv"))]
    if heat is hot_stream:
        assert "residual" in plan.fp32


@pytest.mark.slow  # searches twice, and judges once for each unit that it leaves out
def test_every_unit_found_by_its_range_is_needed(inputs):
    model = hot_fusion(lively_model())
    reference = answers(model, inputs)
    found = overflowing(model, Search(model, reference, PrecisionPlan(), BUDGET).ranges, LIMIT)
    for unit in found:
        fewer = tuple(name for name in found if name != unit)
        plan = PrecisionPlan("fp16", (*PrecisionPlan.fp32, *fewer))
        assert not judge_half(model, plan, reference, BUDGET, unit).passed


def test_a_weight_beyond_the_range_is_found_by_its_size(inputs):
    """Its products stay small where what it meets is small, and half of it is Inf all the same."""
    model = lively_model()
    with torch.no_grad():
        model.decoder.fusion[1].out.weight[0, 0] = 2.0 * LIMIT
        model.decoder.fusion[2].out.weight[0] = model.decoder.fusion[2].out.bias[0] = 0.0  # the channel that it meets
    ranges = Search(model, answers(model, inputs), PrecisionPlan(), BUDGET).ranges
    assert "decoder.fusion.1.out" in overflowing(model, ranges, LIMIT)


def test_rounding_out_of_budget_is_bisected(inputs):
    """Nothing overflows, and one layer's rounding is too much: a budget that only FP32 in the depth head meets."""
    model = lively_model()
    reference = answers(model, inputs)
    plain = judge_half(model, PrecisionPlan(), reference, BUDGET, "plain")
    budget = BUDGET | {"fp16": {"depth": {"abs_rel": plain.heads["depth"]["abs_rel"] * 0.8}}}
    search = Search(model, reference, PrecisionPlan(), budget)
    plan = search.run()
    assert plan is not None and judge_half(model, plan, reference, budget, "found").passed
    (everything,) = (trial.plan.fp32 for trial in search.trials if trial.name == "all units in FP32")
    assert len(plan.fp32) < 2 + len(everything) / 2  # far fewer than all


def test_a_budget_that_nothing_meets_is_told(inputs):
    model = lively_model()
    budget = BUDGET | {"fp16": {"depth": {"abs_rel": 0.0}}}
    search = Search(model, answers(model, inputs), PrecisionPlan(), budget)
    assert search.run() is None
    search.alternatives()
    assert [trial.name for trial in search.trials][-2:] == ["BF16", "attention in FP32"]


def test_flops_of_vit_base_are_those_of_the_literature():
    """ViT-B/16 at 384: 111 GFLOP without the classifier; multiplications and additions count as two."""
    with torch.device("meta"):
        model = create_multitask_dpt_model()
    flops = measure_meta(model)
    backbone = sum(value for name, value in flops.items() if name.startswith("backbone."))
    assert backbone == pytest.approx(110e9, rel=0.03)


def measure_meta(model):
    """FLOPs without computing: ranges of meta tensors cannot be read."""
    from dpt_deploy.export import search

    sizes = {}

    def hook(name):
        def record(module, args, output):
            if isinstance(module, search.MATRIX_LAYERS):
                sizes[name] = search.matrix_flops(module, args[0], output)
            elif name.endswith(".attn"):
                _, tokens, dim = args[0].shape
                sizes[name] = 4.0 * tokens * tokens * dim
        return record

    for name, module in model.named_modules():
        module.register_forward_hook(hook(name))
    model(torch.empty(1, 3, 384, 384, device="meta"))
    return sizes


def test_sums_in_fp32_err_as_pytorch_half_does():
    """The judge's matrix layers are no more exact, and no less, than PyTorch's own in half."""
    torch.manual_seed(0)
    model = lively_model()
    image = torch.randn(1, 3, *model.input_size)
    own, quick = typed(model, PrecisionPlan()), typed(model, PrecisionPlan())
    _sum_in_fp32(quick)
    with torch.no_grad():
        fp32, own, quick = model(image), own(image), quick(image)
    for name, want in fp32.items():
        error = float((quick[name] - want).abs().mean())
        assert error == pytest.approx(float((own[name] - want).abs().mean()), rel=0.3)


def test_an_overflow_in_an_adversarial_image_alone_is_searched_for_and_mended():
    """The images that come first are fine, and what fails on the last one must not be missed."""
    model = lively_model()
    cases = [case for case in built_in() if not case[1]][:2] + [case for case in built_in() if case[0] == "black"]
    name = "decoder.fusion.2.unit.conv1"
    peaks = [measure(model, torch.from_numpy(case.image[None])).outputs[name] for case in answers(model, cases).cases]
    factor = 1.2 * LIMIT / peaks[2]
    assert max(peaks[:2]) * factor < LIMIT
    model = scale_fusion(model, 2, factor)
    reference = answers(model, cases)
    stage = judge_half(model, PrecisionPlan(), reference, BUDGET, "PyTorch fp16")
    assert not stage.passed
    plan, stage, trials = search_plan(model, reference, PrecisionPlan(), stage, BUDGET)
    assert stage.passed, stage.reasons
    assert plan != PrecisionPlan() and [trial.name for trial in trials][-2:] == ["BF16", "attention in FP32"]
