"""What the sources of a command line are: images, pages, videos, cameras and network streams."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from ..core.errors import BadInput
from ..core.image_files import ImageList, check_pixels, find_images, read_image
from ..report.prediction_files import PICTURES
from .reader import camera_index, frame_count, is_stream, is_video, quiet

VIDEO_SUFFIXES = (
    ".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".3gp", ".ogv",
)
"""Names of videos, for the error about a file that is neither an image nor a video."""


@dataclass(frozen=True)
class Image:
    """An image file, or a page of one."""

    path: Path
    folder: Path = Path()
    """Where the results go, below the output folder."""
    page: int = 1
    pages: int = 1

    @property
    def label(self) -> str:
        """The file's name, and the page if there are several."""
        return f"{self.path.name}, page {self.page}" if self.pages > 1 else self.path.name

    def read(self, max_pixels: int) -> np.ndarray:
        """uint8 (H, W, 3) RGB. Raises `BadInput` if it cannot be read, or has more pixels than `max_pixels`."""
        if self.page == 1:
            return read_image(self.path, max_pixels)
        with quiet():
            try:
                read, pages = cv2.imreadmulti(str(self.path), self.page - 1, 1, flags=cv2.IMREAD_COLOR)
            except cv2.error:
                read, pages = False, ()
        if not read or not pages or pages[0].dtype != np.uint8 or pages[0].ndim != 3:
            raise BadInput(f"{self.path}: page {self.page} of {self.pages} cannot be decoded. Save it as PNG.")
        check_pixels(str(self.path), pages[0].shape[:2], max_pixels)
        return cv2.cvtColor(pages[0], cv2.COLOR_BGR2RGB)


@dataclass
class Sources:
    """What is to be predicted."""

    images: list[Image] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    """Files, numbers of cameras, and addresses."""
    skipped: list[str] = field(default_factory=list)
    """Parts of the input that are left out, with the reason."""
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images) + len(self.videos)


def find_sources(names: Sequence[str], video: bool = False, recursive: bool = False) -> Sources:
    """Decide by content what each name stands for.

    Args:
        names: Images, folders, videos, numbers of cameras, addresses. Files that are named twice count once.
        video: Take animated images and pages for videos.
        recursive: Also take the images of subfolders.

    Raises:
        BadInput: A file or folder does not exist, or a folder contains no image.
    """
    if not names:
        raise BadInput("SOURCE: expected an image, a folder, a video, the number of a camera or an address.")
    found = Sources()
    seen: set[str] = set()
    for name in names:
        path = Path(name)
        if camera_index(name) is not None or is_stream(name):
            found.videos.append(name)
        elif path.is_dir():
            for image, folder in _in_folder(path, recursive, found.notes):
                if _new(image, seen):
                    _add_image(found, image, folder)
        elif not path.is_file():
            raise BadInput(f"expected an image, a folder, a video, the number of a camera or an address such as "
                           f"rtsp://camera/stream, but there is no file {name}.")
        elif _new(path, seen):
            if video or is_video(path) or path.suffix.lower() in VIDEO_SUFFIXES:
                found.videos.append(name)
            else:
                _add_image(found, path, Path())
    return found


def output_stems(parts: Sequence[tuple[Path, Path, str]]) -> list[str]:
    """Names of the output files: the shortest ones that differ within their folder.

    Args:
        parts: For each input its file, the folder of its results, and what is added to its name, such as ".page2".
    """
    chosen: list[str] = []
    used: set[tuple[Path, str]] = set()
    candidates = [[path.stem + extra, path.name + extra, f"{path.absolute().parent.name}_{path.name}{extra}"]
                  for path, _, extra in parts]
    folders = [folder for _, folder, _ in parts]
    counts = [Counter(zip(folders, names, strict=True)) for names in zip(*candidates, strict=True)]
    for folder, names in zip(folders, candidates, strict=True):
        stem = next((name for name, count in zip(names, counts, strict=True)
                     if count[folder, name] == 1 and (folder, name) not in used), None)
        number = 2
        while stem is None or (folder, stem) in used:
            stem = names[-1] if (folder, names[-1]) not in used else f"{names[-1]}_{number}"
            number += 1
        used.add((folder, stem))
        chosen.append(stem)
    return chosen


def _in_folder(path: Path, recursive: bool, notes: list[str]) -> Iterable[tuple[Path, Path]]:
    """The images of a folder without the pictures that this command wrote, and where they stand in it."""
    found: list[tuple[Path, Path]] = []
    left_out: list[Path] = []
    folders = [Path()]
    if recursive:
        folders = sorted(Path(root).relative_to(path) for root, _, _ in os.walk(path))
        folders = [folder for folder in folders if not any(part.startswith(".") for part in folder.parts)]
    for folder in folders:
        try:
            listed = find_images(path / folder)
        except BadInput:
            if folder == folders[-1] and not found:
                raise
            continue
        found += [(image, folder) for image in listed.images if not image.name.endswith(PICTURES)]
        left_out += [one for one in listed.left_out if not (recursive and one.is_dir())]
    if not found:
        raise BadInput(f"{path}: expected images, received only pictures that this command wrote.")
    if line := ImageList([], left_out).left_out_line():
        advice = "" if recursive or not any(one.is_dir() for one in left_out) else "; --recursive reads subfolders"
        notes.append(f"{path}: {line}{advice}")
    return found


def _new(path: Path, seen: set[str]) -> bool:
    key = os.path.realpath(path)
    if key in seen:
        return False
    seen.add(key)
    return True


def _add_image(found: Sources, path: Path, folder: Path) -> None:
    try:
        count = frame_count(path)
    except OSError:
        count = 1  # the reader says why
    if count > 1 and path.suffix.lower() not in (".tif", ".tiff"):
        found.skipped.append(f"{path}: an animation; only the first of its {count} frames is predicted. "
                             "Use --video to predict all")
        count = 1
    found.images += [Image(path, folder, page, count) for page in range(1, count + 1)]
