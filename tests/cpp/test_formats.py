"""Pixel formats, strides and batches with a graph whose maps are known exactly, and invalid arguments."""

from __future__ import annotations

import numpy as np
import pytest

from dpt_deploy.backends.cpp import FORMATS, CppSession, Frames, Maps
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput, ContractError
from tests.cpp.test_parity import assert_identical, in_format
from tests.cpp.toy import make_toy, toy_maps


@pytest.fixture(scope="module")
def session(toy_folder):
    with CppSession(Bundle.open(toy_folder), threads=1) as session:
        yield session


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 21, 34, 3), np.uint8)


def expected_maps(rgb: np.ndarray, name: str) -> dict[str, np.ndarray]:
    return toy_maps(rgb[..., :1].repeat(3, -1) if name == "gray" else rgb)


@pytest.mark.parametrize("name", FORMATS)
def test_packed(session, rgb, name):
    assert_identical(session.infer(in_format(rgb, name), name), expected_maps(rgb, name))


@pytest.mark.parametrize("name", FORMATS)
def test_padded_rows_and_frames(session, rgb, name):
    pixels = in_format(rgb, name)
    n, h, w, c = pixels.shape
    padded = np.full((n, h + 2, w + 5, c), 200, np.uint8)
    padded[:, :h, :w] = pixels
    assert_identical(session.infer(padded[:, :h, :w], name), expected_maps(rgb, name))


@pytest.mark.parametrize("name", FORMATS)
def test_bottom_up_images_and_frames_in_reverse(session, rgb, name):
    pixels = in_format(rgb, name)
    flipped = np.ascontiguousarray(pixels[::-1, ::-1])[::-1, ::-1]
    assert flipped.strides[0] < 0
    assert flipped.strides[1] < 0
    assert_identical(session.infer(flipped, name), expected_maps(rgb, name))


def test_a_region_of_a_larger_picture(session):
    picture = np.random.default_rng(1).integers(0, 256, (1, 60, 80, 3), np.uint8)
    region = picture[:, 10:31, 7:41]
    assert_identical(session.infer(region), toy_maps(region))


def test_frames_far_apart(session):
    video = np.random.default_rng(2).integers(0, 256, (9, 8, 8, 4), np.uint8)
    assert_identical(session.infer(video[::4], "bgra"), toy_maps(video[::4, ..., 2::-1]))


def test_input_is_not_modified(session, rgb):
    before = rgb.copy()
    session.infer(rgb)
    np.testing.assert_array_equal(rgb, before)


class TestInvalidArguments:
    @pytest.fixture
    def call(self, session, rgb):
        """Calls dpt_infer or dpt_infer_device with changed fields."""
        buffer = np.empty(rgb.size * 3, np.float32)

        def infer(maps: dict | None = None, device: bool = False, **changes: int | None) -> None:
            n, h, w, _ = rgb.shape
            fields = {"data": rgb.ctypes.data, "batch": n, "height": h, "width": w, "format": 0} | changes
            chosen = Maps(**({"depth": buffer.ctypes.data} if maps is None else maps))
            if device:
                session.check(session.library.dpt_infer_device(session.handle, Frames(**fields), chosen, None))
            else:
                session.check(session.library.dpt_infer(session.handle, Frames(**fields), chosen))

        return infer

    @pytest.mark.parametrize(("changes", "message"), [
        ({"data": None}, r"frames->data: expected a pointer to pixels, received NULL"),
        ({"batch": 0}, r"expected a batch, height and width of at least 1, received 0, 21 and 34"),
        ({"height": -5}, r"received 3, -5 and 34"),
        ({"width": 0}, r"received 3, 21 and 0"),
        ({"format": 5}, r"frames->format: expected DPT_RGB \(0\).*received 5"),
        ({"format": -1}, r"received -1"),
        ({"row_stride": 101}, r"row_stride: expected 0 or at least 102 bytes.*received 101"),
        ({"row_stride": -101}, r"received -101"),
        ({"batch": 2**31 - 1, "height": 2**31 - 1, "width": 2**31 - 1}, r"exceed the addressable memory"),
        ({"row_stride": 2**62}, r"exceed the addressable memory"),
        ({"row_stride": -(2**63)}, r"exceed the addressable memory"),
        ({"frame_stride": 2**62}, r"exceed the addressable memory"),
    ])
    def test_frames(self, call, changes, message):
        with pytest.raises(BadInput, match=message):
            call(**changes)

    def test_no_map(self, call):
        with pytest.raises(BadInput, match=r"at least one of depth, normals, alpha, received NULL for all"):
            call(maps={})

    def test_device_memory_without_a_gpu(self, call):
        with pytest.raises(ContractError, match=r"onnxruntime-cpu does not run on a GPU. Call dpt_infer"):
            call(device=True)

    def test_device_memory_in_another_format(self, call):
        with pytest.raises(BadInput, match=r"expected DPT_RGB without padding in device memory, received format 1"):
            call(device=True, format=1)

    def test_a_head_that_the_bundle_lacks(self, tmp_path, rgb):
        bundle = make_toy(tmp_path / "two", Contract(heads=("depth", "alpha")))
        with CppSession(bundle, threads=1) as session:
            assert session.library.dpt_heads(session.handle) == 5
            assert set(session.infer(rgb)) == {"depth", "alpha"}
            message = r"expected buffers only for the bundle's heads \(depth, alpha\), received one for normals"
            with pytest.raises(ContractError, match=message):
                session.infer(rgb, outputs=["depth", "normals"])
