"""Bundles around foreign models: what they depend on, who may write them at once, and what they say of themselves."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import dpt_deploy
from dpt_deploy.build import EngineOptions, build_engines
from dpt_deploy.core.bundle import MANIFEST, Bundle
from dpt_deploy.core.errors import BadBundle, BadInput, ContractError
from dpt_deploy.core.files import locked
from dpt_deploy.core.verdict import ParityReport
from dpt_deploy.doctor.bundle import rebuild_command
from dpt_deploy.export import foreign_graphs, importing
from dpt_deploy.export.importing import ImportConfig, import_model
from dpt_deploy.foreign import Description
from dpt_deploy.foreign import bundle as foreign_bundle
from dpt_deploy.foreign.bundle import cached_bundle, create_bundle, read_foreign
from dpt_deploy.foreign.describe import KEY, Found, to_metadata
from dpt_deploy.parity.__main__ import ParityConfig
from dpt_deploy.parity.__main__ import main as parity
from dpt_deploy.parity.judge import Judgement
from dpt_deploy.report.model_card import render_model_card
from tests.foreign.test_foreign import DESCRIPTION, SIZE, cache, foreign_model

__all__ = ["cache"]
FARTHER = Description.model_validate({"outputs": {"depth": {"output": "far"}}})
NEARER = Description.model_validate({"outputs": {"depth": {"output": "far", "larger": "nearer"}}})


def with_external_weights(folder: Path, value: float) -> Path:
    """A model whose depth is the mean of its input times `value`, which is in a file beside it."""
    folder.mkdir(exist_ok=True)
    weight = onnx.numpy_helper.from_array(np.full((1, 1, *SIZE), value, np.float32), "w")
    nodes = [helper.make_node("ReduceMean", ["x"], ["one"], axes=[1]), helper.make_node("Mul", ["one", "w"], ["far"])]
    graph = helper.make_graph(
        nodes, "other", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, *SIZE])],
        [helper.make_tensor_value_info("far", TensorProto.FLOAT, ["n", 1, *SIZE])], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, folder / "other.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    return folder / "other.onnx"


def made(folder: Path, path: Path, description: Description = FARTHER) -> Bundle:
    return create_bundle(folder, read_foreign(path), Found(description, "the test"))[0]


def test_weights_beside_the_model_count(tmp_path: Path, cache: Path) -> None:
    """The ONNX file is the same; only its weights differ."""
    first, second = with_external_weights(tmp_path / "a", 2.0), with_external_weights(tmp_path / "b", 3.0)
    assert first.read_bytes() == second.read_bytes()
    assert read_foreign(first).sha256 != read_foreign(second).sha256
    frame = np.full((*SIZE, 3), 255, np.uint8)
    (tmp_path / "about.json").write_text(FARTHER.model_dump_json(exclude_none=True))
    for path, want in ((first, 2.0), (second, 3.0)):
        with dpt_deploy.load(path, "onnxruntime-cpu", description=tmp_path / "about.json") as runtime:
            assert np.abs(runtime(frame).depth - want).max() < 1e-5


def test_missing_and_far_weights_are_one_sentence(tmp_path: Path, cache: Path) -> None:
    path = with_external_weights(tmp_path / "a", 2.0)
    (path.parent / "w.bin").unlink()
    with pytest.raises(BadInput, match=r"other\.onnx: expected its weights in the file 'w\.bin' beside it"):
        cached_bundle(path, FARTHER)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../w.bin"
    path.write_bytes(model.SerializeToString())
    (tmp_path / "w.bin").write_bytes(bytes(4 * SIZE[0] * SIZE[1]))
    with pytest.raises(BadInput, match=r"expected its weights in the file '\.\./w\.bin'"):
        cached_bundle(path, FARTHER)


def test_a_model_that_is_too_large_is_not_read(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_external_weights(tmp_path / "a", 2.0)
    with open(path.parent / "w.bin", "r+b") as weights:
        weights.truncate(foreign_bundle.LARGEST)  # a hole: it takes no space
    monkeypatch.setattr(onnx, "load", lambda *_, **__: pytest.fail("the model was read"))
    monkeypatch.setattr(foreign_bundle, "sha256", lambda *_: pytest.fail("the model was hashed"))
    with pytest.raises(BadInput, match=r"expected a model of less than 1\.9 GB with its weights, received 1\.9 GB"):
        cached_bundle(path, FARTHER)


def test_another_description_makes_another_bundle(tmp_path: Path) -> None:
    """The contract is the same, and depth has another sign: engines of the earlier graphs must go."""
    path, folder = foreign_model(tmp_path / "other.onnx"), tmp_path / "out"
    bundle = made(folder, path)
    (folder / "engine").write_bytes(b"an engine")
    bundle.add("engine", "engine", graph="model", precision="fp32",
               details={"builder": "tensorrt", "made_from": bundle.find("onnx")[0].sha256})
    assert made(folder, path).find("engine"), "the same description keeps it"
    again = made(folder, path, NEARER)
    assert again.contract == bundle.contract and again.manifest.origin != bundle.manifest.origin
    assert not again.find("engine") and not (folder / "engine").exists()


def test_engines_of_earlier_graphs_go_without_a_builder_too(tmp_path: Path) -> None:
    bundle = made(tmp_path / "out", foreign_model(tmp_path / "other.onnx"))
    (bundle.folder / "engine").write_bytes(b"an engine")
    bundle.add("engine", "engine", graph="model", precision="fp32",
               details={"builder": "tensorrt", "made_from": "0" * 64})
    assert build_engines(bundle, EngineOptions(builder="none")) == [] and not bundle.find("engine")
    assert not (bundle.folder / "engine").exists()


def test_a_bundle_that_another_process_made_meanwhile_is_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = foreign_model(tmp_path / "other.onnx")
    folder = cached_bundle(path, FARTHER)
    before = (folder / MANIFEST).stat()
    intact, asked = foreign_bundle._intact, []

    def not_yet(place: Path) -> bool:
        asked.append(place)
        return len(asked) > 1 and intact(place)  # the first look was before the other process was ready

    monkeypatch.setattr(foreign_bundle, "_intact", not_yet)
    assert cached_bundle(path, FARTHER) == folder
    assert (folder / MANIFEST).stat().st_ino == before.st_ino, "it may be open elsewhere"


def test_loading_waits_for_a_process_that_writes_the_cache(tmp_path: Path, cache: Path) -> None:
    path, done = foreign_model(tmp_path / "other.onnx"), threading.Event()
    place = cache / "dpt-deploy" / "foreign"

    def load() -> None:
        cached_bundle(path, FARTHER)
        done.set()

    thread = threading.Thread(target=load)
    with locked(place, create=True):
        thread.start()
        assert not done.wait(1.0)
    thread.join(60)
    assert done.is_set() and len(list(place.iterdir())) == 1


def config(path: Path, out: Path, description: Path) -> ImportConfig:
    image = path.with_name("image.png")
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8))
    return ImportConfig(path, str(description), out, EngineOptions(builder="none"), images=image)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("there", ["nothing", "files", "an imported bundle"])
def test_a_failed_import_leaves_no_half_of_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    path, out = foreign_model(tmp_path / "other.onnx"), tmp_path / "out"
    (tmp_path / "about.yaml").write_text(DESCRIPTION, encoding="utf-8")
    if there != "nothing":
        out.mkdir()
        (out / "notes.txt").write_text("of the user")
    if there == "an imported bundle":
        made(out, path)
    before = contents(out)

    monkeypatch.setattr(foreign_graphs, "frame_graph", full)  # the last step
    with pytest.raises(OSError, match="No space"):
        import_model(config(path, out, tmp_path / "about.yaml"), lambda line: None)
    assert contents(out) == before and out.exists() == (there != "nothing")


@pytest.mark.parametrize("step", ["build_engines", "judge", "write_report"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
@pytest.mark.parametrize("there", ["nothing", "an imported bundle"])
def test_an_import_that_fails_late_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, error: BaseException, step: str
) -> None:
    """Without a verdict, a bundle would look like a whole one."""
    path, out = foreign_model(tmp_path / "other.onnx"), tmp_path / "out"
    (tmp_path / "about.yaml").write_text(DESCRIPTION, encoding="utf-8")
    if there != "nothing":
        bundle = made(out, path)
        for name, kind in {"reference.npz": "reference", "parity.json": "report", "MODEL_CARD.md": "report"}.items():
            (out / name).write_text(f"earlier {name}")
            bundle.add(name, kind)
        (out / "report.html").write_text("not listed")
    before = contents(out)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(foreign_graphs, "frame_graph", lambda *_: None)  # takes ten seconds, and is judged elsewhere
    for name in ("judge", "write_report"):
        monkeypatch.setattr(importing, name, fail)
    if step == "write_report":
        report = ParityReport((), {}, "default", ())
        monkeypatch.setattr(importing, "judge", lambda *_, **__: Judgement(report, {}))
    monkeypatch.setattr(importing, step, fail)
    with pytest.raises(type(error)):
        import_model(config(path, out, tmp_path / "about.yaml"), lambda line: None)
    assert contents(out) == before and out.exists() == (there != "nothing")


def test_an_import_does_not_replace_files_of_the_user(tmp_path: Path) -> None:
    path, out = foreign_model(tmp_path / "other.onnx"), tmp_path / "out"
    (tmp_path / "about.yaml").write_text(DESCRIPTION, encoding="utf-8")
    out.mkdir()
    for name in ("reference.npz", "report.html"):
        (out / name).write_text("of the user")
    with pytest.raises(BadInput, match=r"received reference\.npz, report\.html, which would be replaced"):
        import_model(config(path, out, tmp_path / "about.yaml"), lambda line: pytest.fail("it began"))
    assert set(contents(out).values()) == {b"of the user"}


def test_errors_of_an_import_name_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the temporary one, which is gone when they are read."""
    path, out = foreign_model(tmp_path / "other.onnx"), tmp_path / "out"
    (tmp_path / "about.yaml").write_text(DESCRIPTION, encoding="utf-8")
    monkeypatch.setattr(foreign_graphs, "frame_graph", lambda bundle, *_: bundle.path(
        bundle.find("onnx")[0].model_copy(update={"sha256": "0" * 64})))
    with pytest.raises(BadBundle) as raised:
        import_model(config(path, out, tmp_path / "about.yaml"), lambda line: None)
    assert str(raised.value).startswith(f"{out}/model.fp32.onnx does not match") and ".dpt-tmp" not in str(raised.value)


