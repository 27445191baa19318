"""The members of a tar file and where their bytes are, so that any of them can be read without the others.

A member that is no plain file inside the archive (a link, a device, an absolute path, a path with "..") is refused by
name. Of a damaged or truncated archive everything that is whole is found, and the damage is named. Folders and hidden
files are passed over.

An index is made in one pass over the headers. `load_index` keeps it: `shard.tar.index` beside the shard if the writer
left one, else a file in the user's cache. It holds as long as size and time of the shard are the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import places
from .errors import BadInput
from .files import replacing, user_cache

SUFFIX = ".tar"
INDEX_SUFFIX = ".index"
FORMAT = 1
_BLOCK = tarfile.BLOCKSIZE
_MOST_HEADER = 1 << 20  # bytes of an extended header; a name has a few hundred at most
_SEARCH = 1 << 20  # bytes that are searched at a time for the header after a damage
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MOST_PROBLEMS = 100
_MOST_OVERHEAD = 1 << 20  # bytes of an index besides names and offsets, which are fewer than the archive's headers

Problem = Callable[[str], None]
"""Is told of a member that is refused, or of a damage: one sentence without the name of the archive."""


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    start: int
    """Byte of the archive at which its content begins."""
    length: int


class _Headers:
    """A file that `tarfile` reads headers from; one that claims to be huge is refused before it takes memory."""

    def __init__(self, file: Any) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST_HEADER:
            raise tarfile.InvalidHeaderError(f"an extended header of {size} bytes")
        return self.file.read(size)


def scan(file: Any, size: int, problem: Problem) -> Iterator[Member]:
    """The plain files of a tar, in order. Between two of them, the caller may seek and read in `file`.

    Args:
        file: Open for reading; can seek.
        size: Bytes of the archive.
        problem: Is told of members that are refused and of damages.

    Raises:
        BadInput: It is compressed, or no tar at all.
    """
    file.seek(0)
    head = file.read(_BLOCK)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise BadInput(f"expected an uncompressed tar, received {name} data, in which no member can be found "
                           "without unpacking all before it. Decompress it.")
    # The archive that `TarInfo.fromtarfile` needs; its own loop over headers ends silently at a damage.
    archive = tarfile.TarFile(fileobj=io.BytesIO(bytes(2 * _BLOCK)))
    archive.fileobj = _Headers(file)
    at, seen, any_header, damaged = 0, set(), False, False
    while at < size:
        file.seek(at)
        archive.offset = at
        try:
            info = tarfile.TarInfo.fromtarfile(archive)
            if info.size < 0 or archive.offset <= at:
                raise tarfile.InvalidHeaderError("a negative size")
        except tarfile.EOFHeaderError:
            following = _next_header(file, at + _BLOCK, size)
            if following is None:
                return
            problem(f"an end mark at byte {at}, and more members from byte {following} on, which are read too")
            at = following
            continue
        except (tarfile.TarError, ValueError, OverflowError, RecursionError, LookupError, AttributeError, TypeError):
            following = _next_header(file, at + _BLOCK, size)
            if not any_header and following is None:
                raise BadInput("expected a tar, but it has no header of one: it is damaged or of another format.") \
                    from None
            damaged = True
            until = f"to {following}" if following is not None else "on"
            problem(f"damaged or truncated from byte {at} {until}; what was there is lost")
            if following is None:
                return
            at = following
            continue
        any_header, at = True, archive.offset
        name, reason = _judged(info)
        if reason is None and info.isreg() and info.offset_data + info.size > size:
            problem(f"truncated: {_quoted(name)} has {max(0, size - info.offset_data)} of its {info.size} bytes")
            damaged = True
        elif reason:
            problem(f"{_quoted(info.name)} refused: {reason}")
        elif name and (key := hash(name)) in seen:
            problem(f"{_quoted(name)} refused: the archive has this name already")
        elif name:
            seen.add(key)
            yield Member(name, info.offset_data, info.size)
    if not any_header:
        raise BadInput("expected a tar, received an empty file.")
    if not damaged:
        problem("truncated: the mark at its end is missing, and so may be members")


def _judged(info: tarfile.TarInfo) -> tuple[str, str | None]:
    """The name of a member below the root of the archive, "" if it is passed over, and why it is refused."""
    if info.isdir():
        return "", None
    if not info.isreg() or info.issparse():
        what = ("a link" if info.issym() or info.islnk() else "a device or pipe" if info.isdev() else
                "a sparse file" if info.isreg() else "not a file")
        return "", f"{what}, and only plain files are read"
    return _below_root(info.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


def _below_root(name: str) -> tuple[str, str | None]:
    """A member's path below the root of the archive, "" if it is hidden or refused, and why it is refused."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        return "", "its path leads out of the archive"
    if "\\" in name:
        return "", "its name has a backslash, which leads out of the archive on Windows"
    if re.match("[A-Za-z]:", name):
        return "", f"its name begins with {name[:2]}, which leads out of the archive on Windows"
    if not name.isprintable():
        return "", "its name has characters that cannot be printed"
    kept = [part for part in parts if part not in ("", ".")]
    return ("" if not kept or any(part.startswith(".") for part in kept) else "/".join(kept)), None


