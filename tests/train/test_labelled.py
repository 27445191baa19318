"""Labelled images for the verdict: the scores of `train.evaluate`, and what training has not seen first."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from dpt_deploy.cli.commands import training_module
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput
from dpt_deploy.model import create_multitask_dpt_model, save_checkpoint
from dpt_deploy.parity.task_loss import judge_task, measure_task
from train.data.dataset import MapDataset, collate
from train.data.sources import open_source, split
from train.evaluate import EvaluateConfig, evaluate
from train.labelled import open_labelled
from train.model.forward import ForwardPass
from train.synthetic import SyntheticConfig, write_dataset

CONTRACT = Contract((64, 64))
RECORD = {"config": {"val_fraction": 0.25}}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_multitask_dpt_model("test_vit", features=8, backbone_kwargs={"img_size": 64}, depth_scale=1.0).eval()


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Twelve samples that are wider than high, which letterbox pads."""
    root = tmp_path_factory.mktemp("wide")
    write_dataset(SyntheticConfig(root, count=12, image_size=(48, 80), seed=5, workers=0))
    return root


def runs(model, contract):
    """The frame graph's interface around a PyTorch model, for frames of the network's input size."""
    forward = ForwardPass(contract, torch.device("cpu"))

    @torch.no_grad()
    def run(frames):
        batch = forward.to_device({"image": torch.from_numpy(frames).permute(0, 3, 1, 2)})
        maps = forward.maps(forward(model, batch), batch)
        return {"depth": maps["depth"][:, 0].numpy(), "alpha": maps["alpha"][:, 0].numpy(),
                "normals": maps["normals"].permute(0, 2, 3, 1).numpy()}
    return run


@pytest.mark.parametrize(("resize", "focal"), [("stretch", 0.0), ("letterbox", 0.0), ("letterbox", 100.0)])
def test_the_scores_are_those_of_evaluate(model, wide, tmp_path, resize, focal):
    contract = dataclasses.replace(CONTRACT, resize=resize)
    training = RECORD | ({"canonical_focal": focal} if focal else {})
    save_checkpoint(tmp_path / "m.pth", model, contract, training)
    wanted = evaluate(EvaluateConfig(tmp_path / "m.pth", wide, workers=0))["metrics"]["all"]
    labelled = open_labelled(wide, contract, training)
    scores = measure_task(runs(model, contract), labelled)
    assert len(labelled) == 12
    for head, metric in (("depth", "abs_rel"), ("alpha", "iou"), ("alpha", "mae")):
        assert scores.values[head, metric].mean() == pytest.approx(wanted[f"{head}_{metric}"], rel=1e-5)
    # `evaluate` averages normals over all pixels, and this over the pixels of each image.
    data = MapDataset(open_source(wide), range(12), contract)
    facing = [item["inside"][0] & (item["normals"].abs().sum(dim=0) > 0) for item in (data[0, i] for i in range(12))]
    weights = [int(mask.sum()) for mask in facing]
    assert np.average(scores.values["normals", "mean"], weights=weights) == pytest.approx(
        wanted["normals_mean"], rel=1e-5)


def test_padding_does_not_count(wide):
    labelled = open_labelled(wide, dataclasses.replace(CONTRACT, resize="letterbox"), RECORD)
    inside = labelled.batches[0]["inside"][0, 0].numpy()
    assert not inside.all()
    rng = np.random.default_rng(0)
    maps = {"depth": rng.uniform(1, 2, (64, 64)), "normals": rng.normal(size=(64, 64, 3)),
            "alpha": rng.uniform(0, 1, (64, 64))}
    other = {head: np.where(inside if values.ndim == 2 else inside[..., None], values, 9.0)
             for head, values in maps.items()}
    assert labelled.score(0, maps) == labelled.score(0, other) and len(labelled.score(0, maps)) == 4
    assert labelled.score(0, {"alpha": maps["alpha"]}).keys() == {("alpha", "iou"), ("alpha", "mae")}