def test_a_manifest_that_cannot_be_read_is_never_replaced(tmp_path: Path) -> None:
    path, out = foreign_model(tmp_path / "other.onnx"), tmp_path / "out"
    (tmp_path / "about.yaml").write_text(DESCRIPTION, encoding="utf-8")
    out.mkdir()
    (out / MANIFEST).write_text("{")
    with pytest.raises(BadInput, match=r"whose manifest\.json cannot be read.*Choose another"):
        import_model(config(path, out, tmp_path / "about.yaml"), lambda line: None)
    assert (out / MANIFEST).read_text() == "{"


def test_the_card_speaks_of_the_imported_model(tmp_path: Path) -> None:
    card = render_model_card(made(tmp_path / "out", foreign_model(tmp_path / "other.onnx")), None)
    text = card.lower()
    for wrong in ("dense prediction", "backbone `", "metre", "training record", "## training"):
        assert wrong not in text.partition("<!--")[0], wrong
    assert "imported from `other.onnx`" in card and "Depth is relative depth without unit, larger is farther." in card
    assert "| outputs.depth.larger | farther |" in card


def test_remedies_of_an_imported_bundle_name_the_import(tmp_path: Path) -> None:
    bundle = made(tmp_path / "out", foreign_model(tmp_path / "other.onnx"))
    graph = bundle.find("onnx")[0]
    again = f"python -m dpt_deploy.export.importing other.onnx --out {bundle.folder}"
    assert rebuild_command(bundle, graph) == again
    for options in ({"images": tmp_path}, {"checkpoint": tmp_path / "x.pth"}, {"images": tmp_path,
                                                                              "checkpoint": tmp_path / "x.pth"}):
        with pytest.raises(BadInput, match="was imported and has no checkpoint") as raised:
            parity(ParityConfig(bundle.folder, **options))
        images = f" --images {tmp_path}" if "images" in options else ""
        assert str(raised.value).endswith(again + images)
    with pytest.raises(BadBundle, match=r"so nothing can be judged\. Make it again: " + again):
        parity(ParityConfig(bundle.folder))
    with pytest.raises(BadInput, match=r"graphs in fp32, received fp16\. Use one of those\.$"):
        build_engines(bundle, EngineOptions(builder="none"), precisions=("fp16",))
    (bundle.folder / graph.file).write_bytes(b"damaged")
    with pytest.raises(BadBundle, match="Import again: " + again):
        bundle.path(graph)


