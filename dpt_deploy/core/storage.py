"""Inputs by the million: folders, globs, lists, tar shards and buckets as one ordered stream of small items.

    for item in find_items(["photos", "s3://bucket/shards/*.tar"], suffixes=SUFFIXES, recursive=True):
        image = decode(item.read())         # item.key names it, the same in every run

What a source may be:

    photos                            the files of a folder; with recursive, of its subfolders too
    photos/**/*.jpg                   a glob
    list.txt                          a list: one file, tar or address per line (.txt, .lst, .list)
    @list                             a list, whatever its name is
    shard-000000.tar                  the members of a tar; a folder's tars are opened as well
    shard-{000000..000123}.tar        a brace pattern
    s3://bucket/folder                any of these behind a protocol of fsspec: see `core.places`

The stream is lazy: a folder's names are in memory while the folder is read, and nothing else grows with the number of
items. It is sorted by path within each source, in the order of the sources. `share` takes every n-th item.
"""

from __future__ import annotations

import codecs
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from . import patterns, places, tar_index
from .errors import BadInput, DptError, first_line, not_images
from .hashes import hashed
from .keys import safe_path, shared_paths, with_hash
from .tar_index import Member

LIST_SUFFIXES = (".txt", ".lst", ".list")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LEFT_OUT = 5  # names that `Listing.left_out_line` shows


