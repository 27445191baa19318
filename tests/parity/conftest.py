"""Small bundles for tests of parity, and tests without the second runtimes where they prove nothing."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil

import numpy as np
import pytest

from dpt_deploy import backends
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BackendError, Cause
from dpt_deploy.core.manifest import Manifest
from dpt_deploy.core.verdict import Stage, StageId, StageKind
from dpt_deploy.parity import Case, Reference
from dpt_deploy.parity.judge import judge
from dpt_deploy.report import write_report
from dpt_deploy.report.model_card import reset_model_card
from tests.tiny import export_frame, lively_model, own_bundle, tiny_bundle  # noqa: F401

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's: each channel its own


@pytest.fixture
def only_python(monkeypatch):
    """Judge without the C++ runtime and OpenVINO: their stages say `not run`."""
    for name in ("cpp", "openvino"):
        switch_off(monkeypatch, name)


def switch_off(monkeypatch, name):
    """Let a backend plan its stages and open none of them."""
    def refuse():
        raise BackendError("off", Cause.NOT_BUILT)

    backend = backends.get(name)
    planned = backend.stages
    monkeypatch.setattr(backend, "stages", lambda bundle: [
        dataclasses.replace(task, open=refuse, must_open=False) for task in planned(bundle)
    ])


def weights_stage(graph, status="passed", **fields):
    """A stage that compared the weights of an artefact."""
    identity = StageId(StageKind.WEIGHTS, graph.graph, graph.precision, file=graph.file,
                       title=f"weights {graph.graph} {graph.precision}")
    return Stage(identity, status, graph.sha256, **fields)


def pytorch_stage(graph, status="passed", **fields):
    """A stage that judged PyTorch in FP16, for an artefact."""
    identity = StageId(StageKind.PYTORCH, "model", "fp16", file=graph.file, title="PyTorch fp16")
    return Stage(identity, status, graph.sha256, **fields)


def judge_and_write(bundle, budget_file=None, judged=(), command=""):
    """Judge a bundle as the commands do: with everything written into it. Returns the report."""
    judgement = judge(bundle, budget_file, judged)
    write_report(bundle, judgement.report, judgement.exhibits, command)
    return judgement.report


@pytest.fixture
def bundle(tiny_bundle, tmp_path, only_python):  # noqa: F811
    """A bundle with the frame graph and three small inputs, that a test may change."""
    source = Bundle.open(tiny_bundle)
    manifest = source.manifest.model_copy(update={"artifacts": ()})
    copy = Bundle(tmp_path / "bundle", manifest, reset_model_card)
    copy.folder.mkdir()
    few(Reference.load(tiny_bundle / "reference.npz", source.contract)).save(copy.folder / "reference.npz")
    copy.add("reference.npz", "reference")
    (copy.folder / "frame.fp32.onnx").write_bytes((tiny_bundle / "frame.fp32.onnx").read_bytes())
    describe(copy)
    return copy


def few(reference):
    """Three inputs: a pair of one size, one of them adversarial, and a larger scene."""
    noise = next(case for case in reference.cases if case.name == "noise")
    lines = next(case for case in reference.cases if case.name == "1-pixel lines")
    scene = next(case for case in reference.cases if case.name == "scene 517x333")
    return Reference((scene, dataclasses.replace(lines, adversarial=False), noise))


def random_case(name="scene", adversarial=False, seed=0, size=(24, 32)):
    """A case of the frame graph whose maps are random numbers of the right kind."""
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(*size, 3)).astype(np.float32)
    maps = {
        "depth": rng.uniform(1, 4, size).astype(np.float32),
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
        "alpha": rng.uniform(0, 1, size).astype(np.float32),
    }
    return Case(name, adversarial, rng.integers(0, 256, (*size, 3), np.uint8), np.zeros((3, 8, 8), np.float32),
                {"model": {}, "frame": maps})


def loose_budget(path, **heads):
    """A budget file that allows everything, but for `heads`, whose limits are those given for all precisions."""
    wide = {"depth": {"abs_rel": 1e9}, "normals": {"mean": 1e9}, "alpha": {"max": 1e9}} | heads
    path.write_text(json.dumps({"fp32": wide, "fp16": wide}))
    return path


def describe(bundle, precision="fp32"):
    """Describe the frame graph in the folder as an exporter would."""
    return bundle.add(f"frame.{precision}.onnx", "onnx", graph="frame", precision=precision, details={"opset": 23})


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    """Model, contract with ImageNet's mean and std, and a bundle of the frame graph alone; made once. Read only."""
    from dpt_deploy.export.pytorch_reference import make_reference
    from dpt_deploy.parity.images import scene

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, model = shared / "imagenet", lively_model()
    contract = dataclasses.replace(model.contract(), mean=MEAN, std=STD)
    with open(shared / "imagenet.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "imagenet.done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            made = Bundle.create(folder, Manifest(name="imagenet", contract=contract.to_json()))
            inputs = [("large", False, scene(300, 420, 1)), ("a", False, scene(96, 128, 2)),
                      ("b", False, scene(96, 128, 3))]
            folder.mkdir()
            make_reference(model, contract, inputs).save(folder / "reference.npz")
            made.add("reference.npz", "reference")
            export_frame(model, contract, folder / "frame.fp32.onnx")
            describe(made)
            (shared / "imagenet.done").touch()
    return model, contract, folder