@pytest.mark.parametrize("stated", [None, "file", "preset"])
def test_the_command_that_makes_an_import_again_states_its_description(
    tmp_path: Path, cache: Path, stated: str | None
) -> None:
    path = foreign_model(tmp_path / "other.onnx", size=(512, 512) if stated == "preset" else SIZE)
    if stated == "preset":  # the outputs in david's order
        model = onnx.load(path)
        mask, far, vectors = model.graph.output
        outputs = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in (far, vectors, mask)]
        del model.graph.output[:]
        model.graph.output.extend(outputs)
        onnx.save(model, path)
    file = (tmp_path / "other.yaml") if stated is None else tmp_path / "about it.yaml"
    file.write_text(DESCRIPTION, encoding="utf-8")
    option = {None: None, "file": file, "preset": "david"}[stated]
    bundle = Bundle.open(cached_bundle(path, option))
    words = {None: "", "file": " --description 'about it.yaml'", "preset": " --description david"}[stated]
    again = f"python -m dpt_deploy.export.importing other.onnx{words}"
    assert bundle.remake_command == f"{again} --out {bundle.folder}"
    assert bundle.unjudged(bundle.find("onnx")[0]).endswith(f"make one with: {again}")
    assert str(tmp_path) not in json.dumps(bundle.manifest.to_json())


