"""The manifest is the only way to a bundle's files: what it does not vouch for is refused."""

from __future__ import annotations

import json

import pytest

from dpt_deploy.core.bundle import MODEL_CARD, PARITY_JSON, REPORT_HTML, Bundle, Recipe
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadBundle, BadInput
from dpt_deploy.core.files import write_json
from dpt_deploy.core.manifest import Artifact, Checkpoint, GraphDetails, Manifest, ModelRecord
from dpt_deploy.report.model_card import HAND_WRITTEN_MARKER, reset_model_card
from tests.graphs import field, model

GRAPH = model(Contract())
OTHER = model(Contract(), field(2, b"another name"))


@pytest.fixture
def bundle(tmp_path):
    bundle = Bundle.create(tmp_path / "bundle", Manifest(name="x", contract=Contract().to_json()))
    bundle.folder.mkdir()
    (bundle.folder / "model.fp32.onnx").write_bytes(GRAPH)
    bundle.add("model.fp32.onnx", "onnx", graph="model", precision="fp32", key="k", details={"opset": 23})
    return bundle


def test_it_opens_as_it_was_saved(bundle):
    again = Bundle.open(bundle.folder)
    assert again.artifacts == bundle.artifacts and again.contract == Contract()
    assert again.find("onnx", precision="fp32", opset=23) == list(bundle.artifacts)
    assert again.path(again.artifacts[0]).read_bytes() == GRAPH


def test_details_are_typed_by_the_kind_of_file_even_if_none_are_given():
    assert Artifact(file="a", kind="onnx", sha256="0" * 64, bytes=0).details == GraphDetails()
    with pytest.raises(ValueError, match="builder"):
        Artifact(file="a", kind="engine", sha256="0" * 64, bytes=0)


def test_a_changed_a_shortened_and_a_missing_file_are_refused(bundle):
    (artifact,) = bundle.artifacts
    path = bundle.folder / artifact.file
    for content in (GRAPH[:-1] + b"!", GRAPH[:-1]):
        path.write_bytes(content)
        with pytest.raises(BadBundle, match=r"does not match manifest\.json"):
            bundle.path(artifact)
    path.unlink()
    with pytest.raises(BadBundle, match="is missing"):
        bundle.path(artifact)
    assert not bundle.intact(artifact)


def test_reuse_needs_the_key_and_the_content(bundle):
    made = []

    def produce(key):
        def make(path):
            made.append(key)
            path.write_bytes(GRAPH)
            return {"opset": 23}

        artifact, reused = bundle.produce(Recipe("model.fp32.onnx", "onnx", key, make, "model", "fp32"))
        assert Bundle.open(bundle.folder).artifacts == bundle.artifacts == (artifact,) and artifact.key == key
        assert artifact.details.opset == 23 and (artifact.graph, artifact.precision) == ("model", "fp32")
        return reused

    assert produce("k") and not made
    assert not produce("another") and made == ["another"]
    (bundle.folder / "model.fp32.onnx").write_bytes(OTHER)
    assert not produce("another") and made == ["another"] * 2
    assert produce("another")


def test_what_cannot_be_made_is_not_described(bundle):
    def refuse(path):
        raise BadInput("not right")

    with pytest.raises(BadInput, match="not right"):
        bundle.produce(Recipe("model.fp32.onnx", "onnx", "another", refuse, "model", "fp32"))
    assert Bundle.open(bundle.folder).artifacts == bundle.artifacts and bundle.artifacts[0].key == "k"


STAGE = {"id": {"kind": "pytorch", "graph": "model", "precision": "fp16"}, "status": "passed"}


def changed(bundle, change):
    """Change what `manifest.json` says, and return the path to it."""
    path = bundle.folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)
    return path


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ""])
def test_a_manifest_cannot_point_outside_its_folder(bundle, name):
    changed(bundle, lambda content: content["artifacts"][0].update(file=name))
    with pytest.raises(BadBundle, match="expected the name of a file in the bundle's folder"):
        Bundle.open(bundle.folder)


@pytest.mark.parametrize("change", [{"format": 2}, {"artifacts": [{"file": "x"}]}, {"contract": {}}])
def test_a_malformed_manifest_is_refused(bundle, change):
    changed(bundle, lambda content: content.update(change))
    with pytest.raises(BadBundle):
        Bundle.open(bundle.folder)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"name": "x"', "\xff", "[" * 100_000, "[" * 65 + "]" * 65,
                                  '{"format": NaN}'])
