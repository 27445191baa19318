"""Checks of frames, and pre- and post-processing for the model graph, in NumPy and OpenCV.

The frame graph contains the pre- and post-processing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from ..core.contract import Contract, resize_weights
from ..core.errors import BadInput
from ..core.image_files import read_image
from ..core.metrics import sigmoid

__all__ = ["check_frames", "postprocess", "preprocess", "read_image"]

def check_frames(frames: Any, name: str = "image") -> None:
    """Raise `BadInput` unless `frames` is a non-empty uint8 array (H, W, 3) or (N, H, W, 3).

    The error gives an expression that makes such an array of `image`.
    """
    shape, dtype = tuple(frames.shape), str(frames.dtype).removeprefix("torch.")
    if dtype == "uint8" and len(shape) in (3, 4) and shape[-1] == 3 and 0 not in shape:
        return
    raise BadInput(f"{name}: expected uint8 RGB (H, W, 3) with values 0 to 255, received {dtype} {shape}. "
                   + _advice(frames, shape, dtype))


def _advice(frames: Any, shape: tuple[int, ...], dtype: str) -> str:
    if 0 in shape or not shape:
        return "The image is empty."
    if len(shape) not in (2, 3, 4):
        return "A batch is (N, H, W, 3)."
    image, notes = "image", []
    if not isinstance(frames, np.ndarray):
        image = "image.float().numpy()" if dtype == "bfloat16" else "np.asarray(image)"
    if len(shape) == 2 or shape[-1] == 1:
        notes.append("If the values are gray levels, repeat the one channel; if they are indices of a palette, pass "
                     "the PIL image or the file.")
        step = "np.repeat({}[..., None], 3, axis=-1)" if len(shape) == 2 else "np.repeat({}, 3, axis=-1)"
    elif shape[-1] == 3:
        step = "{}"
    elif len(shape) > 2 and shape[-3] == 3:
        notes.append("Move the channels last.")
        step = "np.moveaxis({}, -3, -1)"
    elif shape[-1] == 4:
        notes.append("If the channels are RGBA, drop alpha; if they are CMYK, pass the PIL image or the file.")
        step = "{}[..., :3]"
    elif shape[-1] == 2:
        notes.append("Gray and alpha: repeat gray.")
        step = "np.repeat({}[..., :1], 3, axis=-1)"
    elif len(shape) > 2 and shape[-3] == 1:
        notes.append("Move the channel last and repeat it.")
        step = "np.repeat(np.moveaxis({}, -3, -1), 3, axis=-1)"
    else:
        return "A batch is (N, H, W, 3)."
    kind, size = (frames.dtype.kind, frames.dtype.itemsize) if isinstance(frames, np.ndarray) else (dtype[0], 0)
    if dtype == "uint8":
        forms = {"": "{}"}
    elif kind == "f" or "float" in dtype:
        forms = {"Values in [0, 1]": "({} * 255).round().astype(np.uint8)",
                 "values in [0, 255]": "{}.round().astype(np.uint8)"}
    elif kind == "b":
        forms = {"": "({} * np.uint8(255))"}
    elif dtype.endswith("uint16") or (kind, size) == ("u", 2):
        forms = {"": "({} // 257).astype(np.uint8)"}
    elif kind in "iu":
        forms = {"Values in [0, 255]": "{}.astype(np.uint8)",
                 "values in [0, 65535]": "({} // 257).astype(np.uint8)"}
    else:
        return "Convert it to uint8."
    lines = [f"{case}: {step.format(form.format(image))}" if case else f"Convert it: {step.format(form.format(image))}"
             for case, form in forms.items()]
    return " ".join([*notes, "; ".join(lines) + "."])


def preprocess(frames: np.ndarray, contract: Contract) -> np.ndarray:
    """Convert uint8 frames (N, H, W, 3) RGB to the model graph's input, float32 (N, 3, h, w)."""
    n, h, w, _ = frames.shape
    box, (input_h, input_w) = contract.content_box((h, w)), contract.input_size
    scale = 1.0 / (255.0 * np.array(contract.std, np.float32))
    shift = -np.array(contract.mean, np.float32) / np.array(contract.std, np.float32)
    below, right = input_h - box.top - box.height, input_w - box.left - box.width
    images = np.empty((n, 3, input_h, input_w), np.float32)
    for i, frame in enumerate(frames):
        x = _resize_rows(frame.reshape(h, w * 3), box.height)  # (h, W * 3)
        x = np.ascontiguousarray(x.reshape(box.height, w, 3).transpose(1, 2, 0)).reshape(w, -1)  # (W, 3 * h)
        x = _resize_rows(x, box.width).reshape(box.width, 3, box.height).transpose(1, 2, 0)  # (3, h, w)
        x = x * scale[:, None, None] + shift[:, None, None]
        images[i] = np.pad(x, ((0, 0), (box.top, below), (box.left, right)), mode="edge")
    return images


