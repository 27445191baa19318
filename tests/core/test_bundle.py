"""The manifest is the only way to a bundle's files: what it does not vouch for is refused."""

from __future__ import annotations

import json

import pytest

from dpt_deploy.core.bundle import CARD, HAND, PAGE, RECORD, Bundle, by_hand
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadBundle, BadInput


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


HEADER = {"name": "x", "contract": Contract().to_json(), "checkpoint": {"file": "a.pth", "sha256": "a"}, "model": {}}


@pytest.fixture
def judged(tmp_path):
    """A bundle with external data, an engine, timings and a verdict."""
    bundle = Bundle.create(tmp_path / "bundle", HEADER)
    bundle.folder.mkdir()
    for file in ("model.fp32.onnx", "model.fp32.onnx.data", "e.engine", "t.cache", RECORD, PAGE):
        (bundle.folder / file).write_text(file)
    (bundle.folder / CARD).write_text(f"# x\n\nPASSED\n\n{HAND}\nby people\n")
    bundle.add("model.fp32.onnx", "onnx", graph="model", precision="fp32")
    bundle.add("e.engine", "engine")
    bundle.add("t.cache", "cache")
    for file in (RECORD, PAGE, CARD):
        bundle.add(file, "report")
    return bundle


def lies_in(folder):
    """Names of all files, which are those of the manifest."""
    files = {path.name for path in folder.iterdir()} - {"manifest.json"}
    again = Bundle.open(folder)
    assert files == {artifact.file for artifact in again.artifacts}
    assert all(again.intact(artifact) for artifact in again.artifacts)
    return files


def test_external_data_belongs_to_its_graph(judged):
    assert [a.kind for a in judged.artifacts[:2]] == ["onnx", "data"]
    (judged.folder / "model.fp32.onnx.data").unlink()
    judged.add("model.fp32.onnx", "onnx", graph="model", precision="fp32")
    assert "model.fp32.onnx.data" not in lies_in(judged.folder)


@pytest.mark.parametrize("changed", [{"checkpoint": {"file": "a.pth", "sha256": "b"}}, {"model": {"features": 1}},
                                     {"contract": Contract((128, 128)).to_json()}])
def test_a_bundle_never_holds_files_of_another_checkpoint(judged, changed):
    before = lies_in(judged.folder)
    other = Bundle.create(judged.folder, HEADER | changed)
    assert not other.find("onnx") and other.previous["checkpoint"] == HEADER["checkpoint"]
    assert lies_in(judged.folder) == before  # until the first save: an export may yet be refused
    (judged.folder / "reference.npz").write_text("new")
    other.add("reference.npz", "reference")  # and the export is interrupted here
    assert lies_in(judged.folder) == {"reference.npz", "t.cache", CARD}
    card = (judged.folder / CARD).read_text()
    assert "PASSED" not in card and "by people" in card and card.count(HAND) == 1


def test_the_same_checkpoint_keeps_its_files(judged):
    again = Bundle.create(judged.folder, HEADER | {"command": "again", "checkpoint": {"file": "b.pth", "sha256": "a"}})
    again.save()
    assert again.artifacts == judged.artifacts and (judged.folder / RECORD).exists()


@pytest.mark.parametrize("what", ["rewritten", "removed"])
def test_a_verdict_goes_with_the_graph_that_it_is_on(judged, what):
    judged.add("model.fp32.onnx", "onnx", graph="model", precision="fp32")
    assert {RECORD, PAGE} <= lies_in(judged.folder)  # the same file again
    if what == "rewritten":
        (judged.folder / "model.fp32.onnx").write_text("another")
        judged.add("model.fp32.onnx", "onnx", graph="model", precision="fp32")
    else:
        judged.remove(judged.find("onnx")[0])
    assert {RECORD, PAGE}.isdisjoint(lies_in(judged.folder)) and "by people" in (judged.folder / CARD).read_text()


def test_what_people_wrote_is_found_without_the_line_above_it():
    assert by_hand(f"# x\n\n{HAND}\n\nmine\n") == "mine\n"
    assert by_hand("# x\n\n## Licences\n\nMIT\n") == "## Licences\n\nMIT\n"
    assert by_hand("# my own card\n") == "# my own card\n"


def test_what_is_no_bundle_gets_the_command_that_makes_one(tmp_path):
    with pytest.raises(BadBundle, match=r"dpt_deploy\.export"):
        Bundle.open(tmp_path)
    with pytest.raises(BadBundle, match="no such folder"):
        Bundle.open(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="expected a folder"):
        Bundle.create(tmp_path / "file", {})
