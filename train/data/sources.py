"""Where samples come from, the split into training and validation, and samples that cannot be used."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from dpt_deploy.core import places
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.image_files import MAX_PIXELS

from ..commands import command
from .cache import CacheSource, is_cache
from .conventions import AXES, parse_axes
from .sample import Sample
from .shard_files import tars_in
from .shards import is_sharded, open_shards
from .synthhuman import KINDS, find_samples


class Source(Protocol):
    """Samples by position."""

    root: Path | str
    names: Sequence[str]
    kinds: Sequence[str]
    incomplete: Sequence[str]
    """Samples left out because a file is missing: one line each."""
    normal_axes: str
    """How the components of normals are stored."""
    input_size: tuple[int, int] | None
    """Height and width that all samples were prepared at; None for original files."""
    resize: str | None
    """The resize rule that they were prepared with; None for original files."""

    def __len__(self) -> int: ...

    def read(self, position: int) -> Sample:
        """Read a sample. Raises `BadInput`, which names it, if it is missing or broken."""
        ...

    def fingerprint(self) -> str:
        """A hash that changes when samples are added or removed, or a file changes in size."""
        ...


def open_source(root: Path | str, normal_axes: str = AXES, max_pixels: int = MAX_PIXELS) -> Source:
    """Find the samples of a data root.

    Args:
        root: A prepared cache, one chunk (SynthHuman_0000), the parent of chunks, or a flat folder; or tar shards: a
            tar, a folder of tars, a glob, a brace pattern such as shard-{000000..000123}.tar, or an address of one.
        normal_axes: How the files store the components of normals. A cache holds them converted.
        max_pixels: Original files with more pixels are broken samples.

    Raises:
        BadInput: There are no samples, or both unpacked samples and tars.
    """
    parse_axes(normal_axes)
    if is_sharded(root):
        return _samples_without_tars(root, normal_axes, max_pixels) or open_shards(root, normal_axes, max_pixels)
    if not os.path.isdir(root):  # Path.is_dir raises for a name that is too long
        what = "a file" if os.path.isfile(root) else "nothing there"
        raise BadInput(
            f"data root {root}: expected a folder of SynthHuman samples or tar shards, found {what}. Give --data-root "
            f"the folder of SynthHuman_0000, or generate data: {command('train.synthetic')} --out data/synthetic"
        )
    root = Path(root)
    return CacheSource.open(root) if is_cache(root) else find_samples(root, normal_axes, max_pixels)


def _samples_without_tars(root: Path | str, normal_axes: str, max_pixels: int) -> Source | None:
    """The samples of a folder that has only the record of a set of shards besides; None if there are none.

    Raises `BadInput` if there are samples and tars.
    """
    if places.is_address(str(root)) or not os.path.isdir(root):
        return None
    root, tars = Path(root), tars_in(Path(root))
    if is_cache(root):
        samples, what = CacheSource.open(root), "a cache"
    else:
        try:
            samples = find_samples(root, normal_axes, max_pixels)
        except BadInput:
            return None
        what = f"{len(samples)} unpacked samples"
    if tars:
        raise BadInput(f"data root {root}: expected samples or tar shards, found {what} and {len(tars)} tars, such as "
                       f"{tars[0].name}. Give --data-root {shlex.quote(f'{root}/*{tars[0].suffix}')} for the tars, or "
                       "move them to another folder.")
    return samples


def split(names: Sequence[str], kinds: Sequence[str], val_fraction: float) -> tuple[list[int], list[int]]:
    """Split samples into training and validation by a hash of the name.

    So a sample stays on its side whatever else is added or removed. If a kind with two or more samples would have none
    for validation, the one with the lowest hash is held out.

    Args:
        names: The name of each sample.
        kinds: The kind of each sample.
        val_fraction: Share of each kind to hold out, in [0, 1).

    Returns:
        Positions for training in ascending order, and for validation in the order of the hash.
    """
    fractions = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 for name in names]
    held_out: set[int] = set()
    for kind in KINDS:
        members = [i for i, k in enumerate(kinds) if k == kind]
        chosen = {i for i in members if fractions[i] < val_fraction}
        if not chosen and len(members) > 1 and val_fraction > 0:
            chosen = {min(members, key=fractions.__getitem__)}
        if len(chosen) == len(members) > 1:
            chosen.remove(max(members, key=fractions.__getitem__))
        held_out |= chosen
    # In the order of the hash, the first few samples for validation are of every kind.
    return [i for i in range(len(names)) if i not in held_out], sorted(held_out, key=fractions.__getitem__)


class BrokenSamples:
    """Names and counts the samples that cannot be used; more than a limit are an error.

    Args:
        source: Its incomplete samples count from the start.
        limit: How many samples may be incomplete or broken.
        say: Prints a line about incomplete samples, which every process finds.
        say_own: Prints a line about a broken sample that this process met; `say` by default.

    Raises:
        BadInput: There are more than `limit`; also from `add`.
    """

    def __init__(
        self, source: Source, limit: int, say: Callable[[str], None], say_own: Callable[[str], None] | None = None
    ) -> None:
        self.incomplete, self.limit, self.say = source.incomplete, limit, say_own or say
        self.reasons: dict[str, str] = {}
        for line in self.incomplete[:5]:
            say(f"incomplete sample skipped: {line}")
        if len(self.incomplete) > 5:
            say(f"incomplete samples skipped: {len(self.incomplete) - 5} more")
        if self.incomplete:
            self._check_limit("incomplete", self.incomplete[0])

    def __len__(self) -> int:
        return len(self.incomplete) + len(self.reasons)

    def add(self, name: str, reason: str) -> None:
        """Count a sample that could not be read; a second time changes nothing."""
        if name not in self.reasons:
            self.reasons[name] = reason
            self.say(f"broken sample skipped: {reason}")
            self._check_limit("broken", reason)

    def _check_limit(self, what: str, example: str) -> None:
        if len(self) > self.limit:
            raise BadInput(f"data: {len(self)} {what} samples, more than --max-broken {self.limit}; one of them: "
                           f"{example} Repair the data, or allow more.")