def refusal(name: str) -> str | None:
    """Why readers would refuse or pass over a member of this name; None if they take it under this very name."""
    found, reason = _below_root(name)
    if reason is None and (not found or found != name):
        return "a part of its path is empty or a dot" if found else "it is hidden, and hidden files are passed over"
    return reason


def _quoted(name: str) -> str:
    text = ascii(name) if not name.isprintable() else f"'{name}'"
    return text if len(text) <= 120 else f"{text[:117]}...'"


def _next_header(file: Any, at: int, size: int) -> int | None:
    """The first byte from `at` on, in steps of a block, where the header of a member is; None if there is none."""
    while at + _BLOCK <= size:
        file.seek(at)
        data = file.read(_SEARCH)
        whole = len(data) - len(data) % _BLOCK
        if not whole:
            return None
        blocks = np.frombuffer(data[:whole], np.uint8).reshape(-1, _BLOCK)
        for row in np.flatnonzero((blocks[:, 257:262] == np.frombuffer(b"ustar", np.uint8)).all(axis=1)):
            with contextlib.suppress(tarfile.TarError, ValueError):
                tarfile.TarInfo.frombuf(blocks[row].tobytes(), "utf-8", "surrogateescape")
                return at + int(row) * _BLOCK
        at += whole
    return None


@dataclass(frozen=True)
class TarIndex:
    """Where the members of a tar are. Pickles small: a few dozen bytes for each of them."""

    place: str
    stamp: places.Stamp
    """Of the archive when the index was made."""
    text: np.ndarray
    """uint8: the names in UTF-8, one after the other."""
    ends: np.ndarray
    """int64 (N,): where each name ends in `text`."""
    starts: np.ndarray
    """int64 (N,): byte of the archive at which a member begins."""
    lengths: np.ndarray
    """int64 (N,): bytes of a member."""
    found: tuple[str, ...]
    """Damages and refused members: one sentence each, without the name of the archive."""

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def names(self) -> list[str]:
        """The names of the members in their order in the archive."""
        text, ends = self.text.tobytes(), self.ends.tolist()
        return [text[a:b].decode() for a, b in zip([0, *ends], ends, strict=False)]

    def names_of(self, numbers: Sequence[int]) -> list[str]:
        """The names of some members."""
        begins = [int(self.ends[number - 1]) if number else 0 for number in numbers]
        return [self.text[begin : self.ends[number]].tobytes().decode()
                for begin, number in zip(begins, numbers, strict=True)]

    @property
    def problems(self) -> list[str]:
        """Damages and refused members: one line each, which names the archive."""
        return [f"{places.shown(self.place)}: {one}" for one in self.found]

    def members(self) -> Iterator[Member]:
        """All members in their order in the archive."""
        for name, start, length in zip(self.names, self.starts.tolist(), self.lengths.tolist(), strict=True):
            yield Member(name, start, length)

    def read(self, numbers: Sequence[int]) -> list[bytes | memoryview]:
        """The contents of members by number; neighbours are read in one go. Raises `BadInput` as `places.read` does."""
        starts, lengths = self.starts[numbers], self.lengths[numbers]
        low, high = int(starts.min()), int((starts + lengths).max())
        if high - low <= int(lengths.sum()) + 4096 * len(numbers):
            data = memoryview(places.read(self.place, low, high - low))
            return [data[start - low : start - low + length] for start, length in
                    zip(starts.tolist(), lengths.tolist(), strict=True)]
        return [places.read(self.place, start, length) for start, length in
                zip(starts.tolist(), lengths.tolist(), strict=True)]


