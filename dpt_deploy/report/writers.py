"""One writer for each type of file that holds pictures or maps, for commands, the page and training.

What ends in `_bytes` makes the content of a file in memory; `write_...` writes it.
Writes are atomic, and each file is read back before it gets its name: a library may not report a full disk.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from ..core.compact import encode
from ..core.contract import DEPTHS
from ..core.errors import BadInput, first_line, missing_package
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


def exr_bytes(channels: Mapping[str, np.ndarray], text: Mapping[str, str] | None = None) -> bytes:
    """A ZIP-compressed OpenEXR file.

    Args:
        channels: float16 or float32 (H, W), by channel name.
        text: Stored in the header, by name of the attribute.

    Raises:
        BadInput: OpenEXR cannot store the channels.
        MissingPackage: OpenEXR is not installed.
    """
    try:
        import OpenEXR
    except ImportError as error:
        raise missing_package("OpenEXR", "cli", "write .exr files") from error
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage} | dict(text or {})
    # OpenEXR writes non-contiguous arrays wrongly, and without an error.
    planes = {name: np.ascontiguousarray(channel) for name, channel in channels.items()}
    data = io.BytesIO()
    try:
        with OpenEXR.File(header, dict(planes)) as file:  # it replaces the values
            file.write(data)
    except (RuntimeError, ValueError, TypeError) as error:
        raise BadInput(f"OpenEXR: expected float16 or float32 channels of one size, received "
                       f"{', '.join(f'{name} {one.dtype} {one.shape}' for name, one in planes.items()) or 'none'} "
                       f"({first_line(error)}).") from error
    return data.getvalue()


def write_exr(path: Path | str, channels: Mapping[str, np.ndarray], text: Mapping[str, str] | None = None) -> None:
    """Write an OpenEXR file. Arguments and errors are those of `exr_bytes`; `BadInput` too if it cannot be written."""
    write_bytes(path, exr_bytes(channels, text))


CHANNELS = {"depth": ("Z",), "normals": ("N.X", "N.Y", "N.Z"), "alpha": ("A",)}
"""The channels of each map in an OpenEXR file."""


def maps_exr_bytes(maps: Mapping[str, np.ndarray], depth_meaning: str | None = None) -> bytes:
    """An OpenEXR file of maps by head, in the channels `CHANNELS`; its header says what their numbers mean.

    Args:
        maps: float16 or float32: depth and alpha (H, W), normals (H, W, 3) with x right, y up, z towards the viewer.
        depth_meaning: What the numbers of depth are, for the attribute `depthMeaning`; None leaves it out.

    Raises:
        MissingPackage: OpenEXR is not installed.
    """
    return exr_bytes(_planes(maps), _exr_text(maps, depth_meaning))


def _planes(maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values if values.ndim == 2 else values[..., i]
            for head, values in maps.items() for i, name in enumerate(CHANNELS[head])}


def _exr_text(maps: Mapping[str, np.ndarray], depth_meaning: str | None, convention: str = "opengl") -> dict[str, str]:
    text = {}
    if "depth" in maps and depth_meaning is not None:
        text["depthMeaning"] = depth_meaning
    if "normals" in maps:
        text["normalsConvention"] = normals_text(convention)["Convention"]
    return text


def write_depth_exr(path: Path | str, depth: np.ndarray, meaning: str = DEPTHS["metric"]) -> None:
    """Write depth (H, W) as OpenEXR with one float32 channel, Z, and what it is in the attribute `depthMeaning`.

    Raises as `write_exr` does.
    """
    write_bytes(path, maps_exr_bytes({"depth": depth.astype(np.float32, copy=False)}, meaning))


def depth_png_bytes(depth: np.ndarray) -> bytes:
    """Depth (H, W) [m] as 16-bit gray PNG in millimetres, with its scale in tEXt chunks.

    0 is no depth: 0 m and below, not finite, or 65.536 m and farther. The rounding adds at most 0.5 mm. Depth that is
    not in metres has no millimetres.
    """
    return png_bytes(encode("depth", "uint16-mm", depth), DEPTH_TEXT)


def write_depth_png(path: Path | str, depth: np.ndarray) -> None:
    """Write the file of `depth_png_bytes`. Raises as `write_png` does."""
    write_bytes(path, depth_png_bytes(depth))


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


def normals_bytes(normals: np.ndarray, suffix: str, convention: str = "opengl") -> bytes:
    """Normals as 16-bit PNG or as OpenEXR, in a convention that the file names.

    PNG holds round((n + 1) / 2 * 65535), which adds at most 0.0016 degrees; a pixel without a normal is 32768. OpenEXR
    holds float32 channels N.X, N.Y and N.Z.

    Args:
        normals: float (H, W, 3), unit vectors: x right, y up, z towards the viewer.
        suffix: ".png" or ".exr".
        convention: One of `CONVENTIONS`.

    Raises:
        BadInput: The suffix or the convention is another one.
        MissingPackage: OpenEXR is not installed, for .exr.
    """
    if convention not in CONVENTIONS:
        raise BadInput(f"normals: expected a convention among {', '.join(CONVENTIONS)}, received {convention!r}.")
    stored = normals * np.array(CONVENTIONS[convention][1], np.float32)
    if suffix == ".png":
        return png_bytes(encode("normals", "uint16", stored), normals_text(convention))
    if suffix == ".exr":
        maps = {"normals": stored.astype(np.float32, copy=False)}
        return exr_bytes(_planes(maps), _exr_text(maps, None, convention))
    raise BadInput(f"normals: expected a file name that ends in .png or .exr, received {suffix or 'no suffix'}.")


def write_normals(path: Path | str, normals: np.ndarray, convention: str = "opengl") -> None:
    """Write the file of `normals_bytes`, by the suffix of the path.

    Raises as `normals_bytes` does, and `BadInput` if the file cannot be written.
    """
    write_bytes(path, normals_bytes(normals, Path(path).suffix.lower(), convention))


def jpeg_bytes(picture: np.ndarray, quality: int = 92) -> bytes:
    """A JPEG file of a picture, uint8 (H, W, 3) RGB. `quality` is from 0 to 100."""
    return cv2.imencode(".jpg", _to_opencv(picture), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


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
