"""Ranges of activations: the histogram keeps all images, and the clip is the one with the smallest error."""

from __future__ import annotations

import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from dpt_deploy.core.errors import BadInput
from dpt_deploy.export.calibration_images import calibration_images, calibration_items
from dpt_deploy.export.quantization.calibration import BINS, Histogram


def squared_error(values: np.ndarray, clip: float) -> float:
    step = clip / 127
    return float(((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2).mean())


def histogram(values: np.ndarray) -> Histogram:
    found = Histogram()
    found.add(values)
    return found


@pytest.mark.parametrize("name", ["normal", "laplace", "uniform", "outlier"])
def test_the_clip_has_nearly_the_smallest_error_of_all(name: str) -> None:
    rng = np.random.default_rng(0)
    values = {"normal": rng.normal(0, 3, 200_000), "laplace": rng.laplace(0, 0.1, 200_000),
              "uniform": rng.uniform(-1, 1, 200_000), "outlier": np.append(rng.normal(0, 1, 200_000), 100.0)}[name]
    best = min(squared_error(values, clip) for clip in np.abs(values).max() * np.linspace(0.02, 1, 200))
    assert squared_error(values, histogram(values).clip(127)) < 1.02 * best


def test_an_outlier_does_not_make_every_step_coarse() -> None:
    values = np.append(np.random.default_rng(0).normal(0, 1, 1_000_000), 30.0)
    assert 3.5 < histogram(values).clip(127) < 10


def test_the_range_grows_with_later_images_and_counts_all_of_them() -> None:
    rng = np.random.default_rng(1)
    images = [rng.normal(0, scale, 50_000) for scale in (0.01, 1, 0.1, 7)]
    together = Histogram()
    for image in images:
        together.add(image)
    assert together.counts.sum() == 200_000
    assert together.largest == pytest.approx(max(np.abs(image).max() for image in images))
    assert together.largest <= together.top <= 2 * together.largest
    at_once = histogram(np.concatenate(images))
    assert together.clip(127) == pytest.approx(at_once.clip(127), rel=0.03)


def test_the_largest_value_is_exact_although_large_tensors_are_sampled() -> None:
    values = np.zeros((64, 96, 96), np.float32)
    values[5, 3, 7] = -2.5
    assert histogram(values).largest == 2.5


def test_a_tensor_that_is_always_zero_has_no_range() -> None:
    assert histogram(np.zeros(BINS)).clip(127) == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        histogram(np.array([1.0, value]))


def write(path: Path, value: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((8, 8, 3), value, np.uint8))


def test_of_labelled_data_only_the_photographs_are_images(tmp_path: Path) -> None:
    for chunk in ("SynthHuman_0000", "SynthHuman_0001"):
        for kind in ("rgb", "alpha"):
            write(tmp_path / chunk / f"{kind}_0000001.png")
    assert [item.key for item in calibration_items(tmp_path)] == \
        ["SynthHuman_0000/rgb_0000001.png", "SynthHuman_0001/rgb_0000001.png"]
    assert len(calibration_items(tmp_path / "SynthHuman_0000")) == 1


def test_a_file_named_like_a_sample_hides_no_other_image(tmp_path: Path) -> None:
    for name in ("rgb_0001.png", "street.png", "beach.jpg", "alpha_7.png"):
        write(tmp_path / "in" / name)
    assert [item.key for item in calibration_items(tmp_path / "in")] == \
        ["alpha_7.png", "beach.jpg", "rgb_0001.png", "street.png"]
    write(tmp_path / "in" / "alpha_0001.png")
    assert [item.key for item in calibration_items(tmp_path / "in")] == \
        ["alpha_7.png", "beach.jpg", "rgb_0001.png", "street.png"]


def test_a_sample_in_another_folder_hides_no_image(tmp_path: Path) -> None:
    write(tmp_path / "in" / "alpha_0001.png")
    write(tmp_path / "in" / "s" / "rgb_0001.png")
    (tmp_path / "in" / "s" / "rgb_0002.png").write_bytes(b"no image")
    assert [item.key for item in calibration_items(tmp_path / "in")] == \
        ["alpha_0001.png", "s/rgb_0001.png", "s/rgb_0002.png"]
    images, skipped = calibration_images(tmp_path / "in", 10)
    assert len(images) == 2 and len(skipped) == 1
    assert skipped[0].startswith("s/rgb_0002.png: ") and str(tmp_path) not in skipped[0]


def test_images_in_tar_shards_are_those_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for i in range(4):
        write(tmp_path / "in" / f"rgb_{i}.png", i)
        write(tmp_path / "in" / f"alpha_{i}.png", i)
    (tmp_path / "in" / "rgb_2.png").write_bytes(b"no image")
    (tmp_path / "tars").mkdir()
    subprocess.run(["tar", "--sort=name", "-C", tmp_path / "in", "-cf", tmp_path / "tars" / "a.tar", "."], check=True)
    folder, shards = (calibration_images(tmp_path / name, 10) for name in ("in", "tars"))
    assert [image[0, 0, 0] for image in shards[0]] == [0, 1, 3] == [image[0, 0, 0] for image in folder[0]]
    assert shards[1][0].startswith("a.tar: rgb_2.png: expected an image") and str(tmp_path) not in shards[1][0]
    with pytest.raises(BadInput, match="no such file"):
        calibration_items(tmp_path / "{0..3}.tar")
    (tmp_path / "tars" / "a.tar").write_bytes(b"")
    with pytest.raises(BadInput, match=r"found none .*received an empty file"):
        calibration_items(tmp_path / "tars")


def test_images_are_taken_evenly_and_a_broken_one_is_named(tmp_path: Path) -> None:
    for i in range(9):
        write(tmp_path / f"{i}.png")
    (tmp_path / "4.png").write_bytes(b"no image")
    images, skipped = calibration_images(tmp_path, 3)
    assert len(images) == 2 and len(skipped) == 1
    assert "4.png" in skipped[0] and str(tmp_path) not in skipped[0]


def test_a_folder_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match="none of the 1 images can be read"):
        calibration_images(tmp_path, 3)
