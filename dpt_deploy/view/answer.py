"""What the page receives for one image: a small JSON header, the picture and the maps in compact form, in one body.

    bytes 0..3    "DPT1"
    bytes 4..7    length of the header, uint32, little-endian
    then          the header, UTF-8 JSON, padded with spaces to a multiple of 8
    then          the arrays, little-endian, each at a multiple of 8 from the end of the header

The header says of each array its form, dtype, shape, offset and bytes. Depth is uint16, 0 where there is none, and
otherwise value = scale * stored + bias, as its entry says: metres, or relative depth without unit. A frame of 1280x720
takes 7 bytes per pixel and its picture: less than 7 MB.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ..core import metrics
from ..core.compact import encode
from ..core.contract import DepthKind
from ..geometry import Intrinsics
from ..geometry.intrinsics import FILM_DIAGONAL
from ..report.colours import depth_range
from ..report.writers import jpeg_bytes
from ..runtime import Prediction

MAGIC = b"DPT1"
FORMS = {"depth": "uint16-mm", "normals": "octahedral16", "alpha": "uint8"}
"""The compact form of each head on the page. Relative depth has no millimetres; see `spread`."""
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
        found = model.prediction
        maps = {head: _array(head, values, found.depth_kind, add) for head, values in found.maps.items()}
        one = {"label": model.label, "milliseconds": round(model.milliseconds, 1), "maps": maps}
        if found.depth is not None:
            one["depth_range"] = shown_range(found)
        header["models"].append(one)
    if len(models) == 2:
        header["difference"] = difference(models[0].prediction, models[1].prediction)
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return b"".join([MAGIC, len(text).to_bytes(4, "little"), text, *parts])


def _array(head: str, values: np.ndarray, kind: DepthKind, add: Callable[[bytes], dict[str, int]]) -> dict[str, Any]:
    name, meaning = FORMS[head], {}
    if head != "depth":
        stored = encode(head, name, values)
    elif kind == "metric":
        stored, meaning = encode(head, name, values), {"scale": 0.001, "bias": 0}
    else:
        stored, scale, bias = spread(values)
        name, meaning = "uint16", {"scale": scale, "bias": bias}
    stored = np.ascontiguousarray(stored, stored.dtype.newbyteorder("<"))
    return {"form": name, "dtype": stored.dtype.name, "shape": stored.shape} | meaning | add(stored.tobytes())


def spread(depth: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Depth (H, W) of any range as uint16 from 1 to 65535, 0 where it is not finite; and scale and bias of `pack`."""
    low, span = _extent(depth)
    scale = span / 65534
    with np.errstate(invalid="ignore"):
        stored = np.where(np.isfinite(depth), np.rint((depth.astype(np.float64) - low) / scale) + 1, 0)
    return stored.astype(np.uint16), scale, low - scale


def shown_range(prediction: Prediction) -> tuple[float, float]:
    """What the colours of a depth map span, in its own unit; see `depth_range`."""
    depth, alpha = prediction.depth, prediction.alpha
    if prediction.depth_kind == "metric":
        return depth_range(depth, alpha)
    low, span = _extent(depth)  # relative depth may have any range, also a tiny one
    near, far = depth_range((depth.astype(np.float64) - low) / span, alpha)
    return low + span * near, low + span * far


def _extent(depth: np.ndarray) -> tuple[float, float]:
    """The least finite value, and the distance to the largest, which is above 0."""
    finite = depth[np.isfinite(depth)].astype(np.float64)
    if not finite.size:
        return 0.0, 1.0
    low = float(finite.min())
    return low, float(np.ptp(finite)) or max(1.0, 1e-6 * abs(low))  # 1 is nothing beside 1e20


def difference(want: Prediction, have: Prediction) -> dict[str, dict[str, float | None]]:
    """The parity metrics of the heads that both have, against the first; a value that is not finite is None.

    Depth and normals count where the first model's alpha is above 0.5, as in the parity report. Errors of relative
    depth are fractions of the range of the first map; metric and relative depth are not compared.
    """
    heads = want.maps.keys() & have.maps.keys()
    if want.depth_kind != have.depth_kind:
        heads -= {"depth"}
    # The first model's alpha says what counts, also if the second one has none.
    reference = {head: values for head, values in want.maps.items() if head in heads or head == "alpha"}
    found = metrics.parity(reference, {"alpha": want.alpha} | have.maps, want.depth_kind == "metric")
    return {head: {name: value if math.isfinite(value) else None for name, value in numbers.items()}
            for head, numbers, _ in found if head in heads}
