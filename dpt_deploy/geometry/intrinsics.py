"""Intrinsics of a pinhole camera, from a matrix, a focal length, a field of view, EXIF, or a guess that says so.

The centre of a pixel is its index plus one half, so the middle of an image of width W is W / 2. Calibrations in
OpenCV's convention, where it is the index, need 0.5 added to cx and cy.
"""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..core.errors import BadInput, missing_package
from ..core.files import existing_file
from ..core.image_files import is_pil

FILM_DIAGONAL = math.hypot(36, 24)
"""Diagonal of a 35 mm film frame [mm]. A 35 mm equivalent compares diagonals (CIPA DCG-001)."""
GUESS = 50.0
"""The focal length that is guessed, where nothing tells it [mm on 35 mm film]: a normal lens, 47 degrees diagonally."""
_EXIF_IFD, _FOCAL_35MM = 0x8769, 0xA405
_LONGEST_FILE = 4096  # bytes; a matrix takes 250
_EXPECTED = "expected a 3x3 matrix of intrinsics [pixels]"


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera for an image of `size`."""

    fx: float
    """Focal length along x [pixels]."""
    fy: float
    """Focal length along y [pixels]."""
    cx: float
    """Principal point [pixels], from the left edge of the image."""
    cy: float
    """Principal point [pixels], from the upper edge of the image."""
    size: tuple[int, int]
    """(H, W) of the image [pixels]."""
    source: str = "as given"
    """Where the values come from."""
    guessed: bool = False
    """Whether the focal length is a guess. Shapes are then stretched or flattened along the viewing direction."""

    @classmethod
    def from_matrix(cls, matrix: Any, size: tuple[int, int], source: str = "a matrix") -> Self:
        """From a 3x3 matrix [pixels], rows (fx, 0, cx), (0, fy, cy), (0, 0, 1). Raises `BadInput` for any other."""
        try:
            k = np.asarray(matrix, np.float64)
        except (TypeError, ValueError) as error:
            raise BadInput(f"intrinsics: expected a 3x3 matrix of numbers from {source}, received "
                           f"{matrix!r}.") from error
        form = "expected rows (fx, 0, cx), (0, fy, cy), (0, 0, 1) in pixels"
        if k.shape != (3, 3):
            raise BadInput(f"intrinsics, {source}: {form}, received the shape {k.shape}.")
        if not np.isfinite(k).all() or k[0, 0] <= 0 or k[1, 1] <= 0 or not np.allclose(k[2], (0, 0, 1)):
            raise BadInput(f"intrinsics, {source}: {form}, received {k.tolist()}.")
        if max(abs(k[0, 1]), abs(k[1, 0])) > 1e-3 * k[0, 0]:
            raise BadInput(f"intrinsics, {source}: {form}, received a matrix with skew, {k.tolist()}. "
                           "Rectify the image.")
        h, w = size
        if not (0 < k[0, 2] < w and 0 < k[1, 2] < h):
            raise BadInput(f"intrinsics, {source}: the principal point ({k[0, 2]:g}, {k[1, 2]:g}) lies outside of the "
                           f"image of {w} x {h} pixels. Scale the matrix to the size of the image.")
        return cls(float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2]), size, source)

    @classmethod
    def from_file(cls, path: Path | str, size: tuple[int, int]) -> Self:
        """From a text file with a 3x3 matrix, such as `cam_0000000.txt` of SynthHuman. Raises `BadInput`."""
        return cls.from_matrix(read_matrix(path), size, f"the matrix in {Path(path).name}")

    @classmethod
    def from_focal(cls, pixels: float, size: tuple[int, int], source: str = "", guessed: bool = False) -> Self:
        """From a focal length [pixels], with the principal point in the middle of the image. Raises `BadInput`."""
        _check(pixels, "focal length", "pixels", 0, math.inf)
        h, w = size
        return cls(pixels, pixels, w / 2, h / 2, size, source or "the focal length in pixels", guessed)

    @classmethod
    def from_fov(cls, degrees: float, size: tuple[int, int]) -> Self:
        """From the horizontal field of view [degrees], above 0 and below 180. Raises `BadInput`."""
        _check(degrees, "field of view", "degrees", 0, 180)
        focal = size[1] / 2 / math.tan(math.radians(degrees) / 2)
        return cls.from_focal(focal, size, f"a horizontal field of view of {degrees:g} degrees")

    @classmethod
    def from_film(cls, millimetres: float, size: tuple[int, int], source: str = "", guessed: bool = False) -> Self:
        """From a focal length on 35 mm film [mm]. Raises `BadInput`."""
        _check(millimetres, "focal length", "mm on 35 mm film", 0, math.inf)
        focal = millimetres * math.hypot(*size) / FILM_DIAGONAL
        return cls.from_focal(focal, size, source or f"{millimetres:g} mm on 35 mm film", guessed)

    @classmethod
    def from_exif(cls, image: Any, size: tuple[int, int]) -> Self | None:
        """From FocalLengthIn35mmFilm in the EXIF of an image file or a PIL image; None if it has none.

        It describes the whole sensor: an image that was cropped afterwards has a longer focal length than it says.
        Raises `MissingPackage` if Pillow, which reads EXIF, is not installed.
        """
        try:
            from PIL import Image as files
        except ImportError as error:
            raise missing_package("PIL", "cli", "read EXIF") from error
        try:
            with contextlib.nullcontext(image) if is_pil(image) else files.open(image) as opened:
                film = float(opened.getexif().get_ifd(_EXIF_IFD).get(_FOCAL_35MM, 0))
        except Exception:  # Pillow raises many kinds for damaged EXIF, and such a file tells nothing
            return None
        if not 0 < film < 10_000:  # 0 stands for unknown
            return None
        return cls.from_film(film, size, f"EXIF: {film:g} mm on 35 mm film")

    @classmethod
    def guess(cls, size: tuple[int, int]) -> Self:
        """A normal lens. The source says that it is a guess."""
        return cls.from_film(GUESS, size, f"a guess, {GUESS:g} mm on 35 mm film", True)

    @property
    def matrix(self) -> np.ndarray:
        """float64 (3, 3) [pixels]."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])

    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        """x (1, W) and y (H, 1) of the rays (x, y, -1) of the pixels, float64: x right, y up, z towards the viewer."""
        h, w = self.size
        x = (np.arange(w) + 0.5 - self.cx) / self.fx
        y = (self.cy - np.arange(h) - 0.5) / self.fy
        return x[None, :], y[:, None]

    def __str__(self) -> str:
        focal = f"{self.fx:.1f}" if self.fx == self.fy else f"{self.fx:.1f} x {self.fy:.1f}"
        return f"focal length {focal} pixels, {'GUESSED: ' if self.guessed else 'from '}{self.source}"


