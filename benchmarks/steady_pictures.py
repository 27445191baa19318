"""Pictures of a clip, frame by frame and steadied: depth and alpha in a row, and one row of pixels over time."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from dpt_deploy.report.colours import colour_alpha, colour_depth, colour_normals, depth_range
from dpt_deploy.report.panel import INK, PAPER, draw_text
from train.data.synthetic.clip import ClipFrame

SHOWN = (40, 41, 42)
"""Frames in a row: consecutive ones, because flicker is the change between them."""
SIDE = 120  # pixels
LABEL, GAP = 86, 6
WAYS = {"frames": "one by one", "steady": "steadied", "truth": "truth"}


class Strip:
    """What is drawn of a clip, kept small."""

    def __init__(self) -> None:
        self.pictures: list[np.ndarray] = []
        self.maps: dict[str, list[dict[str, np.ndarray]]] = {way: [] for way in WAYS}
        """Maps of the shown frames."""
        self.lines: dict[str, list[dict[str, np.ndarray]]] = {way: [] for way in WAYS}
        """One row of pixels of each frame."""
        self._count = 0

    def add(self, frame: ClipFrame, maps: dict[str, dict[str, np.ndarray]]) -> None:
        """Keep what is shown of a frame; `maps` has the maps of each way."""
        row = int(frame.rgb.shape[0] * 0.45)
        if self._count in SHOWN:
            self.pictures.append(frame.rgb)
        for way, one in maps.items():
            one = {head: np.where(maps["truth"]["alpha"] > 0.5, one[head], np.nan) if head == "depth" else one[head]
                   for head in one}
            self.lines[way].append({head: value[row].copy() for head, value in one.items()})
            if self._count in SHOWN:
                self.maps[way].append({head: value.copy() for head, value in one.items()})
        self._count += 1


def draw(strips: Sequence[Strip]) -> np.ndarray:
    """The clips side by side, uint8 (H, W, 3) RGB."""
    return np.hstack([_clip(strip) for strip in strips])


def _clip(strip: Strip) -> np.ndarray:
    rows = []
    for head in ("depth", "normals", "alpha"):
        for way, title in WAYS.items():
            limits = _limits(strip, way)
            tiles = [_small(_coloured(head, maps[head], limits)) for maps in strip.maps[way]]
            lines = np.stack([line[head] for line in strip.lines[way]])  # (T, W) or (T, W, 3)
            tiles.append(cv2.resize(_coloured(head, lines, limits), (2 * SIDE, SIDE), interpolation=cv2.INTER_NEAREST))
            rows.append(_row(f"{head},", title, tiles))
    head = np.full((SIDE, 2 * SIDE, 3), PAPER, np.uint8)
    draw_text(head, "one row of pixels,", (8, SIDE - 34), INK, 0.5)
    draw_text(head, "time runs downwards", (8, SIDE - 12), INK, 0.5)
    return np.vstack([_row("frames", "", [*map(_small, strip.pictures), head]), *rows])


def _limits(strip: Strip, way: str) -> tuple[float, float]:
    """One range of colours for all frames of a way: predictions and truth differ in scale."""
    return depth_range(np.concatenate([line["depth"] for line in strip.lines[way]]))


def _coloured(head: str, value: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    if head == "depth":
        return colour_depth(value, limits)
    return colour_normals(value) if head == "normals" else colour_alpha(value)


def _small(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def _row(first: str, second: str, tiles: Sequence[np.ndarray]) -> np.ndarray:
    label = np.full((SIDE, LABEL, 3), PAPER, np.uint8)
    draw_text(label, first, (4, SIDE // 2 - 4), INK, 0.45)
    draw_text(label, second, (4, SIDE // 2 + 16), INK, 0.45)
    padded = [cv2.copyMakeBorder(tile, 0, GAP, 0, GAP, cv2.BORDER_CONSTANT, value=PAPER) for tile in tiles]
    return np.hstack([cv2.copyMakeBorder(label, 0, GAP, 0, 0, cv2.BORDER_CONSTANT, value=PAPER), *padded])