def test_a_file_that_is_not_a_manifest_is_refused(bundle, text):
    (bundle.folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadBundle, match=r"manifest\.json: expected a manifest of format 1") as caught:
        Bundle.open(bundle.folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda m: m.update(name=5), "name"), (lambda m: m.update(artifacts={}), "artifacts"),
        (lambda m: m.update(format="1"), "format"), (lambda m: m.update(versions=["torch"]), "versions"),
        (lambda m: m.update(contract=[]), "contract"),
        (lambda m: m["contract"].update(input_size="large"), "contract"),
        (lambda m: m.update(checkpoint={"sha256": 1}), r"checkpoint\.sha256"),
        (lambda m: m.update(model={"depth_scale": "deep"}), r"model\.depth_scale"),
        (lambda m: m["artifacts"][0].update(kind="picture"), r"artifacts\.0\.kind"),
        (lambda m: m["artifacts"][0].update(sha256=None), r"artifacts\.0\.sha256"),
        (lambda m: m["artifacts"][0].update(sha256="abc"), r"artifacts\.0\.sha256"),
        (lambda m: m["artifacts"][0].update(sha256="<b>" + "0" * 61), r"artifacts\.0\.sha256"),
        (lambda m: m["artifacts"][0].update(bytes="5"), r"artifacts\.0\.bytes"),
        (lambda m: m["artifacts"][0].update(bytes=5.0), r"artifacts\.0\.bytes"),
        (lambda m: m["artifacts"][0].update(bytes=-1), r"artifacts\.0\.bytes"),
        (lambda m: m["artifacts"][0].update(details={"opset": "23"}), r"artifacts\.0\.details\.opset"),
        (lambda m: m["artifacts"][0].update(kind="engine", details={"builder": "x", "certificate": {"status": "new"}}),
         r"artifacts\.0\.details\.certificate\.status"),
        (lambda m: m["artifacts"][0].update(kind="engine", details={"builder": "x", "version_compatible": "yes"}),
         r"artifacts\.0\.details\.version_compatible"),
        (lambda m: m.update(model={"depth_scale": "5"}), r"model\.depth_scale"),
        (lambda m: m.update(model={"depth_scale": 0}), r"model\.depth_scale"),
        (lambda m: m["contract"].update(mean=["0.5"] * 3), "contract"),
        (lambda m: m["contract"].update(input_size=[384.5, 384]), "contract"),
        (lambda m: m["contract"].update(std=[True] * 3), "contract"),
        (lambda m: m["contract"].update(heads="depth"), "contract"),
        (lambda m: m.update(precision={"plan": {}, "stage": STAGE | {"status": "fine"}}), r"precision\.stage\.status"),
        (lambda m: m.update(precision={"plan": {}, "stage": STAGE | {"sha256": "x"}}), r"precision\.stage\.sha256"),
        (lambda m: m.pop("artifacts"), "artifacts"),
        (lambda m: m["artifacts"][0].update(bytes="many"), r"artifacts\.0\.bytes"),
        (lambda m: m["artifacts"][0].update(graph="picture"), r"artifacts\.0\.graph"),
        (lambda m: m["artifacts"][0].update(details=[]), r"artifacts\.0\.details"),
        (lambda m: m["artifacts"][0].update(details={"opset": "new"}), r"artifacts\.0\.details\.opset"),
        (lambda m: m["artifacts"][0].update(details={"plan": {"precision": "int4"}}),
         r"artifacts\.0\.details\.plan\.precision"),
        (lambda m: m["artifacts"][0].update(kind="engine", details={}), r"artifacts\.0\.details\.builder"),
        (lambda m: m["artifacts"][0].update(kind="engine", details={"builder": "x", "profile": {"image": {"min": 1}}}),
         r"artifacts\.0\.details\.profile\.image\.min"),
        (lambda m: m.update(precision={"plan": 1}), r"precision\.plan"),
    ],
)
def test_a_value_of_the_wrong_type_is_one_sentence_that_names_its_key(bundle, change, key):
    path = changed(bundle, change)
    with pytest.raises(BadBundle, match=rf"expected a manifest of format 1, but {key}: ") as caught:
        Bundle.open(bundle.folder)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and "For further information" not in message
    assert message.endswith("Export the checkpoint again.")


