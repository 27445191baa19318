"""`reference.npz` is read by one reader. It refuses what could pass without a comparison, or exhaust the memory."""

from __future__ import annotations

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadBundle
from dpt_deploy.parity import Case, Reference

CONTRACT = Contract(input_size=(16, 24))


def whole_case(name="scene", adversarial=False, size=(10, 12), contract=CONTRACT):
    rng = np.random.default_rng(len(name))
    dims = {"batch": 1, "height": size[0], "width": size[1]}
    maps = {
        graph: {
            spec.name: rng.random([dims.get(length, length) for length in spec.shape[1:]], np.float32)
            for spec in contract.outputs(graph).values()
        }
        for graph in ("model", "frame")
    }
    image = rng.random((3, *contract.input_size), np.float32)
    return Case(name, adversarial, rng.integers(0, 256, (*size, 3), np.uint8), image, maps)


@pytest.fixture
def path(tmp_path):
    Reference((whole_case(), whole_case("noise", True)), CONTRACT.heads).save(tmp_path / "reference.npz")
    return tmp_path / "reference.npz"


def rewritten(path, **changes):
    """The file with other arrays; None removes one."""
    with np.load(path) as file:
        arrays = dict(file) | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})


def refused(path, *words):
    with pytest.raises(BadBundle, match=r"expected parity references.*Export the checkpoint again") as caught:
        Reference.load(path, CONTRACT)
    for word in words:
        assert word in str(caught.value)


def test_what_was_saved_is_read(path):
    reference = Reference.load(path, CONTRACT)
    assert [(case.name, case.adversarial) for case in reference.cases] == [("scene", False), ("noise", True)]
    want, have = whole_case(), reference.cases[0]
    np.testing.assert_array_equal(have.frame, want.frame)
    np.testing.assert_array_equal(have.image, want.image)
    for graph, maps in want.maps.items():
        assert list(have.maps[graph]) == list(maps)
        for name, value in maps.items():
            np.testing.assert_array_equal(have.maps[graph][name], value)


def test_arrays_in_fortran_order_keep_their_axes(path):
    want = np.asfortranarray(whole_case().maps["frame"]["depth"])
    rewritten(path, **{"0/frame/depth": want})
    np.testing.assert_array_equal(Reference.load(path, CONTRACT).cases[0].maps["frame"]["depth"], want)


@pytest.mark.parametrize("key", ["0/frame/normals", "1/model/alpha_logits", "0/frame", "1/image"])
def test_every_case_needs_every_input_and_map_of_both_graphs(path, key):
    rewritten(path, **{key: None})
    refused(path, f"lacks {key.partition('/')[2]}")


def test_cases_without_any_map_are_refused(path):
    with np.load(path) as file:
        gone = {key: None for key in file.files if key.count("/") == 2}
    rewritten(path, **gone)
    refused(path, "lacks model/depth")


def test_the_heads_are_those_of_the_contract(path):
    two = Contract(CONTRACT.input_size, heads=("depth", "alpha"))
    with pytest.raises(BadBundle, match="belongs to no case"):
        Reference.load(path, two)
    Reference((whole_case(contract=two),), two.heads).save(path)
    assert Reference.load(path, two).heads == ("depth", "alpha")
    refused(path, "lacks model/normals")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"names": np.array("scene")}, "names: expected"),
        ({"names": np.array(["a"])}, "adversarial: expected"),
        ({"names": np.array([], "U5"), "adversarial": np.array([], bool)}, "names: expected"),
        ({"names": np.array([1.0, 2.0], np.float32)}, "names: expected"),
        ({"names": None}, "names: expected"),
        ({"adversarial": np.array([True, True])}, "a case that is not adversarial"),
        ({"adversarial": np.array([0.0, 1.0], np.float32)}, "adversarial: expected"),
        ({"0/frame": np.zeros((0, 5, 3), np.uint8)}, "frame is uint8 [0, 5, 3]"),
        ({"0/frame": np.zeros((10, 12, 3), np.float32)}, "frame is float32"),
        ({"0/image": np.zeros((3, 16, 25), np.float32)}, "expected float32 [3, 16, 24]"),
        ({"0/frame/depth": np.zeros((12, 10), np.float32)}, "expected float32 [10, 12]"),
        ({"0/frame/depth": np.zeros((10, 12))}, "dtype float64"),
        ({"0/frame/depth": np.full((10, 12), np.nan, np.float32)}, "not finite"),
        ({"2/frame/depth": np.zeros((10, 12), np.float32)}, "belongs to no case"),
        ({"0/frame/depth": np.array([None])}, "dtype object"),
    ],
)
def test_arrays_that_are_not_a_reference_are_refused(path, changes, word):
    rewritten(path, **changes)
    refused(path, word)


def test_files_that_are_no_archive_are_refused(path, tmp_path):
    data = path.read_bytes()
    for damaged in (b"", data[: len(data) // 2], data[:-10], b"PK\x05\x06" + bytes(18), b"not a zip file"):
        path.write_bytes(damaged)
        refused(path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    path.write_bytes((tmp_path / "array.npy").read_bytes())
    refused(path)
    refused(tmp_path)
    refused(tmp_path / "missing.npz")


def test_a_changed_byte_of_an_array_fails_its_checksum(path):
    data = bytearray(path.read_bytes())
    at = data.index(whole_case().maps["model"]["depth"].tobytes())
    data[at + 5] ^= 1
    path.write_bytes(data)
    refused(path, "CRC")


def header_of(shape, dtype="<f4"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_a_header_with_numbers_of_python_2_is_refused(path):
    """NumPy reads it with a warning."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("2/frame.npy", header_of((3, 4)).replace(b"(3, 4)", b"(3L,4)") + bytes(48))
    refused(path, "2/frame.npy' has a header that NumPy does not write")


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 62, 1 << 62), (-1,), (-1, -5)])
def test_a_huge_declared_shape_allocates_nothing(path, shape):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("2/frame.npy", header_of(shape) + bytes(20))
    tracemalloc.start()
    refused(path, "2/frame")
    assert tracemalloc.get_traced_memory()[1] < 10 * path.stat().st_size
    tracemalloc.stop()


def test_compressed_and_overlapping_entries_cannot_multiply_the_size(path):
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("2/frame.npy", header_of((1 << 26,)) + bytes(4 << 26))
    assert path.stat().st_size < 4 << 20
    refused(path, "its arrays need more than")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("names.npy", header_of((2,), "<U1") + b"abcdefgh")
    refused(path, "compressed")
