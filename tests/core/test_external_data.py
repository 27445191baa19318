"""Weights that no hash covers are refused: external files are read from the graph itself, wherever it names them."""

from __future__ import annotations

import os

import pytest

from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadBundle, ContractError
from dpt_deploy.core.manifest import Manifest
from dpt_deploy.core.onnx_file import read_onnx_file
from tests.graphs import entry, field, model, tensor

FILE = "model.fp32.onnx"
PLACES = {  # a TensorProto in each place of a ModelProto where the format allows one
    "initializer": lambda t: field(7, field(5, t)),
    "sparse initializer": lambda t: field(7, field(15, field(1, t))),
    "indices of a sparse initializer": lambda t: field(7, field(15, field(2, t))),
    "constant": lambda t: field(7, field(1, field(5, field(5, t)))),
    "list of constants": lambda t: field(7, field(1, field(5, field(10, t)))),
    "sparse constant": lambda t: field(7, field(1, field(5, field(22, field(1, t))))),
    "list of sparse constants": lambda t: field(7, field(1, field(5, field(23, field(1, t))))),
    "branch": lambda t: field(7, field(1, field(5, field(6, field(5, t))))),
    "list of graphs": lambda t: field(7, field(1, field(5, field(11, field(5, t))))),
    "branch of a branch": lambda t: field(7, field(1, field(5, field(6, field(1, field(5, field(6, field(5, t)))))))),
    "function": lambda t: field(25, field(7, field(5, field(5, t)))),
    "default of a function": lambda t: field(25, field(11, field(5, t))),
    "training": lambda t: field(20, field(1, field(5, t))),
    "training step": lambda t: field(20, field(2, field(1, field(5, field(5, t))))),
}


def make(folder, content, files=()):
    """A bundle with the ONNX file `content` and `files` in its folder."""
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(b"weights")
    (folder / FILE).write_bytes(content)
    bundle = Bundle.create(folder, Manifest(name="x", contract=Contract().to_json()))
    bundle.add(FILE, "onnx", graph="model", precision="fp32")
    return Bundle.open(folder)


def graph(bundle):
    (artifact,) = bundle.find("onnx")
    return artifact


@pytest.mark.parametrize("place", PLACES)
def test_an_external_file_is_found_wherever_a_tensor_stands(tmp_path, place):
    bundle = make(tmp_path / "b", model(Contract()) + PLACES[place](tensor("weights.bin")), ["weights.bin"])
    assert read_onnx_file(bundle.folder / FILE).external == ("weights.bin",)
    assert [artifact.file for artifact in bundle.find("data")] == ["weights.bin"]
    bundle.path(graph(bundle))
    (bundle.folder / "weights.bin").write_bytes(b"Weights")
    with pytest.raises(BadBundle, match=r"weights\.bin does not match manifest\.json"):
        bundle.path(graph(bundle))
    bundle.update(artifacts=(graph(bundle),))
    with pytest.raises(BadBundle, match=r"reads weights from 'weights\.bin', which manifest\.json does not list"):
        bundle.path(graph(bundle))


