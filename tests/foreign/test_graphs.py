"""What a foreign graph really gives decides, not what its file or a description says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

import dpt_deploy
from dpt_deploy.build import EngineOptions
from dpt_deploy.core.errors import BadInput
from dpt_deploy.export.foreign_graphs import ForeignModel, at_bundle_opset
from dpt_deploy.export.importing import ImportConfig, import_model
from dpt_deploy.foreign import Description
from dpt_deploy.foreign.bundle import cached_bundle, create_bundle, read_foreign
from dpt_deploy.foreign.describe import Found
from dpt_deploy.foreign.graph import session_of
from tests.foreign.test_foreign import cache

__all__ = ["cache"]
DEPTH = {"outputs": {"depth": {"output": 0}}}
NORMALS = {"outputs": {"normals": {"output": 0}}}
ALPHA = {"outputs": {"alpha": {"output": 0, "values": "logits"}}}


def write(path: Path, output: str, body: str, batch: str = "N", ir: int = 8, size: str = "16, 24",
          weights: str = "") -> Path:
    """A model of the input x (`batch`, 3, 16, 24) with one output."""
    text = f'''<ir_version: {ir}, opset_import: ["": 17]>
        other (float[{batch}, 3, {size}] x) => ({output}) {weights} {{ {body} }}'''
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def imported(path: Path, description: dict, out: Path) -> None:
    import_model(ImportConfig(path, str(about(path, description)), out, EngineOptions(builder="none")), lambda _: None)


def check_import(path: Path, description: dict, folder: Path) -> None:
    """The first steps of an import: the graph that it converts and adapts has the maps of the file itself."""
    stated = Description.model_validate(description)
    converted, opset = at_bundle_opset(source := read_foreign(path))
    bundle, contract = create_bundle(folder, converted, Found(stated, "the test"))
    assert bundle.find("onnx")[0].details.opset == opset
    image = np.random.default_rng(1).random((1, 3, *contract.input_size), np.float32)
    session = session_of(folder / "model.fp32.onnx")
    maps = zip(session.get_outputs(), session.run(None, {"image": image}), strict=True)
    own = ForeignModel(source, stated)(torch.from_numpy(image))
    for value, have in maps:
        assert np.abs(have - own[value.name].numpy()).max() < 1e-5


def about(path: Path, description: dict) -> Path:
    file = path.with_name("about.json")
    file.write_text(Description.model_validate(description).model_dump_json(exclude_none=True), encoding="utf-8")
    return file


BAD = {
    "channels of depth": ("float[N, 3, 16, 24] y", "y = Relu(x)", DEPTH, r"\(N, 1, H, W\) as depth, received"),
    "one channel of normals": ("float[N, 1, 16, 24] y", "y = ReduceMean<axes=[1]>(x)", NORMALS, "as normals"),
    "normals without an axis": ("float[N, 16, 24] y", "y = ReduceMean<axes=[1], keepdims=0>(x)", NORMALS, "as normals"),
    "half the size": ("float[N, 1, 8, 12] y", "one = ReduceMean<axes=[1]>(x) y = AveragePool<kernel_shape=[2, 2], "
                      "strides=[2, 2]>(one)", DEPTH, "of the input's size 16x24.*Resize"),
    "height and width in turn": ("float[N, 24, 16] y", "one = ReduceMean<axes=[1], keepdims=0>(x) "
                                 "y = Transpose<perm=[0, 2, 1]>(one)", DEPTH, "of the input's size"),
    "one number": ("float[N, 1] y", "y = ReduceMean<axes=[2, 3], keepdims=0>(x)", ALPHA, "as alpha"),
    "true and false": ("bool[N, 1, 16, 24] y", "one = ReduceMean<axes=[1]>(x) zero = Constant<value_float=0.0>() "
                       "y = Greater(one, zero)", DEPTH,
                       r"float32, .*int8, .* or uint64 as depth, received the output y \[\?, 1, 16, 24\] bool"),
    "words": ("string[N, 1, 16, 24] y", "one = ReduceMean<axes=[1]>(x) y = Cast<to=8>(one)", ALPHA,
              "float32, float16 or float64 as alpha logits, received"),
    "bfloat16": ("bfloat16[N, 1, 16, 24] y", "one = ReduceMean<axes=[1]>(x) y = Cast<to=16>(one)", DEPTH,
                 r"received the output y \[\?, 1, 16, 24\] bfloat16\. Add a Cast to float32"),
    "a mask of bool as logits": (
        "bool[N, 1, 16, 24] y", "one = ReduceMean<axes=[1]>(x) zero = Constant<value_float=0.0>() "
        "y = Greater(one, zero)", ALPHA, r"or float64 as alpha logits, .*bool\. .*set outputs\.alpha\.values to"),
    # The file states a size that its nodes do not give.
    "a stated size": ("float[N, 1, 16, 24] y", "one = ReduceMean<axes=[1]>(x) y = AveragePool<kernel_shape=[2, 2], "
                      "strides=[2, 2]>(one)", DEPTH, "of the input's size"),
    # Only a run can tell: the number of kept values.
    "a size that depends on values": (
        "float[a, b, c, d] y", "s = NonZero(x) t = Shape(s) one = Constant<value_ints=[1]>() n = Gather(t, one) "
        "nine = Constant<value_ints=[9]>() m = Add(n, nine) size = Concat<axis=0>(one, one, m, m) "
        "y = ConstantOfShape(size)", DEPTH, "of the input's size"),
    "three maps as a batch": ("float[a, b, c] y", "s = Shape<start=1>(x) y = Reshape(x, s)", DEPTH, "as depth"),
    "three maps as a batch, in a run": (
        "float[a, b, c] y", "s = NonZero(x) t = Shape(s) one = Constant<value_ints=[1]>() n = Gather(t, one) "
        "three = Constant<value_ints=[3]>() m = Add(n, three) "
        "sizes = Shape<start=2>(x) size = Concat<axis=0>(m, sizes) y = ConstantOfShape(size)", DEPTH, "as depth"),
}


@pytest.mark.parametrize("case", BAD)
def test_outputs_that_are_no_maps_are_refused(tmp_path: Path, cache: Path, case: str) -> None:
    output, body, description, message = BAD[case]
    path = write(tmp_path / "other.onnx", output, body, batch="1" if "batch" in case else "N")
    with pytest.raises(BadInput, match=rf"(?s)^[^\n]*other\.onnx: .*{message}"):
        cached_bundle(path, Description.model_validate(description))
    assert not list(cache.rglob("*.onnx"))
    with pytest.raises(BadInput, match=rf"(?s)^[^\n]*other\.onnx: .*{message}"):
        imported(path, description, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("dtype", "number"), [("float16", 10), ("double", 11), ("int32", 6), ("uint16", 4)])
def test_other_types_of_depth_become_float32(tmp_path: Path, cache: Path, dtype: str, number: int) -> None:
    body = f"one = ReduceSum(x) big = ReduceMax<axes=[1]>(x) y = Cast<to={number}>(big)"
    path = write(tmp_path / "other.onnx", f"{dtype}[N, 1, 16, 24] y", body)
    description = {"input": {"white": 255}, "outputs": {"depth": {"output": 0, "kind": "metric", "metres": 0.5}}}
    frame = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    with dpt_deploy.load(path, "onnxruntime-cpu", description=about(path, description)) as runtime:
        depth = runtime(frame).depth
    assert depth.dtype == np.float32 and np.abs(depth - frame.max(axis=-1) * 0.5).max() <= (0.51 if number in (6, 4)
                                                                                          else 0.05)
    check_import(path, description, tmp_path / "out")


def test_a_mask_of_true_and_false_is_alpha(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "other.onnx", "bool[N, 1, 16, 24] y",
                 "one = ReduceMean<axes=[1]>(x) half = Constant<value_float=0.5>() y = Greater(one, half)")
    description = {"outputs": {"alpha": {"output": 0}}}
    frame = np.zeros((16, 24, 3), np.uint8)
    frame[:8] = 255
    with dpt_deploy.load(path, "onnxruntime-cpu", description=about(path, description)) as runtime:
        alpha = runtime(frame).alpha
    assert alpha[:8].min() > 0.999 and alpha[8:].max() < 0.001


def test_a_fixed_batch_above_one_is_refused(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "other.onnx", "float[4, 1, 16, 24] y", "y = ReduceMean<axes=[1]>(x)", batch="4")
    for action in (lambda: cached_bundle(path, Description.model_validate(DEPTH)),
                   lambda: imported(path, DEPTH, tmp_path / "out")):
        with pytest.raises(BadInput, match=r"other\.onnx: .*one whose batch is fixed to 4\. Export the model again"):
            action()


def test_a_batch_that_only_the_nodes_fix_is_one(tmp_path: Path, cache: Path) -> None:
    """Many exports state an open batch and have a constant 1 inside."""
    path = write(tmp_path / "other.onnx", "float[N, 1, 16, 24] y",
                 "one = ReduceMean<axes=[1]>(x) s = Constant<value_ints=[1, 1, 16, 24]>() y = Reshape(one, s)")
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
    with dpt_deploy.load(path, "onnxruntime-cpu", description=about(path, DEPTH)) as runtime:
        for frame, prediction in zip(frames, runtime(frames), strict=True):
            assert np.abs(prediction.depth - frame.mean(axis=-1) / 255).max() < 1e-5


def test_weights_that_are_inputs_too_of_ir_3(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "other.onnx", "float[N, 1, 16, 24] y", "one = ReduceMean<axes=[1]>(x) y = Mul(one, w)",
                 weights="<float[1] w = {2.0}>")
    model = onnx.load(path)
    model.ir_version = 3
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [1]))
    onnx.save(model, path)
    frame = np.full((16, 24, 3), 51, np.uint8)
    with dpt_deploy.load(path, "onnxruntime-cpu", description=about(path, DEPTH)) as runtime:
        assert np.abs(runtime(frame).depth - 0.4).max() < 1e-5
    check_import(path, DEPTH, tmp_path / "out")


def test_a_model_that_cannot_run_says_so(tmp_path: Path, cache: Path) -> None:
    """It reshapes to a size that depends on values, which only a run shows."""
    body = ("s = NonZero(x) t = Shape(s) index = Constant<value_ints=[1]>() n = Gather(t, index) "
            "seven = Constant<value_ints=[7]>() m = Add(n, seven) size = Concat<axis=0>(index, index, m, m) "
            "one = ReduceMean<axes=[1]>(x) y = Reshape(one, size)")
    path = write(tmp_path / "other.onnx", "float[a, b, c, d] y", body)
    for action in (lambda: cached_bundle(path, Description.model_validate(DEPTH)),
                   lambda: imported(path, DEPTH, tmp_path / "out")):
        with pytest.raises(BadInput, match=r"other\.onnx: expected a model that runs on an input of \[1, 3, 16, 24\], "
                                           r"received one that fails \(.*Reshape"):
            action()
    assert not (tmp_path / "out").exists() and not list(cache.rglob("*.onnx"))