def read_matrix(path: Path | str) -> np.ndarray:
    """The 3x3 matrix of a camera's text file, float64; see `parse_matrix`. Raises `BadInput`."""
    path = existing_file(path, "a text file with a 3x3 matrix of intrinsics")
    try:
        with open(path, "rb") as file:
            text = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise BadInput(f"{path}: {_EXPECTED}, but it cannot be read ({error.strerror}).") from error
    return parse_matrix(text, str(path))


def parse_matrix(text: bytes, name: str) -> np.ndarray:
    """The 3x3 matrix in the content of a camera's file, float64.

    Args:
        text: Three lines of three numbers, apart by blanks or commas. Empty lines and what follows a # are ignored.
        name: Stands for the file in errors.

    Raises:
        BadInput: The text is something else.
    """
    what = f"{name}: {_EXPECTED}"
    if len(text) > _LONGEST_FILE:
        raise BadInput(f"{what}, received a file of more than {_LONGEST_FILE} bytes.")
    try:
        lines = (line.partition("#")[0] for line in text.decode().replace(",", " ").splitlines())
        rows = [[float(value) for value in line.split()] for line in lines if line.strip()]
    except ValueError as error:
        raise BadInput(f"{what}, but it cannot be read ({str(error)[:80]}).") from error
    if len(rows) != 3 or any(len(row) != 3 for row in rows):
        raise BadInput(f"{what}, received {len(rows)} rows of "
                       f"{' or '.join(map(str, sorted({len(row) for row in rows}))) or 'no'} values.")
    return np.array(rows)


def find_intrinsics(given: Any, size: tuple[int, int], image: Any = None) -> Intrinsics:
    """The intrinsics that `given` stands for; without it those in an image file's EXIF, and at last a guess.

    Args:
        given: `Intrinsics`, a 3x3 matrix, a focal length [pixels], the path of a text file with a matrix, or None.
        size: (H, W) of the image.
        image: The image, for its EXIF: a path, an open file or a PIL image. Anything else is ignored.

    Raises:
        BadInput: `given` is none of these, has an impossible value, or belongs to an image of another size.
    """
    if isinstance(given, Intrinsics):
        if given.size != tuple(size):
            raise BadInput(f"intrinsics: expected those of an image of {size[1]} x {size[0]} pixels, received those of "
                           f"{given.size[1]} x {given.size[0]}.")
        return given
    if isinstance(given, str | os.PathLike):
        return Intrinsics.from_file(given, size)
    if isinstance(given, int | float | np.number) and not isinstance(given, bool):
        return Intrinsics.from_focal(float(given), size)
    if given is not None:
        return Intrinsics.from_matrix(given, size)
    readable = isinstance(image, str | os.PathLike) or is_pil(image) or hasattr(image, "read")
    found = Intrinsics.from_exif(image, size) if readable else None
    return found or Intrinsics.guess(size)


def _check(value: float, what: str, unit: str, low: float, high: float) -> None:
    if not low < value < high:
        limits = f"above {low:g}" if high == math.inf else f"above {low:g} and below {high:g}"
        raise BadInput(f"{what}: expected a number of {unit} {limits}, received {value!r}.")
