"""Images from files and from PIL, as uint8 RGB, upright."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .errors import BadInput, not_images
from .files import existing_file
from .image_header import Header, header_of, read_header

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".jp2", ".j2k",
    ".pbm", ".pgm", ".ppm", ".pnm", ".pam", ".ras", ".sr", ".heic", ".heif", ".jxl", ".hdr", ".pfm",
)
"""A file in a folder is an image if its name ends in one of these, in any case. The last five are known, but cannot be
used; such files are named with the reason, and skipped."""
MAX_PIXELS = 120_000_000
"""Images with more pixels are refused, unless the caller sets another limit. Common phone cameras make up to 108
megapixels. At this limit an image takes 0.4 GB and its maps 2.4 GB."""


@dataclass(frozen=True)
class ImageList:
    """The content of a folder, sorted by name."""

    images: list[Path]
    left_out: list[Path]
    """Files that are not images by `SUFFIXES`, and subfolders. Hidden files are ignored."""

    def left_out_line(self, count: int = 5) -> str:
        """One line that counts and names what was left out; "" if nothing was."""
        if not self.left_out:
            return ""
        names = (path.name + "/" * path.is_dir() for path in self.left_out[:count])
        return not_images(len(self.left_out), names)


def read_image(path: Path | str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image file as uint8 (H, W, 3) RGB, rotated as its EXIF or AVIF properties say.

    Grayscale is repeated to three channels, palettes and CMYK become RGB, 16-bit values are scaled to 8 bits, and alpha
    is dropped. Of an animation or a file with several pages, the first is read.

    Args:
        path: The file.
        max_pixels: An image with more pixels is refused, before it is decoded if its header tells the size.

    Raises:
        BadInput: The file does not exist, is too large, has no range of 0 to 255 or 65535 (floating-point TIFF, HDR),
            or OpenCV cannot decode it completely.
    """
    image = decode(existing_file(path, "an image file"), cv2.IMREAD_COLOR, max_pixels)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decode(path: Path, flags: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an existing image file with `flags` of `cv2.imdecode`. Raises as `read_image` does."""
    try:
        header = read_header(path)
        _check_header(str(path), header, max_pixels)
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    return _decode(str(path), header, data, flags, max_pixels)


def image_from_bytes(data: bytes | memoryview, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image file that is in memory, as `read_image` does; `name` stands for it in errors."""
    return cv2.cvtColor(decode_bytes(data, name, cv2.IMREAD_COLOR, max_pixels), cv2.COLOR_BGR2RGB)


def decode_bytes(data: bytes | memoryview, name: str, flags: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file that is in memory, as `decode` does; `name` stands for it in errors."""
    header = header_of(data)
    _check_header(name, header, max_pixels)
    return _decode(name, header, np.frombuffer(data, np.uint8), flags, max_pixels)


def _check_header(name: str, header: Header, max_pixels: int) -> None:
    if header.unusable:
        raise BadInput(f"{name}: expected an image, received a {header.format} file; {header.unusable}.")
    if header.size:
        check_pixels(name, header.size, max_pixels)


def _chunk_is_cut(header: Header, data: np.ndarray) -> bool:
    """Whether a chunk of a PNG file declares more bytes than follow; OpenCV would allocate as many as it declares."""
    if header.format != "PNG":
        return False
    start = 8
    while start + 8 <= data.size:
        length, kind = int.from_bytes(data[start : start + 4].tobytes(), "big"), data[start + 4 : start + 8].tobytes()
        if kind == b"IEND":
            break
        start += 12 + length
        if start - 4 > data.size:
            return True
    return False


def _decode(name: str, header: Header, data: np.ndarray, flags: int, max_pixels: int) -> np.ndarray:
    if header.format == "AVIF":
        flags |= cv2.IMREAD_IGNORE_ORIENTATION  # its EXIF is for information; the properties hold
    # OpenCV would print a message to standard error in addition to the exception below.
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        image = cv2.imdecode(data, flags) if data.size and not _chunk_is_cut(header, data) else None
    except cv2.error:
        image = None
    finally:
        cv2.utils.logging.setLogLevel(level)
    if image is None:
        what = f"it is a {header.format} file that is" if header.format else "it is not an image,"
        raise BadInput(
            f"{name}: expected an image, but its {data.size} bytes cannot be decoded: {what} truncated, damaged, or of "
            "a kind that OpenCV does not support. Convert it to PNG or JPEG."
        )
    check_pixels(name, image.shape[:2], max_pixels)
    return _upright(image, header)


def _upright(image: np.ndarray, header: Header) -> np.ndarray:
    if not header.quarter_turns and header.mirror is None:
        return image
    image = np.rot90(image, header.quarter_turns)
    return np.ascontiguousarray(image if header.mirror is None else np.flip(image, header.mirror))


def check_pixels(name: str, size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> None:
    """Raise `BadInput` if an image of `size` (H, W) has more than `max_pixels`."""
    if size[0] * size[1] > max_pixels:
        raise BadInput(
            f"{name}: {size[0]}x{size[1]} are {size[0] * size[1] / 1e6:.4g} megapixels, more than the limit of "
            f"{max_pixels / 1e6:g}. Scale the image down, or raise the limit with --max-pixels, in Python max_pixels."
        )


def from_pil(image: Any, name: str = "image", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Convert a PIL image of any mode to uint8 (H, W, 3) RGB as `read_image` reads its file, upright by its EXIF.

    PIL converts the mode; 16-bit values are scaled to 8 bits, where PIL would clip them. Raises `BadInput` for a mode
    without a range (32-bit and floating-point) and for an image that cannot be decoded.
    """
    from PIL import Image, ImageOps

    check_pixels(name, image.size[::-1], max_pixels)
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        if image.mode in ("I", "F"):
            raise BadInput(
                f"{name}: expected an image with values 0 to 255, received PIL mode {image.mode}, whose values have "
                "no fixed range. Values in [0, 255]: image.convert('RGB'); in [0, 1]: "
                "image.point(lambda value: value * 255 + 0.5).convert('RGB')."
            )
        if image.mode == "La":  # premultiplied, which PIL converts in two steps only
            image = image.convert("LA")
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise BadInput(f"{name}: {error}") from error
    except (OSError, ValueError, SyntaxError, RuntimeError) as error:  # what PIL raises for damaged files
        raise BadInput(f"{name}: PIL cannot decode or convert this image of mode {image.mode}: {error}.") from error


def is_pil(image: Any) -> bool:
    """Whether `image` is a PIL image, without importing PIL."""
    return any(kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(image).__mro__)


def find_images(path: Path | str, suffixes: Sequence[str] = SUFFIXES) -> ImageList:
    """The images of a folder, or the one file that `path` is.

    Raises `BadInput` if `path` does not exist or the folder contains no image.
    """
    path = Path(path)
    if not os.path.isdir(path):  # Path.is_dir raises for a name that is too long
        return ImageList([existing_file(path, "an image file or a folder of images")], [])
    try:
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise BadInput(f"{path} cannot be listed: {error.strerror}. Check its permissions.") from error
    images = [entry for entry in entries if entry.suffix.lower() in suffixes and entry.is_file()]
    found = ImageList(images, sorted(set(entries) - set(images)))
    if not images:
        raise BadInput(f"{path}: expected a folder with images ({', '.join(suffixes)}), found none; "
                       f"{found.left_out_line() or 'it is empty'}. Check the path.")
    return found
