"""The images of --calibrate. Importing this module takes no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..core.errors import BadInput
from ..core.image_files import MAX_PIXELS, find_images, read_image


def calibration_paths(folder: Path) -> list[Path]:
    """The images of a folder, sorted by name; of data in SynthHuman's format, the files rgb_*.png of all chunks.

    Raises:
        BadInput: There is no image.
    """
    found = sorted(folder.glob("rgb_*.png")) + sorted(folder.glob("*/rgb_*.png"))
    return found or find_images(folder).images


def calibration_images(
    folder: Path, count: int, max_pixels: int = MAX_PIXELS, convert: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> tuple[list[np.ndarray], list[str]]:
    """Up to `count` images of a folder, evenly spaced, and a line for each one that cannot be read.

    Args:
        folder: The folder.
        count: The most images.
        max_pixels: Images with more pixels cannot be read.
        convert: Takes an image, uint8 (H, W, 3) RGB, and returns what is kept of it.

    Raises:
        BadInput: There is no image, or none can be read.
    """
    paths = calibration_paths(folder)
    if len(paths) > count:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, count).astype(int)]
    images, skipped = [], []
    for path in paths:
        try:
            images.append(convert(read_image(path, max_pixels)))
        except BadInput as error:
            skipped.append(str(error).replace(str(path), path.name))  # no paths of this machine in a bundle
    if not images:
        raise BadInput(f"--calibrate {folder}: none of the {len(paths)} images can be read. The first: {skipped[0]}")
    return images, skipped
