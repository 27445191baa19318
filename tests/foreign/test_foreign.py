"""Another project's ONNX model runs under our contract, from a description that is checked and never guessed unsaid."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import dpt_deploy
from dpt_deploy.build import EngineOptions
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BadBundle, BadInput
from dpt_deploy.export.importing import ImportConfig, import_model
from dpt_deploy.foreign import Description, describe
from dpt_deploy.foreign.bundle import cached_bundle

SIZE = (48, 64)
DESCRIPTION = """
input: {colours: bgr, white: 255, mean: [10, 20, 30], std: [2, 4, 8], resize: stretch}
outputs:
  depth: {output: far, kind: metric, metres: 0.01}
  normals: {output: 2, axes: [away, left, up]}
  alpha: {output: mask, values: probability}
"""


def foreign_model(path: Path, batch: int | str = "n", size: tuple[int, int] = SIZE, opset: int = 17) -> Path:
    """A model whose outputs are known functions of its input x (N, 3, H, W):

    far (N, H, W) = |x0| + 100; mask (N, 1, H, W) = sigmoid(x1 / 40 - 1); vectors (N, 3, H, W) = x + 1.
    """
    shape = [batch, 3, *size]
    zero, one, two, axis = (helper.make_tensor(name, TensorProto.INT64, [1], [value])
                            for name, value in (("zero", 0), ("one", 1), ("two", 2), ("axis", 1)))
    numbers = {"hundred": 100.0, "scale": 1 / 40, "shift": -1.0, "unit": 1.0}
    constants = [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in numbers.items()]
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one", "axis"], ["x0"]),
        helper.make_node("Squeeze", ["x0", "axis"], ["flat"]), helper.make_node("Abs", ["flat"], ["absolute"]),
        helper.make_node("Add", ["absolute", "hundred"], ["far"]),
        helper.make_node("Slice", ["x", "one", "two", "axis"], ["x1"]),
        helper.make_node("Mul", ["x1", "scale"], ["x1s"]),
        helper.make_node("Add", ["x1s", "shift"], ["logit"]), helper.make_node("Sigmoid", ["logit"], ["mask"]),
        helper.make_node("Add", ["x", "unit"], ["vectors"]),
    ]
    graph = helper.make_graph(nodes, "foreign", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)], [
        helper.make_tensor_value_info("mask", TensorProto.FLOAT, [batch, 1, *size]),
        helper.make_tensor_value_info("far", TensorProto.FLOAT, [batch, *size]),
        helper.make_tensor_value_info("vectors", TensorProto.FLOAT, shape),
    ], [zero, one, two, axis, *constants])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def expected(frame: np.ndarray) -> dict[str, np.ndarray]:
    """What the described model makes of a frame of its own size, in NumPy."""
    bgr = frame[..., ::-1].astype(np.float64)
    x = (bgr - (10, 20, 30)) / (2, 4, 8)
    away, left, up = np.moveaxis(x + 1, -1, 0)
    normals = np.stack([-left, up, -away], axis=-1)
    return {"depth": (abs(x[..., 0]) + 100) * 0.01, "alpha": 1 / (1 + np.exp(1 - x[..., 1] / 40)),
            "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("batch", ["n", 1])
def test_maps_are_those_of_the_model_itself(tmp_path: Path, cache: Path, batch: int | str) -> None:
    path = foreign_model(tmp_path / "other.onnx", batch)
    (tmp_path / "other.yaml").write_text(DESCRIPTION, encoding="utf-8")
    frames = np.random.default_rng(1).integers(0, 256, (3, *SIZE, 3), np.uint8)
    with dpt_deploy.load(path, measure=False) as runtime:
        assert runtime.assumed == () and runtime.bundle.contract.depth == "metric"
        predictions = runtime(frames)
        larger = runtime(cv2.resize(frames[0], (200, 100)))
    for frame, prediction in zip(frames, predictions, strict=True):
        for head, want in expected(frame).items():
            assert np.abs(prediction.maps[head] - want).max() < 2e-5, head
    assert larger.depth.shape == (100, 200)
    assert len(list((cache / "dpt-deploy" / "foreign").iterdir())) == 1


def test_an_import_is_judged_against_the_file_itself(tmp_path: Path) -> None:
    path = foreign_model(tmp_path / "other.onnx")
    (tmp_path / "about.yaml").write_text(DESCRIPTION, encoding="utf-8")
    out = tmp_path / "bundle"
    config = ImportConfig(path, str(tmp_path / "about.yaml"), out, EngineOptions(builder="none"))
    lines: list[str] = []
    _, report = import_model(config, say=lines.append)
    texts = [path.read_text(encoding="utf-8") for path in out.iterdir() if path.suffix in (".json", ".html", ".md")]
    assert not [text for text in (*lines, *texts, *map(str, out.iterdir())) if ".dpt-tmp" in text]
    assert all(Bundle.open(out).intact(artifact) for artifact in Bundle.open(out).artifacts)
    names = {stage.name: stage.status for stage in report.stages}
    assert report.passed and names["ONNX Runtime frame fp32"] == names["ONNX Runtime model fp32"] == "passed"
    assert report.against == "other.onnx in ONNX Runtime FP32"
    page, card = (out / "report.html").read_text(encoding="utf-8"), (out / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "PyTorch FP32" not in page.partition("<body>")[2][:2000] and "Imported from other.onnx" in page
    assert "Depth is z-depth in metres" in card and "fractions of the range" not in card
    frame = np.random.default_rng(2).integers(0, 256, (*SIZE, 3), np.uint8)
    with dpt_deploy.load(out, backend="onnxruntime-cpu") as runtime:
        assert runtime.artifact.graph == "frame"
        for head, want in expected(frame).items():
            assert np.abs(runtime(frame).maps[head] - want).max() < 2e-4, head


def test_a_wrong_description_fails_the_verdict_only_through_its_words(tmp_path: Path, cache: Path) -> None:
    """The colour order changes the maps: nothing cancels it out."""
    path = foreign_model(tmp_path / "other.onnx")
    frame = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), np.uint8)
    maps = {}
    for colours in ("bgr", "rgb"):
        about = tmp_path / f"{colours}.yaml"
        about.write_text(DESCRIPTION.replace("bgr", colours), encoding="utf-8")
        with dpt_deploy.load(path, description=about, measure=False) as runtime:
            maps[colours] = runtime(frame).depth
    assert np.abs(maps["bgr"] - maps["rgb"]).max() > 0.1


def test_shapes_of_david_are_a_guess_that_is_marked(tmp_path: Path, cache: Path) -> None:
    source = onnx.load(foreign_model(tmp_path / "other.onnx", size=(512, 512)))
    outputs = {value.name: value for value in source.graph.output}
    del source.graph.output[:]
    source.graph.output.extend(outputs[name] for name in ("far", "vectors", "mask"))
    onnx.save(source, tmp_path / "david_like.onnx")
    bundle = Bundle.open(cached_bundle(tmp_path / "david_like.onnx"))
    assert [one.fact for one in bundle.manifest.assumed] == ["description"]
    assert bundle.contract.depth == "relative" and bundle.contract.resize == "letterbox"
    stated = Bundle.open(cached_bundle(tmp_path / "david_like.onnx", "david"))
    assert stated.manifest.assumed == () and stated.contract == bundle.contract


def test_a_model_that_nothing_describes_is_refused_with_what_it_has(tmp_path: Path, cache: Path) -> None:
    path = foreign_model(tmp_path / "other.onnx")
    with pytest.raises(BadInput, match=r"(?s)x \[\?, 3, 48, 64\].*far.*Write other.yaml"):
        dpt_deploy.load(path)


@pytest.mark.parametrize(("text", "message"), [
    ("outputs: {}", "at least one of"),
    ("outputs: {depth: {output: 0, kind: metric, larger: nearer}}", "larger values are farther"),
    ("outputs: {normals: {output: 0, axes: [right, left, up]}}", "axes needs"),
    ("outputs: {depth: {output: 0}}\ninput: {std: [0, 1, 1]}", "input.std"),
    ("outputs: {depth: {output: 0}}\ninput: {colour: bgr}", "input.colour"),
    ("outputs: {depth: {output: -1}}", "outputs.depth.output"),
    ("outputs: [", "not valid"),
    ("", "the file"),
    ("!!python/object/apply:os.system ['true']", "not valid"),
    ("a: &a [*a, *a]", "expected a description"),
    ("outputs: {depth: {output: 0}, depth: {output: 1}}", "'depth' is there twice"),
    ("outputs: {depth: {output: !!timestamp x}}", "does not fit its tag"),
    ("outputs: {depth: {output: !!int ''}}", "does not fit its tag"),
    ("outputs: {depth: {output: 2001-99-99}}", "not valid"),
    ("outputs: {depth: {output: !!float x}}", "not valid"),
    ("outputs: {depth: {output: !!set {a}}}", "received a set"),
    ("outputs: {depth: {output: true}}", "received True"),
    (f"outputs: {{depth: {{output: {'1' * 5000}}}}}", "not valid"),
    (f"outputs: {{depth: {{output: {'n' * 5000}}}}}", "at most 200 characters"),
    ("a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrstuvwxyz"))
     + "outputs: {depth: {output: *z}}", "outputs.depth.output: expected the name.*received a list"),
])
def test_bad_descriptions_name_the_field(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "about.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=message) as raised:
        describe(tmp_path / "about.yaml")
    assert len(str(raised.value).partition("An example")[0].partition("Such a file")[0]) < 600


def test_json_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "about.json").write_text('{"outputs": {"depth": {"output": 0}}, "outputs": {"depth": {"output": 1}}}')
    with pytest.raises(BadInput, match="'outputs' is there twice"):
        describe(tmp_path / "about.json")


def test_yaml_may_merge_what_it_then_replaces(tmp_path: Path) -> None:
    (tmp_path / "about.yaml").write_text("outputs:\n  depth: &one {output: 0, larger: nearer}\n"
                                         "  alpha: {<<: {output: 0, values: logits}, output: 1}\n", encoding="utf-8")
    outputs = describe(tmp_path / "about.yaml").outputs
    assert (outputs.depth.larger, outputs.alpha.output, outputs.alpha.values) == ("nearer", 1, "logits")


def test_a_name_too_long_for_the_disk_is_one_sentence(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(BadInput, match="that describes the model, received neither"):
        describe("n" * 5000)
    for long in (f"{tmp_path}/{'n' * 300}.onnx", f"{tmp_path}/{'n' * 300}"):
        with pytest.raises((BadInput, BadBundle), match=r"no file|does not exist"):
            dpt_deploy.load(long)
        with pytest.raises(BadInput, match="no file"):
            import_model(ImportConfig(Path(long), "david", tmp_path / "out", EngineOptions(builder="none")), print)


@pytest.mark.parametrize(("change", "message"), [
    ({"outputs": {"depth": {"output": 7}}}, "Correct outputs.depth.output"),
    ({"outputs": {"depth": {"output": "near"}}}, "mask, far, vectors"),
    ({"outputs": {"depth": {"output": "far"}}, "input": {"size": (64, 64)}}, "48x64"),
])
def test_descriptions_that_do_not_fit_the_graph(tmp_path: Path, cache: Path, change: dict, message: str) -> None:
    path = foreign_model(tmp_path / "other.onnx")
    with pytest.raises(BadInput, match=message):
        cached_bundle(path, Description.model_validate(change))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08", bytes(range(256)) * 8])
def test_files_that_are_no_models(tmp_path: Path, cache: Path, content: bytes) -> None:
    (tmp_path / "other.onnx").write_bytes(content)
    with pytest.raises(BadInput, match=r"other\.onnx: expected an ONNX"):
        dpt_deploy.load(tmp_path / "other.onnx", description="david")
    assert not list(cache.rglob("*.onnx"))


def test_a_description_is_for_foreign_models(tiny_bundle: Path) -> None:
    with pytest.raises(BadInput, match="Omit it"):
        dpt_deploy.load(tiny_bundle, description="david")
