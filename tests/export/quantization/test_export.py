"""The export in eight bits as a user runs it: on a bundle that has half precision, with wrong options, and again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from dpt_deploy.build import EngineOptions
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.verdict import StageKind
from dpt_deploy.export.config import ExportConfig, check_options
from dpt_deploy.export.pipeline import export_checkpoint
from dpt_deploy.export.precision import folded
from dpt_deploy.export.pytorch_stages import load_exported_model
from dpt_deploy.parity.images import scene
from dpt_deploy.parity.weights import compare_weights

WIDE = ("backbone.patch_embed", "decoder.fusion", "heads")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    for i in range(6):
        cv2.imwrite(str(folder / f"{i}.png"), scene(120, 160, 40 + i)[..., ::-1])
    return folder


@pytest.fixture(scope="module")
def exported(tiny_bundle: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory):
    """A function that exports the tiny model into a copy of its bundle: the bundle, the report and what was said."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("export") / "own"))

    def export(**options: object):
        lines: list[str] = []
        common = {"precision": "int8", "search": False, "wide_modules": WIDE, "parity": "quick"}
        config = ExportConfig(tiny_bundle.parent / "tiny.pth", folder, engines=EngineOptions(builder="none"),
                              **common | options)
        return *export_checkpoint(config, lines.append), lines

    return export


def hashes(bundle: Bundle) -> dict[str, str]:
    return {artifact.file: artifact.sha256 for artifact in bundle.find("onnx")}


@pytest.fixture(scope="module")
def int8(exported, calibration: Path):
    """The bundle, the report and what was said of an export in INT8."""
    return exported(calibrate=calibration)


def test_int8_graphs_stand_beside_the_others_and_are_judged_where_they_run(int8, tiny_bundle) -> None:
    bundle, report, lines = int8
    before = hashes(Bundle.open(tiny_bundle))
    assert hashes(bundle).items() > before.items()
    assert set(hashes(bundle)) - set(before) == {"model.int8.onnx", "frame.int8.onnx"}
    record = bundle.manifest.eight_bits["int8"]
    assert record.plan.precision == "int8" and record.plan.wide == WIDE and record.calibration == 6
    assert 0.02 < record.share < 0.2
    (assumed,) = [one for one in bundle.manifest.assumed if one.fact == "calibration"]
    assert "6 images" in str(assumed) and "--calibrate" in str(assumed)
    judged = {(stage.id.kind, stage.id.graph, stage.id.backend) for stage in report.stages
              if stage.precision == "int8" and stage.status != "not run"}
    assert judged >= {(StageKind.GRAPH, "model", "onnxruntime-cpu"), (StageKind.GRAPH, "frame", "onnxruntime-cpu"),
                      (StageKind.BACKEND, "frame", "openvino"), (StageKind.WEIGHTS, "model", "")}
    assert report.passed, report.verdict
    assert any("calibrated on 6 of 6" in line for line in lines)
    # The half-precision graphs and their verdict are still there.
    assert [stage.status for stage in report.stages if stage.id.kind is StageKind.PYTORCH] == ["passed"]
    assert bundle.manifest.precision.plan.precision == "fp16"


def test_the_same_export_reuses_the_graphs(int8, exported, calibration) -> None:
    first = hashes(int8[0])
    again, report, lines = exported(calibrate=calibration)
    assert hashes(again) == first and report.passed
    assert any(line.startswith("reused   model and frame graph in int8") for line in lines)
    assert not any("calibrat" in line for line in lines)


def test_graphs_that_are_gone_or_damaged_do_not_stop_another_export(int8, tiny_bundle, tmp_path) -> None:
    """The message about a missing graph says to export again, so that must work without its precision."""
    folder = Path(shutil.copytree(int8[0].folder, tmp_path / "own"))
    (folder / "frame.int8.onnx").unlink()
    lines: list[str] = []
    config = ExportConfig(tiny_bundle.parent / "tiny.pth", folder, engines=EngineOptions("none"), parity="quick")
    bundle, report = export_checkpoint(config, lines.append)
    assert report.passed and set(hashes(bundle)) == set(hashes(Bundle.open(tiny_bundle)))
    assert [line for line in lines if line.startswith("removed")] == [
        f"removed  {graph}.int8.onnx (a graph in int8 is missing or damaged)" for graph in ("model", "frame")]
    assert not bundle.manifest.eight_bits


@pytest.mark.slow  # two more exports
def test_other_images_make_the_graphs_again(exported, calibration, tmp_path) -> None:
    first = hashes(exported(calibrate=calibration)[0])
    cv2.imwrite(str(tmp_path / "other.png"), 255 - scene(64, 64, 3))
    other, _, _ = exported(calibrate=tmp_path)
    changed = {file for file, digest in hashes(other).items() if digest != first[file]}
    assert changed == {"model.int8.onnx", "frame.int8.onnx"}


