"""Images from files and PIL: the same picture either way, upright, or one sentence that says what is the matter."""

from __future__ import annotations

import contextlib
import re
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.image_files import SUFFIXES, decode_bytes, find_images, from_pil, is_pil, read_image
from dpt_deploy.core.image_header import header_of, read_header
from dpt_deploy.runtime.image import as_frame
from tests.tiny import photo

ORIENTATION = 0x0112


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(photo(40, 64))


def close(have: np.ndarray, want: np.ndarray, mean: float = 0.0) -> None:
    assert have.shape == want.shape and have.dtype == want.dtype == np.uint8
    assert np.abs(have.astype(int) - want.astype(int)).mean() <= mean


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_file_and_its_pil_image_are_the_same_upright_picture(
    suffix: str, orientation: int, picture: Image.Image, tmp_path: Path
) -> None:
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 100} if suffix in ("jpg", "avif") else {"lossless": True} if suffix == "webp" else {}
    picture.save(path, exif=exif, **options)
    if suffix == "tif":
        picture.save(path, tiffinfo={274: orientation})
    turned = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}[orientation]
    want = np.asarray(picture if turned is None else picture.transpose(Image.Transpose(turned)))
    close(read_image(path), want, mean=4)
    with Image.open(path) as image:
        close(from_pil(image), want, mean=4)


def test_an_avif_with_a_mirror_and_exif_is_turned_once(picture: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010F] = "Maker"
    picture.save(tmp_path / "a.avif", exif=exif, quality=100)
    close(read_image(tmp_path / "a.avif"), np.asarray(picture.transpose(Image.Transpose.ROTATE_270)), mean=4)


MODES = {
    "1": "png", "L": "png", "LA": "png", "P": "png", "RGB": "png", "RGBA": "png", "I;16": "png", "I;16B": "tif",
    "CMYK": "jpg", "YCbCr": "jpg", "LAB": "tif",
}


@pytest.mark.parametrize("mode", [*MODES, "HSV", "RGBX", "RGBa", "La", "PA"])
def test_each_mode_of_pil_becomes_the_rgb_that_it_shows(mode: str, picture: Image.Image, tmp_path: Path) -> None:
    gray = photo(40, 64)[..., 0]
    if mode.startswith("I;16"):
        deep = gray.astype(np.uint16) * 257
        image = Image.fromarray(deep.astype(">u2") if mode == "I;16B" else deep)
        assert image.mode == mode
        want = np.repeat(gray[..., None], 3, axis=2)
    else:
        step = {"La": "LA", "PA": "P", "RGBa": "RGBA"}.get(mode)
        image = (picture.convert(step) if step else picture).convert(mode)
        want = np.asarray((image.convert(step) if mode == "La" else image).convert("RGB"))
    have = as_frame(image, "image", 10**6)
    close(have, want)
    assert is_pil(image)
    if mode in MODES:
        path = tmp_path / f"a.{MODES[mode]}"
        image.save(path, **({"quality": 100} if mode in ("CMYK", "YCbCr") else {}))
        with Image.open(path) as opened:
            close(from_pil(opened), want, mean=4)
            if mode != "LAB":  # OpenCV reads it differently
                close(read_image(path), from_pil(opened), mean=4)


@pytest.mark.parametrize(("mode", "top"), [("F", 255), ("F", 1), ("I", 255)])
def test_pil_modes_without_a_range_get_lines_that_work(mode: str, top: int) -> None:
    gray = photo(40, 64)[..., 0]
    image = Image.fromarray(gray.astype(np.float32) * (top / 255) if mode == "F" else gray.astype(np.int32))
    with pytest.raises(BadInput, match=f"PIL mode {mode}") as caught:
        from_pil(image)
    lines = re.findall(r"in \[0, \d+\]: (.*?)(?:; |\.$)", str(caught.value))
    assert len(lines) == 2
    made = [np.asarray(eval(line, {"image": image})) for line in lines[: 1 if mode == "I" else 2]]
    assert any(np.abs(one.astype(int) - gray[..., None]).max() <= 1 for one in made)


def test_a_damaged_pil_image_is_one_sentence(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:700])
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(BadInput, match="PIL cannot decode"):
        from_pil(image)


