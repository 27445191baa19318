"""Image files as bytes, for what is sent and not stored: nothing is written to a disk."""

from __future__ import annotations

import os
from collections.abc import Mapping

import cv2
import numpy as np

from ..core.errors import missing_package


def jpeg_bytes(picture: np.ndarray, quality: int = 92) -> bytes:
    """A JPEG file of a picture, uint8 (H, W, 3) RGB."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def exr_bytes(channels: Mapping[str, np.ndarray]) -> bytes:
    """A ZIP-compressed OpenEXR file of float16 or float32 channels (H, W), by channel name.

    Raises `MissingPackage` if OpenEXR is not installed.
    """
    try:
        import OpenEXR
    except ImportError as error:
        raise missing_package("OpenEXR", "cli", "make .exr files") from error
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    # OpenEXR writes non-contiguous arrays wrongly, and writes to named files only: this one is in memory.
    planes = {name: np.ascontiguousarray(channel) for name, channel in channels.items()}
    with os.fdopen(os.memfd_create("maps.exr"), "rb") as file:
        with OpenEXR.File(header, planes) as written:
            written.write(f"/proc/self/fd/{file.fileno()}")
        return file.read()
