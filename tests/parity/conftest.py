"""Small bundles for tests of parity, and tests without the second runtimes where they prove nothing."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil

import numpy as np
import pytest

from dpt_deploy.core.bundle import Bundle
from dpt_deploy.parity import Case, Reference, judge
from dpt_deploy.parity.compare import not_run
from tests.tiny import lively_model, own_bundle, tiny_bundle  # noqa: F401

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's: each channel its own


@pytest.fixture
def only_python(monkeypatch):
    """Judge without the C++ runtime and OpenVINO: they say `not run`."""
    for name in ("_judge_cpp", "_judge_openvino"):
        monkeypatch.setattr(judge, name, lambda bundle, artifact, name, *rest: not_run(name, artifact.precision, "off"))


@pytest.fixture
def bundle(tiny_bundle, tmp_path, only_python):  # noqa: F811
    """A bundle with the frame graph and three small inputs, that a test may change."""
    source = Bundle.open(tiny_bundle)
    copy = Bundle(tmp_path / "bundle", source.header, [])
    copy.folder.mkdir()
    few(Reference.load(tiny_bundle / "reference.npz")).save(copy.folder / "reference.npz")
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
    from dpt_deploy.export.graph import export_graph
    from dpt_deploy.export.reference import make_reference
    from dpt_deploy.model.frame import FrameModel
    from dpt_deploy.parity.images import scene

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, model = shared / "imagenet", lively_model()
    contract = dataclasses.replace(model.contract(), mean=MEAN, std=STD)
    with open(shared / "imagenet.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "imagenet.done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            header = {"name": "imagenet", "contract": contract.to_json(), "checkpoint": {"file": "x.pth", "sha256": ""}}
            made = Bundle.create(folder, header)
            inputs = [("large", False, scene(300, 420, 1)), ("a", False, scene(96, 128, 2)),
                      ("b", False, scene(96, 128, 3))]
            folder.mkdir()
            make_reference(model, contract, inputs).save(folder / "reference.npz")
            made.add("reference.npz", "reference")
            export_graph(FrameModel(model, contract), "frame", contract, folder / "frame.fp32.onnx", 23, {})
            describe(made)
            (shared / "imagenet.done").touch()
    return model, contract, folder
