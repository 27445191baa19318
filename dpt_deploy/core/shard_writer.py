"""Writing tar shards in WebDataset's naming: the members of a sample share a stem up to the first dot."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from . import tar_index
from .errors import BadInput
from .files import cannot_write, temporary_folder
from .places import Stamp

MOST_BYTES = 1 << 30
MOST_SAMPLES = 10_000
_BLOCK = tarfile.BLOCKSIZE


class ShardWriter:
    """Writes samples to shard-000000.tar, shard-000001.tar, ... and an index beside each. A context.

    A shard appears under its name when it is whole; a killed process leaves none that is not. Of the same samples,
    every run writes the same bytes.

        with ShardWriter(Path("out")) as writer:
            writer.add("0000000", {"rgb.png": data, "json": text})     # members 0000000.rgb.png and 0000000.json
        writer.paths                                                   # what was written

    Args:
        folder: Made if it does not exist.
        name: What the names of the shards begin with. Several processes that write to one folder each need their own.
        first: Number of the first shard.
        most_bytes: A shard is closed before it would get larger, unless by a single sample.
        most_samples: A shard holds at most this many.
        before: Called with the complete file and the path that it gets, before it gets it.
    """

    def __init__(
        self, folder: Path, name: str = "shard", first: int = 0, most_bytes: int = MOST_BYTES,
        most_samples: int = MOST_SAMPLES, before: Callable[[Path, Path], None] | None = None,
    ) -> None:
        self.folder, self.name, self.number = Path(folder), name, first
        self.most_bytes, self.most_samples, self.before = most_bytes, most_samples, before
        self.paths: list[Path] = []
        """The shards that are whole, in order."""
        self._open: contextlib.ExitStack | None = None
        self._file: io.BufferedWriter
        self._members: list[tar_index.Member] = []
        self._names: set[str] = set()
        self._samples = 0

    @property
    def path(self) -> Path:
        """The shard that the next sample goes to, if it still fits."""
        return self.folder / f"{self.name}-{self.number:06d}.tar"

    def add(self, stem: str, members: Mapping[str, bytes | memoryview]) -> Path:
        """Add a sample.

        Args:
            stem: Such as "0000000" or "folder/0000000". No dots in its last component: readers take what follows the
                first dot for the suffix.
            members: Suffix without the first dot -> content.

        Returns:
            The shard that it goes to. It exists under this name when the writer has gone on to the next, or is closed.

        Raises:
            BadInput: Readers would not take the members under these names, the shard has the sample already, or the
                disk cannot be written.
        """
        if reason := self._refusal(stem, members):
            raise BadInput(f"shard: expected the name of a sample, such as 0000000, received {stem!r}: {reason}.")
        size = sum(_BLOCK + len(data) + -len(data) % _BLOCK for data in members.values())
        if self._samples and (self._samples >= self.most_samples or self._size + size > self.most_bytes):
            self.finish()
        try:
            if self._open is None:
                self._begin()
            for suffix, data in members.items():
                self._add(f"{stem}.{suffix}", data)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._samples += 1
        return self.path

    def _refusal(self, stem: str, members: Iterable[str]) -> str | None:
        """Why no reader would find a sample; one such name would make the whole index invalid."""
        if "." in stem.rpartition("/")[2]:
            return "a dot in its last component begins the suffix"
        names = [f"{stem}.{suffix}" for suffix in members]
        if not self._names.isdisjoint(names):
            return "the shard has it already"
        return next(filter(None, map(tar_index.refusal, names)), None)

    @property
    def _size(self) -> int:
        return self._file.tell() if self._open else 0

    def _begin(self) -> None:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(temporary_folder(self.path))
            self._file = stack.enter_context(open(folder / self.path.name, "wb"))
            self._open = stack.pop_all()

    def _add(self, name: str, data: bytes | memoryview) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)  # time 0, user 0: the same bytes in every run
        self._file.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        self._names.add(name)
        self._members.append(tar_index.Member(name, self._file.tell(), len(data)))
        self._file.write(data)
        self._file.write(bytes(-len(data) % _BLOCK))

    def finish(self) -> Path | None:
        """Close the present shard and give it its name, so that a reader can take it; None if it has no sample.

        The next sample begins another one. Raises `BadInput` if the disk cannot be written.
        """
        if self._open is None:
            return None
        path = self.path
        temporary = Path(self._file.name)
        with self._open:
            try:
                self._file.write(bytes(2 * _BLOCK))
                self._file.close()
                if self.before is not None:
                    self.before(temporary, path)
                temporary.replace(path)
                found = path.stat()
            except OSError as error:
                raise cannot_write(path, error) from error
        stamp = Stamp(found.st_size, str(found.st_mtime_ns))
        tar_index.write_index(tar_index.from_members(str(path), stamp, self._members, []),
                              path.with_name(f"{path.name}{tar_index.INDEX_SUFFIX}"))
        self.paths.append(path)
        self._open, self._members, self._names, self._samples = None, [], set(), 0
        self.number += 1
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the last shard; after an error, discard it."""
        if error is None:
            self.finish()
        elif self._open is not None:
            self._open.close()
            self._open = None
