"""Intrinsics from every source, the order of sources, and refusals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpt_deploy.core.errors import BadInput
from dpt_deploy.geometry import Intrinsics, find_intrinsics
from dpt_deploy.geometry.intrinsics import parse_matrix

SIZE = (480, 640)
MATRIX = [[500.0, 0, 320], [0, 510, 230], [0, 0, 1]]


def photo(path: Path, film: int | None) -> Path:
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    if film is not None:
        exif.get_ifd(0x8769)[0xA405] = film
    Image.new("RGB", SIZE[::-1]).save(path, exif=exif)
    return path


def test_a_matrix_as_an_array_and_as_the_file_of_training_data(tmp_path: Path) -> None:
    path = tmp_path / "cam_0000000.txt"
    np.savetxt(path, MATRIX)
    for given in (MATRIX, np.array(MATRIX), path, str(path)):
        found = find_intrinsics(given, SIZE)
        assert (found.fx, found.fy, found.cx, found.cy, found.guessed) == (500, 510, 320, 230, False)
        np.testing.assert_array_equal(found.matrix, MATRIX)
    path.write_text("500,0,320\n0,510,230\n0,0,1\n")
    assert find_intrinsics(path, SIZE).fy == 510


def test_focal_length_and_field_of_view() -> None:
    assert find_intrinsics(700, SIZE).fx == 700
    found = Intrinsics.from_fov(90, SIZE)
    assert found.fx == pytest.approx(320) and (found.cx, found.cy) == (320, 240)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_tells_the_focal_length_by_the_diagonal(tmp_path: Path, suffix: str) -> None:
    found = find_intrinsics(None, SIZE, photo(tmp_path / f"a{suffix}", 26))
    assert found.fx == pytest.approx(26 * 800 / math.hypot(36, 24)) and not found.guessed
    assert "EXIF: 26 mm" in str(found)


@pytest.mark.parametrize("film", [None, 0])
def test_the_last_resort_is_a_guess_and_says_so(tmp_path: Path, film: int | None) -> None:
    found = find_intrinsics(None, SIZE, photo(tmp_path / "a.jpg", film))
    assert found.guessed and "GUESSED" in str(found)
    assert found.fx == pytest.approx(50 * 800 / math.hypot(36, 24))
    assert find_intrinsics(None, SIZE).guessed


def test_a_damaged_file_has_no_exif(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.jpg", 26)
    path.write_bytes(path.read_bytes()[:60])
    assert Intrinsics.from_exif(path, SIZE) is None


def test_what_is_given_comes_before_exif(tmp_path: Path) -> None:
    assert find_intrinsics(700, SIZE, photo(tmp_path / "a.jpg", 26)).fx == 700


@pytest.mark.parametrize(("given", "words"), [
    (np.eye(4), "the shape"), ([[0, 0, 3], [0, 1, 3], [0, 0, 1]], "expected rows"), ("nowhere.txt", "no file"),
    ([[500, 9, 320], [0, 500, 240], [0, 0, 1]], "skew"),
    ([[500, 0, 3200], [0, 500, 240], [0, 0, 1]], "Scale the matrix"),
    ([[np.nan, 0, 320], [0, 500, 240], [0, 0, 1]], "expected rows"),
    (-5, "focal length"), (float("nan"), "focal length"),
    (Intrinsics.guess((4, 4)), "received those of"), (object(), "3x3 matrix"), (True, "shape"),
])
def test_impossible_values_are_refused(given: object, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        find_intrinsics(given, SIZE)


@pytest.mark.parametrize("degrees", [0, 180, -3, float("nan")])
def test_impossible_fields_of_view_are_refused(degrees: float) -> None:
    with pytest.raises(BadInput, match="field of view"):
        Intrinsics.from_fov(degrees, SIZE)


@pytest.mark.parametrize("text", ["", "words\n", "1 2\n3 4\n", "1 2 3\n4 5\n"])
def test_a_file_that_holds_no_matrix_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "k.txt").write_text(text)
    with pytest.raises(BadInput, match=r"k\.txt"):
        Intrinsics.from_file(tmp_path / "k.txt", SIZE)


def test_rows_of_different_lengths_are_counted() -> None:
    with pytest.raises(BadInput, match=r"a\.txt: expected a 3x3 matrix .*, received 3 rows of 2 or 3 values\.$"):
        parse_matrix(b"1 0 3\n0 1 2\n0 0\n", "a.txt")