@dataclass(frozen=True, slots=True)
class Item:
    """One input. Plain data: it can be pickled and read in another process or on another machine."""

    key: str
    """The path below its source, with / between the components: the same in every run, unique in a listing (unless a
    list names a file twice), safe below an output folder. Where two lines of a list would have the same one, a hash of
    the whole place is in both. With several sources, the name of the source comes first. Of a member, the name of its
    tar does, unless the tar is the only source."""
    place: str
    """The local path or the address of the file, or of the tar."""
    member: str = ""
    """The name in the tar; "" for a file of its own."""
    start: int = 0
    """Byte of the tar at which the member begins."""
    size: int | None = None
    """Bytes; None where the listing does not tell."""
    data: bytes | None = field(default=None, repr=False)
    """The content, where the listing has come past it anyway: members of a remote tar without an index."""

    @property
    def label(self) -> str:
        """For messages: the place, without passwords, and the member."""
        return f"{places.shown(self.place)}: {self.member}" if self.member else places.shown(self.place)

    @property
    def path(self) -> Path | None:
        """The local file; None for a member of a tar and behind an address."""
        return None if self.member else places.local(self.place)

    def read(self) -> bytes:
        """All bytes. Raises `BadInput`, which names the item, if it cannot be read; `MissingPackage` as `places`."""
        if self.data is not None:
            return self.data
        if not self.member:
            return places.read(self.place)
        try:
            return places.read(self.place, self.start, self.size)
        except BadInput as error:
            raise BadInput(f"{self.label}: {error}") from error

    def open(self) -> BinaryIO:
        """A file open for reading that can seek. Raises as `read`."""
        try:
            return open(self.path, "rb") if self.path is not None else io.BytesIO(self.read())
        except OSError as error:
            raise BadInput(f"{self.label} cannot be read: {error.strerror}. Check the path.") from error

    def items(self, suffixes: Sequence[str] = (), problem: Callable[[str], None] | None = None,
              left_out: Callable[[str], None] | None = None) -> Iterator[Item]:
        """Itself, so that the units of a listing are all read alike."""
        yield self


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar whose members are inputs. Plain data, as `Item`."""

    key: str
    """What the keys of its items begin with, without the slash: its own path; "" for nothing."""
    place: str
    contents: bool = True
    """A remote tar without an index is read from front to end, and items hold their content. False: it is indexed."""

    @property
    def remote(self) -> bool:
        return places.is_address(self.place)

    def items(self, suffixes: Sequence[str] = (), problem: Callable[[str], None] | None = None,
              left_out: Callable[[str], None] | None = None) -> Iterator[Item]:
        """The members of the archive, in order.

        A local tar, and a remote one with an index beside it, are indexed: items hold the offset. Another remote tar is
        read once from front to end, and items hold their content.

        Args:
            suffixes: A member is an item if its name ends in one of these, in any case; () for all.
            problem: Is told, in one line, of damage, of members that are refused, and of a tar that cannot be read.
            left_out: Is told the names of members that are not items.
        """
        say = problem or (lambda line: None)
        try:
            for member, data in self._members(say, suffixes):
                if not _fits(member.name, suffixes):
                    if left_out:
                        left_out(member.name)
                    continue
                key = safe_path(member.name)
                yield Item(f"{self.key}/{key}" if self.key else key, self.place, member.name, member.start,
                           member.length, data)
        except DptError as error:
            say(str(error))

    def _members(self, say: Callable[[str], None], suffixes: Sequence[str]) -> Iterator[tuple[Member, bytes | None]]:
        index = tar_index.kept_index(self.place)
        if index is None and not (self.remote and self.contents):
            index = tar_index.load_index(self.place)
        if index is not None:
            for line in index.problems:
                say(line)
            yield from ((member, None) for member in index.members())
            return
        name = places.shown(self.place)
        with places.opened(self.place) as file:
            size = file.seek(0, os.SEEK_END)
            members = tar_index.scan(file, size, lambda line: say(f"{name}: {line}"))
            try:
                for member in members:
                    data = None
                    if _fits(member.name, suffixes):
                        file.seek(member.start)
                        data = file.read(member.length)
                        if len(data) != member.length:
                            raise EOFError(f"{member.name} has {len(data)} of its {member.length} bytes")
                    yield member, data
            except (OSError, EOFError) as error:
                say(f"{name}: the connection broke off: {first_line(error)}. What came after is missing: run again")
            except BadInput as error:
                say(f"{name}: {error}")


Unit = Item | Shard
"""What is dealt to processes: a file, or a tar with many."""


def _fits(name: str, suffixes: Sequence[str]) -> bool:
    return not suffixes or name.lower().endswith(tuple(suffixes))


@dataclass(frozen=True)
class _Source:
    """One argument of `find_items`, looked at."""

    text: str
    label: str
    """What keys begin with if there are several sources."""
    units: Callable[[Listing], Iterator[tuple[str, str, int | None]]]
    """Path for the key, place and size of every file."""
    chosen: bool = False
    """The files are named one by one, and are items whatever their suffix is."""
    single: bool = False
    """The source is one file, whose name is its key."""
    free: bool = False
    """The files may be anywhere, as those of a list, so that the paths of two may give one key."""


@dataclass
class Listing:
    """The inputs of a run: iterate as often as you like, each time anew and in the same order.

    `units` are the files and tars before tars are opened, for programs that deal work to other processes:

        for unit in listing.units():          # in the main process
            for item in unit.items(listing.suffixes, problem): ...      # in any process
    """

    sources: list[_Source]
    suffixes: tuple[str, ...] = ()
    recursive: bool = False
    share: tuple[int, int] = (0, 1)
    on_problem: Callable[[str], None] | None = None
    """Is told of each problem at once."""
    contents: bool = True
    """See `Shard`."""
    problems: int = 0
    """How many folders, tars and members could not be listed in the latest iteration. A run with any is not whole."""
    left_out: int = 0
    """How many files were passed over in the latest iteration, because `suffixes` does not have theirs."""
    left_out_names: list[str] = field(default_factory=list)
    """The first few of them."""

    def __iter__(self) -> Iterator[Item]:
        part, count = self.share
        number, remote = itertools.count(), itertools.count()
        for unit in self.units():
            if isinstance(unit, Shard) and unit.remote:  # as a whole: each process would fetch all of it
                if next(remote) % count == part:
                    yield from unit.items(self.suffixes, self._problem, self._left_out)
                continue
            for item in unit.items(self.suffixes, self._problem, self._left_out):
                if next(number) % count == part:
                    yield item

    def units(self) -> Iterator[Unit]:
        """Files and tars, of all shares, in order. Raises `BadInput` if a source itself cannot be listed any more."""
        self.problems, self.left_out, self.left_out_names = 0, 0, []
        prefixes = _prefixes(self.sources)
        for source, prefix in zip(self.sources, prefixes, strict=True):
            shared = shared_paths(source.units(self)) if source.free else frozenset()
            for path, place, size in source.units(self):
                path = safe_path(path)
                if shared and hashed(path) in shared:
                    path = with_hash(path, place)
                key = safe_path(prefix if source.single and prefix else f"{prefix}/{path}" if prefix else path)
                name = places.base_name(place).lower()
                if name.endswith(f"{tar_index.SUFFIX}{tar_index.INDEX_SUFFIX}"):
                    continue
                if name.endswith(tar_index.SUFFIX):
                    yield Shard("" if source.single and not prefix else key, place, self.contents)
                elif source.chosen or _fits(name, self.suffixes):
                    yield Item(key, place, size=size)
                else:
                    self._left_out(path)

    def left_out_line(self) -> str:
        """One line that counts and names what was left out; "" if nothing was."""
        return not_images(self.left_out, self.left_out_names) if self.left_out else ""

    def _problem(self, line: str) -> None:
        self.problems += 1
        if self.on_problem:
            self.on_problem(line)

    def _left_out(self, name: str) -> None:
        self.left_out += 1
        if len(self.left_out_names) < _LEFT_OUT:
            self.left_out_names.append(name)


def find_items(
    sources: Sequence[str | os.PathLike[str]], suffixes: Sequence[str] = (), recursive: bool = False,
    share: tuple[int, int] = (0, 1), on_problem: Callable[[str], None] | None = None, contents: bool = True,
) -> Listing:
    """Look at the sources, and return the listing of their items. Nothing below them is listed yet.

    Args:
        sources: See the top of this module.
        suffixes: Files and members are items if their names end in one of these, in any case; () for all. A file that
            is a source itself, or a line of a list, is always one.
        recursive: Also take the files of subfolders.
        share: (part, parts) with 0 <= part < parts: every parts-th item, counted over all sources; of remote tars,
            every parts-th tar. The shares are disjoint, together they are everything, and they differ by one item
            (tar) at most. They are the same for every run while the sources list the same files.
        on_problem: Is told, in one line each, of what cannot be listed: damaged tars, refused members, folders without
            permission.
        contents: Items of remote tars without an index hold their content, which saves a second request. False: such
            a tar is indexed first, for programs that keep many items.

    Raises:
        BadInput: A source does not exist or cannot be listed, or `share` is out of range.
        MissingPackage: The package of a protocol is not installed; the message says what to run.
    """
    part, parts = share
    if not 0 <= part < parts:
        raise BadInput(f"share: expected a part from 0 to {parts - 1} of {parts}, received {part}.")
    if not sources:
        raise BadInput("expected a file, a folder, a glob, a list, a tar or an address, received nothing.")
    looked_at = [_look_at(places.normalized(source)) for source in sources]
    return Listing(looked_at, tuple(suffix.lower() for suffix in suffixes), recursive, share, on_problem,
                   contents)


def _look_at(text: str) -> _Source:
    special = text.startswith("@") or (patterns.has_wildcards(text) and places.is_address(text))
    there = None if special and not os.path.exists(text) else places.kind(text)
    if there is None and text.startswith("@"):
        listed = places.normalized(text[1:])
        if places.kind(listed) != "file":
            raise BadInput(f"{places.shown(text)}: expected @ and a list of files, but there is no file "
                           f"{places.shown(listed)}. Check the path.")
        name = os.path.splitext(places.base_name(listed))[0]
        return _Source(text, name, lambda listing: _lines(listed), chosen=True, free=True)
    if there is None and patterns.has_braces(text):
        folder, rest = patterns.fixed_part(text)
        first = next(patterns.expand(text))  # raises now, not when the run is under way

        def expanded(listing: Listing) -> Iterator[tuple[str, str, int | None]]:
            offset = len(text) - len(rest)
            for place in patterns.expand(text):
                yield places.without_query(place)[offset:] or places.base_name(place), place, None

        return _Source(text, places.base_name(folder) or places.base_name(first), expanded, free=True)
    if there is None and patterns.has_wildcards(text):
        folder, rest = patterns.fixed_part(text)
        return _walked(text, folder, lambda listing: rest)
    if there is None:
        address = places.is_address(text)
        what, where = ("address", "it, and that the server answers") if address else ("file or folder", "the path")
        raise BadInput(f"{places.shown(text)}: expected a file, a folder, a glob, a list, a tar or an address, but "
                       f"there is no such {what}. Check {where}.")
    if there == "folder":
        return _walked(text, text, lambda listing: "**" if listing.recursive else "*")
    name = places.base_name(text)
    if name.lower().endswith(LIST_SUFFIXES):
        return _Source(text, os.path.splitext(name)[0], lambda listing: _lines(text), chosen=True, free=True)
    return _Source(text, name, lambda listing: iter([(name, text, None)]), True, True)


def _walked(text: str, folder: str, pattern: Callable[[Listing], str]) -> _Source:
    label = places.base_name(folder) or places.base_name(os.path.abspath(folder)) or "root"
    if label in (".", ".."):
        label = os.path.basename(os.path.abspath(folder)) or "root"
    places.entries(folder)  # raises if it cannot be listed
    return _Source(text, label, lambda listing: patterns.walk(
        folder, pattern(listing), listing._problem, listing._left_out if folder == text else None))


def _lines(text: str) -> Iterator[tuple[str, str, int | None]]:
    """The files of a list. Relative ones are below the folder of the list."""
    with places.opened(text) as file:
        try:
            for number, line in enumerate(file):
                if number == 0 and line.startswith(_UTF_16):
                    raise BadInput(f"{places.shown(text)}: expected a list in UTF-8, received UTF-16. Save it as "
                                   "UTF-8.")
                line = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
                place = line.decode("utf-8", "surrogateescape").strip()
                if not place or place.startswith("#"):
                    continue
                place = places.normalized(place)
                absolute = places.is_address(place) or os.path.isabs(place)
                path = places.path_of(place) if places.is_address(place) else place
                yield path, place if absolute else places.sibling(text, place), None
        except OSError as error:
            raise places.unreadable(text, error) from error


def _prefixes(sources: Iterable[_Source]) -> list[str]:
    """What the keys of each source begin with: nothing if it is the only one, else a name that no other has."""
    sources = list(sources)
    if len(sources) == 1:
        return [""]
    used: set[str] = set()
    chosen = []
    for source in sources:
        stem, suffix = os.path.splitext(source.label) if source.single else (source.label, "")
        name = source.label
        for number in itertools.count(2):
            if name not in used:
                break
            name = f"{stem}-{number}{suffix}"
        used.add(name)
        chosen.append(name)
    return chosen


def shards_of(place: str | os.PathLike[str]) -> list[str]:
    """The tars that a place stands for, sorted: a tar, a folder of tars, a glob, a brace pattern, or an address of one.

    Raises:
        BadInput: It does not exist.
        MissingPackage: The package of its protocol is not installed.
    """
    return [unit.place for unit in find_items([place], suffixes=(tar_index.SUFFIX,)).units() if isinstance(unit, Shard)]


