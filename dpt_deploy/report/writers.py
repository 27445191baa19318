"""One writer for each type of file that holds pictures or maps, for commands and for training.

Writes are atomic, and each file is read back before it gets its name: a library may not report a full disk.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from ..core.compact import encode
from ..core.errors import BadInput, missing_package
from ..core.files import cannot_write, replacing


def write_png(path: Path | str, picture: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Write a picture as PNG. Arguments are those of `png_bytes`. Raises `BadInput` if it cannot be written."""
    write_bytes(path, png_bytes(picture, text))


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write the content of a file. Raises `BadInput` if it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
        _check(path, temporary.read_bytes() == data)


def png_bytes(picture: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """A PNG file of a picture.

    Args:
        picture: uint8 or uint16, (H, W) gray, (H, W, 3) RGB or (H, W, 4) RGBA with straight alpha.
        text: Stored in tEXt chunks by keyword, Latin-1.
    """
    data = cv2.imencode(".png", _to_opencv(picture), [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes()
    chunks = []
    for keyword, value in (text or {}).items():
        body = b"tEXt" + keyword.encode("latin-1") + b"\0" + value.encode("latin-1", "replace")
        chunks.append(struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
    return data[:_HEADER_END] + b"".join(chunks) + data[_HEADER_END:]


def webp_bytes(picture: np.ndarray) -> bytes:
    """A lossless WebP file of a picture, uint8 (H, W, 3) RGB or (H, W, 4) RGBA with straight alpha.

    Raises `BadInput` if a side is longer than the format allows.
    """
    if max(picture.shape[:2]) > _LARGEST_WEBP:
        raise BadInput(f"WebP: expected at most {_LARGEST_WEBP} pixels a side, received {picture.shape[1]} x "
                       f"{picture.shape[0]}. Choose PNG.")
    return cv2.imencode(".webp", _to_opencv(picture), [cv2.IMWRITE_WEBP_QUALITY, _LOSSLESS])[1].tobytes()


_HEADER_END = 33  # bytes; signature and IHDR
_LARGEST_WEBP = 16383  # pixels
_LOSSLESS = 101  # OpenCV's qualities end at 100
_TO_OPENCV = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}


def _to_opencv(picture: np.ndarray) -> np.ndarray:
    return picture if picture.ndim == 2 else cv2.cvtColor(picture, _TO_OPENCV[picture.shape[2]])


def write_npz(path: Path | str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as an uncompressed .npz file. Raises `BadInput` if it cannot be written."""
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)
        try:
            with zipfile.ZipFile(temporary) as file:
                _check(path, file.testzip() is None and len(file.namelist()) == len(arrays))
        except zipfile.BadZipFile as error:
            raise cannot_write(path, error) from error


def write_exr(path: Path | str, channels: Mapping[str, np.ndarray], text: Mapping[str, str] | None = None) -> None:
    """Write the channels of an OpenEXR file, ZIP-compressed.

    Args:
        path: The file.
        channels: float16 or float32 (H, W), by channel name.
        text: Stored in the header, by name of the attribute.

    Raises:
        BadInput: The file cannot be written.
        MissingPackage: OpenEXR is not installed.
    """
    try:
        import OpenEXR
    except ImportError as error:
        raise missing_package("OpenEXR", "cli", "write .exr files") from error
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage} | dict(text or {})
    # OpenEXR writes non-contiguous arrays wrongly, and without an error.
    planes = {name: np.ascontiguousarray(channel) for name, channel in channels.items()}
    with replacing(path) as temporary:
        try:
            with OpenEXR.File(header, dict(planes)) as file:  # it replaces the values
                file.write(str(temporary))
            with OpenEXR.File(str(temporary), separate_channels=True) as file:
                read = file.channels()  # their pixels are valid until the file is closed
                same = read.keys() == planes.keys() and all(
                    np.array_equal(read[name].pixels, plane, equal_nan=True) for name, plane in planes.items())
        except (RuntimeError, ValueError) as error:  # what OpenEXR raises for a full disk, among others
            raise cannot_write(path, error) from error
        _check(path, same)


def write_depth_exr(path: Path | str, depth: np.ndarray) -> None:
    """Write depth (H, W) [m] as OpenEXR with one float32 channel, Z. Raises as `write_exr` does."""
    write_exr(path, {"Z": depth.astype(np.float32, copy=False)})


def write_depth_png(path: Path | str, depth: np.ndarray) -> None:
    """Write depth (H, W) [m] as 16-bit gray PNG in millimetres, with its scale in tEXt chunks.

    0 is no depth: not finite, or 65.536 m and farther. The rounding adds at most 0.5 mm. Raises as `write_png` does.
    """
    write_png(path, encode("depth", "uint16-mm", depth), DEPTH_TEXT)


DEPTH_TEXT = {"Quantity": "z-depth", "Unit": "millimetre", "Scale": "0.001",
              "Comment": "metres = value * 0.001; 0: no depth"}
"""The tEXt chunks of a depth PNG. Scale: metres per step."""
CONVENTIONS = {
    "opengl": ("x right, y up, z towards the viewer", (1, 1, 1)),
    "directx": ("x right, y down, z towards the viewer", (1, -1, 1)),
    "camera": ("x right, y down, z away from the viewer, as OpenCV's camera", (1, -1, -1)),
}
"""Axes of stored normals by name, and the signs that turn this project's normals into them."""


def normals_text(convention: str = "opengl") -> dict[str, str]:
    """The tEXt chunks of a 16-bit PNG of normals."""
    return {"Quantity": "surface normals", "Convention": f"{convention}: {CONVENTIONS[convention][0]}",
            "Comment": "n = value / 32767.5 - 1"}


def write_normals(path: Path | str, normals: np.ndarray, convention: str = "opengl") -> None:
    """Write normals as 16-bit PNG or as OpenEXR, by the suffix, in a convention that the file names.

    PNG holds round((n + 1) / 2 * 65535), which adds at most 0.0016 degrees; a pixel without a normal is 32768. OpenEXR
    holds float32 channels N.X, N.Y and N.Z.

    Args:
        path: The file, .png or .exr.
        normals: float (H, W, 3), unit vectors: x right, y up, z towards the viewer.
        convention: One of `CONVENTIONS`.

    Raises:
        BadInput: The suffix or the convention is another one, or the file cannot be written.
        MissingPackage: OpenEXR is not installed, for .exr.
    """
    path = Path(path)
    if convention not in CONVENTIONS:
        raise BadInput(f"normals: expected a convention among {', '.join(CONVENTIONS)}, received {convention!r}.")
    signs = CONVENTIONS[convention][1]
    stored = normals * np.array(signs, np.float32)
    if path.suffix.lower() == ".png":
        write_png(path, encode("normals", "uint16", stored), normals_text(convention))
    elif path.suffix.lower() == ".exr":
        planes = {f"N.{axis}": stored[..., i].astype(np.float32, copy=False) for i, axis in enumerate("XYZ")}
        write_exr(path, planes, {"normalsConvention": normals_text(convention)["Convention"]})
    else:
        raise BadInput(f"normals: expected a file name that ends in .png or .exr, received {path}.")


def write_picture(path: Path | str, picture: np.ndarray) -> None:
    """Write a picture as .png or lossless .webp, by the suffix. Raises `BadInput` for any other."""
    makers = {".png": png_bytes, ".webp": webp_bytes}
    if (suffix := Path(path).suffix.lower()) not in makers:
        raise BadInput(f"picture: expected a file name that ends in {' or '.join(makers)}, received {path}.")
    write_bytes(path, makers[suffix](picture))


def _check(path: Path | str, same: bool) -> None:
    """Raise `BadInput` unless the file holds what was written."""
    if not same:
        raise cannot_write(path, RuntimeError("what is read back is not what was written"))
