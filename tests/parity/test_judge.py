"""A whole bundle judged: planted faults in its artefacts fail the verdict and name the stage."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dpt_deploy import backends
from dpt_deploy.backends import device
from dpt_deploy.core.bundle import MODEL_CARD, PARITY_JSON, Bundle
from dpt_deploy.core.errors import BackendError, BadBundle, Cause, ContractError
from dpt_deploy.core.files import write_json
from dpt_deploy.core.verdict import Fault, StageId, StageKind
from dpt_deploy.model import read_checkpoint
from dpt_deploy.parity import Reference, Stage
from dpt_deploy.parity.judge import judge, stage_ids
from dpt_deploy.parity.weights import compare_weights
from tests.parity.conftest import describe, judge_and_write, loose_budget, pytorch_stage, switch_off, weights_stage


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
    report = judge_and_write(bundle, command="python -m dpt_deploy.parity")
    assert bundle.last_report() == report
    assert report.verdict.partition(": ")[2] in page(bundle) and "data:image/png;base64," in page(bundle)
    assert report.verdict in (bundle.folder / MODEL_CARD).read_text()
    for artifact in Bundle.open(bundle.folder).artifacts:
        bundle.path(artifact)


def test_a_stage_is_carried_over_only_while_its_artefact_is_unchanged(bundle):
    (graph,) = bundle.find("onnx")
    known, failed = weights_stage(graph), pytorch_stage(graph, "failed")
    judge_and_write(bundle, judged=[known, failed])
    planned = stage_ids(bundle)
    again = judge_and_write(bundle)
    assert earlier(known) in again.stages and earlier(failed) in again.stages and not again.passed
    assert "2 judged earlier" in again.verdict and "judged earlier; file unchanged" in page(bundle)
    assert "failed, judged earlier" in (bundle.folder / MODEL_CARD).read_text()
    assert [stage.id for stage in again.stages] == planned
    assert replant(bundle, 1.0001).sha256 != graph.sha256
    assert {known.id, failed.id}.isdisjoint(stage.id for stage in judge(bundle).report.stages)


def test_a_stage_is_carried_over_only_while_the_reference_is_unchanged(bundle):
    (graph,) = bundle.find("onnx")
    weights, half = weights_stage(graph), pytorch_stage(graph)
    report = judge_and_write(bundle, judged=[weights, half])
    assert report.reference == bundle.find("reference")[0].sha256
    with open(bundle.folder / "reference.npz", "ab") as file:
        file.write(b"\0")  # a zip may carry a tail
    bundle.add("reference.npz", "reference")
    again = judge(bundle).report.stages
    assert earlier(weights) in again and half.id not in [stage.id for stage in again]


def test_a_carried_stage_is_held_to_the_budget_of_now(bundle, tmp_path):
    (graph,) = bundle.find("onnx")
    heads = {"depth": {"abs_rel": 6e-4, "p99.9": 1e-3}}  # ONNX Runtime's FP32 is below 1e-5
    half = pytorch_stage(graph, heads=heads, worst={"depth": "scene"})
    assert judge_and_write(bundle, judged=[half]).passed
    strict = loose_budget(tmp_path / "strict.json", depth={"abs_rel": 1e-4})
    report = judge_and_write(bundle, strict)
    assert [stage.name for stage in report.failed] == ["PyTorch fp16"] and "strict.json" in report.verdict
    assert earlier(half) in judge(bundle).report.stages  # and back


def test_a_stage_that_version_0_1_0_judged_is_carried_over(bundle):
    """Its report names stages in words; who upgrades must not lose what PyTorch and a GPU found."""
    (graph,) = bundle.find("onnx")
    report = judge_and_write(bundle)
    stage = {"precision": "fp16", "artifact": graph.file, "sha256": graph.sha256, "heads": {}, "worst": {},
             "reasons": [], "quantiles": {}, "earlier": False}
    value = report.to_json()
    value["stages"] = [stage | {"name": "weights frame fp32", "precision": "fp32", "status": "passed"},
                       stage | {"name": "PyTorch fp16", "status": "failed", "reasons": ["a batch of 2 raised"]}]
    write_json(bundle.folder / PARITY_JSON, value)
    again = judge(bundle).report
    carried = {str(stage.id): stage for stage in again.stages if stage.earlier}
    assert set(carried) == {"weights frame fp32", "PyTorch fp16"} and len(again.stages) == len(report.stages) + 2
    assert carried["weights frame fp32"].id == weights_stage(graph).id and carried["weights frame fp32"].passed
    assert carried["PyTorch fp16"].reasons == ("a batch of 2 raised",) and not again.passed


@pytest.fixture
def engine(bundle):
    """An engine in the bundle that takes frames from 100x100 to 600x600 and was built for a GPU."""
    return add_engine(bundle, "frame.engine", (100, 100), (600, 600))


def add_engine(bundle, file, smallest, largest):
    """Describe an engine of the frame graph; its file holds its name."""
    (bundle.folder / file).write_bytes(file.encode())
    profile = {"frame": {"min": [1, *smallest, 3], "opt": [1, *smallest, 3], "max": [8, *largest, 3]}}
    return bundle.add(file, "engine", graph="frame", precision="fp16",
                      details={"builder": "tensorrt", "builder_version": "11.4.1", "profile": profile})


def engine_stage(report, name="tensorrt frame fp16"):
    (stage,) = [stage for stage in report.stages if stage.name == name]
    return stage


def test_a_gpus_verdict_on_an_engine_is_kept_where_no_gpu_is(bundle, engine, monkeypatch):
    monkeypatch.setattr(device, "compute_capability", lambda: None)
    report = judge_and_write(bundle)
    assert engine_stage(report).status == "not run" and engine_stage(report).cause is Cause.NO_GPU
    identity = StageId(StageKind.BACKEND, "frame", "fp16", "tensorrt", "gpu", engine.file, "tensorrt frame fp16")
    there = Stage(identity, "passed", engine.sha256, notes=("on its GPU",))
    rest = tuple(stage for stage in report.stages if stage.id != there.id)
    write_json(bundle.folder / PARITY_JSON, dataclasses.replace(report, stages=(*rest, there)).to_json())
    planned = stage_ids(bundle)
    judged = judge_and_write(bundle)
    assert planned == [stage.id for stage in judged.stages]
    assert engine_stage(judged) == engine_stage(judge_and_write(bundle)) == earlier(there)
    (bundle.folder / engine.file).write_bytes(b"other")
    assert engine_stage(judge(bundle).report).status == "failed"
    (bundle.folder / engine.file).write_bytes(engine.file.encode())
    add_engine(bundle, "twin.engine", (100, 100), (600, 600))
    twins = [stage for stage in judge(bundle).report.stages if stage.id.backend == "tensorrt"]
    assert [(stage.name, stage.status) for stage in twins] == [
        ("tensorrt frame fp16 (frame.engine)", "passed"), ("tensorrt frame fp16 (twin.engine)", "not run"),
    ]


def test_an_engine_that_takes_no_image_is_not_run_nor_opened(bundle, monkeypatch):
    add_engine(bundle, "frame.engine", (150, 150), (170, 170))
    path = bundle.folder / "reference.npz"
    cases = Reference.load(path, bundle.contract).cases
    Reference(tuple(dataclasses.replace(case, adversarial=len(case.frame) == 160) for case in cases)).save(path)
    bundle.add("reference.npz", "reference")
    monkeypatch.setattr(device, "compute_capability", lambda: "9.0")
    for provider in ("onnxruntime-cpu", "onnxruntime-cuda"):
        switch_off(monkeypatch, provider)
    monkeypatch.setattr(backends.get("tensorrt"), "open", lambda *_: pytest.fail("a session was opened"))
    stage = engine_stage(judge(bundle).report)
    assert (stage.status, stage.reasons) == ("not run", ("no image has a size within the engine's profile",))
    assert stage.cause is Cause.OUTSIDE_PROFILE


def test_what_cannot_be_opened_fails_and_the_rest_is_judged(bundle, engine, monkeypatch):
    monkeypatch.setattr(device, "compute_capability", lambda: "9.0")

    def refuse(bundle, artifact, options):
        raise (ContractError if artifact.kind == "engine" else BackendError)(f"{artifact.file} has other tensors")

    for backend in backends.registered():
        monkeypatch.setattr(backend, "open", refuse)
    report = judge(bundle).report
    assert {stage.name for stage in report.failed} == {"ONNX Runtime frame fp32", "tensorrt frame fp16"}
    assert engine_stage(report).reasons == ("frame.engine has other tensors",)
    assert engine_stage(report).findings[0].fault is Fault.REFUSED
    assert engine_stage(report).sha256 == engine.sha256


def test_a_damaged_graph_fails_its_stage(bundle):
    path = bundle.folder / "frame.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    report = judge(bundle).report
    assert [stage.name for stage in report.failed] == ["ONNX Runtime frame fp32"]
    assert "does not match manifest.json" in report.failed[0].reasons[0]


def test_judging_leaves_the_bundle_as_it_was(bundle):
    before = {path.name: path.read_bytes() for path in bundle.folder.iterdir()}
    assert judge(Bundle.open(bundle.folder)).report.passed
    assert {path.name: path.read_bytes() for path in bundle.folder.iterdir()} == before


def test_the_worst_map_of_each_head_is_there_to_be_shown(bundle):
    judgement = judge(bundle)
    assert set(judgement.exhibits) == {"depth", "normals", "alpha"}
    for head, exhibit in judgement.exhibits.items():
        assert exhibit.head == head and exhibit.stage in [stage.id for stage in judgement.report.stages]
        assert exhibit.have.base is None and exhibit.have.shape == exhibit.want.shape


def test_progress_names_each_stage_that_runs(bundle):
    names = []
    report = judge(bundle, progress=names.append).report
    assert sorted(names) == sorted(stage.name for stage in report.stages)


def test_a_bundle_without_reference_cannot_be_judged(bundle):
    bundle.remove(bundle.find("reference")[0])
    with pytest.raises(BadBundle, match=r"reference\.npz"):
        judge(bundle)


def graph_of(folder, precision):
    """The model graph of a bundle, and its description."""
    (artifact,) = Bundle.open(folder).find("onnx", graph="model", precision=precision)
    return folder / artifact.file, artifact


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_weight_off_by_one_percent_and_every_dropped_bias_is_named(tiny_bundle, precision):
    path, artifact = graph_of(tiny_bundle, precision)
    state = read_checkpoint(tiny_bundle.parent / "tiny.pth").state_dict
    expected = {name: value.numpy() for name, value in state.items()}
    stage = compare_weights(path, artifact, expected)
    assert stage.passed and stage.sha256 == artifact.sha256
    assert stage.id == StageId(StageKind.WEIGHTS, "model", precision, file=artifact.file)
    missed = []
    for name, value in expected.items():
        planted = expected | {name: value * np.float32(0 if name.endswith("bias") else 1.01)}
        if not value.any():
            continue  # dropping a bias of zeros changes nothing
        stage = compare_weights(path, artifact, planted)
        named = [finding for finding in stage.findings if finding.fault is Fault.TENSOR_DIFFERS]
        if stage.passed or [finding.name for finding in named] != [name]:
            missed.append(name)
    assert not missed


def test_missing_and_left_over_weights_are_named(tiny_bundle):
    state = read_checkpoint(tiny_bundle.parent / "tiny.pth").state_dict
    expected = {name: value.numpy() for name, value in state.items()}
    gone = expected.pop("decoder.fusion.0.out.bias")
    stage = compare_weights(*graph_of(tiny_bundle, "fp32"), expected | {"decoder.new": gone})
    assert stage.reasons == (
        "decoder.new is missing from the graph", "decoder.fusion.0.out.bias is in the graph but not in the checkpoint",
    )


def test_parity_json_is_plain(bundle):
    judge_and_write(bundle)
    value = json.loads((bundle.folder / PARITY_JSON).read_text())
    assert value["passed"] is True and value["stages"][0]["status"] in ("passed", "not run")
