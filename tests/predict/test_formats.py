"""Each format is read back by a program that is not ours, within the errors of the forms."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset
import zarr

from dpt_deploy.core.compact import FORMS, decode
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.metrics import angle
from dpt_deploy.predict.formats import FORMATS
from dpt_deploy.predict.journal import Part, read_done
from dpt_deploy.predict.outputs import Done, Files, Output, Shards, encoded
from dpt_deploy.runtime import Prediction

OpenEXR = pytest.importorskip("OpenEXR")
RANDOM = np.random.default_rng(3)
NORMALS = RANDOM.normal(size=(30, 40, 3))
PREDICTION = Prediction(RANDOM.uniform(0.5, 60, (30, 40)).astype(np.float32),
                        (NORMALS / np.linalg.norm(NORMALS, axis=-1, keepdims=True)).astype(np.float32),
                        RANDOM.uniform(0, 1, (30, 40)).astype(np.float32))
IMAGE = np.zeros((30, 40, 3), np.uint8)
Maps = dict[str, np.ndarray]

# webdataset leaves its files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def read_npz(data: bytes) -> Maps:
    with np.load(io.BytesIO(data)) as file:
        forms = json.loads(str(file["forms"]))
        return {head: decode(head, form, file[head]) for head, form in forms.items()}


def read_exr(folder: Path) -> Maps:
    with OpenEXR.File(str(folder / "a.exr"), separate_channels=True) as file:
        channels = {name: channel.pixels.astype(np.float32) for name, channel in file.channels().items()}
    return {"depth": channels["Z"], "alpha": channels["A"],
            "normals": np.stack([channels[f"N.{axis}"] for axis in "XYZ"], axis=-1)}


def read_png(read: Callable[[str], bytes]) -> Maps:
    """By the scale and the offset in the file."""
    found = {}
    for head in ("depth", "normals", "alpha"):
        data = read(head)
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        at = data.index(b"tEXtdpt-deploy\0")
        length = int.from_bytes(data[at - 4 : at], "big")
        text = json.loads(data[at + 15 : at + 4 + length])
        assert text["head"] == head
        real = values.astype(np.float32) * np.float32(text["scale"]) + np.float32(text["offset"])
        found[head] = real[..., ::-1] if real.ndim == 3 else real
    return found


def read_zarr(path: Path, stem: str) -> Maps:
    group = zarr.open(zarr.storage.ZipStore(path, mode="r"), mode="r")[stem]
    return {head: decode(head, group[head].attrs["form"], group[head][...]) for head in group.array_keys()}


def write(format: str, out: Path, look: str = "none", forms: dict[str, str] | None = None, samples: int = 10,
          stems: tuple[str, ...] = ("a",)) -> Part:
    chosen = FORMATS[format].chosen_forms(format, forms or {}, ("depth", "normals", "alpha"))
    part = Part(out / "_journal" / "part-00000.jsonl", "1/1")
    output: Output = Files(out, format, chosen, look, part)
    if FORMATS[format].shards:
        output = Shards(out, format, chosen, look, part, "maps", samples)
    for stem in stems:
        output.add(Done(f"{stem}.png", stem, (30, 40), output.encode(stem, IMAGE, PREDICTION, "a", None)))
    output.close()
    part.close()
    return part


def check(found: Maps, forms: dict[str, str]) -> None:
    assert found.keys() == forms.keys()
    depth, normals, alpha = (FORMS[head][forms[head]] for head in ("depth", "normals", "alpha"))
    truth = PREDICTION
    error = abs(found["depth"] - truth.depth)
    assert (error <= depth.depth_metres + depth.depth_relative * truth.depth + 1e-5).all()
    assert angle(found["normals"], truth.normals).max() <= normals.degrees + 1e-5
    assert abs(found["alpha"] - truth.alpha).max() <= alpha.alpha + 1e-6


READERS: dict[str, Callable[[Path], Maps]] = {
    "npz": lambda out: read_npz((out / "a.npz").read_bytes()),
    "exr": read_exr,
    "png16": lambda out: read_png(lambda head: (out / f"a.{head}.png").read_bytes()),
    "zarr": lambda out: read_zarr(out / "maps-000000.zarr.zip", "a"),
    "tar": lambda out: read_png(lambda head: samples(out)[0][f"{head}.png"]),
    "tar-npz": lambda out: read_npz(samples(out)[0]["npz"]),
}


def samples(out: Path) -> list[dict[str, bytes]]:
    return list(webdataset.WebDataset([str(out / "maps-000000.tar")], shardshuffle=False, empty_check=False))


@pytest.mark.parametrize("format", READERS)
def test_another_program_reads_the_maps(format: str, tmp_path: Path) -> None:
    write(format, tmp_path)
    check(READERS[format](tmp_path), dict(FORMATS[format].forms))
    assert read_done(tmp_path / "_journal", tmp_path, verify=True).count == 1


@pytest.mark.parametrize(("format", "forms"), [
    ("npz", {"depth": "uint16-mm", "normals": "octahedral", "alpha": "uint8"}),
    ("exr", {"depth": "float32", "normals": "float32", "alpha": "float32"}),
    ("png16", {"normals": "uint8", "alpha": "uint16"}),
    ("zarr", {"depth": "uint16-mm", "normals": "int8"}),
])
def test_other_forms_keep_to_their_errors(format: str, forms: dict[str, str], tmp_path: Path) -> None:
    write(format, tmp_path, forms=forms)
    check(READERS[format](tmp_path), dict(FORMATS[format].forms) | forms)


@pytest.mark.parametrize(("format", "forms", "said"), [
    ("png16", {"depth": "float16"}, "png16 holds depth as uint16-mm, received float16"),
    ("npz", {"depth": "int8"}, "expected one of the forms float32, float16, uint16-mm"),
    ("npz", {"color": "int8"}, "expected names among depth, normals, alpha"),
    ("full", {"depth": "float16"}, "--format full stores float32"),
])
def test_forms_that_do_not_fit_are_refused(format: str, forms: dict[str, str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        FORMATS[format].chosen_forms(format, forms, ("depth",))


def test_shards_roll_over_and_hold_folders(tmp_path: Path) -> None:
    stems = ("a", "b/c", "b/d", "e")
    for format, suffix in (("zarr", "zarr.zip"), ("tar", "tar")):
        out = tmp_path / format
        write(format, out, samples=3, stems=stems)
        assert sorted(path.name for path in out.glob(f"*.{suffix}")) == [f"maps-00000{n}.{suffix}" for n in (0, 1)]
        assert read_done(out / "_journal", out, verify=True).count == 4
    check(read_zarr(tmp_path / "zarr" / "maps-000000.zarr.zip", "b/d"), dict(FORMATS["zarr"].forms))
    root = zarr.open(zarr.storage.ZipStore(tmp_path / "zarr" / "maps-000000.zarr.zip", mode="r"), mode="r")
    assert set(root.group_keys()) == {"a", "b"} and set(root["b"].group_keys()) == {"c", "d"}
    with tarfile.open(tmp_path / "tar" / "maps-000000.tar") as file:
        assert file.getnames()[:3] == ["a.depth.png", "a.normals.png", "a.alpha.png"]


def test_a_panel_goes_along(tmp_path: Path) -> None:
    write("tar", tmp_path, look="panel")
    write("npz", tmp_path / "files", look="matte")
    assert samples(tmp_path)[0]["panel.png"][:4] == b"\x89PNG"
    assert cv2.imread(str(tmp_path / "files" / "a.matte.png")).shape == (30, 40, 3)


def test_only_chosen_maps_are_stored() -> None:
    forms = FORMATS["png16"].chosen_forms("png16", {}, ("depth", "alpha"))
    assert set(encoded("png16", forms, "none", IMAGE, PREDICTION, "")) == {"depth.png", "alpha.png"}
