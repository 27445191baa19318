"""Points and meshes of a prediction: intrinsics, colours, and depth of networks with a canonical focal length."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.manifest import Artifact, Manifest
from dpt_deploy.geometry import Cut, point_cloud
from dpt_deploy.runtime import Prediction, Runtime
from tests.geometry.bodies import Scene, angles, scene
from tests.tiny import lively_model, photo
from tests.torch_session import TorchSession

TRUTH = scene(seed=5)
MATRIX = TRUTH.camera.intrinsics


def prediction(truth: Scene = TRUTH, canonical: float = 0.0) -> Prediction:
    """What a perfect network predicts."""
    scale = canonical / truth.camera.focal if canonical else 1
    depth = np.where(np.isfinite(truth.surface.depth), truth.surface.depth * scale, 3).astype(np.float32)
    return Prediction(depth, truth.surface.normals, truth.surface.alpha, canonical)


def test_points_of_a_perfect_prediction_lie_on_the_body() -> None:
    image = photo(*TRUTH.surface.depth.shape)
    found = prediction().points(MATRIX, image)
    assert TRUTH.distance(found.vertices).max() < 1e-6  # 0.001 mm
    assert angles(found.normals, TRUTH.surface.normals.reshape(-1, 3)[found.pixels]).max() < 1e-3
    np.testing.assert_array_equal(found.colours, image.reshape(-1, 3)[found.pixels])
    mesh = prediction().mesh(MATRIX, image)
    assert len(mesh.faces) > len(mesh) > 0.9 * len(found)


def test_the_file_of_the_image_gives_colours_and_the_focal_length(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    exif.get_ifd(0x8769)[0xA405] = 35
    path = tmp_path / "photo.png"
    Image.fromarray(photo(*TRUTH.surface.depth.shape)).save(path, exif=exif)
    for image in (path, str(path), Image.open(path), io.BytesIO(path.read_bytes()), path.open("rb")):
        found = prediction().points(image=image)
        assert found.intrinsics.source.startswith("EXIF: 35 mm") and len(found.colours) == len(found)
        np.testing.assert_array_equal(found.colours, photo(*TRUTH.surface.depth.shape).reshape(-1, 3)[found.pixels])
        if hasattr(image, "close"):
            image.close()
    assert prediction().points().intrinsics.guessed


@pytest.mark.parametrize("canonical", [250.0, 500.0, 900.0])
def test_depth_of_a_canonical_focal_length_is_rescaled(canonical: float) -> None:
    found = prediction(canonical=canonical)
    assert TRUTH.distance(found.points(MATRIX).vertices).max() < 1e-6
    metric = found.in_metres(MATRIX)
    inside = np.isfinite(TRUTH.surface.depth)
    np.testing.assert_allclose(metric.depth[inside], TRUTH.surface.depth[inside], rtol=1e-6)
    assert metric.canonical_focal == 0 and metric.in_metres(900.0) is metric


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("recorded", [500.0, None, "unknown", -3])
def test_the_runtime_tells_the_canonical_focal_length_in_pixels_of_the_image(resize: str, recorded: object) -> None:
    """The training record has it in pixels at the network's input, here 160x160."""
    model = lively_model()
    contract = model.contract(resize)
    manifest = Manifest(name="canonical", contract=contract.to_json(), training={"canonical_focal": recorded})
    artifact = Artifact(file="none", kind="onnx", sha256="0" * 64, bytes=0, graph="model")
    with Runtime(Bundle(Path("canonical"), manifest), artifact, TorchSession(model, contract, "model"), "") as runtime:
        found = runtime(photo(80, 40)).canonical_focal
    width = 160 if resize == "stretch" else 80
    assert found == (500 * 40 / width if recorded == 500.0 else 0)


def test_what_is_missing_or_does_not_fit_is_refused() -> None:
    with pytest.raises(BadInput, match="head depth"):
        Prediction(alpha=TRUTH.surface.alpha).points()
    with pytest.raises(BadInput, match="image: expected the shape"):
        prediction().points(MATRIX, photo(20, 30))
    with pytest.raises(BadInput, match="no file"):
        prediction().points("nowhere.txt")


def test_what_is_no_image_gives_no_colours(tmp_path: Path) -> None:
    """Floats in [0, 1] as bytes would be black."""
    size = TRUTH.surface.depth.shape
    (tmp_path / "notes.txt").write_text("notes")
    with open(tmp_path / "notes.txt") as text, open(tmp_path / "notes.txt", "rb") as binary:
        for image, words in ((photo(*size) / 255, r"received float64.*\* 255"), (tmp_path, "received the folder"),
                             (tmp_path / "notes.txt", "cannot be decoded"), (text, "open it in binary|in text mode"),
                             (binary, "cannot be decoded"), ([[1]], "received a list"), (object(), "received a object"),
                             (photo(*size).astype(np.int64), "received int64"), (photo(*size)[None], "received")):
            with pytest.raises(BadInput, match=words):
                prediction().points(MATRIX, image)
    with pytest.raises(BadInput, match="cannot be read"):
        prediction().points(MATRIX, text)
    with pytest.raises(BadInput, match="expected uint8 RGB"):
        point_cloud(TRUTH.surface.depth, prediction().points(MATRIX).intrinsics, photo(*size) / 255)


@pytest.mark.parametrize("make", ["points", "mesh", "in_metres"])
def test_relative_depth_is_never_taken_for_metres(make: str) -> None:
    depth = np.full((20, 30), 2, np.float32)
    with pytest.raises(BadInput, match="expected z-depth in metres, received relative depth"):
        getattr(Prediction(depth, depth_kind="relative"), make)()
    assert Prediction(alpha=depth, depth_kind="relative").in_metres().depth is None


def test_the_runtime_tells_the_kind_of_depth() -> None:
    model = lively_model()
    for kind in ("metric", "relative"):
        contract = dataclasses.replace(model.contract(), depth=kind)
        artifact = Artifact(file="none", kind="onnx", sha256="0" * 64, bytes=0, graph="model")
        bundle = Bundle(Path("any"), Manifest(name="any", contract=contract.to_json()))
        with Runtime(bundle, artifact, TorchSession(model, contract, "model"), "") as runtime:
            assert runtime(photo(80, 40)).depth_kind == kind


def test_without_alpha_every_pixel_with_depth_gives_a_point() -> None:
    depth = np.full((20, 30), 2, np.float32)
    assert len(Prediction(depth).points(cut=Cut(max_slope=90))) == 600
