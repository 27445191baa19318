"""Whatever inputs are called, each has results of its own, below the output folder."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from dpt_deploy.core import tar_index
from dpt_deploy.core.errors import BadInput
from dpt_deploy.predict.__main__ import PredictConfig, main
from dpt_deploy.predict.naming import Names
from dpt_deploy.predict.outputs import Files, ZarrWriter
from dpt_deploy.predict.sources import output_stems
from dpt_deploy.runtime import Prediction
from tests.cpp.toy import make_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose depth is the red channel plus 1 [m]."""
    return make_toy(tmp_path_factory.mktemp("toy") / "bundle").folder


def save(path: Path, red: int) -> str:
    """A PNG file, whatever the suffix of `path` is, whose depth is `red` + 1."""
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., 2] = red
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return str(path)


def depths(out: Path) -> dict[str, float]:
    """The depth of each .npz file below `out`."""
    found = {}
    for path in out.rglob("*.npz"):
        with np.load(path) as maps:
            found[path.relative_to(out).as_posix()] = float(maps["depth"][0, 0])
    return found


DOTS = ["..jpg", "...jpg", "in/..jpg", "in/...jpg"]


@pytest.mark.parametrize("resume", [False, True], ids=["few", "large"])
def test_names_of_dots_stay_below_the_output_folder(toy: Path, tmp_path: Path, resume: bool) -> None:
    for number, name in enumerate(DOTS):
        save(tmp_path / "data" / name, number)
    (tmp_path / "data" / "list.txt").write_text("\n".join(DOTS))
    out = tmp_path / "top" / "out"
    assert main(PredictConfig(toy, (str(tmp_path / "data/list.txt"),), out, look="none", resume=resume,
                              format="npz")) == 0
    assert depths(out) == {f"{name}.npz": number + 1 for number, name in enumerate(DOTS)}
    assert list((tmp_path / "top").iterdir()) == [out]


def test_no_stem_is_a_folder() -> None:
    names = Names()
    assert [names.stem(name) for name in DOTS] == DOTS
    assert output_stems([(Path(name), Path(name).parent, "") for name in DOTS]) == ["..jpg", "...jpg"] * 2


@pytest.mark.parametrize("stem", ["", ".", "..", "../x", "a/..", "a//b", "/x"])
def test_a_writer_refuses_a_stem_that_leads_out_of_its_folder(tmp_path: Path, stem: str) -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    prediction = Prediction(depth=np.ones((2, 2), np.float32))
    files = Files(tmp_path / "out", "npz", {"depth": "float16"}, "none", None)
    with pytest.raises(BadInput, match="below the output folder"):
        files.encode(stem, image, prediction, "", None)
    with pytest.raises(BadInput, match="below the output folder"):
        ZarrWriter(tmp_path / "out", "maps", 2, lambda *paths: None).add(stem, {"depth": b""})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("resume", [False, True], ids=["few", "large"])
def test_images_with_one_path_have_results_of_their_own(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], resume: bool
) -> None:
    save(tmp_path / "x.png", 1)
    save(tmp_path / "in/up/x.png", 2)
    (tmp_path / "in/list.txt").write_text("../x.png\nup/x.png\nup/x.png\n")
    config = PredictConfig(toy, (str(tmp_path / "in/list.txt"),), tmp_path / "out", look="none", resume=resume,
                           format="npz")
    assert main(config) == 0
    assert sorted(depths(tmp_path / "out").values()) == [2, 3]
    (tmp_path / "x.png").write_bytes(b"truncated")
    capsys.readouterr()
    again = replace(config, out=tmp_path / "again")
    assert main(again) == 1
    assert f"skipped  {tmp_path}/in/../x.png" in capsys.readouterr().out.replace("\n", "")
    assert list(depths(tmp_path / "again").values()) == [3]
    if resume:
        save(tmp_path / "x.png", 4)
        assert main(again) == 0 and "1 done, 0 failed, 1 done before" in capsys.readouterr().out
        assert sorted(depths(tmp_path / "again").values()) == [3, 5]


def test_each_result_in_a_shard_can_be_read_whatever_the_image_is_called(toy: Path, tmp_path: Path) -> None:
    names = ["1:05.jpg", "C:x.jpg", ".x/1.jpg", "a\\b.jpg", "a_b.jpg", "tab\tx.jpg", "..jpg", "y/.z/...jpg"]
    for number, name in enumerate(names):
        save(tmp_path / "in" / name, number)
    (tmp_path / "in/list.txt").write_text("\n".join(names))
    assert main(PredictConfig(toy, (str(tmp_path / "in/list.txt"),), tmp_path / "out", format="tar-npz")) == 0
    (shard,) = (tmp_path / "out").glob("*.tar")
    index = tar_index.kept_index(str(shard))
    assert index.names == tar_index.make_index(str(shard)).names and not index.problems
    found = {}
    for name, data in zip(index.names, index.read(range(len(index))), strict=True):
        with np.load(io.BytesIO(data)) as maps:
            found[name.removesuffix(".npz")] = float(maps["depth"][0, 0]) - 1
    assert sorted(found.values()) == list(range(len(names)))
    assert list(found)[:2] == ["1:05", "C_x"] and found["_x/1"] == 2
