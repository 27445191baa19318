"""Checkpoints as people bring them: other containers, wrappers, prefixes and types; damaged and hostile files."""

from __future__ import annotations

import argparse
import json
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dpt_deploy.core.errors import BadCheckpoint, BadInput
from dpt_deploy.model import create_multitask_dpt_model, load_model, read_checkpoint, save_checkpoint
from dpt_deploy.model.dpt import DESCRIPTION_KEY


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_multitask_dpt_model("test_vit", features=16, depth_scale=2.0).eval()


@pytest.fixture(scope="module")
def state(model):
    """Its tensors without a description."""
    return dict(model.state_dict())


def read(path, content, **options):
    torch.save(content, path)
    return read_checkpoint(path, **options)


def same(checkpoint, state):
    assert set(checkpoint.state_dict) == set(state)
    assert all(torch.equal(checkpoint.state_dict[key], value) for key, value in state.items())


def test_a_plain_state_dict_describes_itself(model, tmp_path):
    """All but the resize rule, which the model does not know."""
    checkpoint = read(tmp_path / "a.pth", model.state_dict())
    assert checkpoint.config == model.config and checkpoint.config.depth_scale == 2.0
    assert [one.fact for one in checkpoint.assumed] == ["resize"]
    wrapped = read(tmp_path / "b.pth", {"model": torch.nn.DataParallel(model).state_dict(), "epoch": 3})
    assert wrapped.config == model.config
    save_checkpoint(tmp_path / "c.pth", model)
    assert read_checkpoint(tmp_path / "c.pth").assumed == ()


def test_what_nobody_stated_is_assumed(state, tmp_path):
    checkpoint = read(tmp_path / "a.pth", state)
    assert {one.fact for one in checkpoint.assumed} == {
        "depth_scale", "resize", "input_size", "backbone", "mean", "std", "num_heads"}
    named = read_checkpoint(tmp_path / "a.pth", backbone="test_vit")
    assert {one.fact for one in named.assumed} == {"depth_scale", "resize", "input_size"}


@pytest.mark.parametrize("prefix", ["model.", "net.", "module.model.", "_orig_mod.", "trainer.student.net."])
@pytest.mark.parametrize("wrapper", [None, "net", "weights", "params_ema", "model_ema", "state_dict"])
def test_prefixes_and_wrappers_are_found_from_the_names(state, tmp_path, prefix, wrapper):
    content = {prefix + key: value for key, value in state.items()} | {"loss.weight": torch.ones(1)}
    checkpoint = read(tmp_path / "a.pth", {wrapper: content, "epoch": 1} if wrapper else content)
    same(checkpoint, state)
    assert any("loss.weight" in note for note in checkpoint.notes)


