"""Images arrive as they look, and the model graph is fed as PyTorch's own resizing would feed it."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.image_files import find_images
from dpt_deploy.export import pytorch_reference
from dpt_deploy.runtime.image import check_frames, postprocess, preprocess, read_image
from tests.tiny import photo

CONTRACTS = [
    Contract((160, 160)),
    Contract((160, 160), resize="letterbox"),
    Contract((96, 192), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize="letterbox"),
]
SIZES = [(64, 64), (333, 517), (517, 333), (160, 160), (30, 400), (1, 1), (1080, 1920)]


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: f"{c.resize}-{c.input_size}")
@pytest.mark.parametrize("size", SIZES)
def test_preprocessing_is_that_of_pytorch(contract: Contract, size: tuple[int, int]) -> None:
    frames = np.stack([photo(*size, seed) for seed in (1, 2)])
    have = preprocess(frames, contract)
    want = np.stack([pytorch_reference.preprocess(frame, contract).numpy() for frame in frames])
    assert have.dtype == np.float32 and have.flags.c_contiguous
    np.testing.assert_allclose(have, want, atol=5e-5)


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: f"{c.resize}-{c.input_size}")
@pytest.mark.parametrize("size", SIZES)
def test_postprocessing_is_that_of_pytorch(contract: Contract, size: tuple[int, int]) -> None:
    h, w = contract.input_size
    # Pictures rather than noise: PyTorch's float32 positions are off by up to 1e-5 pixels, and noise shows it.
    maps = np.stack([photo(h, w, seed) for seed in (1, 2)]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    outputs = {
        "depth": maps[:, :1] * 3 + 0.5,
        "normals": np.stack([maps[:, 0] * 2 - 1, maps[:, 1] * 2 - 1, maps[:, 2] * 0.7 + 0.3], axis=1),
        "alpha_logits": (maps[:, 2:] - 0.5) * 30,
    }
    have = postprocess(outputs, contract, size)
    assert set(have) == {"depth", "normals", "alpha"}
    assert {value.dtype for value in have.values()} == {np.dtype(np.float32)}
    for i in range(2):
        tensors = {name: torch.from_numpy(value[i : i + 1]) for name, value in outputs.items()}
        for name, want in pytorch_reference.postprocess(tensors, size, contract).items():
            np.testing.assert_allclose(have[name][i], want, atol=5e-5, err_msg=name)


def test_logits_of_any_size_give_coverage() -> None:
    logits = np.full((1, 1, 160, 160), 1e4, np.float32)
    logits[..., :80] = -1e4
    alpha = postprocess({"alpha_logits": logits}, CONTRACTS[0], (33, 77))["alpha"]
    assert alpha.min() == 0 and alpha.max() == 1


def _write(path: Path, image: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


def test_colours_are_rgb(tmp_path: Path) -> None:
    image = photo(20, 30)
    np.testing.assert_array_equal(read_image(_write(tmp_path / "a.png", image[..., ::-1])), image)


def test_gray_16_bit_and_rgba_become_rgb(tmp_path: Path) -> None:
    image = photo(20, 30)
    gray = read_image(_write(tmp_path / "gray.png", image[..., 0]))
    np.testing.assert_array_equal(gray, np.repeat(image[..., :1], 3, axis=2))
    deep = read_image(_write(tmp_path / "deep.png", image[..., ::-1].astype(np.uint16) * 257))
    np.testing.assert_array_equal(deep, image)
    rgba = read_image(_write(tmp_path / "rgba.png", np.dstack([image[..., ::-1], image[..., 0]])))
    np.testing.assert_array_equal(rgba, image)


@pytest.mark.parametrize(("orientation", "turn"), [(3, cv2.ROTATE_180), (6, cv2.ROTATE_90_CLOCKWISE)])
def test_a_photo_is_upright(tmp_path: Path, orientation: int, turn: int) -> None:
    """Phones store pictures sideways, with an EXIF note."""
    plain = _write(tmp_path / "plain.jpg", photo(40, 64)[..., ::-1])
    entry = struct.pack("<HHI", 0x0112, 3, 1) + struct.pack("<HH", orientation, 0)  # tag 0x0112, one SHORT
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    segment = b"Exif\0\0" + tiff
    data = plain.read_bytes()
    (tmp_path / "turned.jpg").write_bytes(
        data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    )
    np.testing.assert_array_equal(read_image(tmp_path / "turned.jpg"), cv2.rotate(read_image(plain), turn))


def test_a_name_of_any_language_works(tmp_path: Path) -> None:
    data = cv2.imencode(".png", photo(8, 8))[1].tobytes()
    (tmp_path / "Bild \u00e4\u6f22.png").write_bytes(data)
    assert read_image(tmp_path / "Bild \u00e4\u6f22.png").shape == (8, 8, 3)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff", ".webp"])
def test_half_an_image_is_no_image(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"half{suffix}"
    data = cv2.imencode(suffix, photo(64, 80))[1].tobytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput, match=r"half.*cannot be decoded"):
        read_image(path)
    assert "[ERROR" not in capfd.readouterr().err


@pytest.mark.parametrize("content", [b"", b"not an image\n" * 100, bytes(range(256)) * 40])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.png"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"notes\.png.*cannot be decoded"):
        read_image(path)


def test_a_folder_or_nothing_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="folder"):
        read_image(tmp_path)
    with pytest.raises(BadInput, match=r"no file .*nope\.png"):
        read_image(tmp_path / "nope.png")


def test_the_images_of_a_folder_come_by_name(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", "c.tif"):
        (tmp_path / name).touch()
    (tmp_path / "d.png").mkdir()
    found = find_images(tmp_path)
    assert [path.name for path in found.images] == ["a.jpg", "b.PNG", "c.tif"]
    assert [path.name for path in found.left_out] == ["d.png", "notes.txt"]
    assert found.left_out_line() == "skipped 2 files that are not images: d.png/, notes.txt"
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="found none"):
        find_images(tmp_path / "empty")


SHAPES = {
    "gray": (lambda rgb: rgb[..., 0], True), "gray, last": (lambda rgb: rgb[..., :1], True),
    "gray, first": (lambda rgb: np.moveaxis(rgb[..., :1], -1, 0), True),
    "gray and alpha": (lambda rgb: rgb[..., :2], True), "rgb": (lambda rgb: rgb, False),
    "rgba": (lambda rgb: np.dstack([rgb, rgb[..., 0]]), False),
    "first": (lambda rgb: np.moveaxis(rgb, -1, 0), False),
    "batch, first": (lambda rgb: np.moveaxis(np.stack([rgb, rgb]), -1, 1), False),
}
DTYPES = {
    "uint8": lambda x: x, "bool": lambda x: x > 127,
    "float32": lambda x: x / np.float32(255), "float64, 0 to 255": lambda x: x.astype(np.float64),
    "float16": lambda x: (x / np.float32(255)).astype(np.float16), ">f4": lambda x: (x / np.float32(255)).astype(">f4"),
    "uint16": lambda x: x.astype(np.uint16) * 257, ">u2": lambda x: (x.astype(np.uint16) * 257).astype(">u2"),
    "int64": lambda x: x.astype(np.int64), "int32, 16 bits": lambda x: x.astype(np.int32) * 257,
    "torch float32": lambda x: torch.from_numpy(np.ascontiguousarray(x)).float() / 255,
    "torch bfloat16": lambda x: torch.from_numpy(np.ascontiguousarray(x)).bfloat16(),
    "torch bool": lambda x: torch.from_numpy(np.ascontiguousarray(x)) > 127,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_advice_gives_the_picture_when_it_is_run(shape: str, dtype: str) -> None:
    rgb = photo(20, 30)
    if "bool" in dtype:
        rgb = (rgb > 127).astype(np.uint8) * 255
    arrange, gray = SHAPES[shape]
    image = DTYPES[dtype](arrange(rgb))
    want = np.repeat(rgb[..., :1], 3, axis=2) if gray else rgb
    if shape.startswith("batch"):
        want = np.stack([want, want])
    if dtype == "uint8" and shape == "rgb":
        return check_frames(image)
    with pytest.raises(BadInput, match=r"expected uint8 RGB \(H, W, 3\) with values 0 to 255, received") as caught:
        check_frames(image)
    lines = re.findall(r"(?:Values in|values in|Convert it)[^:]*: (.*?)(?:; |\.$)", str(caught.value))
    made = [eval(line, {"np": np, "image": image}) for line in lines]
    assert made, str(caught.value)
    for one in made:
        check_frames(one)
    off = 1 if "bfloat16" in dtype else 0
    assert any(np.abs(one.astype(int) - want.astype(int)).max() <= off for one in made), str(caught.value)


@pytest.mark.parametrize(("shape", "advice"), [
    ((0, 5, 3), "empty"), ((2, 4, 0, 3), "empty"), ((), "empty"), ((1, 2, 4, 5, 3), "batch"), ((5,), "batch"),
    ((9, 9, 9), "batch"),
])
def test_what_no_line_can_repair_is_said(shape: tuple[int, ...], advice: str) -> None:
    with pytest.raises(BadInput, match=rf"(?s)expected uint8 RGB.*{advice}"):
        check_frames(np.zeros(shape, np.uint8))
