"""From an input to a picture: an image, a page of a TIFF file, the first frame of an animation."""

from __future__ import annotations

import cv2
import numpy as np

from ..core.errors import BadInput
from ..core.image_files import check_pixels, image_from_bytes, read_image
from ..core.image_header import header_of
from ..core.storage import Item
from .reader import frame_count, quiet

TIFF = (".tif", ".tiff")


def page_count(item: Item) -> int:
    """Number of pages of a local TIFF file; 1 for other inputs, and if it cannot be read, which the decoder reports."""
    if item.path is None or item.path.suffix.lower() not in TIFF:
        return 1
    try:
        return frame_count(item.path)
    except OSError:
        return 1


def read_picture(item: Item, page: int, max_pixels: int) -> tuple[np.ndarray, str]:
    """Decode an input.

    Args:
        item: The input.
        page: The page of a local TIFF file, from 1 on. Of other inputs, the first picture is read.
        max_pixels: An image with more pixels is refused.

    Returns:
        uint8 (H, W, 3) RGB, and a sentence on what was left out; "" for nothing.

    Raises:
        BadInput: It cannot be read.
        MissingPackage: The package of its protocol is not installed.
    """
    if item.path is None:
        data = item.read()
        return image_from_bytes(data, item.label, max_pixels), _left_out(item, data)
    if page > 1:
        return _page(item, page, max_pixels), ""
    image = read_image(item.path, max_pixels)
    count = 1 if item.path.suffix.lower() in TIFF else frame_count(item.path)
    return image, "" if count == 1 else (f"{item.label}: an animation; only the first of its {count} frames is "
                                         "predicted. Use --video to predict all")


def _page(item: Item, page: int, max_pixels: int) -> np.ndarray:
    with quiet():
        try:
            read, pages = cv2.imreadmulti(item.place, page - 1, 1, flags=cv2.IMREAD_COLOR)
        except cv2.error:
            read, pages = False, ()
    if not read or not pages or pages[0].dtype != np.uint8 or pages[0].ndim != 3:
        raise BadInput(f"{item.label}: page {page} cannot be decoded. Save it as PNG.")
    check_pixels(item.label, pages[0].shape[:2], max_pixels)
    return cv2.cvtColor(pages[0], cv2.COLOR_BGR2RGB)


def _left_out(item: Item, data: bytes) -> str:
    """Of a TIFF file in a tar or a bucket, a sentence on its other pages."""
    if header_of(data).format != "TIFF":
        return ""
    with quiet():
        try:  # the second page alone: a file may have hundreds
            others = cv2.imdecodemulti(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR, range=(1, 2))[0]
        except (cv2.error, TypeError):
            return ""
    return "" if not others else (f"{item.label}: only the first of its pages is predicted. Copy the file to this "
                                  "machine and predict it there for the others")
