"""The model is the paper's, checked against transformers' DPT, and its interface is the training guide's."""

from __future__ import annotations

import pytest
import torch

from dpt_deploy.core.errors import BadInput
from dpt_deploy.model import create_multitask_dpt_model
from dpt_deploy.model.backbone import taps
from dpt_deploy.model.decoder import Decoder, reassemble_channels

BACKBONES = [
    ("vit_tiny_patch16_384", {}),
    ("vit_small_patch16_384", {}),
    ("deit3_small_patch16_384", {}),
    ("vit_small_patch14_dinov2", {"img_size": 378}),  # a 27x27 grid: odd sizes all the way up
    ("vit_small_patch14_reg4_dinov2", {"img_size": 378}),
    ("vit_small_patch16_dinov3", {"img_size": 384}),
    pytest.param("vit_base_patch16_384", {}, marks=pytest.mark.slow),
    pytest.param("vit_large_patch16_384", {}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("backbone", "kwargs"), BACKBONES)
def test_forward_gives_three_maps_at_input_resolution(backbone, kwargs):
    model = create_multitask_dpt_model(backbone, features=32, backbone_kwargs=kwargs).eval()
    size = model.input_size
    with torch.no_grad():
        outputs = model(torch.zeros(1, 3, *size))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "depth": (1, 1, *size), "normals": (1, 3, *size), "alpha_logits": (1, 1, *size),
    }
    assert (outputs["depth"] > 0).all()
    assert outputs["normals"].abs().max() <= 1


def test_a_new_model_starts_at_plausible_values():
    model = create_multitask_dpt_model("test_vit", features=32).eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, *model.input_size))
    assert 1 < outputs["depth"].mean() < 4  # metres
    assert outputs["normals"][:, 2].mean() > 0.8  # towards the viewer
    assert 0.2 < torch.sigmoid(outputs["alpha_logits"]).mean() < 0.4


def test_decoder_equals_the_transformers_implementation():
    from transformers import DPTConfig
    from transformers.models.dpt.modeling_dpt import DPTNeck

    dim, features, grid = 64, 32, (6, 6)
    reference = DPTNeck(DPTConfig(
        hidden_size=dim, neck_hidden_sizes=list(reassemble_channels(dim)), fusion_hidden_size=features,
        readout_type="project", is_hybrid=False, reassemble_factors=[4, 2, 1, 0.5],
    )).eval()
    decoder = Decoder(dim, features, use_bn=False, class_token=True).eval()
    source = reference.state_dict()
    target = {}
    for i in range(4):
        stage, here = "reassemble_stage", f"reassemble.{i}"
        pairs = {
            f"{here}.readout.project": f"{stage}.readout_projects.{i}.0",
            f"{here}.project": f"{stage}.layers.{i}.projection",
            f"{here}.resample": f"{stage}.layers.{i}.resize",
            f"{here}.out": f"convs.{i}",
        }
        fusion = f"fusion_stage.layers.{3 - i}"  # theirs begin with the deepest
        pairs[f"fusion.{i}.out"] = f"{fusion}.projection"
        for unit, layer in (("skip_unit", "residual_layer1"), ("unit", "residual_layer2")):
            for conv in (1, 2):
                pairs[f"fusion.{i}.{unit}.conv{conv}"] = f"{fusion}.{layer}.convolution{conv}"
        for ours, theirs in pairs.items():
            for kind in ("weight", "bias"):
                if f"{ours}.{kind}" in decoder.state_dict():
                    target[f"{ours}.{kind}"] = source[f"{theirs}.{kind}"]
    decoder.load_state_dict(target, strict=True)

    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randn(2, 1 + grid[0] * grid[1], dim, generator=generator) for _ in range(4)]
    with torch.no_grad():
        want = reference(tokens, *grid)[::-1]
        have = decoder.fuse([(t[:, 1:], t[:, 0]) for t in tokens], grid)
    for ours, theirs in zip(have, want, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_taps_are_those_of_the_paper():
    assert taps(12) == (2, 5, 8, 11)
    assert taps(24) == (5, 11, 17, 23)


def test_batch_norm_units_have_no_convolution_bias():
    keys = create_multitask_dpt_model("test_vit", features=32, use_bn=True).state_dict()
    assert "decoder.fusion.0.unit.conv1.bias" not in keys
    assert "decoder.fusion.0.unit.bn1.weight" in keys


def test_the_deepest_fusion_has_no_skip():
    keys = create_multitask_dpt_model("test_vit", features=32).state_dict()
    assert not [key for key in keys if key.startswith("decoder.fusion.3.skip_unit")]


def test_a_backbone_without_class_token_skips_the_readout():
    model = create_multitask_dpt_model(
        "vit_base_patch16_siglip_224", features=32, backbone_kwargs={"depth": 4, "embed_dim": 48, "num_heads": 4}
    ).eval()
    assert model.decoder.reassemble[0].readout is None
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 224, 224))["depth"].shape == (1, 1, 224, 224)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"backbone": "swin_tiny_patch4_window7_224"}, "expected a plain patch transformer"),
        ({"backbone": "vit_base_r50_s16_224"}, "expected a plain patch transformer"),
        ({"backbone": "vit_small_patch16_rope_mixed_224"}, r"computes with rope\.freqs"),
        ({"backbone": "vit_dwee_patch16_reg1_gap_256"}, r"computes with blocks\.0\.attn\.lambda_q1"),
        ({"backbone": "no_such_model"}, "Supported: vit_tiny_patch16_384"),
        ({"backbone": "test_vit", "features": 33}, "even number"),
        ({"backbone": "test_vit", "depth_scale": 0.0}, r"a positive number \[m\]"),
        ({"backbone": "test_vit", "backbone_kwargs": {"depth": 3}}, "at least 4 blocks"),
        ({"backbone": "test_vit", "heads": ("depth", "albedo")}, "subset of depth, normals, alpha"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments, part):
    with pytest.raises(BadInput, match=part):
        create_multitask_dpt_model(**arguments).contract()


def test_pretrained_without_a_network_says_what_to_do():
    with pytest.raises(BadInput, match="pretrained=False"):
        create_multitask_dpt_model("vit_tiny_patch16_384", pretrained=True)


def test_an_input_size_that_the_patch_does_not_divide_is_refused_with_sizes_that_fit():
    model = create_multitask_dpt_model("test_vit", features=32)
    with pytest.raises(BadInput, match="144 or 160"):
        model.set_input_size((150, 150))


def test_contract_takes_mean_and_std_from_timm():
    contract = create_multitask_dpt_model("vit_small_patch14_dinov2", features=32).contract()
    assert contract.mean == (0.485, 0.456, 0.406)
    assert contract.input_size == (518, 518)