@pytest.mark.parametrize("name", ["../weights.bin", "/etc/passwd", "sub/weights.bin", "", "*/_ORT_MEM_ADDR_/*"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    (tmp_path / "weights.bin").write_bytes(b"weights")
    bundle = make(tmp_path / "b", model(Contract(), field(5, tensor(name))))
    assert not bundle.find("data") and not bundle.intact(graph(bundle))
    with pytest.raises(BadBundle, match=r"which manifest\.json does not list.*dpt_deploy\.export"):
        bundle.path(graph(bundle))


def test_the_reader_agrees_with_the_onnx_package(tmp_path):
    onnx = pytest.importorskip("onnx")
    import numpy as np

    weights = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [64, 64]) for name in "xy"]
    proto = onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:], [weights]))
    onnx.helper.set_model_props(proto, {"contract": "c", "other": "o"})
    onnx.save(proto, tmp_path / "inside.onnx")
    found = read_onnx_file(tmp_path / "inside.onnx")
    assert found.metadata == {"contract": "c", "other": "o"} and found.external == ()
    onnx.save(proto, tmp_path / "outside.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert read_onnx_file(tmp_path / "outside.onnx").external == ("w.bin",)


@pytest.mark.parametrize("target", ["file", "data"])
def test_a_symbolic_link_out_of_the_folder_is_refused(tmp_path, target):
    bundle = make(tmp_path / "b", model(Contract(), field(5, tensor("weights.bin"))), ["weights.bin"])
    name = FILE if target == "file" else "weights.bin"
    os.rename(bundle.folder / name, tmp_path / name)
    (bundle.folder / name).symlink_to(tmp_path / name)
    with pytest.raises(BadBundle, match=rf"{name} is a symbolic link to a file outside the bundle; copy the bundle"):
        bundle.path(graph(bundle))
    os.rename(bundle.folder / name, tmp_path / "link")
    os.rename(tmp_path / name, bundle.folder / "inside")
    (bundle.folder / name).symlink_to("inside")
    bundle.path(graph(bundle))


def test_a_bundle_may_be_reached_by_a_link(tmp_path):
    make(tmp_path / "b", model(Contract()))
    (tmp_path / "link").symlink_to("b")
    bundle = Bundle.open(tmp_path / "link")
    bundle.path(graph(bundle))


@pytest.mark.parametrize(("contract", "message"), [
    (None, "the graph embeds no contract"), ("", "is not valid"), ("null", "is not valid"), ("[]", "is not valid"),
    ("{}", "is not valid"), ("{", "is not valid"), ("[" * 100_000 + "]" * 100_000, "nested more than 64"),
    ('{"input_size": [1e999, 1]}', "is not valid"), ('{"input_size": [NaN, 1]}', "is not valid"),
    (Contract(mean=(0.4, 0.5, 0.5)), "differs from the one in manifest.json"),
])
def test_a_graph_needs_the_contract_of_the_manifest(tmp_path, contract, message):
    bundle = make(tmp_path / "b", model(contract))
    with pytest.raises(ContractError, match=message) as caught:
        bundle.path(graph(bundle))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600 + len(str(tmp_path)) * 2
    assert not bundle.intact(graph(bundle))  # so that an export makes it again


def test_two_contracts_are_none(tmp_path):
    twice = model(Contract()) + field(14, entry("contract", "{}"))
    bundle = make(tmp_path / "b", twice)
    with pytest.raises(BadBundle, match="its metadata has two values for 'contract'"):
        bundle.path(graph(bundle))


@pytest.mark.parametrize("content", [
    b"", b"graph", b"<?xml version='1.0'?>", b"\x3a\xff\xff\xff\xff\x7fx", b"\x80" * 20, b"\x0b\x0c", b"\x02\x00",
    field(7, b"graph"), field(14, field(1, b"\xff")),
])
def test_what_is_not_an_onnx_file_is_refused(tmp_path, content):
    bundle = make(tmp_path / "b", content)
    with pytest.raises(BadBundle, match=rf"{FILE} is not a valid ONNX file: .*dpt_deploy\.export"):
        bundle.path(graph(bundle))


def test_every_truncation_is_read_or_refused(tmp_path):
    whole = model(Contract(), field(5, tensor("weights.bin")), note="n")
    for size in range(1, len(whole)):
        (tmp_path / "x").write_bytes(whole[:size])
        try:
            assert set(read_onnx_file(tmp_path / "x").external) <= {"weights.bin"}
        except ValueError:
            continue


def test_external_data_goes_with_its_graph_unless_another_one_needs_it(tmp_path):
    content = model(Contract(), field(5, tensor("shared.bin")) + field(5, tensor("own.bin")))
    bundle = make(tmp_path / "b", content, ["shared.bin", "own.bin"])
    (bundle.folder / "frame.fp32.onnx").write_bytes(model(Contract(), field(5, tensor("shared.bin"))))
    bundle.add("frame.fp32.onnx", "onnx", graph="frame", precision="fp32")
    bundle.remove(bundle.find("onnx", graph="model")[0])
    assert {path.name for path in bundle.folder.iterdir()} == {"manifest.json", "frame.fp32.onnx", "shared.bin"}
    bundle.path(graph(bundle))
