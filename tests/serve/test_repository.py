"""Model repositories: what is served, with which limits, and what is refused. No server runs here; see server/."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from dpt_deploy import load
from dpt_deploy.cli import commands
from dpt_deploy.client import ServedModel
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.compact import form
from dpt_deploy.core.errors import BadInput
from dpt_deploy.serve import ServeOptions, write_repository
from tests.tiny import change_details, photo


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture
def with_plan(own_bundle: Path) -> Bundle:
    """A bundle whose manifest takes the TensorRT-RTX engine for a TensorRT plan: only the file is copied."""
    bundle = Bundle.open(own_bundle)
    (engine,) = bundle.find("engine", graph="frame")
    change_details(bundle, engine, builder="tensorrt", builder_version="11.4.0", compute_capability="9.0")
    bundle.save()
    return Bundle.open(own_bundle)


def dpt_triton(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int | None:
    """The exit status of the command; None if it returned."""
    monkeypatch.setattr(sys, "argv", ["dpt", "triton", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        commands.main()
    return caught.value.code


def test_a_plan_comes_first_with_the_limits_of_its_profile(with_plan: Bundle, tmp_path: Path) -> None:
    served = write_repository(with_plan, tmp_path)
    profile = served.artifact.details.profile["frame"]
    assert (served.folder / "1" / "model.plan").read_bytes() == (with_plan.folder / served.artifact.file).read_bytes()
    text = (served.folder / "config.pbtxt").read_text()
    assert 'platform: "tensorrt_plan"' in text and f"max_batch_size: {profile.max[0]}" in text and "KIND_GPU" in text
    assert served.config.parameters["max_pixels"] == str(served.artifact.details.max_pixels)
    assert served.config.parameters["dpt_graph"] == "frame.fp16.onnx"
    assert any("TensorRT 11.4.0" in note and "--version-compatible" in note for note in served.notes)
    (engine,) = with_plan.find("engine", builder="tensorrt")
    change_details(with_plan, engine, version_compatible=True)
    notes = write_repository(with_plan, tmp_path).notes
    assert any("--backend-config=tensorrt,version-compatible=true" in note for note in notes)


@pytest.mark.parametrize(("options", "message"), [
    (ServeOptions(max_batch=64), "--max-batch: .* takes batches up to 8"),
    (ServeOptions(max_pixels=10**9), "--max-pixels: .* takes up to"),
    (ServeOptions(served_by="tensorrt", device="cpu"), "--device"),
    (ServeOptions(served_by="tensorrt", forms=(form("alpha", "uint8"),)), "--compact: a TensorRT plan"),
    (ServeOptions(served_by="tensorrt", precision="bf16"), "expected a TensorRT plan in bf16.*dpt_deploy.build"),
    (ServeOptions(backend="openvino", served_by="tensorrt"), "--backend: expected --serve python"),
    (ServeOptions(sizes=((4000, 4000),)), "--sizes: 4000x4000"),
    (ServeOptions(name="a/b"), "--name"),
])
def test_what_does_not_fit_is_refused_before_anything_is_written(
    options: ServeOptions, message: str, with_plan: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=message):
        write_repository(with_plan, tmp_path / "models", options)
    assert not (tmp_path / "models").exists()


def test_without_a_plan_the_graph_is_served_by_onnx_runtime(bundle: Bundle, tmp_path: Path) -> None:
    served = write_repository(bundle, tmp_path)
    assert served.artifact.file == "frame.fp32.onnx" and served.folder == tmp_path / bundle.name
    assert sorted(path.name for path in (served.folder / "1").iterdir()) == ["model.onnx"]
    assert 'backend: "onnxruntime"' in (served.folder / "config.pbtxt").read_text()
    on_gpu = write_repository(bundle, tmp_path, ServeOptions(device="gpu"))
    assert on_gpu.artifact.file == "frame.fp16.onnx"


def test_the_python_backend_gets_a_bundle_of_its_own_that_loads(bundle: Bundle, tmp_path: Path) -> None:
    served = write_repository(bundle, tmp_path, ServeOptions(served_by="python", precision="fp16"))
    own = served.folder / "1" / "bundle"
    kept = {path.name for path in own.iterdir()}
    assert kept == {"manifest.json", "parity.json", "frame.fp16.onnx", "frame.fp16.rtx1.7.engine"}
    with load(own, "onnxruntime-cpu", precision="fp16") as runtime:
        assert "Not judged" not in runtime.reason
        assert runtime(photo(90, 70)).depth.shape == (90, 70)


def test_a_model_is_replaced_and_other_files_are_not(bundle: Bundle, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path, ServeOptions("people"))
    write_repository(bundle, tmp_path, ServeOptions("people", version=2))
    write_repository(bundle, tmp_path, ServeOptions("people", "python", version=2))
    assert sorted(path.name for path in (tmp_path / "people").iterdir()) == ["1", "2", "config.pbtxt"]
    second = tmp_path / "people" / "2"
    assert (second / "model.py").is_file() and not (second / "model.onnx").exists()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.pbtxt").write_text('name: "theirs"')
    with pytest.raises(BadInput, match="expected no model, or one that dpt triton wrote"):
        write_repository(bundle, tmp_path, ServeOptions("theirs"))
    assert (tmp_path / "theirs" / "config.pbtxt").read_text() == 'name: "theirs"'


def test_a_damaged_graph_is_refused(own_bundle: Path, tmp_path: Path) -> None:
    with open(own_bundle / "frame.fp32.onnx", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(Exception, match="does not match"):
        write_repository(Bundle.open(own_bundle), tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_the_command(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                     capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "models"
    assert dpt_triton(monkeypatch, tiny_bundle, "--out", out, "--compact", "depth=uint16-mm,alpha=uint8", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["outputs"]] == ["depth", "normals", "alpha", "depth_uint16_mm", "alpha_uint8"]
    assert dpt_triton(monkeypatch, tiny_bundle, "--out", out) == 0
    assert f"tritonserver --model-repository={out}" in capsys.readouterr().out
    for arguments, message in (
        (("--compact", "depth"), "expected HEAD=FORM among depth=float32|float16|uint16-mm"),
        (("--compact", "depth=int3"), "--compact: depth: expected one of the forms"),
        (("--max-delay", "-1"), "--max-delay: expected 0 to 10000"),
        (("--precision", "bf16"), "expected a ONNX file"),
        (("--out", tiny_bundle / "manifest.json"), "manifest.json"),
    ):
        assert dpt_triton(monkeypatch, tiny_bundle, "--out", out, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert dpt_triton(monkeypatch, tmp_path / "nothing") == 2
    assert "expected a bundle" in capsys.readouterr().err


def test_relative_depth_is_not_served_in_millimetres(own_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(own_bundle)
    bundle.update(contract=dataclasses.replace(bundle.contract, depth="relative").to_json())
    options = ServeOptions(served_by="onnxruntime", forms=(form("depth", "uint16-mm"),))
    with pytest.raises(BadInput, match=r"--compact: expected depth in metres.*relative depth\. Use depth=float16\."):
        write_repository(bundle, tmp_path, options)


@pytest.mark.parametrize("served_by", ["onnxruntime", "python"])
def test_a_canonical_focal_length_reaches_the_client(canonical_bundle: Path, tmp_path: Path, served_by: str) -> None:
    config = write_repository(Bundle.open(canonical_bundle), tmp_path, ServeOptions(served_by=served_by)).config
    for key in ("dpt_canonical_focal", "dpt_input_size", "dpt_resize"):
        assert f'key: "{key}"' in config.text()
    told = {"name": config.name, "max_batch_size": config.max_batch,
            "output": [{"name": one.output} for one in config.outputs],
            "parameters": {key: {"string_value": value} for key, value in config.parameters.items()}}
    with load(canonical_bundle, "onnxruntime-cpu") as runtime:
        assert ServedModel.of(told).frame_focal((80, 120)) == runtime(photo(80, 120)).canonical_focal == 150


def test_metric_bundles_have_no_canonical_focal_length(bundle: Bundle, tmp_path: Path) -> None:
    assert "canonical" not in write_repository(bundle, tmp_path).config.text()