def test_samples_that_training_held_out_come_first(data):
    source = open_source(data)
    train, held_out = split(source.names, source.kinds, 0.25)
    few = open_labelled(data, CONTRACT, RECORD, count=len(held_out) - 1)
    assert few.seen == 0 and set(few.dataset.positions) < set(held_out)
    more = open_labelled(data, CONTRACT, RECORD, count=len(held_out) + 4)
    assert more.seen == 4 and set(held_out) < set(more.dataset.positions) and len(more) == len(held_out) + 4
    assert list(more.dataset.positions) == sorted(more.dataset.positions)
    everything = open_labelled(data, CONTRACT, RECORD, count=100)
    assert len(everything) == 24 and everything.seen == len(train)
    assert len({source.kinds[i] for i in open_labelled(data, CONTRACT, RECORD, count=3).dataset.positions}) == 3


def test_without_a_training_record_it_is_not_known_what_was_seen(data):
    labelled = open_labelled(data, CONTRACT, {}, count=8)
    assert labelled.seen is None and len(labelled) == 8
    assert list(labelled.dataset.positions) == [0, 3, 6, 9, 13, 16, 19, 23], "evenly spread"


def test_frames_are_of_the_networks_size_and_files_are_read_once_when_needed(data, monkeypatch):
    labelled = open_labelled(data, CONTRACT, RECORD, count=9)
    reads = []
    read = labelled.dataset.source.read
    monkeypatch.setattr(labelled.dataset.source, "read", lambda i: reads.append(i) or read(i), raising=False)
    assert labelled.name == data.name and not reads
    frame = labelled.frame(2)
    assert frame.shape == (64, 64, 3) and frame.dtype == np.uint8 and frame.flags.c_contiguous
    np.testing.assert_array_equal(frame, read(labelled.dataset.positions[2]).rgb)
    labelled.frame(2), len(labelled), labelled.seen
    assert sorted(reads) == list(labelled.dataset.positions)


def test_broken_samples_are_named_and_left_out_and_too_many_are_an_error(data, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    broken = sorted(root.rglob("rgb_*.png"))[:2]
    for path in broken:
        path.write_bytes(b"no image")
    said = []
    labelled = open_labelled(root, CONTRACT, RECORD, say=said.append)
    assert len(labelled) == 22 and len(said) == 2 and all("broken sample skipped" in line for line in said)
    with pytest.raises(BadInput, match="2 broken samples"):
        len(open_labelled(root, CONTRACT, RECORD, max_broken=1, say=said.append))
    for path in root.rglob("rgb_*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(BadInput, match="none of 24 could be read"):
        len(open_labelled(root, CONTRACT, RECORD, max_broken=100, say=said.append))


def test_a_folder_without_samples_says_how_to_make_some(tmp_path):
    with pytest.raises(BadInput, match=r"train\.synthetic"):
        open_labelled(tmp_path / "nothing", CONTRACT, RECORD)


def test_a_prepared_cache_of_another_resize_rule_is_refused(data, tmp_path):
    write_dataset(SyntheticConfig(tmp_path / "cache", count=9, image_size=(64, 64), workers=0, prepared=True))
    assert len(open_labelled(tmp_path / "cache", CONTRACT, {})) == 9
    with pytest.raises(BadInput, match="prepared with --resize stretch"):
        open_labelled(tmp_path / "cache", dataclasses.replace(CONTRACT, resize="letterbox"), {})


def test_a_network_that_gets_one_head_wrong_fails_for_that_head(model, data):
    """A whole verdict on generated people, opened as commands do."""
    labelled = training_module("train.labelled").open_labelled(data, CONTRACT, RECORD)
    exact = runs(model, CONTRACT)

    def wrong(frames):
        maps = exact(frames)
        truth = next(collate([labelled.dataset[0, i]]) for i in range(24)
                     if np.array_equal(labelled.dataset[0, i]["image"].permute(1, 2, 0).numpy(), frames[0]))
        return maps | {"alpha": 1 - truth["alpha"][0].numpy()}

    verdict = judge_task(exact, wrong, labelled, {"depth": {"abs_rel": 0.005}, "alpha": {"mae": 0.002}})
    passed = {(change.head, change.metric): change.passed for change in verdict.changes}
    assert passed[("depth", "abs_rel")] and not passed[("alpha", "mae")] and not verdict.passed
    assert verdict.data == data.name and "/" not in verdict.data
