"""The files that the page offers: PNG, OpenEXR and PLY, made in memory from the maps at the image's own size."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..core.compact import encode
from ..core.errors import BadInput
from ..geometry import Cut, Intrinsics
from ..geometry.files import ply_bytes
from ..report.in_memory import exr_bytes
from ..report.writers import png_bytes
from ..runtime import Prediction

MEDIA = {"png": "image/png", "exr": "image/x-exr", "ply": "application/octet-stream"}


@dataclass(frozen=True)
class Choices:
    """What the sliders of the page say."""

    threshold: float = 0.5
    """Alpha [0, 1] below which a pixel is background."""
    soft: bool = True
    """Keep the values of alpha above the threshold, instead of 1."""
    film: float | None = None
    """Focal length [mm on 35 mm film]. None: that in the image's EXIF, or else a guess."""


@dataclass(frozen=True)
class Download:
    """One kind of file."""

    heads: tuple[str, ...]
    """The maps that it needs."""
    make: Callable[[np.ndarray, Prediction, Intrinsics, Choices], bytes]
    """From image, prediction with depth in metres, camera and choices."""


def camera(data: bytes, size: tuple[int, int], film: float | None) -> Intrinsics:
    """The camera of an image of `size` (H, W): with the focal length `film`, else that in its EXIF, else a guess."""
    if film is not None:
        return Intrinsics.from_film(film, size, f"{film:g} mm on 35 mm film, as set on the page")
    return Intrinsics.from_exif(io.BytesIO(data), size) or Intrinsics.guess(size)


def cut(alpha: np.ndarray, choices: Choices) -> np.ndarray:
    """Alpha (H, W) as the cut-out uses it: 0 below the threshold; from there on itself if it is soft, otherwise 1."""
    alpha = np.clip(np.nan_to_num(alpha), 0, 1)
    return np.where(alpha >= choices.threshold, alpha if choices.soft else np.float32(1), np.float32(0))


def _depth_png(_image: np.ndarray, prediction: Prediction, _camera: Intrinsics, _choices: Choices) -> bytes:
    return png_bytes(encode("depth", "uint16-mm", prediction.depth))


def _depth_exr(_image: np.ndarray, prediction: Prediction, _camera: Intrinsics, _choices: Choices) -> bytes:
    return exr_bytes({"Z": prediction.depth})


def _normals_png(_image: np.ndarray, prediction: Prediction, _camera: Intrinsics, _choices: Choices) -> bytes:
    scaled = (np.clip(np.nan_to_num(prediction.normals), -1, 1) * np.float32(0.5) + np.float32(0.5)) * 65535
    return png_bytes(np.rint(scaled).astype(np.uint16))


def _normals_exr(_image: np.ndarray, prediction: Prediction, _camera: Intrinsics, _choices: Choices) -> bytes:
    return exr_bytes(_planes(prediction.normals))


def _planes(normals: np.ndarray) -> dict[str, np.ndarray]:
    return {f"N.{axis}": normals[..., i] for i, axis in enumerate("XYZ")}


def _cutout_png(image: np.ndarray, prediction: Prediction, _camera: Intrinsics, choices: Choices) -> bytes:
    alpha = encode("alpha", "uint8", cut(prediction.alpha, choices))
    return png_bytes(np.dstack([image, alpha]))


def _alpha_png(_image: np.ndarray, prediction: Prediction, _camera: Intrinsics, _choices: Choices) -> bytes:
    return png_bytes(np.rint(np.clip(np.nan_to_num(prediction.alpha), 0, 1) * 65535).astype(np.uint16))


def _maps_exr(_image: np.ndarray, prediction: Prediction, _camera: Intrinsics, _choices: Choices) -> bytes:
    channels = {}
    if prediction.depth is not None:
        channels["Z"] = prediction.depth
    if prediction.normals is not None:
        channels |= _planes(prediction.normals)
    if prediction.alpha is not None:
        channels["A"] = prediction.alpha
    return exr_bytes(channels)


def _points_ply(image: np.ndarray, prediction: Prediction, camera: Intrinsics, choices: Choices) -> bytes:
    # At the edge of the foreground, a pixel has the colour and the depth of neither side.
    cloud = prediction.points(camera, image, Cut((1 + choices.threshold) / 2))
    if not len(cloud):
        raise BadInput("No point is left of this image. Lower the threshold of the cut-out.")
    return ply_bytes(cloud)


DOWNLOADS = {
    "depth.png": Download(("depth",), _depth_png),
    "depth.exr": Download(("depth",), _depth_exr),
    "normals.png": Download(("normals",), _normals_png),
    "normals.exr": Download(("normals",), _normals_exr),
    "cutout.png": Download(("alpha",), _cutout_png),
    "alpha.png": Download(("alpha",), _alpha_png),
    "maps.exr": Download((), _maps_exr),
    "points.ply": Download(("depth",), _points_ply),
}
"""By file name. Depth as PNG is 16-bit millimetres, 0 where there is none; normals are (n + 1) / 2 of 65535."""
