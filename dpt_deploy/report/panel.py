"""The panel: an image and its maps side by side, with titles, a depth scale [m] and a legend (OpenCV alone)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..runtime import Prediction
from .colours import colour_depth, colour_normals, cut_out, depth_range

# Sizes [pixels].
PICTURE_AREA, MAX_PICTURE_SIDE, MIN_TILE_WIDTH = 480 * 480, 760, 300
GAP, TITLE_HEIGHT, CAPTION_HEIGHT = 24, 40, 56
PAPER, INK, FAINT_INK = (255, 255, 255), (28, 32, 38), (96, 104, 116)
BACKGROUND_OPACITY = 0.12
"""Of depth and normals where alpha says background."""


@dataclass(frozen=True)
class Tile:
    """One picture of a panel."""

    title: str
    picture: np.ndarray
    """uint8 (H, W, 3) RGB."""
    caption: str = ""
    legend: np.ndarray | None = None
    """uint8 (h, w, 3) RGB, drawn before the caption."""


def panel(image: np.ndarray, prediction: Prediction, name: str = "") -> np.ndarray:
    """The image, depth in colours, normals as RGB and the cut-out over a checkerboard, as far as they are predicted.

    Depth colours span the foreground; depth that is not in metres has a scale without a unit. Depth and normals fade
    where alpha says background, because they mean nothing there.

    Args:
        image: uint8 (H, W, 3) RGB.
        prediction: The maps of that image.
        name: Shown below the image.

    Returns:
        uint8 (H', W', 3) RGB of a few hundred to two thousand pixels, whatever the size of the image.
    """
    h, w = image.shape[:2]
    size = tile_size(h, w)
    small = {head: _resized(value, size) for head, value in prediction.maps.items()}
    alpha = small.get("alpha")
    tiles = [Tile("Image", _resized(image, size), f"{name}  {h}x{w}".strip())]
    if "depth" in small:
        limits = depth_range(prediction.depth, prediction.alpha)
        title, unit = _depth_title(prediction)
        bar = depth_scale(limits, max(size[1], MIN_TILE_WIDTH), unit=unit)
        tiles.append(Tile(title, _faded(colour_depth(small["depth"], limits), alpha), legend=bar))
    if "normals" in small:
        picture = _faded(colour_normals(small["normals"]), alpha)
        tiles.append(Tile("Normals", picture, "x right, y up, z to viewer", _sphere(40)))
    if "alpha" in small:
        share = float((prediction.alpha > 0.5).mean())
        caption = f"{share:.0%} of the image" if share >= 0.01 or share == 0 else "less than 1% of the image"
        tiles.append(Tile("Foreground", cut_out(tiles[0].picture, alpha), caption))
    # A square page reads best: wide images stack, tall ones stand side by side.
    columns = 1 if w > 2.5 * h else 2 if w > 1.2 * h else len(tiles)
    return arrange(tiles, columns)


def _depth_title(prediction: Prediction) -> tuple[str, str]:
    """The title of depth, and the unit of its scale with a blank before it."""
    if prediction.depth_kind != "metric":
        return "Relative depth", ""
    if prediction.canonical_focal:
        return f"Depth for f = {prediction.canonical_focal:.4g} px", ""
    return "Depth", " m"


def arrange(tiles: Sequence[Tile], columns: int) -> np.ndarray:
    """A page of tiles, row by row, uint8 (H, W, 3) RGB; each cell is as large as the largest picture needs."""
    cell_h = max(tile.picture.shape[0] for tile in tiles)
    cell_w = max(MIN_TILE_WIDTH, *(tile.picture.shape[1] for tile in tiles))
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    height = rows * (TITLE_HEIGHT + cell_h + CAPTION_HEIGHT) + GAP
    page = np.full((height, columns * (cell_w + GAP) + GAP, 3), PAPER, np.uint8)
    for i, tile in enumerate(tiles):
        y = (i // columns) * (TITLE_HEIGHT + cell_h + CAPTION_HEIGHT)
        x = GAP + (i % columns) * (cell_w + GAP)
        draw_text(page, tile.title, (x, y + TITLE_HEIGHT - 10), INK, 0.68, bold=True)
        _paste(page, tile.picture, y + TITLE_HEIGHT, x + (cell_w - tile.picture.shape[1]) // 2)
        left, base = x, y + TITLE_HEIGHT + cell_h + 10
        if tile.legend is not None:
            _paste(page, tile.legend, base, x)
            left += tile.legend.shape[1] + 10
        if tile.caption:
            beside = 7 if tile.legend is not None else 0
            draw_text(page, _elided(tile.caption, x + cell_w - left), (left, base + 18 + beside), FAINT_INK)
    return page


def tile_size(height: int, width: int) -> tuple[int, int]:
    """The size (h, w) at which an image of `height` x `width` is shown: one area for all, within bounds."""
    scale = min(math.sqrt(PICTURE_AREA / (height * width)), MAX_PICTURE_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def depth_scale(limits: tuple[float, float], width: int, height: int = 40, unit: str = " m") -> np.ndarray:
    """The colour bar of depths from `limits[0]` to `limits[1]` with round ticks, uint8 (height, width, 3) RGB."""
    near, far = limits
    bar = np.full((height, width, 3), PAPER, np.uint8)
    colours = colour_depth(np.linspace(near, far, width, dtype=np.float64)[None], limits)
    bar[:12] = colours
    step = _round_step((far - near) / 4)
    digits = len(f"{step:.9f}".rstrip("0").partition(".")[2])
    free = 0
    for k in range(math.ceil(near / step - 1e-9), math.floor(far / step + 1e-9) + 1):
        x = round((k * step - near) / (far - near) * (width - 1))
        text = f"{k * step:.{digits}f}{unit}"
        left = min(max(0, x - text_width(text) // 2), width - text_width(text))
        if left < free:
            continue
        cv2.line(bar, (x, 12), (x, 17), INK, 1)
        draw_text(bar, text, (left, 34), FAINT_INK)
        free = left + text_width(text) + 10
    return bar


def draw_text(picture: np.ndarray, text: str, origin: tuple[int, int], colour: tuple[int, int, int] = INK,
              scale: float = 0.52, bold: bool = False) -> None:
    """Draw `text` into `picture`, in place; `origin` (x, y) is where its baseline begins."""
    cv2.putText(picture, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 2 if bold else 1, cv2.LINE_AA)


def text_width(text: str, scale: float = 0.52) -> int:
    """The width of `text` as `draw_text` draws it [pixels]."""
    return cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0]


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrinks = picture.shape[0] > size[0]
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _faded(picture: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """`picture` where there is foreground, and little of it elsewhere; all of it where nothing is foreground."""
    if alpha is None or not (alpha > 0.5).any():
        return picture
    weight = BACKGROUND_OPACITY + (1 - BACKGROUND_OPACITY) * np.clip(np.nan_to_num(alpha), 0, 1)[..., None]
    return (picture * weight + np.array(PAPER) * (1 - weight) + 0.5).astype(np.uint8)


def _sphere(size: int) -> np.ndarray:
    """The colours of normals, on a ball seen from the front."""
    fine = 4 * size
    y, x = (np.indices((fine, fine)) + 0.5) / fine * 2 - 1
    inside = x**2 + y**2 < 1
    normals = np.stack([x, -y, np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))], axis=-1)
    picture = np.where(inside[..., None], colour_normals(normals), np.array(PAPER, np.uint8))
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)


def _paste(page: np.ndarray, picture: np.ndarray, y: int, x: int) -> None:
    page[y : y + picture.shape[0], x : x + picture.shape[1]] = picture


def _elided(text: str, width: int) -> str:
    """`text`, with its middle left out where it is wider than `width`."""
    if text_width(text) <= width:
        return text
    keep = len(text)
    while keep > 2 and text_width(shorter := f"{text[: keep // 2]}...{text[len(text) - (keep - keep // 2) :]}") > width:
        keep -= 1
    return shorter


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))
