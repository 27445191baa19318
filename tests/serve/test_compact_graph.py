"""Compact outputs as nodes of a graph: what ONNX Runtime computes is what the library says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.compact import FORMS, Form, decode, encode, form, form_of_output
from dpt_deploy.core.errors import BuildError
from dpt_deploy.core.metrics import angle
from dpt_deploy.serve import ServeOptions, write_repository
from dpt_deploy.serve.compact_graph import write_compact_graph
from tests.tiny import photo

COMPACT = tuple(one for forms in FORMS.values() for one in forms.values() if not one.plain)
RANDOM = np.random.default_rng(3)


def identity(folder: Path, head: str, dtype: int = onnx.TensorProto.FLOAT) -> Path:
    """A graph whose output is its input: any map can be put in."""
    axes = ["batch", "height", "width", *([3] if head == "normals" else [])]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], [head])], "g",
        [onnx.helper.make_tensor_value_info("x", dtype, axes)], [onnx.helper.make_tensor_value_info(head, dtype, axes)])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10),
              folder / f"{head}.onnx")
    return folder / f"{head}.onnx"


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def unusual(head: str) -> np.ndarray:
    """Maps of all kinds of values, (1, 60, 70) or (1, 60, 70, 3)."""
    if head == "normals":
        values = RANDOM.normal(size=(1, 60, 70, 3)).astype(np.float32)
        values /= np.linalg.norm(values, axis=-1, keepdims=True)
        values[0, 0, :7] = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1), (0, 0, 0)]
        values[0, 1, :4] = [(np.nan,) * 3, (np.nan, 0, 1), (np.inf, 0, 0), (np.inf, -np.inf, 0)]
        return values
    values = RANDOM.uniform(0, 70 if head == "depth" else 1, (1, 60, 70)).astype(np.float32)
    values[0, 0, :12] = [0, 0.0004, 0.0005, 65.535, 65.536, np.inf, np.nan, -1, -np.inf, -0.0004, 3e38, 66000]
    return values


@pytest.mark.parametrize("one", COMPACT, ids=lambda one: one.output)
def test_nodes_and_library_agree_on_unusual_values(one: Form, tmp_path: Path) -> None:
    write_compact_graph(identity(tmp_path, one.head), tmp_path / "compact.onnx", (one,))
    values = unusual(one.head)
    (stored,) = session(tmp_path / "compact.onnx").run([one.output], {"x": values})
    expected = encode(one.head, one.name, values)
    if one.name == "uint16-mm":
        assert stored[0, 0, :12].tolist() == [0, 1, 1, 65535, 0, 0, 0, 0, 0, 0, 0, 0]
    assert stored.dtype == expected.dtype == np.dtype(one.dtype) and stored.shape == expected.shape
    if one.name.startswith("octahedral"):
        # The sum of three numbers may be rounded in another order: one step, seldom.
        steps = abs(stored.astype(int) - expected.astype(int))
        assert steps.max() <= 1 and (steps > 0).mean() < 0.002
        unit = values[0, 2:]
        assert angle(decode(one.head, one.name, stored)[0, 2:], unit).max() <= one.degrees
    else:
        assert np.array_equal(stored, expected, equal_nan=one.name == "float16")


def test_a_served_graph_has_the_maps_and_their_forms(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    served = write_repository(bundle, tmp_path, ServeOptions(served_by="onnxruntime", forms=COMPACT[::-1]))
    running = session(served.folder / "1" / "model.onnx")
    names = [one.output for one in served.config.outputs]
    assert [value.name for value in running.get_outputs()] == names
    assert [form_of_output(name) for name in names] == list(served.config.outputs)
    frames = np.stack([photo(90, 70, seed) for seed in (1, 2)])
    maps = dict(zip(names, running.run(names, {"frame": frames}), strict=True))
    (plain,) = bundle.find("onnx", graph="frame", precision="fp32")
    reference = session(bundle.path(plain)).run(["depth", "normals", "alpha"], {"frame": frames})
    for head, value in zip(("depth", "normals", "alpha"), reference, strict=True):
        assert np.array_equal(maps[head], value), "the float32 maps are as before"
    for one in COMPACT:
        value = maps[one.output]
        assert value.dtype == one.dtype and value.shape[:3] == frames.shape[:3]
        error = abs(decode(one.head, one.name, value) - maps[one.head])
        if one.head == "normals":
            assert angle(decode(one.head, one.name, value), maps[one.head]).max() <= one.degrees
        else:
            assert (error <= one.alpha + one.depth_metres + one.depth_relative * maps[one.head]).all()


def test_a_map_that_the_graph_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="expected an output alpha, received depth"):
        write_compact_graph(identity(tmp_path, "depth"), tmp_path / "compact.onnx", (form("alpha", "uint8"),))
    assert not (tmp_path / "compact.onnx").exists()