def test_keys_of_a_newer_version_survive_being_written_again(bundle):
    def add(content):
        plan = {"precision": "fp16", "fp32": [], "new": 12}
        details = {"builder": "tensorrt-rtx", "profile": {"image": {"min": [1], "opt": [1], "max": [8], "new": 1}},
                   "certificate": {"status": "passed", "flops": {"new": 2}, "new": [3]}, "new": {"a": None}}
        engine = content["artifacts"][0] | {"file": "e.engine", "kind": "engine", "details": details}
        content["artifacts"][0] |= {"new": 4, "details": {"opset": 23, "new": 5, "plan": plan}}
        content["artifacts"].append(engine)
        trial = {"name": "a", "plan": plan, "passed": True, "new": 6}
        content |= {
            "new": {"deep": [1, {"x": 7}]}, "checkpoint": {"file": "a.pth", "sha256": "a" * 64, "new": 8},
            "model": {"backbone": "b", "new": 9},
            "precision": {"plan": plan, "trials": [trial], "stage": STAGE | {"new": 13}, "new": 10},
        }
        content["contract"]["new"] = 11

    path = changed(bundle, add)

    def new(value):
        """Every value of a key called "new", with the way to it."""
        if isinstance(value, list):
            value = dict(enumerate(value))
        if not isinstance(value, dict):
            return {}
        found = {("new",): value["new"]} if "new" in value else {}
        return found | {(key, *way): it for key, inner in value.items() for way, it in new(inner).items()}

    before = new(json.loads(path.read_text()))
    assert len(before) == 16
    opened = Bundle.open(bundle.folder)
    opened.update(name="renamed")
    opened.save()
    after = json.loads(path.read_text())
    assert new(after) == before and after["name"] == "renamed"
    opened.add("model.fp32.onnx", "onnx", graph="model", precision="fp32")  # described anew
    assert len(new(json.loads(path.read_text()))) == 13


def test_a_manifest_cannot_be_changed_behind_the_bundles_back(bundle):
    with pytest.raises(ValueError, match="frozen"):
        bundle.artifacts[0].file = "other"


HEADER = Manifest(name="x", contract=Contract().to_json(), checkpoint=Checkpoint(file="a.pth", sha256="a" * 64),
                  model=ModelRecord())


@pytest.fixture
def judged(tmp_path):
    """A bundle with external data, an engine, timings and a verdict."""
    bundle = Bundle.create(tmp_path / "bundle", HEADER, reset_model_card)
    bundle.folder.mkdir()
    for file in ("model.fp32.onnx", "model.fp32.onnx.data", "e.engine", "t.cache", PARITY_JSON, REPORT_HTML):
        (bundle.folder / file).write_text(file)
    (bundle.folder / "model.fp32.onnx").write_bytes(GRAPH)
    (bundle.folder / MODEL_CARD).write_text(f"# x\n\nPASSED\n\n{HAND_WRITTEN_MARKER}\nby people\n")
    bundle.add("model.fp32.onnx", "onnx", graph="model", precision="fp32")
    bundle.add("e.engine", "engine", graph="model", precision="fp16", details={"builder": "tensorrt-rtx"})
    bundle.add("t.cache", "cache")
    for file in (PARITY_JSON, REPORT_HTML, MODEL_CARD):
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


@pytest.mark.parametrize("fields", [
    {"checkpoint": Checkpoint(file="a.pth", sha256="b" * 64)}, {"model": ModelRecord(features=1)},
    {"contract": Contract((128, 128)).to_json()},
])
def test_a_bundle_never_holds_files_of_another_checkpoint(judged, fields):
    before = lies_in(judged.folder)
    other = Bundle.create(judged.folder, HEADER.model_copy(update=fields), reset_model_card)
    assert not other.find("onnx") and other.previous.checkpoint == HEADER.checkpoint
    assert lies_in(judged.folder) == before  # until the first save: an export may yet be refused
    (judged.folder / "reference.npz").write_text("new")
    other.add("reference.npz", "reference")  # and the export is interrupted here
    assert lies_in(judged.folder) == {"reference.npz", "t.cache", MODEL_CARD}
    card = (judged.folder / MODEL_CARD).read_text()
    assert "PASSED" not in card and "by people" in card and card.count(HAND_WRITTEN_MARKER) == 1


