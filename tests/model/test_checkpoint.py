"""A checkpoint loads with the guide's own snippet and still describes itself; what does not fit is named."""

from __future__ import annotations

import random

import pytest
import torch

from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadCheckpoint, BadInput
from dpt_deploy.model import create_multitask_dpt_model, load_model, read_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_multitask_dpt_model("test_vit", features=32, depth_scale=3.0).eval()


@pytest.fixture
def checkpoint(model, tmp_path):
    path = tmp_path / "best_model.pth"
    save_checkpoint(path, model, Contract(model.input_size, resize="letterbox"), {"epoch": 7})
    return path


def answer(model):
    with torch.no_grad():
        return model(torch.ones(1, 3, *model.input_size))["depth"]


def test_the_guides_snippet_loads_it_strictly(model, checkpoint):
    fresh = create_multitask_dpt_model("test_vit", features=32)  # another depth_scale: the weights bring their own
    fresh.load_state_dict(torch.load(checkpoint))
    assert torch.equal(answer(fresh.eval()), answer(model))


def test_it_describes_itself(model, checkpoint):
    read = read_checkpoint(checkpoint)
    assert read.config == model.config
    assert read.contract.resize == "letterbox"
    assert read.training == {"epoch": 7}
    assert torch.equal(answer(load_model(read)), answer(model))


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_checkpoints_of_others_are_unwrapped(model, tmp_path, wrapper, prefix):
    path = tmp_path / "other.pth"
    torch.save({"epoch": 3, wrapper: {prefix + key: value for key, value in model.state_dict().items()}}, path)
    read = read_checkpoint(path)
    assert any("inferred" in note for note in read.notes)
    assert read.config.backbone == "test_vit"
    assert set(read.state_dict) == set(model.state_dict())


def test_safetensors(model, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file(dict(model.state_dict()), path)
    assert set(load_model(path).state_dict()) == set(model.state_dict())


@pytest.mark.parametrize(
    ("backbone", "kwargs"),
    [
        ("vit_tiny_patch16_384", {"img_size": 128, "patch_size": 8, "depth": 6}),
        ("deit3_small_patch16_384", {"depth": 4}),
        ("vit_small_patch14_dinov2", {"depth": 4, "img_size": 378}),
        ("vit_small_patch14_reg4_dinov2", {"depth": 4}),
        ("vit_small_patch16_dinov3", {"depth": 4}),
    ],
)
def test_architecture_is_inferred_from_shapes(tmp_path, backbone, kwargs):
    path = tmp_path / "plain.pth"
    model = create_multitask_dpt_model(backbone, features=32, use_bn=True, backbone_kwargs=kwargs)
    torch.save(dict(model.state_dict()), path)
    checkpoint = read_checkpoint(path, normalisation_is_known=True)  # DeiT has the shapes of a ViT
    assert load_model(checkpoint).state_dict().keys() == model.state_dict().keys()
    assert checkpoint.config.backbone == backbone


def test_missing_and_unexpected_keys_and_shapes_are_named(model, checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    state["heads.extra.weight"] = torch.zeros(1)
    state["heads.depth.conv3.bias"] = torch.zeros(2)
    del state["heads.alpha.conv3.bias"]
    torch.save(state, checkpoint)
    with pytest.raises(BadCheckpoint) as caught:
        load_model(checkpoint)
    for part in ("1 missing (heads.alpha.conv3.bias)", "1 unexpected (heads.extra.weight)",
                 "conv3.bias [2] instead of [1]"):
        assert part in str(caught.value)


def test_nan_weights_are_named(model, checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    state["decoder.fusion.1.out.bias"][0] = float("nan")
    torch.save(state, checkpoint)
    with pytest.raises(BadCheckpoint, match=r"decoder\.fusion\.1\.out\.bias"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("content", ["truncated", "random", "empty", "text"])
def test_a_damaged_file_gets_one_sentence(checkpoint, content):
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes({
        "truncated": whole[: len(whole) // 2], "random": random.Random(0).randbytes(5000), "empty": b"",
        "text": b"not a checkpoint\n",
    }[content])
    with pytest.raises(BadCheckpoint, match="weights_only=True"):
        read_checkpoint(checkpoint)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    path = tmp_path / "evil.pth"
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(BadCheckpoint):
        read_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_other_architectures_are_refused(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(BadCheckpoint, match="another architecture"):
        read_checkpoint(path)


def test_no_such_file_and_a_folder(tmp_path):
    with pytest.raises(BadInput, match="no file"):
        read_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(BadInput, match="the folder"):
        read_checkpoint(tmp_path)