@pytest.mark.parametrize(("array", "what"), [
    (np.full((4, 4), 0.5, np.float32), "32-bit floating-point"), (np.full((4, 4, 3), 0.5, np.float64), "64-bit float"),
    (np.full((4, 4), 100, np.int16), "signed 16-bit"), (np.full((4, 4), 100, np.int32), "signed 32-bit"),
])
def test_a_tiff_without_a_white_says_so(array: np.ndarray, what: str, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.tif"), array)
    with pytest.raises(BadInput, match=rf"TIFF file; it holds {what}.*8 bits"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(("content", "what"), [
    (struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + bytes(500), "HEIC.*heif-convert"),
    (struct.pack(">I4s4sI4s", 20, b"ftyp", b"isom", 0, b"mp42") + bytes(500), "video"),
    (struct.pack(">I4s4sI", 16, b"ftyp", b"crx ", 1) + bytes(500), "camera raw"),
    (b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 254, 4, 1, 1) + bytes(500), "camera raw.*preview"),
    (b"\x76\x2f\x31\x01" + bytes(500), "OpenEXR.*Tone-map"), (b"#?RADIANCE\n" + bytes(500), "Radiance.*Tone-map"),
    (b"Pf\n4 4\n-1.0\n" + bytes(64), "PFM"), (b"\xff\x0a" + bytes(500), "JPEG XL.*djxl"),
    (b"%PDF-1.7\n" + bytes(500), "PDF"), (b"<svg xmlns=", "SVG"), (b"<!DOCTYPE html><html>", "web page"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), (b"8BPS" + bytes(500), "Photoshop"),
])
def test_a_file_of_another_kind_says_what_it_is(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadInput, match=what):
        read_image(tmp_path / "a.png")


WRITTEN = [".png", ".jpg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".jp2", ".ppm", ".pam", ".ras"]


@pytest.mark.parametrize("suffix", WRITTEN)
def test_the_header_tells_the_size_before_decoding(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a{suffix}"
    data = cv2.imencode(suffix, photo(96, 130))[1].tobytes()
    path.write_bytes(data)
    assert read_header(path).size == (96, 130) == read_image(path).shape[:2]
    assert suffix in SUFFIXES and find_images(tmp_path).images == [path]
    monkeypatch.setattr(cv2, "imdecode", None)  # a TypeError if it is called
    with pytest.raises(BadInput, match=r"96x130 are 0\.01248 megapixels.*limit.*--max-pixels"):
        read_image(path, max_pixels=96 * 130 - 1)


@pytest.mark.parametrize("options", [
    ("webp", {"lossless": False}), ("webp", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}), ("jpg", {"progressive": True}),
    ("tif", {"big_tiff": True}), ("tif", {"compression": "tiff_lzw"}), ("jpg", {"comment": b"x" * 60_000}),
], ids=str)
def test_other_headers_tell_their_size_too(options: tuple, picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / f"a.{options[0]}"
    picture.save(path, **options[1])
    assert read_header(path).size == (40, 64) == read_image(path).shape[:2]


def tiff(kind: int, *sizes: tuple[int, int]) -> bytes:
    """A gray TIFF of 20x10 pixels whose entries of width and height have a type of TIFF, given several times."""
    code = {3: "H", 4: "I", 8: "h", 9: "i"}
    entries = [entry for width, height in sizes for entry in ((256, kind, width), (257, kind, height))]
    entries += [(258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, 10), (279, 4, 200)]
    data = b"II*\0" + struct.pack("<I", 208) + bytes(200) + struct.pack("<H", len(entries))
    for tag, form, value in sorted(entries, key=lambda entry: entry[0]):
        data += struct.pack("<HHI", tag, form, 1) + struct.pack(f"<{code[form]}", value).ljust(4, b"\0")
    return data + bytes(4)


PAM = b"DEPTH 1\nMAXVAL 255\nTUPLTYPE GRAYSCALE\nENDHDR\n"


@pytest.mark.parametrize("content", [
    *(tiff(kind, (20, 10)) for kind in (3, 4, 8, 9)), tiff(4, (20, 10), (1, 1)),
    b"P4\n20 10\n", b"P4\n#c\r20 10\n1 1\n", b"P4 20 10#", b"P4 20 10\xff",
    b"P5\n#" + b"x" * 600 + b"\n20 10\n255\n", b"P5\n#" + b"x" * 504 + b"\n20 10\n255\n", b"P5 0020\t010 255 ",
    b"P7\nHEIGHT 10\nWIDTH 20\n" + PAM,
    b"P7\n#WIDTH 1\n# HEIGHT 1\nWIDTH 20\nHEIGHT 10\n" + PAM,
    b"P7\n#" + b"x" * 600 + b"\nWIDTH 20\nHEIGHT 10\n" + PAM,
    b"P7\n# ENDHDR\nWIDTH 20\nHEIGHT 10\n" + PAM, b"P7\n #WIDTH 99\rWIDTH 20\r# ENDHDR\r HEIGHT 10\n" + PAM,
], ids=lambda content: repr(content[:12]))
def test_the_header_and_the_decoder_read_the_same_size(content: bytes) -> None:
    content += bytes(200)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert image.shape == (10, 20) == header_of(content).size


@pytest.mark.parametrize("content", [
    b"P5\n#" + b"x" * 70_000 + b"\n20000 20000\n255\n",
    b"P7\n#" + b"x" * 70_000 + b"\nWIDTH 20000\nHEIGHT 20000\n" + PAM,
], ids=["P5", "P7"])
def test_a_size_behind_a_huge_comment_is_not_decoded_unseen(content: bytes) -> None:
    with pytest.raises(BadInput, match=r"received a PNM file; its first 64 kB do not tell its size\. Convert it"):
        decode_bytes(content, "a.ppm", cv2.IMREAD_COLOR)
    for short in (content[:1000], b"P5 " + b"9" * 4401 + b" 1\n"):
        with pytest.raises(BadInput, match="cannot be decoded"):
            decode_bytes(short, "a.ppm", cv2.IMREAD_COLOR)


@pytest.mark.parametrize("comment", [b"# ENDHDR\n", b"#\rENDHDRS\n", b"#WIDTH 1\n#HEIGHT 1\n# x ENDHDR\n"])
def test_a_few_bytes_do_not_claim_a_huge_picture(comment: bytes) -> None:
    with pytest.raises(BadInput, match=r"30000 ?x ?30000"):
        decode_bytes(b"P7\n" + comment + b"WIDTH 30000\nHEIGHT 30000\n" + PAM, "a.pam", cv2.IMREAD_COLOR)


@pytest.mark.parametrize("suffix", WRITTEN)
def test_no_damaged_file_is_a_traceback(suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, path, rng = cv2.imencode(suffix, photo(64, 80))[1].tobytes(), tmp_path / "a", np.random.default_rng(0)
    for i in range(300):
        damaged = bytearray(data[: rng.integers(0, min(len(data), 600))] if i % 2 else data)
        for at in rng.integers(0, max(1, min(len(damaged), 300)), 4):
            if damaged:
                damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        header = read_header(path)
        assert header.size is None or all(isinstance(side, int) for side in header.size)
        with contextlib.suppress(BadInput):
            read_image(path, max_pixels=10**6)
    assert "[ERROR" not in capfd.readouterr().err


def test_a_pixel_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    data = cv2.imencode(".png", photo(8, 8))[1].tobytes()
    (tmp_path / "bomb.png").write_bytes(data[:16] + struct.pack(">II", 20_000, 20_000) + data[24:])
    with pytest.raises(BadInput, match="20000x20000 are 400 megapixels, more than the limit of 120"):
        read_image(tmp_path / "bomb.png")
    with pytest.raises(BadInput, match=r"limit of 0\.001"):
        from_pil(Image.new("L", (40, 40)), max_pixels=1000)


def test_an_avif_whose_planes_are_damaged_is_one_sentence(tmp_path: Path) -> None:
    """PIL's decoder raises RuntimeError."""
    path = tmp_path / "a.avif"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    head, mark, planes = path.read_bytes().partition(b"mdat")
    path.write_bytes(head + mark + bytes(len(planes)))
    with Image.open(path) as image, pytest.raises(BadInput):
        from_pil(image)


@pytest.mark.parametrize("kind", [b"IDAT", b"PLTE", b"tEXt"])
def test_a_chunk_of_a_png_cannot_declare_gigabytes(tmp_path: Path, kind: bytes) -> None:
    """OpenCV allocates what a chunk declares, and touches it before it looks at the file."""
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:33] + (1_600_000_000).to_bytes(4, "big") + kind + data[41:])
    code = ("import resource, sys; from pathlib import Path; from dpt_deploy.core.image_files import read_image\n"
            "from dpt_deploy.core.errors import BadInput\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try: read_image(Path(sys.argv[1]))\n"
            "except BadInput as error: print(error)\n"
            "print('grew by', (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, 'MB')")
    said = subprocess.run([sys.executable, "-c", code, path], cwd=Path(__file__).parents[2], capture_output=True,
                          text=True, check=True).stdout
    assert "cannot be decoded: it is a PNG file that is truncated" in said
    assert int(said.split("grew by ")[1].split()[0]) < 256
