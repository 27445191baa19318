"""The maps of the C++ runtime: bit-identical to the Python runtime, and within the budgets of PyTorch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import dpt_deploy
from dpt_deploy.backends.cpp import FORMATS, CppSession
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.parity.images import scene as photo
from tests.cpp.conftest import run
from tests.eight_bits import add_eight_bits

# Frame sizes (H, W): the smallest of the default profile, odd sizes, both orientations, tiny ones.
SIZES = [(64, 64), (65, 127), (160, 160), (101, 333), (517, 333), (480, 640), (1, 1), (3, 500)]


def in_format(rgb: np.ndarray, name: str) -> np.ndarray:
    """RGB (N, H, W, 3) converted to another format; gray is the red channel."""
    alpha = np.full_like(rgb[..., :1], 77)
    return np.ascontiguousarray({
        "rgb": rgb, "bgr": rgb[..., ::-1], "rgba": np.concatenate([rgb, alpha], -1),
        "bgra": np.concatenate([rgb[..., ::-1], alpha], -1), "gray": rgb[..., :1],
    }[name])


def assert_identical(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for head, array in expected.items():
        assert found[head].tobytes() == np.ascontiguousarray(array).tobytes(), head


@pytest.fixture(scope="module", params=[1, 2], ids=["one thread", "two threads"])
def sessions(request, tiny_folder):
    """The same bundle in C++ and in Python, with the same ONNX Runtime and number of threads."""
    threads = request.param
    with (
        CppSession(Bundle.open(tiny_folder), "onnxruntime-cpu", threads=threads) as cpp,
        dpt_deploy.load(tiny_folder, backend="onnxruntime-cpu", threads=threads) as python,
    ):
        yield cpp, python.session


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_maps_are_bit_identical_to_python(sessions, size):
    cpp, python = sessions
    small = min(size) <= 16
    frames = np.full((2, *size, 3), 90, np.uint8) if small else np.stack([photo(*size, seed) for seed in (1, 2)])
    for batch in (frames[:1], frames):
        assert_identical(cpp.run({"frame": batch}), python.run({"frame": batch}))


def test_4k_is_bit_identical_to_python(sessions):
    cpp, python = sessions
    frame = photo(2160, 3840, 7)[None]
    assert_identical(cpp.run({"frame": frame}), python.run({"frame": frame}))


@pytest.mark.parametrize("name", FORMATS)
def test_every_pixel_format_gives_the_maps_of_the_same_rgb(sessions, name):
    cpp, python = sessions
    rgb = np.stack([photo(75, 91, seed) for seed in (1, 2)])
    expected = rgb[..., :1].repeat(3, -1) if name == "gray" else rgb
    assert_identical(cpp.infer(in_format(rgb, name), name), python.run({"frame": expected}))


def test_a_single_map_equals_the_map_of_a_full_call(sessions):
    cpp, _ = sessions
    frame = photo(120, 90, 7)[None]
    together = cpp.run({"frame": frame})
    for head, expected in together.items():
        assert_identical(cpp.run({"frame": frame}, outputs=[head]), {head: expected})


def test_the_fp16_graph_is_bit_identical(tiny_folder):
    frame = photo(200, 333, 7)[None]
    with (
        CppSession(Bundle.open(tiny_folder), "onnxruntime-cpu", precision="fp16", threads=1) as cpp,
        dpt_deploy.load(tiny_folder, backend="onnxruntime-cpu", precision="fp16", threads=1) as python,
    ):
        assert "frame.fp16.onnx" in cpp.reason
        assert_identical(cpp.run({"frame": frame}), python.session.run({"frame": frame}))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("weights_only", [False, True])
def test_eight_bits_are_bit_identical(tiny_folder, tmp_path, precision, weights_only):
    bundle = Bundle.open(shutil.copytree(tiny_folder, tmp_path / "eight"))
    add_eight_bits(bundle, precision, weights_only=weights_only)
    frame = photo(200, 333, 7)[None]
    with (
        CppSession(bundle, precision=precision, threads=1) as cpp,
        dpt_deploy.load(bundle.folder, backend="onnxruntime-cpu", precision=precision, threads=1) as python,
    ):
        assert f"frame.{precision}.onnx" in cpp.reason
        assert_identical(cpp.run({"frame": frame}), python.session.run({"frame": frame}))


def test_native_program_agrees_with_the_golden_file_and_the_reference(native: Path, tiny_folder: Path, tmp_path: Path):
    """The golden file is written by Python and read by C++; reference.npz of the bundle comes from PyTorch."""
    arrays = {}
    with dpt_deploy.load(tiny_folder, backend="onnxruntime-cpu", threads=1) as python:
        for (h, w), name in zip(SIZES[:5], FORMATS, strict=True):
            rgb = np.stack([photo(h, w, seed) for seed in (3, 4)])
            pixels = in_format(rgb, name)
            seen = rgb[..., :1].repeat(3, -1) if name == "gray" else rgb
            key = f"cases/{h}x{w}/{FORMATS[name]}"
            arrays[f"{key}/pixels"] = pixels
            arrays |= {f"{key}/{head}": value for head, value in python.session.run({"frame": seen}).items()}
    golden = tmp_path / "golden.npz"
    np.savez(golden, **arrays)
    done = run(native / "parity", tiny_folder, golden)
    assert "5 golden cases" in done.stdout
    assert " 0 failures" in done.stdout

    one_bit = next(key for key in arrays if key.endswith("/depth"))
    arrays[one_bit] = arrays[one_bit].copy()
    arrays[one_bit].view(np.uint32).flat[17] ^= 1
    np.savez(golden, **arrays)
    with pytest.raises(AssertionError, match=f"FAILED {one_bit} is not bit-identical"):
        run(native / "parity", tiny_folder, golden)


def test_contract_equals_the_manifest(sessions, tiny_folder):
    import json

    cpp, _ = sessions
    text = cpp.library.dpt_contract_json(cpp.handle).decode()
    assert json.loads(text) == Bundle.open(tiny_folder).contract.to_json()
    assert cpp.library.dpt_heads(cpp.handle) == 7
    assert cpp.library.dpt_version().decode() == dpt_deploy.__version__
    assert cpp.largest_batch((64, 64)) is None


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("DPT_OTHER_ONNXRUNTIME"),
                    reason="needs the path of a second libonnxruntime in DPT_OTHER_ONNXRUNTIME")
def test_another_version_of_onnxruntime_stays_within_the_fp32_budgets(native, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DPT_ONNXRUNTIME_LIBRARY", os.environ["DPT_OTHER_ONNXRUNTIME"])
    np.savez(tmp_path / "none.npz", nothing=np.zeros(1, np.float32))
    with pytest.raises(AssertionError, match=r"0 golden cases, [1-9][0-9]* reference cases, 0 failures"):
        run(native / "parity", tiny_folder, tmp_path / "none.npz")