def make_index(place: str) -> TarIndex:
    """Index a tar in one pass over its headers.

    Raises `BadInput`, which names it, if it is not a tar or cannot be read to its end.
    """
    stamp = places.stamp(place)
    problems: list[str] = []
    with places.opened(place) as file:
        try:
            members = list(scan(file, file.seek(0, os.SEEK_END), problems.append))
        except BadInput as error:
            raise BadInput(f"{places.shown(place)}: {error}") from error
        except OSError as error:
            raise places.unreadable(place, error) from error
    return from_members(place, stamp, members, problems)


def from_members(place: str, stamp: places.Stamp, members: list[Member], problems: list[str]) -> TarIndex:
    """An index of known members; `problems` are sentences without the name of the archive."""
    encoded = [member.name.encode() for member in members]
    if len(problems) > _MOST_PROBLEMS:
        problems = [*problems[:_MOST_PROBLEMS], f"{len(problems) - _MOST_PROBLEMS} more such"]
    return TarIndex(
        place, stamp, np.frombuffer(b"".join(encoded), np.uint8),
        np.cumsum([len(name) for name in encoded], dtype=np.int64),
        np.array([member.start for member in members], np.int64),
        np.array([member.length for member in members], np.int64),
        tuple(problems),
    )


def load_index(place: str) -> TarIndex:
    """The index of a tar: a kept one if it still fits, else a new one, which is kept in the user's cache.

    Raises `BadInput`, which names the tar, if it does not exist or is none.
    """
    if (index := kept_index(place)) is not None:
        return index
    index = make_index(place)
    if (cached := _cache_file(place)) is not None:
        with contextlib.suppress(BadInput):  # a home that cannot be written costs time, not the run
            write_index(index, cached)
    return index


def kept_index(place: str) -> TarIndex | None:
    """The index of a tar if one is kept that still fits. Raises `BadInput` if the tar does not exist."""
    stamp = places.stamp(place)
    kept = (_kept(place, str(file), stamp) for file in (places.with_suffix(place, INDEX_SUFFIX), _cache_file(place))
            if file)
    return next((index for index in kept if index is not None), None)


def _kept(place: str, file: str, stamp: places.Stamp) -> TarIndex | None:
    """A kept index if it is whole and of this archive. Beside an address it need only be of the same size."""
    with contextlib.suppress(Exception):  # zip files and arrays that someone damaged raise all kinds
        if stamp.size is None or not (places.is_address(file) or os.path.isfile(file)):
            return None
        most = stamp.size + _MOST_OVERHEAD
        if (length := places.stamp(file).size) is None or length > most:
            return None
        data = places.read(file, 0, length)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > most:
                return None
        table = np.load(io.BytesIO(data))
        size, version, form = table["stamp"].tolist()
        copied = places.is_address(file)  # the time of change is that of the upload
        if int(form) != FORMAT or int(size) != stamp.size or (not copied and version != stamp.version):
            return None
        index = TarIndex(place, stamp, table["text"], table["ends"], table["starts"], table["lengths"],
                         tuple(table["found"].tolist()))
        return index if _fits(index, stamp.size) else None
    return None


def _fits(index: TarIndex, size: int) -> bool:
    """Whether an index could be that of an archive of `size` bytes. Anyone may have written the file beside it."""
    count = len(index)
    arrays = (index.ends, index.starts, index.lengths)
    if index.text.dtype != np.uint8 or index.text.ndim != 1 or \
            any(array.dtype != np.int64 or array.shape != (count,) for array in arrays):
        return False
    if (np.diff(index.ends, prepend=0) < 0).any() or (index.ends[-1] if count else 0) != len(index.text):
        return False
    if (index.lengths < 0).any() or (index.starts < 0).any() or (index.starts > size - index.lengths).any():
        return False
    names = index.names  # raises UnicodeDecodeError, a ValueError
    return len(set(names)) == count and not any(map(refusal, names)) and \
        all(isinstance(line, str) and line.isprintable() for line in index.found)


def write_index(index: TarIndex, path: Path) -> None:
    """Keep an index in a file. Raises `BadInput` if it cannot be written."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, stamp=np.array([str(index.stamp.size), index.stamp.version, str(FORMAT)]), text=index.text,
                 ends=index.ends, starts=index.starts, lengths=index.lengths, found=np.array(index.found, str))


def _cache_file(place: str) -> Path | None:
    whole = place if places.is_address(place) else os.path.abspath(place)
    folder = user_cache()
    name = hashlib.sha256(whole.encode(errors="surrogateescape")).hexdigest()
    return folder and folder / "tar-index" / name
