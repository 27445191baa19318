"""The manifest is the only way to a bundle's files: what it does not vouch for is refused."""

from __future__ import annotations

import json

import pytest

from dpt_deploy.bundle import Bundle
from dpt_deploy.contract import Contract
from dpt_deploy.errors import BadBundle, BadInput


@pytest.fixture
def bundle(tmp_path):
    bundle = Bundle.create(tmp_path / "bundle", {"name": "x", "contract": Contract().to_json()})
    bundle.folder.mkdir()
    (bundle.folder / "model.fp32.onnx").write_bytes(b"graph")
    bundle.add("model.fp32.onnx", "onnx", graph="model", precision="fp32", key="k", details={"opset": 23})
    return bundle


def test_it_opens_as_it_was_saved(bundle):
    again = Bundle.open(bundle.folder)
    assert again.artifacts == bundle.artifacts and again.contract == Contract()
    assert again.find("onnx", precision="fp32", opset=23) == bundle.artifacts
    assert again.path(again.artifacts[0]).read_bytes() == b"graph"


def test_a_changed_a_shortened_and_a_missing_file_are_refused(bundle):
    (artifact,) = bundle.artifacts
    path = bundle.folder / artifact.file
    for content in (b"grapH", b"grap"):
        path.write_bytes(content)
        with pytest.raises(BadBundle, match="is not the file"):
            bundle.path(artifact)
    path.unlink()
    with pytest.raises(BadBundle, match="is missing"):
        bundle.path(artifact)
    assert not bundle.intact(artifact)


def test_reuse_needs_the_key_and_the_content(bundle):
    assert bundle.reusable("model.fp32.onnx", "k")
    assert not bundle.reusable("model.fp32.onnx", "another")
    (bundle.folder / "model.fp32.onnx").write_bytes(b"other")
    assert not bundle.reusable("model.fp32.onnx", "k")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ""])
def test_a_manifest_cannot_point_outside_its_folder(bundle, name):
    manifest = bundle.folder / "manifest.json"
    content = json.loads(manifest.read_text())
    content["artifacts"][0]["file"] = name
    manifest.write_text(json.dumps(content))
    with pytest.raises(BadBundle, match="no name of a file"):
        Bundle.open(bundle.folder)


@pytest.mark.parametrize("change", [{"format": 2}, {"artifacts": [{"file": "x"}]}, {"contract": {}}])
def test_a_malformed_manifest_is_refused(bundle, change):
    manifest = bundle.folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(BadBundle):
        Bundle.open(bundle.folder)


def test_what_is_no_bundle_gets_the_command_that_makes_one(tmp_path):
    with pytest.raises(BadBundle, match=r"dpt_deploy\.export"):
        Bundle.open(tmp_path)
    with pytest.raises(BadBundle, match="no such folder"):
        Bundle.open(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="expected a folder"):
        Bundle.create(tmp_path / "file", {})
