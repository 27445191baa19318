"""python -m dpt_deploy.predict: what it writes, what it skips, and what it says."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import pytest

from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BadInput
from dpt_deploy.predict.__main__ import PredictConfig, main
from dpt_deploy.runtime import load
from dpt_deploy.runtime.image import read_image
from tests.eight_bits import add_eight_bits
from tests.tiny import photo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of different sizes, a damaged one, and a text file."""
    path = tmp_path / "in"
    path.mkdir()
    cv2.imwrite(str(path / "one.png"), photo(90, 120, 1)[..., ::-1])
    cv2.imwrite(str(path / "two.jpg"), photo(70, 60, 2)[..., ::-1])
    (path / "bad.png").write_bytes((path / "one.png").read_bytes()[:500])
    (path / "notes.txt").write_text("no image")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_image_gives_a_panel_and_its_maps(tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(PredictConfig(tiny_bundle, (str(folder / "one.png"),), out)) == 0
    assert names(out) == ["one.depth.exr", "one.npz", "one.panel.png"]
    assert cv2.imread(str(out / "one.panel.png")) is not None
    with load(tiny_bundle) as runtime:
        want = runtime(folder / "one.png")
    with np.load(out / "one.npz") as maps:
        assert set(maps) == {"depth", "normals", "alpha", "meaning"}
        for head, value in want.maps.items():
            np.testing.assert_allclose(maps[head], value, atol=1e-5)
        depth = maps["depth"]
    with OpenEXR.File(str(out / "one.depth.exr"), separate_channels=True) as file:
        np.testing.assert_array_equal(file.channels()["Z"].pixels, depth)


def test_int8_runs_if_it_is_asked_for(
    own_bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_eight_bits(Bundle.open(own_bundle))
    image = (str(folder / "one.png"),)
    for precision, file in ((None, "frame.fp32.onnx"), ("int8", "frame.int8.onnx")):
        assert main(PredictConfig(own_bundle, image, tmp_path / "out", precision=precision)) == 0
        assert f"openvino runs {file}" in capsys.readouterr().out


def test_a_folder_skips_and_names_what_cannot_be_read(
    tiny_bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(PredictConfig(tiny_bundle, (str(folder),), out)) == 1
    assert [name for name in names(out) if name.endswith(".npz")] == ["one.npz", "two.npz"]
    said = capsys.readouterr().out
    assert any("bad.png" in line for line in said.split("skipped")[1:]) and "cannot be decoded" in said
    assert " runs frame." in said.splitlines()[0] and len(said.splitlines()[0]) < 60
    assert "one.panel.png" in said and "90x120" in said and str(out) in said.replace("\n", "")


def test_results_in_the_same_folder_are_no_images(tiny_bundle: Path, folder: Path) -> None:
    for _ in range(2):
        main(PredictConfig(tiny_bundle, (str(folder),), folder))
    assert not [name for name in names(folder) if name.count("panel") > 1]


def test_names_that_differ_by_suffix_alone_stay_apart(tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(folder / "one.jpg"), photo(64, 64, 5)[..., ::-1])
    main(PredictConfig(tiny_bundle, (str(folder),), tmp_path / "out"))
    shapes = {name: read_image(folder / name).shape[:2] for name in ("one.png", "one.jpg")}
    for name, shape in shapes.items():
        with np.load(tmp_path / "out" / f"{name}.npz") as maps:
            assert maps["depth"].shape == shape


def test_a_folder_of_damaged_images_is_an_error(tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(folder / "three.png"), photo(64, 64))
    for name in ("one.png", "two.jpg", "three.png"):
        (folder / name).write_bytes(b"damaged")
    with pytest.raises(BadInput, match="none of 4 images"):
        main(PredictConfig(tiny_bundle, (str(folder),), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_named(tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(BadInput, match=r"cannot write .*out"):
        main(PredictConfig(tiny_bundle, (str(folder / "one.png"),), tmp_path / "out"))


def test_a_full_disk_is_named_and_leaves_nothing(
    tiny_bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.suffix == ".exr":
            real(path, data[:9])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BadInput, match=r"cannot write .*one\.depth\.exr.*No space left"):
        main(PredictConfig(tiny_bundle, (str(folder / "one.png"),), tmp_path / "out"))
    assert names(tmp_path / "out") == ["one.npz", "one.panel.png"]


@pytest.mark.parametrize(("image", "named"), [("bad.png", "bad.png"), ("nope.png", "nope.png"),
                                              ("notes.txt", "in/no image")])
def test_a_bad_image_ends_in_one_sentence(
    tiny_bundle: Path, folder: Path, tmp_path: Path, image: str, named: str
) -> None:
    """notes.txt is taken for a list of images."""
    command = [sys.executable, "-m", "dpt_deploy.predict", tiny_bundle, folder / image, "--out", tmp_path / "out"]
    root = Path(__file__).parents[2]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and named in done.stderr
    assert not (tmp_path / "out").exists()


def test_several_sources_on_one_line(tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    """A shell's glob gives files; names that repeat stay apart, and a file that is named twice counts once."""
    other = tmp_path / "other"
    other.mkdir()
    for path in (other / "one.png", folder / "one.jpg"):
        cv2.imwrite(str(path), photo(64, 64, 5)[..., ::-1])
    sources = (folder / "one.png", folder / "one.jpg", other / "one.png", folder / "two.jpg", folder / "two.jpg")
    out = tmp_path / "out"
    assert main(PredictConfig(tiny_bundle, tuple(map(str, sources)), out)) == 0
    assert [name for name in names(out) if name.endswith(".npz")] == [
        "in_one.png.npz", "one.jpg.npz", "other_one.png.npz", "two.npz"]
    with pytest.raises(BadInput, match="there is no file"):
        main(PredictConfig(tiny_bundle, (str(folder / "one.png"), str(folder / "nope.png")), out))
    assert main(PredictConfig(tiny_bundle, (str(folder / "one.png"), str(folder / "bad.png")), out)) == 1


def test_subfolders_are_read_when_asked(
    tiny_bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.png").unlink()
    below = folder / "day 1" / "left"
    below.mkdir(parents=True)
    cv2.imwrite(str(below / "one.png"), photo(64, 64, 5)[..., ::-1])
    out = tmp_path / "out"
    assert main(PredictConfig(tiny_bundle, (str(folder),), out)) == 0
    assert ": day 1/, notes.txt; --recursive reads subfolders" in capsys.readouterr().out
    assert main(PredictConfig(tiny_bundle, (str(folder),), out, recursive=True)) == 0
    assert (out / "one.npz").exists() and (out / "day 1" / "left" / "one.npz").exists()


def test_the_matte_of_an_image(tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    assert main(PredictConfig(tiny_bundle, (str(folder / "one.png"),), tmp_path / "out", look="matte")) == 0
    assert names(tmp_path / "out") == ["one.depth.exr", "one.matte.png", "one.npz"]
    assert cv2.imread(str(tmp_path / "out" / "one.matte.png")).shape == (90, 120, 3)


def test_why_a_backend_was_taken_is_told_when_asked(
    tiny_bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verbose in (False, True):
        main(PredictConfig(tiny_bundle, (str(folder / "one.png"),), tmp_path / "out", verbose=verbose))
        assert ("not tensorrt: " in capsys.readouterr().out) is verbose


def test_the_command_line_takes_several_sources_and_v(tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dpt_deploy.predict", tiny_bundle, folder / "one.png", folder / "two.jpg",
               "--out", tmp_path / "out", "-v"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0 and "not tensorrt: " in done.stdout and "\r" not in done.stdout + done.stderr
    assert len(names(tmp_path / "out")) == 6
