"""One writer for each type of file that holds pictures or maps, for commands and for training; writes are atomic."""

from __future__ import annotations

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
        temporary.write_bytes(data.tobytes())


def write_npz(path: Path | str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as an uncompressed .npz file. Raises `BadInput` if it cannot be written."""
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)


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
    with replacing(path) as temporary, OpenEXR.File(header, planes) as file:
        try:
            file.write(str(temporary))
        except RuntimeError as error:  # what OpenEXR raises for a full disk, among others
            raise cannot_write(path, error) from error


def write_depth_exr(path: Path | str, depth: np.ndarray) -> None:
    """Write depth (H, W) [m] as OpenEXR with one float32 channel, Z. Raises as `write_exr` does."""
    write_exr(path, {"Z": depth.astype(np.float32, copy=False)})
