"""Every file holds what was given to its writer, or is not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import pytest

from dpt_deploy.core.errors import BadInput
from dpt_deploy.report.prediction_files import write_prediction
from dpt_deploy.report.writers import write_depth_exr, write_exr, write_npz, write_png
from dpt_deploy.runtime import Prediction
from tests.tiny import photo


def channels(path):
    with OpenEXR.File(str(path), separate_channels=True) as file:
        return {name: channel.pixels.copy() for name, channel in file.channels().items()}


def test_a_png_keeps_its_colours_and_a_bad_place_is_named(tmp_path):
    image = photo(20, 30)
    write_png(tmp_path / "new" / "a.png", image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "new" / "a.png"))[..., ::-1], image)
    with pytest.raises(BadInput, match=r"cannot write .*a\.png"):
        write_png(tmp_path / "new" / "a.png" / "a.png", image)


def test_exr_keeps_types_and_arrays_that_are_not_contiguous(tmp_path):
    depth = np.random.default_rng(0).uniform(0, 9, (7, 10)).astype(np.float32)
    write_depth_exr(tmp_path / "depth.exr", depth.T)
    found = channels(tmp_path / "depth.exr")
    assert list(found) == ["Z"] and found["Z"].dtype == np.float32
    np.testing.assert_array_equal(found["Z"], depth.T)
    half = {name: depth[::2, ::2].astype(np.float16) * i for i, name in enumerate("BGR")}
    write_exr(tmp_path / "half.exr", half)
    for name, channel in channels(tmp_path / "half.exr").items():
        assert channel.dtype == np.float16
        np.testing.assert_array_equal(channel, half[name])
    with pytest.raises(BadInput, match=r"cannot write .*depth\.exr"):
        write_depth_exr(tmp_path / "half.exr" / "depth.exr", depth)


def test_npz_keeps_its_arrays(tmp_path):
    write_npz(tmp_path / "a.npz", {"x": np.arange(3), "y": np.ones((2, 2), np.float32)})
    with np.load(tmp_path / "a.npz") as file:
        assert sorted(file.files) == ["x", "y"] and file["x"].tolist() == [0, 1, 2]


def test_a_prediction_without_depth_has_no_exr(tmp_path):
    alpha = np.ones((20, 30), np.float32)
    files = write_prediction(tmp_path, "a", photo(20, 30), Prediction(alpha=alpha))
    assert [file.name for file in files] == ["a.panel.png", "a.npz"] and all(file.is_file() for file in files)
    files = write_prediction(tmp_path, "b", photo(20, 30), Prediction(depth=alpha))
    assert files[2].name == "b.depth.exr" and channels(files[2])["Z"].shape == (20, 30)


@pytest.mark.parametrize(("about", "words"), [
    ({}, "z-depth in metres"), ({"depth_kind": "relative"}, "relative depth without unit, larger is farther"),
    ({"canonical_focal": 500.0}, "z-depth for a focal length of 500 pixels"),
])
def test_a_depth_file_says_what_its_numbers_are(tmp_path, about, words):
    prediction = Prediction(depth=np.ones((20, 30), np.float32), **about)
    path = write_prediction(tmp_path, "a", photo(20, 30), prediction, picture=False)[-1]
    with OpenEXR.File(str(path)) as file:
        assert file.header()["depthMeaning"].startswith(words)


LIMITED = """
import resource, sys
import numpy as np
from dpt_deploy.core.errors import BadInput
from dpt_deploy.report.writers import write_exr, write_npz, write_png
noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
write = {"png": lambda path: write_png(path, noise), "npz": lambda path: write_npz(path, {"x": noise}),
         "exr": lambda path: write_exr(path, {"Z": noise[..., 0].astype(np.float32)})}
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
for kind, function in write.items():
    try:
        function(f"{sys.argv[1]}/a.{kind}")
    except BadInput as error:
        print(error)
"""


@pytest.mark.parametrize("limit", [0, 100, 30_000])
def test_a_file_that_does_not_fit_is_not_there(tmp_path, limit):
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path, str(limit)], cwd=Path(__file__).parents[2],
                          capture_output=True, text=True, check=True)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        f"cannot write {tmp_path}/a.{kind}" for kind in ("png", "npz", "exr")], done
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["png", "npz", "exr"])
def test_a_file_that_lost_bytes_is_not_there(tmp_path, monkeypatch, kind):
    """As a library may leave it that does not report a full disk."""
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        real = np.savez
        monkeypatch.setattr(np, "savez", lambda file, **arrays: (real(file, **arrays), _cut(file)))
        write = lambda: write_npz(path, {"x": np.arange(1000)})  # noqa: E731
    else:
        real = Path.write_bytes
        monkeypatch.setattr(Path, "write_bytes", lambda self, data: real(self, bytes(data)[:-9]))
        write = {"png": lambda: write_png(path, photo(20, 30)),
                 "exr": lambda: write_exr(path, {"Z": np.zeros((60, 100), np.float32)})}[kind]
    with pytest.raises(BadInput, match=rf"cannot write .*a\.{kind}"):
        write()
    assert not list(tmp_path.iterdir())


def _cut(path):
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])
