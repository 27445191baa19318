"""The images of --calibrate. Importing this module takes no torch."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..core import places
from ..core.errors import BadInput
from ..core.image_files import MAX_PIXELS, SUFFIXES, find_images, image_from_bytes, read_image
from ..core.storage import Item, find_items
from ..core.tar_index import SUFFIX

_MAP = re.compile(r"(?P<folder>(?:.*/)?)"
                  r"(?:(?:alpha|depth|normal)_(?P<number>\d+)|(?P<key>\d+)\.(?:alpha|depth|normal))\.\w+")
"""The map of a sample in SynthHuman's names, and in those of a WebDataset."""


def calibration_items(source: Path | str) -> list[Item]:
    """The images of a source, sorted by name. The maps of samples in SynthHuman's format are left out.

    The key of an item is its path below the source.

    Args:
        source: A folder of images, of samples or of tar shards; a tar, a pattern of them, or an address of one.

    Raises:
        BadInput: There is no image.
        MissingPackage: The package of an address's protocol is not installed.
    """
    folder = places.local(places.normalized(str(source)))
    if folder is not None and os.path.isdir(folder):
        found = sorted(folder.glob("*/rgb_*.png"))
        if not any(folder.glob(f"*{SUFFIX}")):
            with contextlib.suppress(BadInput):  # there may be samples in its folders only
                found = find_images(folder).images + found
        if found:
            return without_maps([Item(path.relative_to(folder).as_posix(), str(path)) for path in found])
    problems: list[str] = []
    items = list(find_items([str(source)], SUFFIXES, on_problem=problems.append, contents=False))
    if not items:
        reason = f" ({problems[0]})" if problems else ""
        raise BadInput(f"{places.shown(str(source))}: expected images or tar shards with images, found none{reason}. "
                       "Check the path.")
    return without_maps(items)


def without_maps(items: list[Item]) -> list[Item]:
    """The items without the maps whose sample's colour image is among them."""
    keys = {item.key for item in items}

    def of_a_sample(item: Item) -> bool:
        found = _MAP.fullmatch(item.key)
        if found is None:
            return False
        colour = f"rgb_{found['number']}.png" if found["number"] else f"{found['key']}.rgb.png"
        return found["folder"] + colour in keys

    return [item for item in items if not of_a_sample(item)]


def calibration_images(
    source: Path | str, count: int, max_pixels: int = MAX_PIXELS,
    convert: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> tuple[list[np.ndarray], list[str]]:
    """Up to `count` images, evenly spaced, and a line for each one that cannot be read.

    Args:
        source: See `calibration_items`.
        count: The most images.
        max_pixels: Images with more pixels cannot be read.
        convert: Takes an image, uint8 (H, W, 3) RGB, and returns what is kept of it.

    Raises:
        BadInput: There is no image, or none can be read.
    """
    items = calibration_items(source)
    if len(items) > count:
        items = [items[i] for i in np.linspace(0, len(items) - 1, count).astype(int)]
    images, skipped = [], []
    for item in items:
        try:
            images.append(convert(_read(item, max_pixels)))
        except BadInput as error:  # no paths of this machine in a bundle
            name = places.base_name(item.place) if item.member else item.key
            skipped.append(str(error).replace(places.shown(item.place), name))
    if not images:
        raise BadInput(f"--calibrate {places.shown(str(source))}: none of the {len(items)} images can be read. The "
                       f"first: {skipped[0]}")
    return images, skipped


def _read(item: Item, max_pixels: int) -> np.ndarray:
    if item.path is not None:
        return read_image(item.path, max_pixels)
    return image_from_bytes(item.read(), item.label, max_pixels)
