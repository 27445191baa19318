"""Samples in tar shards, local or behind an address, read at random through the index of each shard.

A shard holds original files, or samples at training size, which are read as fast as from a cache:

    0000000.rgb.png   .alpha.png   .depth.exr   .normal.exr   .cam.txt          WebDataset's naming
    rgb_0000000.png   alpha_0000000.png   ...                                   SynthHuman's own names
    0000000.rgb.npy   .depth.npy   .normals.npy   .alpha.npy   .sample.json     prepared (train.data.shard_files)

The order of samples is that of the shards' names, and within a shard that of the numbers. Which process reads a sample
does not matter: batches, shuffling and resuming are the same as for a folder.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dpt_deploy.core import places, tar_index
from dpt_deploy.core.errors import BadInput, first_line
from dpt_deploy.core.image_files import MAX_PIXELS
from dpt_deploy.core.storage import LIST_SUFFIXES, shards_of

from ..commands import command
from . import shard_files
from .conventions import AXES
from .sample import Sample
from .synthhuman import FILES, kind_of_index, read_bytes

_ORIGINAL = re.compile(r"(.*/)?(\d{1,18})\.(rgb\.png|alpha\.png|depth\.exr|normal\.exr|cam\.txt)")
_NAMED = re.compile(r"(.*/)?(rgb|alpha|depth|normal|cam)_(\d{1,18})\.(png|exr|txt)")
_PREPARED = re.compile(rf"(.*/)?(\d{{1,18}})\.({'|'.join(map(re.escape, shard_files.MEMBERS))})")
_ROLES = {pattern.replace("_{}", ""): role for role, pattern in enumerate(FILES)}
"""Suffix of an original file -> its place in `FILES`."""
MOST_MAPS = 128
"""Shards that a process keeps mapped into memory; each takes a file descriptor."""


class _Role(NamedTuple):
    """What a member is to its sample. Members of one sample have everything but the place in common."""

    number: str
    form: Literal["original", "prepared"]
    folder: str
    """In the tar, with a slash at its end; "" for its root."""
    named: bool
    """Whether the file has SynthHuman's own name."""
    place: int
    """In `FILES` or `shard_files.MEMBERS`."""


@dataclass
class ShardSource:
    """A `Source` that reads samples from tar shards."""

    root: str
    indexes: list[tar_index.TarIndex]
    shards: np.ndarray
    """int32 (N,): the shard of each sample."""
    members: np.ndarray
    """int32 (N, 5): the members of each sample in its shard, in the order of `FILES` or of `shard_files.MEMBERS`."""
    names: list[str]
    kinds: list[str]
    incomplete: list[str]
    """Samples left out because a member is missing, damages, and members that are refused: one line each."""
    normal_axes: str = AXES
    max_pixels: int = MAX_PIXELS
    prepared: shard_files.Header | None = None
    """What prepared samples have in common; None for original files."""
    _maps: dict[int, mmap.mmap] = field(default_factory=dict, repr=False)
    """The local shards of prepared samples that this process has read from last, mapped into memory."""

    @property
    def input_size(self) -> tuple[int, int] | None:
        return self.prepared.input_size if self.prepared else None

    @property
    def resize(self) -> str | None:
        return self.prepared.resize if self.prepared else None

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # every worker process maps the shards itself

    def files(self, position: int) -> list[tuple[str, bytes | memoryview]]:
        """Name and content of the members of a sample. Raises `BadInput` if its shard cannot be read."""
        index, numbers = self.indexes[self.shards[position]], self.members[position].tolist()
        return list(zip(index.names_of(numbers), index.read(numbers), strict=True))

    def read(self, position: int) -> Sample:
        index, numbers = self.indexes[self.shards[position]], self.members[position].tolist()
        if self.prepared:
            members = index.read(numbers) if places.is_address(index.place) else self._mapped(position)
            return shard_files.unpacked(self.names[position], index.place, members, self.prepared)
        return read_bytes(places.shown(index.place), self.names[position], self.files(position), self.normal_axes,
                          self.max_pixels)

    def _mapped(self, position: int) -> list[memoryview]:
        """The members of a sample without a copy of them. Raises `BadInput` if the shard has become shorter."""
        shard = int(self.shards[position])
        index, members = self.indexes[shard], self.members[position]
        starts, lengths = index.starts[members].tolist(), index.lengths[members].tolist()
        try:
            if (mapped := self._maps.pop(shard, None)) is None:
                with open(index.place, "rb") as file:
                    # Nobody writes, but PyTorch takes memory without a copy only if it could be written.
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._maps[shard] = mapped
            if len(self._maps) > MOST_MAPS:  # the one that was read from longest ago; samples may still hold it
                del self._maps[next(iter(self._maps))]
            size = min(len(mapped), mapped.size())  # a byte behind the end of the file would end the process
        except (OSError, ValueError) as error:
            raise BadInput(f"{index.place} cannot be read: {first_line(error)}. Check the path.") from error
        if size < max(map(sum, zip(starts, lengths, strict=True))):
            raise BadInput(f"{index.place}: expected {index.stamp.size} bytes, received {size}. The shard has changed "
                           "or is truncated: fetch it again.")
        view = memoryview(mapped)
        return [view[start : start + length] for start, length in zip(starts, lengths, strict=True)]

    def fingerprint(self) -> str:
        """That of the folder, if these are its files in its order; so a run may go on with shards of its data."""
        digest = hashlib.sha256(self.prepared.source.encode() if self.prepared else b"")
        for position, name in enumerate(self.names):
            lengths = self.indexes[self.shards[position]].lengths[self.members[position]]
            digest.update(f"{name} {lengths.tolist()}\n".encode())
        return digest.hexdigest()


