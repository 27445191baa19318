"""The scaling benchmark measures every point in a process of its own, and refuses bad options at once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.results import RESULTS
from dpt_deploy.core.errors import BadBundle, BadInput

NOTHING = scaling.ScalingConfig(backends=("onnxruntime-cpu",), frame_sizes=(), batches=(), models=(), head_sets="",
                                calls=1)


def test_each_point_runs_in_its_own_process(tiny_bundle: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(NOTHING, bundle=tiny_bundle, frame_sizes=((64, 80),), batches=(2,), out=tmp_path)
    assert scaling.main(config) == 0
    rows = json.loads((tmp_path / "scaling.json").read_text())["rows"]
    assert [row["axis"] for row in rows] == ["frame", "batch"] and rows[0]["frame"] == "64x80"
    committed = json.loads((RESULTS / "cpu_scaling.json").read_text())["rows"][0]
    for row in rows:
        assert row["peak_mb"] >= row["loaded_mb"] > 0 and set(row) == set(committed), "result files keep their format"


def test_a_point_that_fails_is_not_run(tiny_bundle: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(NOTHING, bundle=tiny_bundle, backends=("onnxruntime-cuda",), batches=(1,),
                                 out=tmp_path)
    assert scaling.main(config) == 1
    (row,) = json.loads((tmp_path / "scaling.json").read_text())["rows"]
    assert row["status"] == "not run" and row["reason"]


def test_a_missing_bundle_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "results"
    with pytest.raises(BadBundle, match="does not exist"):
        scaling.main(scaling.ScalingConfig(tmp_path / "missing", out=out))
    assert not out.exists(), "an earlier result must stay"


@pytest.mark.parametrize(("option", "change"), [("--models", {"models": ("huge",)}),
                                                ("--head-sets", {"head_sets": "depth:nose"})])
def test_unknown_names_are_refused(option: str, change: dict, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"{option}: expected"):
        scaling.main(dataclasses.replace(NOTHING, out=tmp_path, **change))


def test_head_sets_are_separated_by_colons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "_random_bundle", lambda point: "random")
    points = scaling.points(dataclasses.replace(NOTHING, head_sets="depth,alpha:depth"))
    assert [point["heads"] for point in points] == ["depth,alpha", "depth"]
    assert {point["axis"] for point in points} == {"heads"}