def test_the_same_checkpoint_keeps_its_files(judged):
    renamed = Checkpoint(file="b.pth", sha256="a" * 64)
    again = Bundle.create(judged.folder, HEADER.model_copy(update={"command": "again", "checkpoint": renamed}))
    again.save()
    assert again.artifacts == judged.artifacts and (judged.folder / PARITY_JSON).exists()
    assert Bundle.open(judged.folder).manifest.checkpoint == renamed


@pytest.mark.parametrize("what", ["rewritten", "removed"])
def test_a_verdict_goes_with_the_graph_that_it_is_on(judged, what):
    judged.add("model.fp32.onnx", "onnx", graph="model", precision="fp32")
    assert {PARITY_JSON, REPORT_HTML} <= lies_in(judged.folder)  # the same file again
    if what == "rewritten":
        (judged.folder / "model.fp32.onnx").write_bytes(OTHER)
        judged.add("model.fp32.onnx", "onnx", graph="model", precision="fp32")
    else:
        judged.remove(judged.find("onnx")[0])
    assert {PARITY_JSON, REPORT_HTML}.isdisjoint(lies_in(judged.folder))
    assert "by people" in (judged.folder / MODEL_CARD).read_text()


def test_a_bundle_that_is_told_nothing_about_cards_leaves_what_people_wrote(judged):
    Bundle.open(judged.folder).remove(judged.find("onnx")[0])
    assert "by people" in (judged.folder / MODEL_CARD).read_text()


def test_a_manifest_that_cannot_be_read_is_replaced(judged):
    (judged.folder / "manifest.json").write_text("{")
    again = Bundle.create(judged.folder, HEADER)
    assert not again.artifacts and again.previous is None


def test_a_folder_that_is_not_a_bundle_gets_the_command_that_makes_one(tmp_path):
    with pytest.raises(BadBundle, match=r"dpt_deploy\.export"):
        Bundle.open(tmp_path)
    with pytest.raises(BadBundle, match="the folder does not exist"):
        Bundle.open(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="expected a folder"):
        Bundle.create(tmp_path / "file", HEADER)
    with pytest.raises(BadBundle, match=r"file: expected a bundle, which is a folder, but received a file\. Create"):
        Bundle.open(tmp_path / "file")


def test_a_file_of_a_bundle_gets_the_folder_that_is_meant(bundle):
    with pytest.raises(BadBundle, match=rf"received a file\. Pass {bundle.folder}\.$"):
        Bundle.open(bundle.folder / "model.fp32.onnx")


def test_a_bundle_tells_whether_its_verdict_covers_an_artefact(judged):
    (graph,) = judged.find("onnx")
    assert "does not cover model.fp32.onnx" not in judged.unjudged(graph)  # parity.json is not a report here
    report = {"stages": [STAGE | {"sha256": graph.sha256}], "budget": {}, "budget_file": "default", "inputs": ["a"]}
    write_json(judged.folder / PARITY_JSON, report)
    assert judged.unjudged(graph) == ""
    assert judged.unjudged(judged.find("engine")[0]).startswith("the bundle's parity verdict does not cover e.engine")
    judged.remove(graph)  # and the export is interrupted before it judges
    assert judged.unjudged(graph).startswith("the bundle has no parity verdict, because its export was interrupted")


def test_the_manifest_says_what_is_reproducible(judged):
    assert {a.kind: a.reproducible for a in Bundle.open(judged.folder).artifacts} == {
        "onnx": True, "data": True, "engine": False, "cache": False, "report": None,
    }


def test_long_values_give_short_messages(bundle):
    path = bundle.folder / "manifest.json"
    value = json.loads(path.read_text())
    value["contract"]["resize"] = "x" * 5000
    path.write_text(json.dumps(value))
    with pytest.raises(BadBundle) as caught:
        Bundle.open(bundle.folder)
    assert len(str(caught.value)) < 1500 + len(str(path))


def test_a_file_with_a_name_that_is_too_long_is_missing(bundle):
    artifact = bundle.artifacts[0].model_copy(update={"file": "x" * 5000})
    assert "is missing from the bundle" in str(bundle.damage(artifact))
