"""What the page receives for one image: a small JSON header, the picture and the maps in compact form, in one body.

    bytes 0..3    "DPT1"
    bytes 4..7    length of the header, uint32, little-endian
    then          the header, UTF-8 JSON, padded with spaces to a multiple of 8
    then          the arrays, little-endian, each at a multiple of 8 from the end of the header

The header says of each array its form, dtype, shape, offset and bytes. A frame of 1280x720 takes 7 bytes per pixel and
its picture: less than 7 MB.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ..core import metrics
from ..core.compact import encode, form
from ..geometry import Intrinsics
from ..geometry.intrinsics import FILM_DIAGONAL
from ..report.colours import depth_range
from ..report.in_memory import jpeg_bytes
from ..runtime import Prediction

MAGIC = b"DPT1"
FORMS = {"depth": "uint16-mm", "normals": "octahedral16", "alpha": "uint8"}
"""The compact form of each head on the page."""
SHOWN_PIXELS = 1280 * 720
"""Larger images are scaled down to this area for the page. Downloads have the size of the image."""


@dataclass(frozen=True)
class Shown:
    """The prediction of one model, for the page."""

    label: str
    prediction: Prediction
    milliseconds: float
    """What the runtime took."""
    canonical: bool = False
    """Whether its depth depends on the focal length."""


def shrunk(image: np.ndarray, most: int = SHOWN_PIXELS) -> np.ndarray:
    """The image (H, W, 3), scaled down so that it has at most `most` pixels; itself if it has no more."""
    h, w = image.shape[:2]
    if h * w <= most:
        return image
    scale = math.sqrt(most / (h * w))
    size = max(1, min(int(w * scale), most)), max(1, min(int(h * scale), most))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def pack(image: np.ndarray, models: Sequence[Shown], full_size: tuple[int, int], camera: Intrinsics) -> bytes:
    """The body for the page.

    Args:
        image: uint8 (H, W, 3) RGB, as the maps belong to it.
        models: One or two predictions of it. The first is the reference of the difference.
        full_size: (H, W) of the image that was received.
        camera: That of `image`.
    """
    parts: list[bytes] = []
    at = 0

    def add(data: bytes) -> dict[str, int]:
        nonlocal at
        parts.append(data.ljust(-(-len(data) // 8) * 8, b"\0"))
        start, at = at, at + len(parts[-1])
        return {"offset": start, "bytes": len(data)}

    header: dict[str, Any] = {
        "size": image.shape[:2], "full_size": full_size, "picture": add(jpeg_bytes(image)), "models": [],
        "film": camera.fx * FILM_DIAGONAL / math.hypot(*camera.size), "guessed": camera.guessed,
        "canonical": any(one.canonical for one in models),
    }
    for model in models:
        maps = {head: _array(head, values, add) for head, values in model.prediction.maps.items()}
        header["models"].append({"label": model.label, "milliseconds": round(model.milliseconds, 1), "maps": maps})
    depth = models[0].prediction.depth
    if depth is not None:
        header["depth_range"] = depth_range(depth, models[0].prediction.alpha)
    if len(models) == 2:
        header["difference"] = difference(models[0].prediction.maps, models[1].prediction.maps)
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return b"".join([MAGIC, len(text).to_bytes(4, "little"), text, *parts])


def _array(head: str, values: np.ndarray, add: Any) -> dict[str, Any]:
    one = form(head, FORMS[head])
    stored = encode(head, one.name, values)
    stored = np.ascontiguousarray(stored, stored.dtype.newbyteorder("<"))
    return {"form": one.name, "dtype": one.dtype, "shape": stored.shape, "error": one.error} | add(stored.tobytes())


def difference(want: Mapping[str, np.ndarray], have: Mapping[str, np.ndarray]) -> dict[str, dict[str, float | None]]:
    """The parity metrics of the heads that both have, against the first; a value that is not finite is None.

    Depth and normals count where the first model's alpha is above 0.5, as in the parity report.
    """
    if not (heads := want.keys() & have.keys()):
        return {}
    found = metrics.parity({head: values for head, values in want.items() if head in heads}, dict(have))
    return {head: {name: value if math.isfinite(value) else None for name, value in numbers.items()}
            for head, numbers, _ in found}
