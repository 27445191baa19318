"""Depth without a unit is never written as metres: what needs them refuses it, and other files say what it is."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import onnx
import OpenEXR
import pytest
import zarr
from onnx import TensorProto, helper
from PIL import Image

from dpt_deploy.core.contract import DEPTHS
from dpt_deploy.core.errors import BadInput
from dpt_deploy.foreign.bundle import cached_bundle
from dpt_deploy.predict.__main__ import PredictConfig, main
from dpt_deploy.predict.extras import Extras

SIZE = (48, 64)


@pytest.fixture(scope="module")
def relative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imported model: depth is the first channel of the image, without a unit, and alpha is the second."""
    folder = tmp_path_factory.mktemp("relative")
    constants = [helper.make_tensor(name, TensorProto.INT64, [1], [value])
                 for name, value in (("zero", 0), ("one", 1), ("two", 2), ("axis", 1))]
    shape = ["n", 1, *SIZE]
    graph = helper.make_graph(
        [helper.make_node("Slice", ["x", "zero", "one", "axis"], ["far"]),
         helper.make_node("Slice", ["x", "one", "two", "axis"], ["mask"])], "relative",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, *SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("far", "mask")], constants)
    path = folder / "relative.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    path.with_suffix(".yaml").write_text(
        "input: {colours: rgb, white: 1, mean: [0, 0, 0], std: [1, 1, 1], resize: stretch}\n"
        "outputs:\n  depth: {output: far, kind: relative, larger: farther}\n"
        "  alpha: {output: mask, values: probability}\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(folder))
        return cached_bundle(path)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.random.default_rng(3).integers(0, 256, (*SIZE, 3), np.uint8))
    return path


@pytest.mark.parametrize(("options", "said"), [
    ({"format": "png16"}, "as uint16-mm, received a bundle with relative depth.*--format npz, or leave depth out"),
    ({"format": "tar"}, "received a bundle with relative depth"),
    ({"format": "npz", "forms": {"depth": "uint16-mm"}}, "relative depth.*Pass --forms depth=float32"),
    ({"extras": Extras(depth_png=True)}, "--depth-png: expected a bundle with depth in metres"),
    ({"extras": Extras(points="ply")}, "--points: expected a bundle with depth in metres"),
])
def test_what_needs_metres_is_refused(relative: Path, image: Path, tmp_path: Path, options: dict, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        main(PredictConfig(relative, (str(image),), tmp_path / "out", backend="onnxruntime-cpu", graph="model",
                           look="none", **options))
    assert not (tmp_path / "out").exists()


def test_other_files_say_that_depth_is_relative(relative: Path, image: Path, tmp_path: Path) -> None:
    said = DEPTHS["relative"]
    for format in ("npz", "exr", "zarr", "png16"):
        maps = ("alpha",) if format == "png16" else None
        options = PredictConfig(relative, (str(image),), tmp_path / format, maps=maps, format=format,
                                backend="onnxruntime-cpu", graph="model", look="none")
        assert main(options) == 0
    with np.load(tmp_path / "npz" / "a.npz") as file:
        assert json.loads(str(file["meaning"]))["depth"] == said and file["depth"].dtype == np.float16
    with OpenEXR.File(str(tmp_path / "exr" / "a.exr")) as file:
        assert file.header()["depthMeaning"] == said
    (shard,) = (tmp_path / "zarr").glob("*.zarr.zip")
    with zarr.storage.ZipStore(shard, mode="r") as store:
        assert zarr.open(store, mode="r")["a/depth"].attrs["meaning"] == said
    assert [path.name for path in (tmp_path / "png16").iterdir()] == ["a.alpha.png"]
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        contents = [path.read_bytes()]
        if zipfile.is_zipfile(path):  # whose members are compressed
            with zipfile.ZipFile(path) as archive:
                contents = [archive.read(name) for name in archive.namelist()]
        assert not any(b"metre" in content for content in contents), path


def test_panels_of_images_and_videos_have_no_metres(
    relative: Path, image: Path, tmp_path: Path, panel_texts: list[str]
) -> None:
    frames = [Image.fromarray(np.full((*SIZE, 3), 60 * i, np.uint8)) for i in (1, 2)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    for name, source, options in (("full", image, {}), ("npz", image, {"format": "npz"}),
                                  ("film", tmp_path / "film.gif", {"video": True})):
        panel_texts.clear()
        options = PredictConfig(relative, (str(source),), tmp_path / name, backend="onnxruntime-cpu", graph="model",
                                look="panel", **options)
        assert main(options) == 0
        assert "Relative depth" in panel_texts and not [text for text in panel_texts if text.endswith(" m")], name
