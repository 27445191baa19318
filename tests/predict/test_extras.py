"""Points, cut-outs and 16-bit maps from the command line, and what is refused before anything is computed."""

from __future__ import annotations

import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BadInput
from dpt_deploy.predict.__main__ import PredictConfig, main
from dpt_deploy.predict.extras import Extras, ExtraWriter
from dpt_deploy.predict.job import Job
from dpt_deploy.runtime import load
from tests.geometry.bodies import scene
from tests.runtime.test_prediction import prediction
from tests.tiny import photo

EVERYTHING = {"cutout": "webp", "background": "blur", "alpha_png": True, "depth_png": True, "normals": "directx"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "a.png"
    path.parent.mkdir()
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    exif.get_ifd(0x8769)[0xA405] = 35
    Image.fromarray(photo(90, 120, 1)).save(path, exif=exif)
    return path


def test_all_files_of_an_image(
    tiny_bundle: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, ply = tmp_path / "out", tmp_path / "elsewhere" / "cloud.ply"
    extras = Extras(points=str(ply), max_slope=90, max_angle=180, **EVERYTHING)
    assert main(PredictConfig(tiny_bundle, (str(image),), out, extras=extras)) == 0
    assert names(out) == {"a.panel.png", "a.npz", "a.depth.exr", "a.cutout.webp", "a.composite.png", "a.alpha.png",
                          "a.depth.png", "a.normals.png", "a.normals.exr"}
    with load(tiny_bundle) as runtime:
        want = runtime(image)
    header = ply.read_bytes().split(b"end_header")[0].decode()
    assert "EXIF: 35 mm" in header and "element face" not in header
    assert f"element vertex {(want.alpha >= 0.5).sum()}" in header
    alpha = cv2.imread(str(out / "a.alpha.png"), cv2.IMREAD_UNCHANGED)
    assert alpha.dtype == np.uint8 and np.abs(alpha / 255 - want.alpha).max() < 0.01
    cut = np.array(Image.open(out / "a.cutout.webp"))
    np.testing.assert_array_equal(cut[..., 3], alpha)
    depth = cv2.imread(str(out / "a.depth.png"), cv2.IMREAD_UNCHANGED)
    assert np.abs(depth / 1000 - want.depth).max() < 0.002
    assert "guessed" not in capsys.readouterr().out


def test_results_in_the_folder_of_the_images_are_no_images(tiny_bundle: Path, image: Path) -> None:
    extras = Extras(cutout="png", **{key: value for key, value in EVERYTHING.items() if key != "cutout"})
    for _ in range(2):
        assert main(PredictConfig(tiny_bundle, (str(image.parent),), image.parent, extras=extras)) == 0
    assert not [name for name in names(image.parent) if name.count("panel") > 1 or name.count("cutout") > 1]


def test_meshes_of_a_folder_and_a_guess_that_is_said(
    tiny_bundle: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(image.parent / "b.jpg"), photo(60, 70, 2))
    out = tmp_path / "out"
    extras = Extras(points="ply", mesh=True, max_slope=90, max_angle=180)
    assert main(PredictConfig(tiny_bundle, (str(image.parent),), out, extras=extras)) == 0
    assert {"a.mesh.ply", "b.mesh.ply"} <= names(out)
    assert b"element face" in (out / "a.mesh.ply").read_bytes()[:1000]
    assert b"GUESSED" in (out / "b.mesh.ply").read_bytes()[:1000]
    assert "guessed for 1 image," in capsys.readouterr().out


def test_an_image_without_foreground_is_named_and_the_others_are_written(
    tiny_bundle: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extras = Extras(points="ply", max_slope=0, cutout="png")
    assert main(PredictConfig(tiny_bundle, (str(image),), tmp_path / "out", extras=extras)) == 1
    assert "a.cutout.png" in names(tmp_path / "out") and "a.points.ply" not in names(tmp_path / "out")
    assert "none is left of 1 image (a)" in capsys.readouterr().out


def test_depth_of_a_network_with_a_canonical_focal_length(tmp_path: Path) -> None:
    truth = scene(seed=5)
    found, inside = prediction(canonical=900.0), np.isfinite(truth.surface.depth)
    known = ExtraWriter(Extras(focal=truth.camera.focal))
    np.testing.assert_allclose(known.metric(found, None).depth[inside], truth.surface.depth[inside], rtol=1e-6)
    unknown = ExtraWriter(Extras())
    assert unknown.metric(found, None) is found and "did not tell it" in unknown.lines()[0]
    assert ExtraWriter(Extras()).metric(prediction(), None).canonical_focal == 0


@pytest.mark.parametrize(("values", "words"), [
    ({"points": "obj"}, "expected ply, glb or a file"), ({"mesh": True}, "expected --points as well"),
    ({"focal": 500.0, "fov": 60.0}, "expected one of"), ({"focal": 0.0}, "focal length"),
    ({"fov": 200.0}, "field of view"),
    ({"point_alpha": 2.0}, "threshold"), ({"background": "puce"}, "expected blur, a colour"),
])
def test_impossible_options_are_refused(values: dict, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Extras(**values)


def test_what_the_sources_or_the_bundle_cannot_give_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BadInput, match="expected one image, received 2"):
        Extras(points="a.ply").check_sources(2, 0)
    with pytest.raises(BadInput, match="expected images, received a video"):
        Extras(cutout="png").check_sources(0, 1)
    with pytest.raises(BadInput, match="head alpha"):
        Extras(cutout="png").check_heads(("depth", "normals"))
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(BadInput, match="separate files, received --format tar"):
        Job(tiny_bundle, Path("out"), format="tar", extras=ExtraWriter(Extras(cutout="png"))).stored(bundle)
    with pytest.raises(BadInput, match="--format png16 writes a file of that name"):
        Job(tiny_bundle, Path("out"), format="png16", extras=ExtraWriter(Extras(depth_png=True))).stored(bundle)
    Extras().check_sources(0, 3)
    Extras().check_heads(("depth",))


def test_a_large_run_writes_them_too_and_goes_on_with_the_same_ones_only(
    tiny_bundle: Path, image: Path, tmp_path: Path
) -> None:
    def run(**values: object) -> int:
        return main(PredictConfig(tiny_bundle, (str(image.parent),), tmp_path / "out", resume=True,
                                  extras=Extras(**values)))

    assert run(cutout="png", normals="camera") == 0
    assert {"a.npz", "a.cutout.png", "a.normals.png"} <= names(tmp_path / "out")
    assert run(cutout="png", normals="camera") == 0
    with pytest.raises(BadInput):
        run(cutout="webp")


def test_exif_of_an_image_in_a_tar(tiny_bundle: Path, image: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as file:
        file.add(image, "a.png")
    extras = Extras(points="ply", max_slope=90, max_angle=180)
    assert main(PredictConfig(tiny_bundle, (str(tmp_path / "in.tar"),), tmp_path / "out", extras=extras)) == 0
    (ply,) = (tmp_path / "out").rglob("*.ply")
    assert b"EXIF: 35 mm" in ply.read_bytes()[:1000]


def test_intrinsics_of_another_size_skip_the_image(
    tiny_bundle: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(image.parent / "wide.png"), photo(90, 400, 2))
    np.savetxt(tmp_path / "k.txt", [[300, 0, 200], [0, 300, 45], [0, 0, 1]])
    extras = Extras(points="ply", intrinsics=tmp_path / "k.txt", max_slope=90, max_angle=180)
    assert main(PredictConfig(tiny_bundle, (str(image.parent),), tmp_path / "out", extras=extras)) == 1
    assert "wide.points.ply" in names(tmp_path / "out") and "a.points.ply" not in names(tmp_path / "out")
    assert "Scale the matrix" in capsys.readouterr().out


def test_a_run_with_another_focal_length_is_another_run() -> None:
    """Depth of a network for a canonical focal length depends on it, with and without files besides the maps."""
    assert ExtraWriter(Extras()).identity is None
    assert ExtraWriter(Extras(focal=500.0)).identity != ExtraWriter(Extras(focal=600.0)).identity