def test_a_weight_that_was_changed_by_two_steps_is_found(int8, tiny_bundle, tmp_path) -> None:
    bundle, _, _ = int8
    model = load_exported_model(bundle, tiny_bundle.parent / "tiny.pth")
    (artifact,) = bundle.find("onnx", file="model.int8.onnx")
    graph = onnx.load(bundle.folder / artifact.file)
    (tensor,) = [t for t in graph.graph.initializer if t.name == "backbone.blocks.3.mlp.fc1.weight.transposed"]
    values = np.frombuffer(tensor.raw_data, np.int8).copy()
    values[7] += 2 if values[7] < 0 else -2
    tensor.raw_data = values.tobytes()
    onnx.save(graph, tmp_path / artifact.file)
    expected = {name: value.numpy() for name, value in folded(model).state_dict().items()
                if value.is_floating_point()}
    stage = compare_weights(tmp_path / artifact.file, artifact, expected)
    assert [finding.name for finding in stage.findings] == ["backbone.blocks.3.mlp.fc1.weight"]


@pytest.mark.slow  # two more exports
def test_graphs_of_another_version_are_made_again_or_removed(exported, calibration) -> None:
    bundle, _, _ = exported(calibrate=calibration)
    path = bundle.folder / "manifest.json"
    value = json.loads(path.read_text())
    for artifact in value["artifacts"]:
        if artifact["precision"] in ("fp16", "int8"):
            artifact["key"] = "0" * 64
    path.write_text(json.dumps(value))
    again, report, _ = exported(calibrate=calibration)
    assert {artifact.precision for artifact in again.find("onnx")} == {"fp32", "int8"}
    assert report.passed, report.verdict


def test_weights_only_needs_no_images_and_a_quarter_of_the_space(exported) -> None:
    bundle, report, _ = exported(weights_only=True, wide_modules=None, search=True)
    sizes = {artifact.file: artifact.bytes for artifact in bundle.find("onnx")}
    assert sizes["model.int8.onnx"] < 0.4 * sizes["model.fp32.onnx"]
    assert bundle.manifest.eight_bits["int8"].share == 0
    assert report.passed, report.verdict


def test_fp8_is_for_engines_and_its_rest_is_fp16(exported, calibration) -> None:
    bundle, report, _ = exported(calibrate=calibration, precision="fp8")
    assert bundle.manifest.eight_bits["fp8"].plan.rest == "fp16"
    graph = onnx.load(bundle.folder / "model.fp8.onnx").graph
    assert {onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT8E4M3FN} <= {t.data_type for t in graph.initializer}
    stages = {str(stage.id): stage.status for stage in report.stages if stage.precision == "fp8"}
    assert stages["weights model fp8"] == "passed" and stages["ONNX Runtime frame fp8"] == "passed", report.verdict


@pytest.mark.parametrize(("options", "message"), [
    ({"precision": "int8"}, "expected --calibrate DIR, a folder of 64 to 256 images"),
    ({"precision": "fp8"}, "expected --calibrate DIR"),
    ({"calibrate": Path("x")}, "--calibrate: expected --precision int8 or fp8, received fp16"),
    ({"rest": "fp16"}, "--rest: expected --precision int8 or fp8"),
    ({"weights_only": True}, "--weights-only: expected --precision int8 or fp8"),
    ({"seven_bit_weights": True}, "--seven-bit-weights: expected --precision int8 or fp8"),
    ({"data_root": Path("x")}, "--data-root: expected --precision int8 or fp8"),
    ({"data_images": 64}, "--data-images: expected --data-root too, without which the option does nothing"),
    ({"normal_axes": "opengl"}, "--normal-axes: expected --data-root too"),
    ({"calibration_images": 32}, "--calibration-images: expected --calibrate too"),
    ({"max_images": 3}, "--max-images: expected --images too"),
    ({"precision": "int8", "calibrate": Path("nowhere")}, "nowhere"),
    ({"precision": "int8", "calibrate": True, "calibration_images": 300}, "expected at most 256, received 300"),
    ({"precision": "int8", "calibrate": True, "weights_only": True}, "nothing is calibrated"),
    ({"precision": "fp8", "calibrate": True, "rest": "fp32"}, "which is for engines, expected fp16"),
    ({"precision": "fp8", "calibrate": True, "seven_bit_weights": True}, "expected --precision int8"),
    ({"precision": "int8", "calibrate": True, "fp32_modules": ("heads",)}, "expected --rest fp16, received fp32"),
])
def test_options_that_exclude_each_other_are_refused(options, message, tiny_bundle, calibration) -> None:
    options = options | ({"calibrate": calibration} if options.get("calibrate") is True else {})
    config = ExportConfig(tiny_bundle.parent / "tiny.pth", engines=EngineOptions(builder="none"), **options)
    with pytest.raises(BadInput, match=message):
        check_options(config)
