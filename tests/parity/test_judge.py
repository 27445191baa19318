"""A whole bundle judged: planted faults in its artefacts fail the verdict and name the stage."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dpt_deploy.core.bundle import CARD, RECORD, Bundle
from dpt_deploy.core.errors import BackendError, BadBundle, ContractError
from dpt_deploy.core.files import write_json
from dpt_deploy.model import read_checkpoint
from dpt_deploy.parity import Reference, Stage
from dpt_deploy.parity import judge as judge_module
from dpt_deploy.parity.compare import not_run
from dpt_deploy.parity.judge import assess, judge, last_report, stage_names
from dpt_deploy.parity.weights import compare_weights
from tests.parity.conftest import describe, loose_budget


def replant(bundle, factor):
    """Scale the depth head's last weights in the frame graph and describe the file anew."""
    path = bundle.folder / "frame.fp32.onnx"
    model = onnx.load(path)
    (tensor,) = [t for t in model.graph.initializer if t.name == "heads.depth.conv3.weight"]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    onnx.save(model, path)
    return describe(bundle)


def earlier(stage):
    """A stage as a later run carries it over."""
    return dataclasses.replace(stage, earlier=True)


def page(bundle):
    return (bundle.folder / "report.html").read_text()


def test_report_and_record_are_written_and_hashed(bundle):
    report = judge(bundle, command="python -m dpt_deploy.parity")
    assert last_report(bundle).verdict == report.verdict
    assert report.verdict.partition(": ")[2] in page(bundle) and "data:image/png;base64," in page(bundle)
    assert report.verdict in (bundle.folder / CARD).read_text()
    for artifact in Bundle.open(bundle.folder).artifacts:
        bundle.path(artifact)


def test_a_stage_is_carried_over_only_while_its_artefact_is_unchanged(bundle):
    (graph,) = bundle.find("onnx")
    known = Stage("weights frame fp32", "passed", "fp32", graph.file, graph.sha256)
    failed = Stage("PyTorch fp16", "failed", "fp16", graph.file, graph.sha256, reasons=("depth",))
    judge(bundle, known=[known, failed])
    names = stage_names(bundle)
    again = judge(bundle)
    assert earlier(known) in again.stages and earlier(failed) in again.stages and not again
    assert "2 judged earlier" in again.verdict and "judged earlier; file unchanged" in page(bundle)
    assert "failed, judged earlier" in (bundle.folder / CARD).read_text()
    assert [stage.name for stage in again.stages] == names
    assert replant(bundle, 1.0001).sha256 != graph.sha256
    assert {known.name, failed.name}.isdisjoint(stage.name for stage in judge(bundle).stages)


def test_a_stage_is_carried_over_only_while_the_reference_is_unchanged(bundle):
    (graph,) = bundle.find("onnx")
    weights = Stage("weights frame fp32", "passed", "fp32", graph.file, graph.sha256)
    half = Stage("PyTorch fp16", "passed", "fp16", graph.file, graph.sha256)
    report = judge(bundle, known=[weights, half])
    assert report.reference == bundle.find("reference")[0].sha256
    with open(bundle.folder / "reference.npz", "ab") as file:
        file.write(b"\0")  # a zip may carry a tail
    bundle.add("reference.npz", "reference")
    again = judge(bundle).stages
    assert earlier(weights) in again and half.name not in [stage.name for stage in again]


def test_a_carried_stage_is_held_to_the_budget_of_now(bundle, tmp_path):
    (graph,) = bundle.find("onnx")
    heads = {"depth": {"abs_rel": 6e-4, "p99.9": 1e-3}}  # ONNX Runtime's FP32 is below 1e-5
    half = Stage("PyTorch fp16", "passed", "fp16", graph.file, graph.sha256, heads, {"depth": "scene"})
    assert judge(bundle, known=[half])
    strict = loose_budget(tmp_path / "strict.json", depth={"abs_rel": 1e-4})
    report = judge(bundle, strict)
    assert [stage.name for stage in report.failed] == ["PyTorch fp16"] and "strict.json" in report.verdict
    assert earlier(half) in judge(bundle).stages  # and back


@pytest.fixture
def engine(bundle):
    """An engine in the bundle that takes frames from 100x100 to 600x600 and was built for a GPU."""
    (bundle.folder / "frame.engine").write_bytes(b"plan")
    profile = {"frame": {"min": [1, 100, 100, 3], "max": [8, 600, 600, 3]}}
    return bundle.add("frame.engine", "engine", graph="frame", precision="fp16",
                      details={"builder": "tensorrt", "builder_version": "11.4.1", "profile": profile})


def engine_stage(report, name="tensorrt frame fp16"):
    (stage,) = [stage for stage in report.stages if stage.name == name]
    return stage


