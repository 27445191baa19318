"""What the sources of a command line are: images by the million, videos, cameras and network streams."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import BadInput
from ..core.image_files import SUFFIXES
from ..core.patterns import has_braces, has_wildcards
from ..core.places import base_name, is_address, normalized, shown
from ..core.storage import LIST_SUFFIXES, Item, Listing, Shard, Unit, find_items
from ..core.tar_index import SUFFIX as TAR
from ..report.prediction_files import PICTURES
from .batches import Work
from .decoding import page_count
from .naming import Names, is_file_name
from .reader import camera_index, is_stream, is_video

VIDEO_SUFFIXES = (
    ".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".3gp", ".ogv",
)
"""Names of videos, for the error about a file that is neither an image nor a video."""
RESULTS = (*PICTURES, ".depth.png", ".normals.png", ".alpha.png")
"""How the names of pictures end that this command writes, and does not predict."""
STREAMS = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt", "mms", "mmsh", "mmst")
"""Protocols of network streams. http and https are too, unless the address names an image, a tar, a list or a folder;
others are those of buckets."""


@dataclass
class Sources:
    """What is to be predicted."""

    listing: Listing | None = None
    """The images; None for none."""
    videos: list[str] = field(default_factory=list)
    """Files, numbers of cameras, and addresses."""
    problems: list[str] = field(default_factory=list)
    """What could not be listed in the latest iteration."""
    named: set[str] = field(default_factory=set)
    """Files that are named one by one: images whatever their names are."""
    results: int = 0
    """Pictures that this command wrote, which the latest iteration passed over."""

    def few(self, most: int) -> list[Item] | None:
        """The images if there are at most `most`, and None otherwise, or if counting would fetch them."""
        found: list[Item] = []
        for unit in self._units():
            if isinstance(unit, Shard) and unit.remote:
                return None
            for item in self._items(unit):
                found.append(item)
                if len(found) > most:
                    return None
        return found

    def few_works(self, items: Sequence[Item]) -> list[Work]:
        """The images of a small run with the names of their results, which are the shortest ones that differ."""
        if any(item.path is None for item in items):
            return list(self.works(Names()))
        items = list({item.key: item for item in items}.values())  # a list may name a file twice
        pages = [(item, page, count) for item in items for count in [page_count(item)] for page in range(1, count + 1)]
        folders = [Path(item.key).parent for item, _, _ in pages]
        stems = output_stems([(item.path, folder, f".page{page}" if count > 1 else "")
                              for (item, page, count), folder in zip(pages, folders, strict=True)])
        return [Work(f"{item.key}#page{page}", (folder / stem).as_posix(), item, page, count)
                for (item, page, count), folder, stem in zip(pages, folders, stems, strict=True)]

    def works(self, names: Names, share: tuple[int, int] = (0, 1)) -> Iterator[Work]:
        """The images of a share with the names of their results, lazily.

        Args:
            names: Sees the images of all shares, so that each has the same name in every process.
            share: See `storage.find_items`.
        """
        for unit in self.units(names, share):
            if isinstance(unit, Work):
                yield unit
            else:
                for item in self._items(unit):
                    yield from _works(item, names)

    def units(self, names: Names, share: tuple[int, int] = (0, 1)) -> Iterator[Work | Shard]:
        """As `works`, but remote tars as a whole, so that who predicts their images fetches them."""
        part, parts = share
        number, remote = itertools.count(), itertools.count()
        for unit in self._units():
            if isinstance(unit, Shard) and unit.remote:
                if next(remote) % parts == part:
                    yield unit
                continue
            for item in self._items(unit):
                mine = next(number) % parts == part
                yield from (work for work in _works(item, names) if mine)

    def left_out_line(self) -> str:
        """What the latest iteration passed over; "" for nothing."""
        if self.listing is None or not (line := self.listing.left_out_line()):
            return ""
        folders = any(name.endswith("/") for name in self.listing.left_out_names)
        advice = "" if self.listing.recursive or not folders else "; --recursive reads subfolders"
        return f"{self.names}: {line}{advice}"

    @property
    def names(self) -> str:
        """The sources of images for messages, without passwords and queries of addresses."""
        return ", ".join(shown(source.text) for source in self.listing.sources)

    def _units(self) -> Iterator[Unit]:
        self.problems.clear()
        self.results = 0
        return iter(()) if self.listing is None else self.listing.units()

    def _items(self, unit: Unit) -> Iterator[Item]:
        for item in unit.items(SUFFIXES, self.problems.append, self.listing._left_out):
            if item.key.endswith(RESULTS) and item.place not in self.named:
                self.results += 1
            else:
                yield item


def shard_works(shard: Shard, names: Names, problem: Callable[[str], None]) -> Iterator[Work]:
    """The images of a tar, in another process than the one that lists the sources."""
    for item in shard.items(SUFFIXES, problem):
        if not item.key.endswith(RESULTS):
            yield from _works(item, names)


def find_sources(names: Sequence[str], video: bool = False, recursive: bool = False) -> Sources:
    """Decide what each name stands for; files that are named one by one, by their content.

    Args:
        names: Images, folders, globs, lists of files (list.txt or @list), tars, addresses of any of these; videos,
            numbers of cameras, addresses of streams. Files that are named twice count once.
        video: Take animated images and pages for videos.
        recursive: Also take the images of subfolders.

    Raises:
        BadInput: A file or folder does not exist or cannot be listed.
        MissingPackage: The package of a protocol is not installed.
    """
    found = Sources()
    images: list[str] = []
    seen: set[str] = set()
    for name in names:
        name = normalized(name)
        key = name if is_address(name) else os.path.realpath(name)
        if key in seen:
            continue
        seen.add(key)
        if camera_index(name) is not None or _is_stream(name):
            found.videos.append(name)
        elif is_address(name) or os.path.isdir(name) or _is_many(name):
            images.append(name)
        elif not os.path.isfile(name):
            if has_wildcards(name) or has_braces(name) or name.startswith("@"):
                images.append(name)
                continue
            raise BadInput(f"expected an image, a folder, a glob, a list, a tar, a video, the number of a camera or an "
                           f"address such as rtsp://camera/stream, but there is no file {name}.")
        elif video or is_video(Path(name)) or name.lower().endswith(VIDEO_SUFFIXES):
            found.videos.append(name)
        else:
            images.append(name)
            found.named.add(name)
    if images:
        found.listing = find_items(images, SUFFIXES, recursive, on_problem=found.problems.append)
    if not found.videos and not images:
        raise BadInput("SOURCE: expected an image, a folder, a glob, a list, a tar, an address, a video or the number "
                       "of a camera.")
    return found


def _is_many(name: str) -> bool:
    return os.path.isfile(name) and name.lower().endswith((TAR, *LIST_SUFFIXES))


def _is_stream(name: str) -> bool:
    if not is_stream(name):
        return False
    protocol = name.partition("://")[0].lower()
    if protocol in ("http", "https"):
        several = has_wildcards(name) or has_braces(name)
        return not (name.endswith("/") or several or
                    base_name(name).lower().endswith((*SUFFIXES, TAR, *LIST_SUFFIXES)))
    return protocol in STREAMS


def _works(item: Item, names: Names) -> Iterator[Work]:
    stem = names.stem(item.key, item.member)
    if stem is None:
        return
    count = page_count(item)
    if count == 1:
        yield Work(item.key, stem, item)
    for page in range(1, count + 1) if count > 1 else ():
        yield Work(f"{item.key}#page{page}", f"{stem}{names.dot}page{page}", item, page, count)


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
                     if is_file_name(name) and count[folder, name] == 1 and (folder, name) not in used), None)
        number = 2
        while stem is None or (folder, stem) in used:
            stem = names[-1] if (folder, names[-1]) not in used else f"{names[-1]}_{number}"
            number += 1
        used.add((folder, stem))
        chosen.append(stem)
    return chosen