def is_sharded(root: Path | str) -> bool:
    """Whether a data root stands for tars: an address, a tar, a pattern, a list of tars, or a folder with tars."""
    if places.is_address(str(root)):
        return True
    if os.path.isdir(root):  # Path.is_dir raises for a name that is too long
        return os.path.isfile(os.path.join(root, shard_files.RECORD)) or bool(shard_files.tars_in(Path(root)))
    return str(root).lower().endswith((tar_index.SUFFIX, *LIST_SUFFIXES))


def open_shards(root: Path | str, normal_axes: str = AXES, max_pixels: int = MAX_PIXELS) -> ShardSource:
    """Find the samples of all shards. The index of a shard is made when it is opened for the first time.

    Args:
        root: A tar, a folder of tars, a glob, a brace pattern such as shard-{000000..000123}.tar, or an address of one.
        normal_axes: How original files store the components of normals.
        max_pixels: Original files with more pixels are broken samples.

    Raises:
        BadInput: There are no shards or no samples, a shard is missing or no tar, the set is not whole, or original
            files and prepared samples are mixed.
        MissingPackage: The package of an address's protocol is not installed.
    """
    text = str(root)
    tars = shards_of(text)
    shard_files.check_whole(text, tars)
    found = _Found()
    for number, tar in enumerate(tars):
        found.add(number, tar_index.load_index(tar))
    if not found.names:
        detail = f"{len(found.incomplete)} incomplete ones or damages, such as {found.incomplete[0]}" \
            if found.incomplete else f"{found.others} other members"
        raise BadInput(
            f"data root {places.shown(text)}: expected samples in tar shards (0000000.rgb.png, 0000000.alpha.png, "
            f"0000000.depth.exr, 0000000.normal.exr, 0000000.cam.txt), found {len(tars)} tars with {detail}. Check "
            f"--data-root, or pack a folder: {command('train.prepare')} --shards --data-root DIR --out SHARDS")
    if len(set(found.forms)) > 1:
        raise BadInput(f"data root {places.shown(text)}: expected original files or samples at training size, found "
                       "shards of both. Give one of them.")
    source = ShardSource(
        places.shown(text), found.indexes, np.array(found.shards, np.int32), np.array(found.members, np.int32),
        found.names, [kind_of_index(int(name)) for name in found.names], found.incomplete, normal_axes,
        max_pixels)
    if found.forms[0] == "prepared":
        source.prepared = shard_files.header(source.indexes[source.shards[0]], source.members[0].tolist())
        source.normal_axes = AXES  # they hold converted normals
    return source


class _Found:
    """Collects the samples of shards."""

    def __init__(self) -> None:
        self.indexes: list[tar_index.TarIndex] = []
        self.shards: list[int] = []
        self.members: list[list[int]] = []
        self.names: list[str] = []
        self.forms: list[str] = []
        self.incomplete: list[str] = []
        self.others = 0
        self._seen: set[str] = set()

    def add(self, number: int, index: tar_index.TarIndex) -> None:
        """Add the samples of one shard."""
        self.indexes.append(index)
        self.incomplete += index.problems
        label = places.base_name(index.place)
        found: dict[tuple[str, str, str, bool], list[int | None]] = {}
        for member, name in enumerate(index.names):
            role = _role(name)
            if role is None:
                self.others += 1
            else:
                found.setdefault(role[:4], [None] * len(FILES))[role.place] = member
        forms = set()
        for (sample, form, folder, _), members in sorted(found.items(), key=lambda one: (int(one[0][0]), one[0])):
            forms.add(form)
            wanted = shard_files.MEMBERS if form == "prepared" else list(_ROLES)
            missing = [wanted[i] for i, member in enumerate(members) if member is None]
            if missing:
                self.incomplete.append(f"{label}, sample {folder}{sample}: no {', '.join(missing)}")
            elif sample in self._seen:
                self.incomplete.append(f"{label}, sample {folder}{sample}: there is one of this number already")
            else:
                self._seen.add(sample)
                self.shards.append(number)
                self.members.append(members)
                self.names.append(sample)
        self.forms += forms


def _role(name: str) -> _Role | None:
    """What a member is to its sample; None if it belongs to none."""
    if match := _ORIGINAL.fullmatch(name):
        return _Role(match[2], "original", match[1] or "", False, _ROLES[match[3]])
    if match := _NAMED.fullmatch(name):
        place = _ROLES.get(f"{match[2]}.{match[4]}")
        return None if place is None else _Role(match[3], "original", match[1] or "", True, place)
    if match := _PREPARED.fullmatch(name):
        return _Role(match[2], "prepared", match[1] or "", False, shard_files.MEMBERS.index(match[3]))
    return None
