"""The foreground by itself: colours without those of the background, RGBA, and composites over another background."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import cv2
import numpy as np

from ..core.errors import BadInput
from ..core.image_files import read_image
from ..runtime.image import check_frames

SMOOTHNESS = 1e-5
"""Weight of equal colours of neighbours, beside the difference of their alpha (Germer et al.)."""
_ROUNDS = 10  # per level
_OPAQUE = 1 - 1 / 510  # from here on alpha is 1 as uint8, and less than one minus this is 0
_COLOURS = {"black": (0, 0, 0), "white": (255, 255, 255), "grey": (128, 128, 128), "gray": (128, 128, 128),
            "red": (255, 0, 0), "green": (0, 177, 64), "blue": (0, 71, 187)}
"""Green and blue are those of chroma keys."""
_BLUR = 0.02  # of the diagonal


def estimate_colours(image: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The colours of foreground and background that were mixed in the pixels at the edge.

    A pixel is I = alpha F + (1 - alpha) B. Of all F and B that fit, those are sought that change least from pixel to
    pixel, above all where alpha changes, from coarse levels to fine ones: Germer, Uelwer, Conrad, Harmeling, "Fast
    Multi-Level Foreground Estimation", ICPR 2020. Per pixel, with the weighted means of the neighbours' colours, the
    minimum has a closed form; every round takes it for all pixels at once.

    Args:
        image: uint8 (H, W, 3).
        alpha: float (H, W) in [0, 1].

    Returns:
        F and B, float32 (H, W, 3) in [0, 255]. F is the image where alpha is 1, and B where it is 0.

    Raises:
        BadInput: The image or alpha has another dtype or shape.
    """
    _check(image, alpha)
    image, alpha = image.astype(np.float32), _clean(alpha)
    levels = [(image, alpha)]
    while max(levels[-1][1].shape) > 2:
        h, w = levels[-1][1].shape
        size = (-(-w // 2), -(-h // 2))
        levels.append(tuple(cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in levels[-1]))
    front, back = (_mean(image, weight)[None, None] for weight in (alpha, 1 - alpha))
    for picture, matte in reversed(levels):
        h, w = matte.shape
        front, back = (cv2.resize(one, (w, h), interpolation=cv2.INTER_LINEAR) for one in (front, back))
        front[matte > _OPAQUE], back[matte < 1 - _OPAQUE] = picture[matte > _OPAQUE], picture[matte < 1 - _OPAQUE]
        front, back = _settle(picture, matte, front, back)
    return front, back


def _settle(image: np.ndarray, alpha: np.ndarray, front: np.ndarray, back: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rounds of one level, over the pixels that are mixed."""
    h, w = alpha.shape
    row, column = np.nonzero((alpha <= _OPAQUE) & (alpha >= 1 - _OPAQUE))
    here = row * w + column
    ways = [np.clip(row + down, 0, h - 1) * w + np.clip(column + right, 0, w - 1)
            for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0))]
    alpha, both = alpha.reshape(-1), np.stack([front, back]).reshape(2, -1, 3)
    share = np.stack([alpha[here], 1 - alpha[here]])[..., None]  # (2, N, 1)
    mixed = image.reshape(-1, 3)[here]
    weights = [SMOOTHNESS + np.abs(alpha[here] - alpha[way])[None, :, None] for way in ways]  # each (1, N, 1)
    total = sum(weights)
    scale = share / (total + (share**2).sum(axis=0))
    for _ in range(_ROUNDS):
        means = sum(weight * both[:, way] for weight, way in zip(weights, ways, strict=True)) / total  # (2, N, 3)
        left = mixed - (share * means).sum(axis=0)
        both[:, here] = np.clip(means + scale * left, 0, 255)
    return both[0].reshape(h, w, 3), both[1].reshape(h, w, 3)


def _mean(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return ((image * weight[..., None]).sum(axis=(0, 1)) / max(float(weight.sum()), 1e-6)).astype(np.float32)


def _check(image: np.ndarray, alpha: np.ndarray) -> None:
    check_frames(image)
    if alpha.dtype.kind != "f" or alpha.shape != image.shape[:2] or image.ndim != 3:
        raise BadInput(f"cut-out: expected an image (H, W, 3) and alpha (H, W), floats in [0, 1], received "
                       f"{image.shape} and {alpha.dtype} {alpha.shape}.")


def _clean(alpha: np.ndarray) -> np.ndarray:
    return np.clip(np.nan_to_num(alpha), 0, 1).astype(np.float32)


def cutout(image: np.ndarray, alpha: np.ndarray, decontaminate: bool = True) -> np.ndarray:
    """The foreground as RGBA, uint8 (H, W, 4), with straight alpha.

    Args:
        image: uint8 (H, W, 3) RGB.
        alpha: float (H, W) in [0, 1].
        decontaminate: Take the background's colour out of the pixels at the edge.

    Raises:
        BadInput: The image or alpha has another dtype or shape.
    """
    _check(image, alpha)
    colours = estimate_colours(image, alpha)[0] if decontaminate else image
    return np.dstack([_to_uint8(colours), _to_uint8(_clean(alpha) * 255)])


@dataclass(frozen=True, eq=False)
class Background:
    """What a composite is put over."""

    kind: str
    """"colour", "image" or "blur", which is the background of the picture itself."""
    colour: tuple[int, int, int] = (0, 0, 0)
    """RGB."""
    image: np.ndarray | None = None
    """uint8 (h, w, 3) RGB."""

    @classmethod
    def parse(cls, text: str) -> Background:
        """"blur", a colour such as white, #00b140 or 0,177,64, or else the name of an image file.

        Raises `BadInput` if the text is none of these, or the image cannot be read.
        """
        name = text.strip().lower()
        if name == "blur":
            return cls("blur")
        if name in _COLOURS:
            return cls("colour", _COLOURS[name])
        if found := re.fullmatch(r"#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})", name):
            return cls("colour", tuple(int(part, 16) for part in found.groups()))
        if re.fullmatch(r"\d+,\d+,\d+", name) and max(colour := tuple(map(int, name.split(",")))) <= 255:
            return cls("colour", colour)
        if not os.path.isfile(text):  # also False for a name that is too long to be one
            raise BadInput(f"background: expected blur, a colour ({', '.join(_COLOURS)}, #00b140 or 0,177,64) or an "
                           f"image file, received {text!r:.200}.")
        return cls("image", image=read_image(text))

    def picture(self, image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        """What is behind the foreground of `image`: float32 or uint8, (H, W, 3), or a colour (3,)."""
        if self.kind == "colour":
            return np.array(self.colour, np.float32)
        if self.kind == "image":
            return covering(self.image, image.shape[:2])
        return blurred_background(image, alpha)


def composite(image: np.ndarray, alpha: np.ndarray, background: Background, decontaminate: bool = True) -> np.ndarray:
    """The foreground over another background, uint8 (H, W, 3) RGB. Arguments and errors are those of `cutout`."""
    _check(image, alpha)
    colours = estimate_colours(image, alpha)[0] if decontaminate else image
    share = _clean(alpha)[..., None]
    return _to_uint8(colours * share + background.picture(image, alpha) * (1 - share))


def covering(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture (h, w, 3) scaled to cover `size` (H, W), and cut in the middle."""
    (h, w), (height, width) = picture.shape[:2], size
    scale = max(height / h, width / w)
    scaled = (max(width, round(w * scale)), max(height, round(h * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture = cv2.resize(picture, scaled, interpolation=how)
    top, left = (scaled[1] - height) // 2, (scaled[0] - width) // 2
    return picture[top : top + height, left : left + width]


def blurred_background(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The background out of focus, float32 (H, W, 3): a mean of the background's pixels alone, so that the foreground
    leaves no halo."""
    h, w = alpha.shape
    shrink = max(1, round(np.hypot(h, w) / 500))  # a wide blur needs no more pixels
    size = (-(-w // shrink), -(-h // shrink))
    weight = (1 - _clean(alpha)) ** 4  # a pixel at the edge is mostly foreground
    small = cv2.resize(np.dstack([image * weight[..., None], weight]), size, interpolation=cv2.INTER_AREA)
    sigma = _BLUR * float(np.hypot(h, w)) / shrink
    # Behind the foreground, where no background is near, a wider blur fills in.
    filled = np.zeros((*small.shape[:2], 3), np.float32)
    for width in (16 * sigma, 4 * sigma, sigma):
        spread = cv2.GaussianBlur(small, (0, 0), width, borderType=cv2.BORDER_REFLECT)
        share = np.minimum(spread[..., 3:] / 0.05, 1)
        filled = share * spread[..., :3] / np.maximum(spread[..., 3:], 1e-6) + (1 - share) * filled
    return cv2.resize(filled, (w, h), interpolation=cv2.INTER_LINEAR)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8) if values.dtype != np.uint8 else values
