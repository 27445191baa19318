"""python -m dpt_deploy.parity: exit status, JSON alone, other images, and the checkpoint they are judged by."""

from __future__ import annotations

import json
import shutil

import cv2
import pytest

from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BadInput
from dpt_deploy.export.pytorch_reference import parity_inputs
from dpt_deploy.model import save_checkpoint
from dpt_deploy.parity import Reference
from dpt_deploy.parity.__main__ import ParityConfig, main
from dpt_deploy.parity.images import adversarial, built_in
from tests.parity.conftest import loose_budget
from tests.tiny import lively_model, photo


def test_the_exit_status_follows_the_verdict_and_json_is_alone(bundle, capsys, tmp_path):
    assert main(ParityConfig(bundle.folder, json=True)) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    strict = loose_budget(tmp_path / "strict.json", depth={"abs_rel": 1e-12})
    assert main(ParityConfig(bundle.folder, budget=strict, json=True)) == 1
    value = json.loads(capsys.readouterr().out)
    assert value["passed"] is False and "strict.json" in value["verdict"]
    assert value["blame"] == ["the error enters between PyTorch FP32 and ONNX Runtime frame fp32"]


def test_images_need_the_checkpoint(bundle, tmp_path):
    with pytest.raises(BadInput, match="--images needs --checkpoint"):
        main(ParityConfig(bundle.folder, images=tmp_path))
    with pytest.raises(BadInput, match="from 1"):
        parity_inputs(tmp_path, 0)
    assert [name for name, _, _ in parity_inputs(None, 1)] == [name for name, _, _ in built_in()]


def test_another_checkpoint_is_refused(bundle, tmp_path):
    other = tmp_path / "other.pth"
    save_checkpoint(other, lively_model(seed=1))
    before = {path.name: path.read_bytes() for path in bundle.folder.iterdir()}
    with pytest.raises(BadInput, match=r"another checkpoint.*python -m dpt_deploy\.export"):
        main(ParityConfig(bundle.folder, checkpoint=other))
    assert {path.name: path.read_bytes() for path in bundle.folder.iterdir()} == before


def test_the_users_images_become_the_reference(tiny_bundle, only_python, tmp_path, capsys, monkeypatch):
    own = Bundle.open(shutil.copytree(tiny_bundle, tmp_path / "own", ignore=shutil.ignore_patterns("*.engine")))
    for engine in own.find("engine"):
        own.remove(engine)
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        cv2.imwrite(str(images / f"photo{i}.png"), photo(90 + i, 120, seed=i))
    flat = adversarial()[:1]
    monkeypatch.setattr("dpt_deploy.parity.images.adversarial", lambda: flat)  # the others take a minute
    options = {"images": images, "max_images": 2, "checkpoint": tiny_bundle.parent / "tiny.pth", "json": True}
    main(ParityConfig(own.folder, **options))
    value = json.loads(capsys.readouterr().out)
    again = Bundle.open(own.folder)
    assert value["inputs"] == ["photo0.png", "photo2.png", "black"]
    assert value["reference"] == again.find("reference")[0].sha256
    assert [case.name for case in Reference.load(own.folder / "reference.npz", own.contract).cases] == value["inputs"]
    status = {stage["name"]: stage["status"] for stage in value["stages"]}
    assert {"weights frame fp16", "PyTorch fp16", "ONNX Runtime frame fp32"} <= set(status)
    assert all(status[name] == "passed" for name in status if "fp32" in name and status[name] != "not run")
    for artifact in again.artifacts:
        again.path(artifact)