@pytest.mark.parametrize("inserted", ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_what_wrappers_insert_into_names_is_removed(state, tmp_path, inserted):
    content = {key.replace("backbone.", f"backbone.{inserted}.").replace("blocks.1.", f"blocks.1.{inserted}."): value
               for key, value in state.items()}
    same(read(tmp_path / "a.pth", content), state)


def test_profilers_buffers_and_counters_are_dropped(state, tmp_path):
    extra = {"total_ops": torch.zeros(1), "backbone.blocks.0.total_params": torch.zeros(1),
             "n_averaged": torch.tensor(3)}
    same(read(tmp_path / "a.pth", state | extra), state)


def test_averaged_weights_are_taken_and_the_others_can_be(state, tmp_path):
    average = {f"module.{key}": value + 1 for key, value in state.items()} | {"n_averaged": torch.tensor(9)}
    content = {"state_dict": state, "ema": {"module": average}, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}
    checkpoint = read(tmp_path / "a.pth", content)
    same(checkpoint, {key: value + 1 for key, value in state.items()})
    assert any("--weights-entry" in note and "state_dict" in note for note in checkpoint.notes)
    same(read_checkpoint(tmp_path / "a.pth", weights="state_dict"), state)
    with pytest.raises(BadInput, match=r"--weights-entry: .* has the entries state_dict, ema\.module"):
        read_checkpoint(tmp_path / "a.pth", weights="best")


def test_numpy_beside_the_weights_is_no_code(state, tmp_path):
    content = {"state_dict": state, "best": np.float64(0.25), "curve": np.arange(3.0), "epoch": np.int64(4)}
    same(read(tmp_path / "a.pth", content), state)


def test_half_and_double_weights_become_single(state, tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        checkpoint = read(tmp_path / "a.pth", {key: value.to(dtype) for key, value in state.items()})
        assert {value.dtype for value in checkpoint.state_dict.values()} == {torch.float32}


def test_folders_of_hugging_face(state, tmp_path):
    keys = sorted(state)
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    whole.mkdir()
    shards.mkdir()
    save_file({f"model.{key}": state[key].contiguous() for key in keys}, whole / "model.safetensors")
    same(read_checkpoint(whole), state)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for i, name in enumerate(names):
        save_file({key: state[key].contiguous() for key in keys[i::2]}, shards / name)
    index = {"weight_map": {key: names[i % 2] for i, key in enumerate(keys)}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    same(read_checkpoint(shards), state)
    with pytest.raises(BadCheckpoint, match="one shard of several"):
        read_checkpoint(shards / names[0])
    (shards / names[1]).unlink()
    with pytest.raises(BadCheckpoint, match="1 of 2 shards are missing"):
        read_checkpoint(shards)
    index = {"weight_map": {"a": "../whole/model.safetensors"}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadCheckpoint, match="outside the folder"):
        read_checkpoint(shards)


def test_a_distributed_checkpoint(state, tmp_path):
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": state, "epoch": 3}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    same(read_checkpoint(tmp_path / "dcp"), state)


def test_the_metadata_of_a_distributed_checkpoint_run_no_code(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BadCheckpoint, match="runs code"):
        read_checkpoint(tmp_path / "dcp")
    assert not (tmp_path / "executed").exists()


def test_lightning_files_load_and_foreign_classes_are_named(state, tmp_path):
    weights = {f"model.{key}": value for key, value in state.items()}
    lightning = {"state_dict": weights, "hyper_parameters": {"lr": 1e-4}}
    same(read(tmp_path / "a.ckpt", lightning), state)
    with pytest.raises(BadCheckpoint, match=r"argparse\.Namespace.*torch\.save\(torch\.load\("):
        read(tmp_path / "b.ckpt", lightning | {"hyper_parameters": argparse.Namespace(lr=1)})


def test_a_pickled_module_is_called_one(model, tmp_path):
    with pytest.raises(BadCheckpoint, match=r"a pickled module of the class .*MultiTaskDPT.*state_dict\(\)"):
        read(tmp_path / "a.pth", model)


def test_a_torchscript_program_is_called_one(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "a.pt")
    with pytest.raises(BadCheckpoint, match="TorchScript"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(("key", "what"), [
    ("pretrained.model.blocks.0.norm1.weight", "an official DPT"),
    ("dpt.encoder.layer.0.x.weight", "a Hugging Face DPT"),
    ("patch_embed.proj.weight", "a backbone alone")])
def test_other_networks_are_named_with_what_to_do(tmp_path, key, what):
    with pytest.raises(BadCheckpoint, match=f"{what}.*python -m train"):
        read(tmp_path / "a.pth", {key: torch.zeros(4)})


def test_several_backbones_that_fit_are_listed(tmp_path):
    """deit_tiny has the shapes of vit_tiny, and another mean and std."""
    model = create_multitask_dpt_model("deit_tiny_patch16_224", features=16, backbone_kwargs={"depth": 4})
    path = tmp_path / "a.pth"
    with pytest.raises(BadCheckpoint, match=r"--backbone vit_tiny_patch16_384: mean 0.5,.*deit_tiny_patch16_224"):
        read(path, dict(model.state_dict()))
    checkpoint = read_checkpoint(path, backbone="deit_tiny_patch16_224")
    assert load_model(checkpoint).contract().mean == model.contract().mean
    assert not {"mean", "std", "backbone"} & {one.fact for one in checkpoint.assumed}
    assert read_checkpoint(path, normalisation_is_known=True).config.backbone == "vit_tiny_patch16_384"
    six = read_checkpoint(path, backbone="deit_tiny_patch16_224", backbone_kwargs={"num_heads": 6})
    assert load_model(six).backbone.blocks[0].attn.num_heads == 6
    with pytest.raises(BadInput, match=r"--backbone-kwargs: expected names among"):
        read_checkpoint(path, backbone="deit_tiny_patch16_224", backbone_kwargs={"checkpoint_path": 1})


def odd(state, make):
    key = "heads.depth.conv3.weight"
    return state | {key: make(state[key])}


@pytest.mark.parametrize(("make", "part"), [
    (lambda value: value.to(torch.float8_e4m3fn), "float8_e4m3fn"),
    (lambda value: value.to_sparse(), "sparse"),
    (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "quantized"),
    (lambda value: value.to("meta"), "meta device"),
    (lambda value: value.bool(), "integers"),
    (lambda value: value.int(), "integers"),
    (lambda value: value.to(torch.complex64), "complex64"),
    (lambda value: torch.zeros(1).expand(10**12), "an expanded tensor"),
    (lambda value: torch.full_like(value, float("nan")), "NaN"),
    (lambda value: torch.full_like(value, 1e300, dtype=torch.float64), "beyond the range of float32"),
])
def test_tensors_that_are_no_weights_are_refused_by_name(state, tmp_path, make, part):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, when the test makes such a tensor
        torch.save(odd(state, make), tmp_path / "a.pth")
    with pytest.raises(BadCheckpoint, match=rf"heads\.depth\.conv3\.weight.*{part}"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [{1: torch.zeros(2)}, {"model": {0: torch.zeros(1)}}, [1, 2], {}, "text"])
def test_content_without_named_tensors(tmp_path, content):
    with pytest.raises(BadCheckpoint, match="expected a state dict"):
        read(tmp_path / "a.pth", content)


def described(network, **changes):
    """A state dict whose description has other values: model.features=3 is written model__features=3."""
    state = network.state_dict()
    description = json.loads(state._metadata[""][DESCRIPTION_KEY])
    for name, value in changes.items():
        part, _, key = name.partition("__")
        if key:
            description[part][key] = value
        else:
            description[part] = value
    state._metadata[""][DESCRIPTION_KEY] = json.dumps(description)
    return state


@pytest.mark.parametrize("changes", [
    {"model": None}, {"model": []}, {"model__backbone": None}, {"model__backbone": 7}, {"model__features": 0},
    {"model__features": "16"}, {"model__use_bn": 1}, {"model__depth_scale": None}, {"model__depth_scale": float("inf")},
    {"model__heads": "depth"}, {"model__heads": [3]}, {"model__backbone_kwargs": []}, {"training": 4},
    {"model__backbone_kwargs": {"patch_size": 0}}, {"model__backbone_kwargs": {"img_size": 10**9}},
    {"model__backbone_kwargs": {"weight_init": "moco"}}, {"model__backbone_kwargs": {"num_classes": 10**9}},
    {"model__backbone": "hf-hub:stranger/model"}, {"contract__input_size": [float("inf"), 1]}, {"contract__mean": None},
])
def test_a_description_of_other_types_or_ranges_is_refused(model, tmp_path, changes):
    with pytest.raises(BadCheckpoint, match="its description is not valid"):
        read(tmp_path / "a.pth", described(model, **changes))


def test_a_description_nested_a_thousand_deep(model, tmp_path):
    state = model.state_dict()
    state._metadata[""][DESCRIPTION_KEY] = '{"model":' + "[" * 100_000 + "]" * 100_000 + "}"
    with pytest.raises(BadCheckpoint, match="its description is not valid"):
        read(tmp_path / "a.pth", state)


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_a_description_cannot_make_timm_open_a_file(model, tmp_path, name):
    secret = tmp_path / "secret.pth"
    secret.write_bytes(b"not read")
    value = {"file": str(secret)} if "cfg" in name else True if name == "pretrained" else str(secret)
    checkpoint = read(tmp_path / "a.pth", described(model, model__backbone_kwargs={name: value}))
    assert checkpoint.config.backbone_kwargs == {}
    load_model(checkpoint)


def test_a_flipped_bit_is_seen(model, tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, model)
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    data = bytearray(path.read_bytes())
    data[largest.header_offset + largest.file_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadCheckpoint, match="damaged: the checksum"):
        read_checkpoint(path)


def test_names_with_dots_in_the_metadata_reach_no_builtin(tmp_path):
    """From any class, attribute by attribute, all builtins can be had."""
    marker = tmp_path / "executed"
    path = "FileSystemWriter.__init__.__builtins__.get"
    program = (b"\x80\x04" + b"\x8c" + bytes([39]) + b"torch.distributed.checkpoint.filesystem"
               + b"\x8c" + bytes([len(path)]) + path.encode() + b"\x93\x8c\x04open\x85R"
               + b"\x8c" + bytes([len(str(marker))]) + str(marker).encode() + b"\x8c\x01w\x86R.")
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(program)
    with pytest.raises(BadCheckpoint, match="runs code"):
        read_checkpoint(tmp_path / "dcp")
    assert not marker.exists()


def test_two_sets_of_weights_in_one_state_dict_are_not_mixed(state, tmp_path):
    key = "heads.depth.conv3.weight"
    with pytest.raises(BadCheckpoint, match=rf"{key} and module\.{key} are two sets of weights"):
        read(tmp_path / "a.pth", state | {f"module.{key}": state[key] + 1})


@pytest.mark.parametrize("changes", [
    {"model__backbone_kwargs": {"embed_dim": 4096, "depth": 64}}, {"model__features": 4096},
    {"model__backbone_kwargs": {"img_size": 8192, "patch_size": 2}}])
def test_a_description_takes_no_memory_for_what_the_file_does_not_hold(model, tmp_path, changes):
    checkpoint = read(tmp_path / "a.pth", described(model, **changes))
    with pytest.raises(BadCheckpoint, match="does not match test_vit"):
        load_model(checkpoint)


def test_a_compressed_archive_is_refused(model, tmp_path):
    save_checkpoint(tmp_path / "a.pth", model)
    with zipfile.ZipFile(tmp_path / "a.pth") as whole, \
            zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(BadCheckpoint, match="compressed entries"):
        read_checkpoint(tmp_path / "b.pth")


def test_the_nearest_model_is_named_with_what_separates_it(state, tmp_path):
    extra = state | {"backbone.norm.weight": torch.ones(64)}
    with pytest.raises(BadCheckpoint, match=r"test_vit, the nearest: 1 unexpected \(backbone\.norm\.weight\)"):
        read(tmp_path / "a.pth", extra)
    lacking = {key: value for key, value in state.items() if key != "heads.alpha.conv3.bias"}
    with pytest.raises(BadCheckpoint, match=r"1 missing \(heads\.alpha\.conv3\.bias\)"):
        read(tmp_path / "b.pth", lacking)


def test_options_against_the_description_are_refused(model, tmp_path):
    with pytest.raises(BadInput, match="--backbone-kwargs: a.pth describes itself"):
        read(tmp_path / "a.pth", model.state_dict(), backbone_kwargs={"num_heads": 4})


def test_of_two_described_models_the_chosen_one_counts(model, tmp_path):
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.student = create_multitask_dpt_model("test_vit", features=16, depth_scale=3.0)
            self.teacher = model

    assert read(tmp_path / "a.pth", Pair().state_dict()).config.depth_scale == 2.0
