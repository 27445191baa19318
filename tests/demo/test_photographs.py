"""Two checkpoints are compared on labelled data and on photographs, and the result says what it was measured on."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks.demonstration import DemonstrationConfig, main
from demo.photographs import Teacher, compare, iou, photographs, predictor
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import sha256
from dpt_deploy.model import create_multitask_dpt_model, save_checkpoint
from dpt_deploy.runtime import Prediction
from train.synthetic import SyntheticConfig, write_dataset


def checkpoint(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    save_checkpoint(path, create_multitask_dpt_model(
        "test_vit", features=8, depth_scale=1.0, backbone_kwargs={"img_size": 64}))
    return path


def test_the_photographs_are_colour_images_of_people_without_network_or_cache():
    found = photographs()
    assert set(found) == {"astronaut", "Grace Hopper", "cameraman"}
    assert all(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 for image in found.values())
    sky = found["Grace Hopper"][60:160, 460:500].reshape(-1, 3).mean(axis=0)
    assert sky[2] > sky[0] + 40, "RGB: the blue backdrop is blue"


def test_overlap_is_that_of_the_mattes_at_one_half():
    a, b = np.zeros((4, 4)), np.zeros((4, 4))
    a[:2], b[1:3] = 0.9, 0.6
    assert iou(a, b) == pytest.approx(4 / 12) and iou(a, a) == 1


def test_a_prediction_has_the_size_of_the_photograph(tmp_path: Path):
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    prediction = predictor(checkpoint(tmp_path / "a.pth", 0))(image)
    assert prediction.depth.shape == prediction.alpha.shape == (90, 70) and prediction.normals.shape == (90, 70, 3)
    np.testing.assert_allclose(np.linalg.norm(prediction.normals, axis=2), 1, atol=1e-3)


def test_a_predictor_that_repeats_the_teacher_overlaps_fully_and_every_photograph_has_a_row():
    def teacher(image: np.ndarray) -> np.ndarray:
        return (image.mean(axis=2) > 100).astype(np.float32)

    def same(image: np.ndarray) -> Prediction:
        depth = np.ones(image.shape[:2], np.float32)
        return Prediction(depth, np.dstack([0 * depth, 0 * depth, depth]), teacher(image))

    picture, scores = compare({"one": same, "two": same}, teacher)
    assert scores == {name: dict.fromkeys(photographs(), 1.0) for name in ("one", "two")}
    assert picture.dtype == np.uint8 and picture.shape[1] == 1500 and picture.shape[0] > 600


def test_the_result_has_both_checkpoints_on_every_held_out_set(tmp_path: Path, capsys: pytest.CaptureFixture):
    before, after = checkpoint(tmp_path / "a.pth", 0), checkpoint(tmp_path / "b.pth", 1)
    write_dataset(SyntheticConfig(tmp_path / "data", 6, (64, 64), 5, workers=0, prepared=True))
    main(DemonstrationConfig(before, after, held_out=(f"people={tmp_path / 'data'}",), out=tmp_path))
    result = json.loads((tmp_path / "demonstration.json").read_text())
    found = result["held_out"]["people"]
    assert found["samples"] == 6
    assert set(found["before"]["all"]) == set(found["after"]["all"]) == set(found["constant"]["all"])
    assert result["checkpoints"] == {"before": {"sha256": sha256(before)}, "after": {"sha256": sha256(after)}}
    assert result["photographs"] == {"alpha_iou_with_teacher": {}, "teacher": None} and result["machine"]["date"]
    assert cv2.imread(str(tmp_path / "demonstration.png")) is not None
    assert "normals_mean" in capsys.readouterr().out


def test_a_held_out_set_needs_a_name(tmp_path: Path):
    with pytest.raises(BadInput, match="expected NAME=DIR, received 'data'"):
        DemonstrationConfig(tmp_path, tmp_path, held_out=("data",)).sets()


def test_a_teacher_that_is_no_tflite_file_is_one_sentence(tmp_path):
    path = tmp_path / "selfie_segmentation.tflite"
    path.write_bytes(b"not a model" * 100)
    with pytest.raises(BadInput, match=r"selfie_segmentation\.tflite.*cannot read as TFLite"):
        Teacher(path)
