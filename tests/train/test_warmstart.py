"""Weights of others: our four fused maps equal those of the model they come from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from dpt_deploy.core.errors import BadCheckpoint, BadInput
from dpt_deploy.model import MultiTaskDPT, create_multitask_dpt_model, save_checkpoint
from dpt_deploy.model import backbone as vits
from train.loop.trainer import Trainer
from train.model.warmstart import initialise_from


def our_model(seed: int = 1, size: int = 96, use_bn: bool = False) -> MultiTaskDPT:
    """vit_tiny with four blocks and 32 features."""
    torch.manual_seed(seed)
    return create_multitask_dpt_model(
        "vit_tiny_patch16_384", features=32, use_bn=use_bn, backbone_kwargs={"img_size": size, "depth": 4}
    ).eval()


def their_model(size: int = 96, use_bn: bool = False):
    """transformers' DPT of the same size, with random weights, batch norm statistics included."""
    from transformers import DPTConfig, DPTForDepthEstimation

    torch.manual_seed(0)
    model = DPTForDepthEstimation(DPTConfig(
        hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=768, image_size=size,
        patch_size=16, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[24, 48, 96, 192], fusion_hidden_size=32,
        reassemble_factors=[4, 2, 1, 0.5], is_hybrid=False, readout_type="project", layer_norm_eps=1e-6,
        use_batch_norm_in_fusion_residual=use_bn,
    )).eval()
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else 0.05 * torch.randn_like(value))
    return model


def fused_maps(model: MultiTaskDPT, image: torch.Tensor) -> list[torch.Tensor]:
    """Ours, finest first."""
    grid = tuple(model.backbone.patch_embed.grid_size)
    with torch.no_grad():
        return model.decoder.fuse(vits.token_maps(model.backbone, image), grid)


def official_names(model: MultiTaskDPT) -> dict[str, torch.Tensor]:
    """Our weights under the names of the official release, as its own modules would save them."""
    names = {}
    for key, value in model.state_dict().items():
        part = key.split(".")
        if part[0] == "backbone":
            names["pretrained.model." + key.removeprefix("backbone.")] = value
        elif part[1] == "reassemble":
            i = int(part[2]) + 1
            post = f"pretrained.act_postprocess{i}"
            here = {"readout": f"{post}.0.project.0", "project": f"{post}.3", "resample": f"{post}.4",
                    "out": f"scratch.layer{i}_rn"}[part[3]]
            names[f"{here}.{part[-1]}"] = value
        elif part[1] == "fusion":
            unit = {"skip_unit": "resConfUnit1.", "unit": "resConfUnit2.", "out": "out_conv."}[part[3]]
            names[f"scratch.refinenet{int(part[2]) + 1}.{unit}" + ".".join(part[4:])] = value
    names["scratch.output_conv.4.weight"] = torch.randn(1, 32, 1, 1)
    names["pretrained.model.norm.weight"] = torch.ones(192)
    for layer in ("conv1", "conv2"):  # built by the release, never used
        names[f"scratch.refinenet4.resConfUnit1.{layer}.weight"] = torch.randn(32, 32, 3, 3)
    return names


@pytest.mark.parametrize("use_bn", [False, True])
def test_fused_maps_equal_those_of_transformers(tmp_path: Path, use_bn: bool):
    theirs, ours = their_model(use_bn=use_bn), our_model(use_bn=use_bn)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    lines = initialise_from(ours, tmp_path / "pytorch_model.bin")
    assert "transformers" in lines[0]
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        hidden = theirs.dpt(image, output_hidden_states=True).hidden_states
        expected = theirs.neck([hidden[i + 1] for i in range(4)], 6, 6)
    for mine, other in zip(fused_maps(ours, image), reversed(expected), strict=True):
        assert mine.shape == other.shape
        assert (mine - other).abs().max() < 1e-4 * max(1.0, other.abs().max())


def test_official_names_give_the_same_fused_maps(tmp_path: Path):
    source, ours = our_model(seed=5), our_model(seed=6)
    torch.save(official_names(source), tmp_path / "dpt_large.pt")
    lines = initialise_from(ours, tmp_path / "dpt_large.pt")
    image = torch.randn(1, 3, 96, 96)
    for mine, other in zip(fused_maps(ours, image), fused_maps(source, image), strict=True):
        assert torch.equal(mine, other)
    heads = [key for key in ours.state_dict() if key.startswith("heads.")]
    assert "official" in lines[0] and f"{len(ours.state_dict()) - len(heads)} of" in lines[0]
    assert f"{len(heads)} tensors of the model missing in the file" in lines[1]


