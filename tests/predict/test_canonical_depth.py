"""Depth for a canonical focal length is not written as metres before it is rescaled: files say so, or are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import OpenEXR
import pytest
import zarr

from dpt_deploy.core.errors import BadInput
from dpt_deploy.predict.__main__ import PredictConfig, main
from dpt_deploy.predict.extras import Extras
from tests.tiny import CANONICAL_FOCAL, photo

SIZE = (80, 120)
FOCAL = CANONICAL_FOCAL * SIZE[1] / 160  # [pixels of the image]; the tiny model's frames are stretched to 160x160
SAID = f"z-depth for a focal length of {FOCAL:g} pixels"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), photo(*SIZE))
    return path


def predict(bundle: Path, image: Path, out: Path, **options: Any) -> int:
    return main(PredictConfig(bundle, (str(image),), out, backend="onnxruntime-cpu", **{"look": "none"} | options))


def meanings(folder: Path) -> dict[str, str]:
    """What the files of an image say of depth, by the kind of file."""
    found = {}
    for path in folder.glob("*.npz"):
        with np.load(path) as file:
            found["npz"] = json.loads(str(file["meaning"]))["depth"]
    for path in folder.glob("*.exr"):
        with OpenEXR.File(str(path)) as file:
            found["exr"] = file.header()["depthMeaning"]
    for path in folder.glob("*.zarr.zip"):
        with zarr.storage.ZipStore(path, mode="r") as store:
            found["zarr"] = zarr.open(store, mode="r")["a/depth"].attrs["meaning"]
    return found


@pytest.mark.parametrize(("format", "kinds"), [
    ("full", {"npz", "exr"}), ("npz", {"npz"}), ("exr", {"exr"}), ("zarr", {"zarr"})])
def test_files_say_for_which_focal_length_depth_is(
    canonical_bundle: Path, image: Path, tmp_path: Path, format: str, kinds: set[str]
) -> None:
    assert predict(canonical_bundle, image, tmp_path / "out", format=format) == 0
    found = meanings(tmp_path / "out")
    assert found.keys() == kinds
    assert all(one.startswith(SAID) for one in found.values()), found
    assert predict(canonical_bundle, image, tmp_path / "known", format=format, extras=Extras(focal=100.0)) == 0
    assert set(meanings(tmp_path / "known").values()) == {"z-depth in metres"}


@pytest.mark.parametrize("options", [
    {"format": "png16"}, {"format": "tar"}, {"format": "npz", "forms": {"depth": "uint16-mm"}},
    {"extras": Extras(depth_png=True)},
])
def test_millimetres_are_refused_until_the_focal_length_is_known(
    canonical_bundle: Path, image: Path, tmp_path: Path, options: dict
) -> None:
    said = f"expected depth in metres.*received {SAID}.*Pass the camera's focal length with --focal, --fov or"
    if options.get("format") == "tar":  # a large run, which tells failures in its journal
        with pytest.raises(BadInput, match="none of 1 images"):
            predict(canonical_bundle, image, tmp_path / "out", **options)
        assert re.search(said, next((tmp_path / "out" / "_journal").glob("part-*")).read_text())
    else:
        with pytest.raises(BadInput, match=said):
            predict(canonical_bundle, image, tmp_path / "out", **options)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".png", ".npz", ".exr", ".tar")]
    known = Extras(focal=100.0, depth_png="extras" in options)
    assert predict(canonical_bundle, image, tmp_path / "known", **options | {"extras": known}) == 0


def test_the_panel_has_metres_only_if_the_focal_length_is_known(
    canonical_bundle: Path, image: Path, tmp_path: Path, panel_texts: list[str]
) -> None:
    assert predict(canonical_bundle, image, tmp_path / "out", look="panel") == 0
    assert f"Depth for f = {FOCAL:g} px" in panel_texts and not [text for text in panel_texts if text.endswith(" m")]
    panel_texts.clear()
    assert predict(canonical_bundle, image, tmp_path / "out", look="panel", extras=Extras(focal=100.0)) == 0
    assert "Depth" in panel_texts and [text for text in panel_texts if text.endswith(" m")]
