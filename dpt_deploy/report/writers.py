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

from ..core.errors import missing_package
from ..core.files import cannot_write, replacing


def write_png(path: Path | str, picture: np.ndarray) -> None:
    """Write a picture, uint8 (H, W, 3) RGB, as PNG. Raises `BadInput` if it cannot be written."""
    data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
    with replacing(path) as temporary:
        temporary.write_bytes(data)
        _check(path, np.array_equal(np.fromfile(temporary, np.uint8), data))


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write the content of a file. Raises `BadInput` if it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
        _check(path, temporary.stat().st_size == len(data))


def png_bytes(values: np.ndarray, text: Mapping[str, str]) -> bytes:
    """A PNG file with a line of text for each key (`tEXt`, Latin-1).

    Args:
        values: uint8 or uint16, (H, W), or (H, W, 3) in the order of the channels R, G, B.
        text: Keyword -> text.
    """
    ordered = values if values.ndim == 2 else cv2.cvtColor(values, cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".png", ordered, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes()
    chunks = [b"tEXt" + key.encode("latin-1") + b"\0" + value.encode("latin-1") for key, value in text.items()]
    header = 8 + 25  # signature and IHDR, which comes first
    return b"".join([data[:header], *(struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
                                      for chunk in chunks), data[header:]])


def write_npz(path: Path | str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as an uncompressed .npz file. Raises `BadInput` if it cannot be written."""
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)
        try:
            with zipfile.ZipFile(temporary) as file:
                _check(path, file.testzip() is None and len(file.namelist()) == len(arrays))
        except zipfile.BadZipFile as error:
            raise cannot_write(path, error) from error


def write_exr(path: Path | str, channels: Mapping[str, np.ndarray]) -> None:
    """Write the channels of an OpenEXR file, ZIP-compressed.

    Args:
        path: The file.
        channels: float16 or float32 (H, W), by channel name.

    Raises:
        BadInput: The file cannot be written.
        MissingPackage: OpenEXR is not installed.
    """
    try:
        import OpenEXR
    except ImportError as error:
        raise missing_package("OpenEXR", "cli", "write .exr files") from error
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
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


def _check(path: Path | str, same: bool) -> None:
    """Raise `BadInput` unless the file holds what was written."""
    if not same:
        raise cannot_write(path, RuntimeError("what is read back is not what was written"))