def postprocess(outputs: Mapping[str, np.ndarray], contract: Contract, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Convert the model graph's outputs to maps at the frame's `size` (H, W), as the frame graph outputs them.

    Args:
        outputs: Any of depth (N, 1, h, w), normals (N, 3, h, w) and alpha_logits (N, 1, h, w), float32.
        contract: The bundle's contract.
        size: Height and width of the frames.

    Returns:
        The corresponding maps, float32: depth (N, H, W) [m], or without unit if the contract says relative,
        normals (N, H, W, 3) of unit length, alpha (N, H, W) in [0, 1].
    """
    box = contract.content_box(size)

    def to_frame(x: np.ndarray) -> np.ndarray:  # (N, C, h, w) -> (N, H, W) or (N, H, W, C)
        content = x[:, :, box.top : box.top + box.height, box.left : box.left + box.width].transpose(0, 2, 3, 1)
        return np.stack([_resize(np.ascontiguousarray(one), size) for one in content])

    maps = {}
    if "depth" in outputs:
        maps["depth"] = to_frame(outputs["depth"])
    if "normals" in outputs:
        normals = to_frame(outputs["normals"])  # (N, H, W, 3)
        length = np.sqrt(np.einsum("nhwc,nhwc->nhw", normals, normals))
        normals /= np.maximum(length, np.float32(1e-6))[..., None]
        maps["normals"] = normals
    if "alpha_logits" in outputs:
        # Sigmoid before the resize, because alpha averages linearly and logits do not.
        maps["alpha"] = to_frame(sigmoid(outputs["alpha_logits"]).astype(np.float32)).clip(0, 1)
    return maps


@functools.lru_cache(maxsize=16)
def _taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """The non-zero `resize_weights`: source rows (taps, size_out) and their weights, float32 (taps, size_out)."""
    weights = resize_weights(size_in, size_out)
    taps = int((weights > 0).sum(axis=1).max())
    first = np.minimum((weights > 0).argmax(axis=1), size_in - taps)
    rows = first[None] + np.arange(taps)[:, None]
    return rows, np.take_along_axis(weights, rows.T, axis=1).T.copy()


def _resize_rows(x: np.ndarray, size: int) -> np.ndarray:
    """Resize an array (rows, columns) to float32 (size, columns) with the triangle filter."""
    rows, weights = _taps(x.shape[0], size)
    result = np.zeros((size, x.shape[1]), np.float32)
    product = np.empty_like(result)
    for row, weight in zip(rows, weights, strict=True):
        np.multiply(x[row], weight[:, None], out=product)
        result += product
    return result


def _resize(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize float32 (h, w, C) to (H, W, C), or to (H, W) for one channel."""
    (h, w, channels), (height, width) = x.shape, size
    if h <= height and w <= width:  # without downscaling, the triangle filter is bilinear interpolation
        return cv2.resize(x, (width, height), interpolation=cv2.INTER_LINEAR)
    x = _resize_rows(x.reshape(h, w * channels), height).reshape(height, w, channels)
    x = _resize_rows(np.ascontiguousarray(x.transpose(1, 0, 2)).reshape(w, -1), width)  # (W, H * C)
    x = np.ascontiguousarray(x.reshape(width, height, channels).transpose(1, 0, 2))
    return x[..., 0] if channels == 1 else x
