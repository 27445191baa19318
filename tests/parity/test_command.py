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
from dpt_deploy.parity import Reference, judge
from dpt_deploy.parity.__main__ import ParityConfig, main
from dpt_deploy.parity.images import adversarial, built_in
from dpt_deploy.report import print_outcome, write_report
from tests.parity.conftest import loose_budget
from tests.parity.test_eight_bits import quantize_weights
from tests.tiny import lively_model, photo
from train.synthetic import SyntheticConfig, write_dataset


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
    assert [name for name, _, _ in parity_inputs(None, 1).inputs] == [name for name, _, _ in built_in()]


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
    (images / "broken.png").write_bytes((images / "photo0.png").read_bytes()[:900])
    (images / "notes.txt").write_text("not an image")
    flat = adversarial()[:1]
    monkeypatch.setattr("dpt_deploy.parity.images.adversarial", lambda: flat)  # the others take a minute
    options = {"images": images, "max_images": 3, "checkpoint": tiny_bundle.parent / "tiny.pth", "json": True}
    assert main(ParityConfig(own.folder, **options)) == 1, "an image was skipped"
    value = json.loads(capsys.readouterr().out)
    again = Bundle.open(own.folder)
    assert value["inputs"] == ["photo0.png", "photo2.png", "black"]
    assert value["reference"] == again.find("reference")[0].sha256
    assert [case.name for case in Reference.load(own.folder / "reference.npz", own.contract).cases] == value["inputs"]
    (skipped,) = value["skipped_images"]
    assert skipped.startswith("broken.png: expected an image") and again.manifest.options["skipped_images"] == [skipped]
    assert "broken.png" in (own.folder / "report.html").read_text()
    assert "broken.png" in (own.folder / "MODEL_CARD.md").read_text()
    status = {stage["name"]: stage["status"] for stage in value["stages"]}
    assert {"weights frame fp16", "PyTorch fp16", "ONNX Runtime frame fp32"} <= set(status)
    assert all(status[name] == "passed" for name in status if "fp32" in name and status[name] != "not run")
    for artifact in again.artifacts:
        again.path(artifact)


def test_a_folder_is_read_past_its_bad_files_and_one_bad_file_is_an_error(tmp_path, bundle, capsys):
    good, bad = tmp_path / "good.png", tmp_path / "<b>bad|.png"
    cv2.imwrite(str(good), photo(90, 120))
    bad.write_bytes(b"")
    cv2.imwrite(str(tmp_path / "large.png"), photo(100, 200))
    (tmp_path / "notes.txt").touch()
    found = parity_inputs(tmp_path, 8, max_pixels=90 * 120)
    assert [name for name, unusual, _ in found.inputs if not unusual] == ["good.png"]
    assert [line.split(":")[0] for line in found.skipped] == ["<b>bad|.png", "large.png"]
    assert str(tmp_path) not in "".join(found.skipped)
    assert found.lines()[0].startswith("skipped  <b>bad|.png") and "notes.txt" in found.lines()[-1]
    found.record(bundle)
    write_report(bundle, judge(bundle).report, {})
    print_outcome(bundle, bundle.last_report(), [])
    out = capsys.readouterr().out
    assert "skipped  2 images of the folder were skipped and not judged:\nskipped  <b>bad|.png: " in out
    for file in ("report.html", "MODEL_CARD.md"):
        text = (bundle.folder / file).read_text()
        assert "large.png" in text and "<b>bad" not in text, file
    parity_inputs(good, 8).record(bundle)
    assert "skipped_images" not in bundle.manifest.options
    with pytest.raises(BadInput, match=r"bad\|\.png"):
        parity_inputs(bad, 8)
    good.unlink()
    with pytest.raises(BadInput, match=r"none of the 2 images tried.*bad\|\.png"):
        parity_inputs(tmp_path, 8, max_pixels=90 * 120)


def test_labelled_data_decides_on_eight_bits_and_a_bundle_without_them_needs_none(bundle, tmp_path, capsys):
    root = tmp_path / "people"
    write_dataset(SyntheticConfig(root, count=20, image_size=bundle.contract.input_size, workers=0, prepared=True))
    with pytest.raises(BadInput, match="expected a bundle with a graph or an engine in eight bits"):
        main(ParityConfig(bundle.folder, data_root=root))
    quantize_weights(bundle, levels=15)
    status = main(ParityConfig(bundle.folder, data_root=root, json=True))
    value = json.loads(capsys.readouterr().out)
    (stage,) = [stage for stage in value["stages"] if stage["task"]]
    task = stage["task"]
    assert stage["name"] == "ONNX Runtime frame int8" and (task["images"], task["data"]) == (10, "people")
    assert task["seen"] is None, "there is no training record"
    assert stage["status"] == ("passed" if all(c["high"] <= c["margin"] for c in task["changes"]) else "failed")
    assert status == (0 if value["passed"] else 1)
    page = (bundle.folder / "report.html").read_text()
    assert "10 images of people, not known whether training used them" in page and str(tmp_path) not in page
