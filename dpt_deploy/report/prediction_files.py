"""The files that one prediction gives: a panel to look at, the maps, and depth for other programs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..runtime import Prediction
from .panel import panel
from .writers import write_depth_exr, write_npz, write_png

PANEL_SUFFIX, MATTE_SUFFIX = ".panel.png", ".matte.png"
PICTURES = (
    PANEL_SUFFIX, MATTE_SUFFIX, ".cutout.png", ".cutout.webp", ".composite.png", ".alpha.png", ".depth.png",
    ".normals.png",
)
"""How the names of the pictures end that a prediction gives. In a folder, they are results and not images."""


def write_prediction(
    folder: Path, stem: str, image: np.ndarray, prediction: Prediction, caption: str = "",
    matte: np.ndarray | None = None, picture: bool = True,
) -> list[Path]:
    """Write the panel, the maps and the depth of one image.

    Args:
        folder: Where the files go; it is made if it does not exist.
        stem: How the names of the files begin.
        image: uint8 (H, W, 3) RGB.
        prediction: The maps of that image.
        caption: Shown below the image in the panel.
        matte: A picture to write instead of the panel, uint8 (H, W, 3) RGB.
        picture: Whether to write the panel or the matte.

    Returns:
        The files: panel or matte (PNG), all maps (.npz, float32, with `meaning`: JSON that says in words what the
        numbers of each map are) and, if depth was predicted, depth (OpenEXR).
    """
    files = []
    if picture:
        files.append(folder / f"{stem}{PANEL_SUFFIX if matte is None else MATTE_SUFFIX}")
        write_png(files[-1], panel(image, prediction, caption) if matte is None else matte)
    files.append(folder / f"{stem}.npz")
    write_npz(files[-1], {"meaning": np.array(json.dumps(prediction.meanings))} | prediction.maps)
    if prediction.depth is not None:
        files.append(folder / f"{stem}.depth.exr")
        write_depth_exr(files[-1], prediction.depth, prediction.depth_meaning)
    return files
