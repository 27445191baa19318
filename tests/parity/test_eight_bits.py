"""A bundle with a graph in eight bits, judged with and without labelled data."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dpt_deploy import backends
from dpt_deploy.backends import SessionOptions
from dpt_deploy.core import metrics
from dpt_deploy.core.bundle import PARITY_JSON, Bundle
from dpt_deploy.core.errors import BackendError, BadInput, Cause
from dpt_deploy.core.files import write_json
from dpt_deploy.core.task import TaskChange, TaskVerdict
from dpt_deploy.core.verdict import Fault, Finding, Stage, StageId, StageKind, not_run
from dpt_deploy.parity.compare import load_budget
from dpt_deploy.parity.eight_bits import decided, with_earlier_task
from dpt_deploy.parity.images import scene
from dpt_deploy.parity.judge import judge, stage_ids
from dpt_deploy.report import write_report
from tests.parity.conftest import loose_budget
from tests.tiny import tiny_bundle  # noqa: F401

BUDGET, _ = load_budget(None)
NAME = "ONNX Runtime frame int8"


def quantize_weights(bundle, levels=127, graph="frame"):
    """Add a graph whose weights of heads and decoder are int8 with a scale per channel, of -levels to levels."""
    model = onnx.load(bundle.folder / f"{graph}.fp32.onnx")
    nodes = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if not tensor.name.startswith(("heads.", "decoder.")) or values.ndim != 4:
            continue
        scale = np.maximum(np.abs(values).max(axis=(1, 2, 3)), 1e-12) / np.float32(levels)
        whole = np.rint(values / scale[:, None, None, None]).astype(np.int8)
        name = tensor.name
        for node in model.graph.node:
            node.input[:] = [f"{name}/float" if one == name else one for one in node.input]
        tensor.CopyFrom(numpy_helper.from_array(whole, name))
        model.graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}/scale"))
        nodes.append(helper.make_node("DequantizeLinear", [name, f"{name}/scale"], [f"{name}/float"], axis=0))
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *kept])
    onnx.save(model, bundle.folder / f"{graph}.int8.onnx")
    return bundle.add(f"{graph}.int8.onnx", "onnx", graph=graph, precision="int8", details={"opset": 23})


class LikeFp32:
    """Scenes whose ground truth is what the FP32 graph of the bundle says: FP32 is right, and any change is worse."""

    name = "scenes"
    seen = 0

    def __init__(self, bundle: Bundle, count: int = 8) -> None:
        self.frames = [scene(*bundle.contract.input_size, 50 + i) for i in range(count)]
        (graph,) = bundle.find("onnx", graph="frame", precision="fp32")
        with backends.get("onnxruntime-cpu").open(bundle, graph, SessionOptions()) as session:
            outputs = [session.run({"frame": frame[None]}) for frame in self.frames]
        self.truth = [{head: value[0] for head, value in one.items()} for one in outputs]
        self.scored = 0

    def __len__(self) -> int:
        return len(self.frames)

    def frame(self, index: int) -> np.ndarray:
        return self.frames[index]

    def score(self, index: int, maps: dict[str, np.ndarray]) -> dict[tuple[str, str], float]:
        self.scored += 1
        truth = self.truth[index]
        return {("depth", "abs_rel"): metrics.relative_depth_error(maps["depth"], truth["depth"]).mean(),
                ("normals", "mean"): metrics.angle(maps["normals"], truth["normals"]).mean(),
                ("alpha", "iou"): metrics.iou(maps["alpha"], truth["alpha"]),
                ("alpha", "mae"): np.abs(maps["alpha"] - truth["alpha"]).mean()}


def named(report, name=NAME):
    (found,) = [stage for stage in report.stages if stage.name == name]
    return found


def judged(bundle, budget_file=None, labelled=None, write=True):
    """The report, written into the bundle as the commands do."""
    judgement = judge(bundle, budget_file, labelled=labelled)
    if write:
        write_report(bundle, judgement.report, judgement.exhibits)
    return judgement.report


def budget(path, distance, task):
    """A budget file whose eight-bit distances are all `distance`, and whose margins are all `task`."""
    value = json.loads(loose_budget(path).read_text())
    value["int8"] = {"depth": {"abs_rel": distance}, "normals": {"mean": distance}, "alpha": {"max": distance}}
    value["task"] = {"depth": {"abs_rel": task}, "normals": {"mean": task}, "alpha": {"iou": task, "mae": task}}
    path.write_text(json.dumps(value))
    return path


def test_without_labels_the_distances_decide_and_the_stage_says_so(bundle):
    quantize_weights(bundle)
    fine = named(judged(bundle))
    assert fine.passed and fine.task is None and not fine.by_task
    assert "judged by the distances to PyTorch FP32 alone" in fine.notes[-1]
    assert not any("loss of the task on" in note for note in fine.notes)
    quantize_weights(bundle, levels=3)
    coarse = named(judged(bundle))
    assert coarse.status == "failed" and {finding.fault for finding in coarse.findings} == {Fault.OVER_BUDGET}


def test_with_labels_the_task_decides_whatever_the_distances_are(bundle, tmp_path):
    quantize_weights(bundle, levels=15)
    labelled = LikeFp32(bundle)
    lenient = judged(bundle, budget(tmp_path / "a.json", distance=1e-9, task=10.0), labelled)
    stage = named(lenient)
    assert lenient.passed and stage.passed and stage.by_task and not stage.earlier
    assert stage.heads["depth"]["abs_rel"] > 1e-9, "the distances are measured"
    assert stage.notes[-1] == ("judged by the loss of the task on 8 images of scenes, none of them used in training; "
                               "the distances to PyTorch FP32 are shown and do not decide")
    assert not any("alone" in note for note in stage.notes)
    assert stage.task.against == "ONNX Runtime frame fp32"
    assert all(change.change > 0 for change in stage.task.changes if change.metric != "iou")
    strict = judged(bundle, budget(tmp_path / "b.json", distance=1e9, task=1e-9), labelled)
    stage = named(strict)
    assert stage.status == "failed" and {finding.fault for finding in stage.findings} == {Fault.OVER_MARGIN}
    assert {finding.head for finding in stage.findings} == {"depth", "normals", "alpha"}
    assert "OVER" not in strict.verdict and strict.blame[0].endswith(f"and {NAME}")


def test_only_frame_graphs_in_eight_bits_are_judged_by_the_task_and_fp32_runs_once(bundle):
    quantize_weights(bundle)
    labelled = LikeFp32(bundle)
    steps = []
    report = judge(bundle, labelled=labelled, progress=steps.append).report
    assert [stage.name for stage in report.stages if stage.task is not None] == [NAME]
    assert labelled.scored == 2 * len(labelled)
    assert "ONNX Runtime frame fp32, ground truth of 8 images" in steps
    assert f"{NAME}, loss of the task on 8 images" in steps


def test_a_later_run_without_labels_keeps_the_verdict_on_the_task(bundle, tmp_path):
    quantize_weights(bundle, levels=15)
    strict_distances = budget(tmp_path / "a.json", distance=1.0, task=10.0)
    first = named(judged(bundle, strict_distances, LikeFp32(bundle)))
    assert first.passed and first.heads["normals"]["mean"] > 1.0, "by its distances it would fail"
    planned = stage_ids(bundle)
    report = judged(bundle, strict_distances)
    again = named(report)
    assert again.passed and again.earlier and again.task == first.task and [s.id for s in report.stages] == planned
    assert again.notes == (*first.notes, "an earlier run judged the loss of the task; file, backend and device are "
                           "unchanged")
    assert "1 judged earlier" in report.verdict and "1 in eight bits judged by the loss of the task" in report.verdict
    third = named(judged(bundle, strict_distances))
    assert third == again, "and the run after that"
    tighter = named(judged(bundle, budget(tmp_path / "b.json", distance=1.0, task=1e-9)))
    assert tighter.earlier and {finding.fault for finding in tighter.findings} == {Fault.OVER_MARGIN}


def test_an_earlier_verdict_holds_for_the_same_file_backend_and_device_and_valid_maps():
    where = StageId(StageKind.GRAPH, "frame", "int8", "onnxruntime-cpu")
    change = TaskChange("depth", "abs_rel", 0.1, 0.1, 0.0, 0.0, 0.0, 0.005, 8)
    earlier = Stage(where, "passed", "a" * 64, heads={"depth": {"abs_rel": 0.05}},
                    task=TaskVerdict(8, "scenes", 100, (change,)))
    far = Finding(Fault.OVER_BUDGET, "depth", "abs_rel", 0.05, 0.03, "a")
    now = dataclasses.replace(earlier, status="failed", findings=(far,), task=None)
    kept = with_earlier_task(now, earlier, BUDGET)
    assert kept.passed and kept.earlier and kept.task == earlier.task
    nan = Finding(Fault.NOT_FINITE, "depth", value=0.1, image="a", name="depth")
    for other in (
        dataclasses.replace(now, sha256="b" * 64), dataclasses.replace(now, sha256=None),
        dataclasses.replace(now, findings=(far, nan)),
        not_run(where, Cause.UNSUPPORTED, "no units", "a" * 64),
    ):
        assert with_earlier_task(other, earlier, BUDGET) is other
    elsewhere = with_earlier_task(dataclasses.replace(now, notes=("without VNNI",)), earlier, BUDGET)
    assert elsewhere.task is None and "a machine with other limitations" in elsewhere.notes[-1]
    assert with_earlier_task(now, None, BUDGET) is now
    assert with_earlier_task(now, dataclasses.replace(earlier, task=None), BUDGET) is now


def test_an_earlier_verdict_ends_with_its_backend(bundle, tmp_path):
    quantize_weights(bundle, levels=15)
    file = budget(tmp_path / "a.json", distance=1e9, task=10.0)
    report = judged(bundle, file, LikeFp32(bundle))
    for change, kept in (({}, True), ({"backend": "another"}, False), ({"device": "gpu"}, False)):
        stages = [dataclasses.replace(stage, id=dataclasses.replace(stage.id, **change)) for stage in report.stages]
        write_json(bundle.folder / PARITY_JSON, dataclasses.replace(report, stages=tuple(stages)).to_json())
        assert (named(judged(bundle, file, write=False)).task is not None) is kept


def test_an_earlier_verdict_ends_where_the_same_file_computes_otherwise(bundle, tmp_path):
    """A backend of another version or processor may run a file wrongly without an error; the distances show it."""
    quantize_weights(bundle, levels=15)
    file = budget(tmp_path / "a.json", distance=0.5, task=10.0)
    report = judged(bundle, file, LikeFp32(bundle))
    stage = named(report)
    assert stage.passed
    nearer = {head: {name: value / 10 if name != "iou" else value for name, value in values.items()}
              for head, values in stage.heads.items()}  # as if it had been ten times as near to FP32 at that time
    stages = tuple(dataclasses.replace(one, heads=nearer) if one is stage else one for one in report.stages)
    write_json(bundle.folder / PARITY_JSON, dataclasses.replace(report, stages=stages).to_json())
    now = named(judged(bundle, file, write=False))
    assert now.status == "failed" and now.task is None and not now.earlier
    assert any("an earlier verdict does not hold" in note for note in now.notes)


def test_maps_that_are_not_finite_fail_with_labels_too(bundle):
    artifact = quantize_weights(bundle)
    model = onnx.load(bundle.folder / artifact.file)
    (scale,) = [t for t in model.graph.initializer if t.name == "heads.depth.conv3.weight/scale"]
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(np.nan), scale.name))
    onnx.save(model, bundle.folder / artifact.file)
    bundle.add(artifact.file, "onnx", graph="frame", precision="int8", details={"opset": 23})
    stage = named(judged(bundle, labelled=LikeFp32(bundle)))
    assert stage.status == "failed" and Fault.NOT_FINITE in {finding.fault for finding in stage.findings}
    assert stage.task is None


def test_a_labelled_image_that_cannot_be_run_fails_the_stage_and_the_rest_is_judged(bundle, monkeypatch):
    quantize_weights(bundle)
    labelled = LikeFp32(bundle)
    score, calls = labelled.score, []

    def raises(index, maps):
        calls.append(index)
        if len(calls) > len(labelled):  # FP32 was first
            raise RuntimeError("out of memory")
        return score(index, maps)

    monkeypatch.setattr(labelled, "score", raises)
    report = judged(bundle, labelled=labelled)
    assert named(report).status == "failed" and named(report, "ONNX Runtime frame fp32").passed
    assert named(report).reasons[-1] == "a labelled image raised RuntimeError: out of memory"


def test_data_that_cannot_be_used_is_an_error_and_not_a_verdict(bundle, monkeypatch):
    quantize_weights(bundle)
    with pytest.raises(BadInput, match="at least 8 labelled images"):
        judge(bundle, labelled=LikeFp32(bundle, 7))
    labelled = LikeFp32(bundle)

    def unreadable(index):
        raise BadInput("sample 3 is truncated")

    monkeypatch.setattr(labelled, "frame", unreadable)
    with pytest.raises(BadInput, match="truncated"):
        judge(bundle, labelled=labelled)


def test_fp32_on_another_backend_takes_over_where_a_backend_has_none(bundle, monkeypatch):
    quantize_weights(bundle)
    backend = backends.get("onnxruntime-cpu")
    planned = backend.stages

    def elsewhere(bundle):
        """The stage in eight bits belongs to another backend, which has no FP32."""
        return [dataclasses.replace(task, id=dataclasses.replace(task.id, backend="other", kind=StageKind.BACKEND))
                if task.id.precision == "int8" else task for task in planned(bundle)]

    monkeypatch.setattr(backend, "stages", elsewhere)
    stage = named(judged(bundle, labelled=LikeFp32(bundle), write=False))
    assert stage.id.backend == "other" and stage.task.against == "ONNX Runtime frame fp32"


def test_without_fp32_the_distances_decide_and_the_stage_says_why(bundle, monkeypatch):
    quantize_weights(bundle)
    labelled = LikeFp32(bundle)
    backend = backends.get("onnxruntime-cpu")
    planned = backend.stages

    def refuse():
        raise BackendError("no memory", Cause.UNSUPPORTED)

    monkeypatch.setattr(backend, "stages", lambda bundle: [
        dataclasses.replace(task, open=refuse, must_open=False) if task.id.precision == "fp32" else task
        for task in planned(bundle)])
    stage = named(judged(bundle, labelled=labelled, write=False))
    assert stage.passed and stage.task is None
    assert stage.notes[-2] == "the loss of the task was not judged: ONNX Runtime frame fp32 cannot run: no memory"
    assert "judged by the distances" in stage.notes[-1]


def test_the_distances_of_a_model_graph_do_not_decide_where_its_frame_graph_is_judged(bundle, tiny_bundle, tmp_path):  # noqa: F811
    (bundle.folder / "model.fp32.onnx").write_bytes((tiny_bundle / "model.fp32.onnx").read_bytes())
    bundle.add("model.fp32.onnx", "onnx", graph="model", precision="fp32", details={"opset": 23})
    for graph in ("model", "frame"):
        quantize_weights(bundle, 15, graph)
    file = budget(tmp_path / "a.json", distance=1e-9, task=10.0)
    assert {stage.name for stage in judged(bundle, file).failed} == {NAME, "ONNX Runtime model int8"}
    for labelled in (LikeFp32(bundle), None):  # now, and kept
        report = judged(bundle, file, labelled)
        model = named(report, "ONNX Runtime model int8")
        assert report.passed and model.frame_decides and model.task is None and model.heads["depth"]["abs_rel"] > 1e-9
        assert "the frame graph with the same network is judged by the loss of the task" in model.notes[-1]
    assert not model.earlier and named(report).earlier


@pytest.mark.parametrize(("distance", "passed"), [(0.02, True), (0.15, True), (0.4, False)])
def test_a_model_graph_that_is_much_further_than_its_frame_graph_fails(distance, passed):
    """They are two files: the frame graph may be right, and the model graph computed wrongly."""
    change = TaskChange("depth", "abs_rel", 0.1, 0.1, 0.0, 0.0, 0.0, 0.005, 8)
    over = Finding(Fault.OVER_BUDGET, "depth", "abs_rel", distance, 0.045, "a")
    frame = Stage(StageId(StageKind.GRAPH, "frame", "int8", "onnxruntime-cpu"), "passed", "0" * 64,
                  {"depth": {"abs_rel": 0.08}}, task=TaskVerdict(8, "data", 2000, (change,)))
    model = Stage(StageId(StageKind.GRAPH, "model", "int8", "onnxruntime-cpu"), "failed", "1" * 64,
                  {"depth": {"abs_rel": distance}}, {"depth": "a"}, (over,))
    _, found = decided([frame, model], BUDGET)
    assert found.passed == passed and found.frame_decides == passed
    # Without the frame graph's verdict, the distances decide again.
    (alone,) = decided([dataclasses.replace(found, status="passed", findings=(), frame_decides=True)], BUDGET)
    assert not alone.frame_decides and alone.passed == (distance <= 0.045)