def test_a_number_of_images_without_images_is_refused(tmp_path: Path) -> None:
    given = ImportConfig(foreign_model(tmp_path / "other.onnx"), "david", tmp_path / "out", max_images=3)
    with pytest.raises(BadInput, match="--max-images: expected --images too"):
        import_model(given, lambda line: None)


def test_a_file_that_is_not_there_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"expected an ONNX file, but there is no file .*nothere\.onnx"):
        dpt_deploy.load(tmp_path / "nothere.onnx")


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_metadata_and_a_file_beside_the_model_must_agree(tmp_path: Path, cache: Path, suffix: str) -> None:
    path = foreign_model(tmp_path / "other.onnx")
    model = onnx.load(path)
    for key, value in to_metadata(FARTHER).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    first = cached_bundle(path)
    path.with_suffix(suffix).write_text(json.dumps(FARTHER.to_json()))
    assert cached_bundle(path) == first
    path.with_suffix(suffix).write_text(json.dumps(NEARER.to_json()))
    with pytest.raises(BadInput, match=rf"two that differ, the metadata of other\.onnx and other\{suffix}"):
        cached_bundle(path)
    assert cached_bundle(path, path.with_suffix(suffix)) != first


@pytest.mark.parametrize("text", ["", "null", "{}", "[]", "0", '""'])
def test_an_empty_description_in_the_metadata_is_refused(tmp_path: Path, cache: Path, text: str) -> None:
    path = foreign_model(tmp_path / "other.onnx")
    model = onnx.load(path)
    model.metadata_props.add(key=KEY, value=text)
    onnx.save(model, path)
    with pytest.raises(BadInput, match=r"metadata.*other\.onnx|other\.onnx: the description in its metadata"):
        dpt_deploy.load(path)


@pytest.mark.parametrize("text", ["", "null", "{}", "[]", "0", '""'])
def test_an_empty_contract_in_a_graph_is_refused(tmp_path: Path, cache: Path, text: str) -> None:
    bundle = made(tmp_path / "out", foreign_model(tmp_path / "other.onnx"))
    path = bundle.folder / "model.fp32.onnx"
    model = onnx.load(path)
    for entry in model.metadata_props:
        entry.value = text if entry.key == "contract" else entry.value
    onnx.save(model, path)
    bundle.add(path.name, "onnx", graph="model", precision="fp32", details={})
    with pytest.raises(ContractError, match="the contract embedded in the graph is not valid"):
        dpt_deploy.load(bundle.folder, "onnxruntime-cpu")
    # Alone, its contract does not describe it: a description does.
    alone = tmp_path / "alone.onnx"
    path.rename(alone)
    with pytest.raises(BadInput, match="expected a description of this model, received none"):
        dpt_deploy.load(alone)
