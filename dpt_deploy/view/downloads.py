"""The files that the page offers: PNG, OpenEXR and PLY, made in memory from the maps at the image's own size."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..core.compact import encode
from ..core.contract import HEADS
from ..core.errors import BadInput
from ..geometry import Cut, Intrinsics
from ..geometry.files import ply_bytes
from ..report.writers import depth_png_bytes, maps_exr_bytes, normals_bytes, png_bytes
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


Maker = Callable[[np.ndarray, Prediction, Intrinsics, Choices], bytes]
"""Makes a file from image, prediction, camera and choices."""


@dataclass(frozen=True)
class Download:
    """One kind of file."""

    heads: tuple[str, ...]
    """The maps that it needs."""
    make: Maker
    metres: bool = False
    """Whether it needs depth in metres, which relative depth is not."""


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
    if not prediction.depth_in_metres:
        raise BadInput("depth.png needs metres, for which this model needs the focal length, and the image does not "
                       "tell it. Set it with the slider of the focal length, or save depth.exr, which names the focal "
                       "length that its depth is for.")
    return depth_png_bytes(prediction.depth)


def _exr(*heads: str) -> Maker:
    def make(_image: np.ndarray, prediction: Prediction, _camera: Intrinsics, _choices: Choices) -> bytes:
        maps = {head: values for head, values in prediction.maps.items() if head in heads}
        return maps_exr_bytes(maps, prediction.depth_meaning)

    return make


def _normals_png(_image: np.ndarray, prediction: Prediction, _camera: Intrinsics, _choices: Choices) -> bytes:
    return normals_bytes(prediction.normals, ".png")


def _cutout_png(image: np.ndarray, prediction: Prediction, _camera: Intrinsics, choices: Choices) -> bytes:
    alpha = encode("alpha", "uint8", cut(prediction.alpha, choices))
    return png_bytes(np.dstack([image, alpha]))


def _alpha_png(_image: np.ndarray, prediction: Prediction, _camera: Intrinsics, _choices: Choices) -> bytes:
    return png_bytes(encode("alpha", "uint16", prediction.alpha))


def _points_ply(image: np.ndarray, prediction: Prediction, camera: Intrinsics, choices: Choices) -> bytes:
    # At the edge of the foreground, a pixel has the colour and the depth of neither side.
    cloud = prediction.points(camera, image, Cut((1 + choices.threshold) / 2))
    if not len(cloud):
        raise BadInput("No point is left of this image. Lower the threshold of the cut-out.")
    return ply_bytes(cloud)


DOWNLOADS = {
    "depth.png": Download(("depth",), _depth_png, metres=True),
    "depth.exr": Download(("depth",), _exr("depth")),
    "normals.png": Download(("normals",), _normals_png),
    "normals.exr": Download(("normals",), _exr("normals")),
    "cutout.png": Download(("alpha",), _cutout_png),
    "alpha.png": Download(("alpha",), _alpha_png),
    "maps.exr": Download((), _exr(*HEADS)),
    "points.ply": Download(("depth",), _points_ply, metres=True),
}
"""By file name. Maps are written as `report.writers` writes them for the other commands."""