def test_positions_are_resized_bilinearly_for_another_size(tmp_path: Path):
    source, ours = our_model(size=96), our_model(seed=3, size=160)
    torch.save(official_names(source), tmp_path / "weights.pt")
    initialise_from(ours, tmp_path / "weights.pt")
    patches = source.backbone.pos_embed[:, 1:].reshape(1, 6, 6, 192).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(patches, (10, 10), mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours.backbone.pos_embed[:, 1:], expected.flatten(2).transpose(1, 2))
    torch.testing.assert_close(ours.backbone.pos_embed[:, :1], source.backbone.pos_embed[:, :1])


def test_our_own_checkpoint_is_taken_whole(tmp_path: Path):
    source, ours = our_model(seed=1), our_model(seed=2)
    save_checkpoint(tmp_path / "best_model.pth", source)
    lines = initialise_from(ours, tmp_path / "best_model.pth")
    assert len(lines) == 1, "nothing to warn of"
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), source.state_dict().values(), strict=True))


def test_other_units_of_our_own_checkpoint_are_named(tmp_path: Path):
    source = create_multitask_dpt_model("test_vit", features=8, depth_scale=1.0, backbone_kwargs={"img_size": 64})
    contract = dataclasses.replace(source.contract(), mean=(0.4, 0.5, 0.6))
    save_checkpoint(tmp_path / "best_model.pth", source, contract, {"canonical_focal": 500.0})
    ours = create_multitask_dpt_model("test_vit", features=8, depth_scale=5.0, backbone_kwargs={"img_size": 64})
    text = "\n".join(initialise_from(ours, tmp_path / "best_model.pth", 600.0))
    for said in ("depth_scale is 1.0 in the file and 5.0 here", "canonical_focal is 500.0 in the file and 600.0 here",
                 "mean is (0.4, 0.5, 0.6) in the file"):
        assert said in text
    assert "std" not in text


@pytest.mark.parametrize(("change", "said"), [
    ({"pretrained.model.patch_embed.backbone.stem.conv.weight": torch.zeros(1)}, "hybrid"),
    ({"pretrained.model.blocks.0.attn.relative_position_bias_table": torch.zeros(1)}, "BEiT"),
    ({"pretrained.act_postprocess1.0.project.0.weight": None}, "readout other than project"),
])
def test_other_architectures_are_refused_by_name(tmp_path: Path, change: dict, said: str):
    state = {key: value for key, value in (official_names(our_model()) | change).items() if value is not None}
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(BadCheckpoint, match=said):
        initialise_from(our_model(), tmp_path / "weights.pt")


@pytest.mark.parametrize(("change", "said"), [
    ({"dpt.embeddings.backbone.bit.embedder.convolution.weight": torch.zeros(1)}, "hybrid"),
    ({"neck.reassemble_stage.readout_projects.0.0.weight": None}, "readout other than project"),
])
def test_other_architectures_of_transformers_are_refused_by_name(tmp_path: Path, change: dict, said: str):
    state = {key: value for key, value in (their_model().state_dict() | change).items() if value is not None}
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(BadCheckpoint, match=said):
        initialise_from(our_model(), tmp_path / "pytorch_model.bin")


def test_a_file_that_fits_nowhere_says_so(tmp_path: Path):
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    with pytest.raises(BadCheckpoint, match=r"pretrained\.model.*conv1\.weight"):
        initialise_from(our_model(), tmp_path / "resnet.pth")
    wide = create_multitask_dpt_model("test_vit", features=32, backbone_kwargs={"img_size": 96})
    save_checkpoint(tmp_path / "other.pth", wide)
    with pytest.raises(BadCheckpoint, match=r"--backbone"):
        initialise_from(our_model(), tmp_path / "other.pth")
    with pytest.raises(BadInput, match="no file"):
        initialise_from(our_model(), tmp_path / "absent.pth")


def test_training_starts_from_the_weights(config, tmp_path: Path):
    Trainer(config(out=tmp_path / "first")).run()
    weights = torch.load(tmp_path / "first" / "best_model.pth", weights_only=True)
    trainer = Trainer(config(out=tmp_path / "second", init=tmp_path / "first" / "best_model.pth"))
    assert all(torch.equal(value, weights[key]) for key, value in trainer.model.state_dict().items())