def test_a_gpus_verdict_on_an_engine_is_kept_where_no_gpu_is(bundle, engine, monkeypatch):
    monkeypatch.setattr(judge_module.machine, "compute_capability", lambda: None)
    report = judge(bundle)
    assert engine_stage(report).status == "not run"
    there = Stage("tensorrt frame fp16", "passed", "fp16", engine.file, engine.sha256, reasons=("on its GPU",))
    rest = tuple(stage for stage in report.stages if stage.name != there.name)
    write_json(bundle.folder / RECORD, dataclasses.replace(report, stages=(*rest, there)).to_json())
    assert stage_names(bundle) == [stage.name for stage in judge(bundle).stages]
    assert engine_stage(judge(bundle)) == earlier(there)
    (bundle.folder / engine.file).write_bytes(b"plam")
    assert engine_stage(assess(bundle)).status == "failed"
    (bundle.folder / engine.file).write_bytes(b"plan")
    (bundle.folder / "twin.engine").write_bytes(b"twin")
    bundle.add("twin.engine", "engine", graph="frame", precision="fp16", details=engine.details)
    assert {s.status for s in judge(bundle).stages if s.name.startswith("tensorrt")} == {"not run"}


def test_an_engine_that_takes_no_image_is_not_run_nor_opened(bundle, engine, monkeypatch):
    engine.details["profile"]["frame"] = {"min": [1, 150, 150, 3], "max": [1, 170, 170, 3]}
    path = bundle.folder / "reference.npz"
    cases = Reference.load(path).cases
    Reference(tuple(dataclasses.replace(case, adversarial=len(case.frame) == 160) for case in cases)).save(path)
    bundle.add("reference.npz", "reference")
    monkeypatch.setattr(judge_module.machine, "compute_capability", lambda: "9.0")
    monkeypatch.setattr(judge_module, "_judge_onnx", lambda bundle, a, name, *rest: not_run(name, a.precision, "off"))
    monkeypatch.setattr(judge_module, "open_session", lambda *_: pytest.fail("a session was opened"))
    stage = engine_stage(assess(bundle))
    assert (stage.status, stage.reasons) == ("not run", ("no image has a size within the engine's profile",))


def test_what_cannot_be_opened_fails_and_the_rest_is_judged(bundle, engine, monkeypatch):
    monkeypatch.setattr(judge_module.machine, "compute_capability", lambda: "9.0")

    def refuse(bundle, artifact, backend, *rest):
        raise (ContractError if artifact.kind == "engine" else BackendError)(f"{artifact.file} has other tensors")

    monkeypatch.setattr(judge_module, "open_session", refuse)
    report = judge(bundle)
    assert {stage.name for stage in report.failed} == {"ONNX Runtime frame fp32", "tensorrt frame fp16"}
    assert engine_stage(report).reasons == ("frame.engine has other tensors",)
    assert engine_stage(report).sha256 == engine.sha256


def test_a_damaged_graph_fails_its_stage(bundle):
    path = bundle.folder / "frame.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    report = assess(bundle)
    assert [stage.name for stage in report.failed] == ["ONNX Runtime frame fp32"]
    assert "is not the file that manifest.json describes" in report.failed[0].reasons[0]


def test_assess_leaves_the_bundle_as_it_was(bundle):
    before = {path.name: path.read_bytes() for path in bundle.folder.iterdir()}
    assert assess(Bundle.open(bundle.folder))
    assert {path.name: path.read_bytes() for path in bundle.folder.iterdir()} == before


def test_a_bundle_without_reference_cannot_be_judged(bundle):
    bundle.remove(bundle.find("reference")[0])
    with pytest.raises(BadBundle, match=r"reference\.npz"):
        judge(bundle)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_weight_off_by_one_percent_and_every_dropped_bias_is_named(tiny_bundle, precision):
    path = tiny_bundle / f"model.{precision}.onnx"
    state = read_checkpoint(tiny_bundle.parent / "tiny.pth").state_dict
    expected = {name: value.numpy() for name, value in state.items()}
    assert compare_weights(path, expected, precision)
    missed = []
    for name, value in expected.items():
        planted = expected | {name: value * np.float32(0 if name.endswith("bias") else 1.01)}
        if not value.any():
            continue  # dropping a bias of zeros changes nothing
        stage = compare_weights(path, planted, precision)
        if stage or not any(reason.startswith(f"{name} ") for reason in stage.reasons):
            missed.append(name)
    assert not missed


def test_missing_and_left_over_weights_are_named(tiny_bundle):
    state = read_checkpoint(tiny_bundle.parent / "tiny.pth").state_dict
    expected = {name: value.numpy() for name, value in state.items()}
    gone = expected.pop("decoder.fusion.0.out.bias")
    stage = compare_weights(tiny_bundle / "model.fp32.onnx", expected | {"decoder.new": gone}, "fp32")
    assert stage.reasons == (
        "decoder.new is missing from the graph", "decoder.fusion.0.out.bias is in the graph and not in the checkpoint",
    )


def test_parity_json_is_plain(bundle):
    judge(bundle)
    value = json.loads((bundle.folder / "parity.json").read_text())
    assert value["passed"] is True and value["stages"][0]["status"] in ("passed", "not run")
